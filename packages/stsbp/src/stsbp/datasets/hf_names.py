"""Names of data sets of the Hugging Face Hub."""

from __future__ import annotations

import re

__all__ = ["HUB_NAME"]

HUB_NAME = re.compile(r"(?P<owner>[\w-]+(\.[\w-]+)*)/(?P<name>[\w-]+(\.[\w-]+)*)@(?P<commit>[0-9a-f]{40})")
"""`OWNER/NAME@COMMIT`, which is the same data on every machine."""
