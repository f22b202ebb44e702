"""The quality measure of a run: what its progress, its reports and its choice of the best epoch show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["QUALITIES", "Quality", "quality_of"]


class Quality(NamedTuple):
    """A quality measure.

    Attributes:
        key: its name in records.
        name: its name for users. F1 has the tolerance `stsbp.training.build.TOLERANCE`.
        is_share: whether it is a share, shown in percent, of which more is better. Of an error, less is better.
    """

    key: str
    name: str
    is_share: bool

    def text(self, value: float) -> str:
        """A value of the measure."""
        return f"{value:.2%}" if self.is_share else f"{value:.4g}"


QUALITIES = {
    quality.key: quality
    for quality in (
        Quality("accuracy", "accuracy", True),
        Quality("f1", "F1 (1 step)", True),
        Quality("mse", "mse", False),
    )
}
"""The quality measures by key: of classes, of target spike trains, and of real-valued targets."""


def quality_of(record: Mapping[str, Any]) -> Quality:
    """The quality measure that a record of a run has. Records of classes have an F1 too."""
    return next(quality for key, quality in QUALITIES.items() if key in record)
