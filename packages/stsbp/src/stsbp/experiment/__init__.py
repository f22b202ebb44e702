"""Experiments: a preset is trained with several seeds in one folder, and the results are shown in one table."""

from __future__ import annotations
