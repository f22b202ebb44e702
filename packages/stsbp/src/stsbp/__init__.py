"""Training deep spiking neural networks on labels that are spike sequences: command line, data sets, training loop."""

from __future__ import annotations

__version__ = "0.1.0"
