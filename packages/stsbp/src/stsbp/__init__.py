"""Training deep spiking neural networks on labels that are spike sequences: command line, data sets, training loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name: str) -> str:
        """`__version__`, looked up when it is asked for: `stsbp --help` does without reading metadata."""
        if name == "__version__":
            from importlib.metadata import version

            return version("stsbp")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
