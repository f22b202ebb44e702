"""Say, once a process, that the kernels of the CPU are not on the disk yet: compiling takes seconds, loading none."""

from __future__ import annotations

import logging
from typing import Any

from numba.core import event

__all__ = ["announce"]

_LOG = logging.getLogger(__name__)


class _Announcement(event.Listener):  # type: ignore[misc]
    """Hears of what is compiled, not of what is loaded."""

    def __init__(self) -> None:
        self.said = False

    def on_start(self, event: Any) -> None:
        if not self.said and event.data["dispatcher"].py_func.__module__.startswith("stsbp_torch."):
            self.said = True
            _LOG.warning("compiling the kernels for this processor; later runs load them from the disk")

    def on_end(self, event: Any) -> None:
        pass


_announcement: _Announcement | None = None


def announce() -> None:
    """Warn in the log when the first kernel of this process is compiled."""
    global _announcement
    if _announcement is None:
        _announcement = _Announcement()
        event.register("numba:compile", _announcement)
