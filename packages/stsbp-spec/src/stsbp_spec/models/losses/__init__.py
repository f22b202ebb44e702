"""Losses: distances between outputs and targets, mostly spike trains."""

from __future__ import annotations

from stsbp_spec.errors import SpecError, did_you_mean
from stsbp_spec.models.losses.base import Loss
from stsbp_spec.models.losses.cross_entropy import CrossEntropy, CrossEntropyOfMaximum
from stsbp_spec.models.losses.hamming import Hamming
from stsbp_spec.models.losses.mean_squared_error import MeanSquaredError
from stsbp_spec.models.losses.spike_count import SpikeCount
from stsbp_spec.models.losses.van_rossum import VanRossum
from stsbp_spec.models.user_classes import calling, imported, names_a_class, read_values, split
from stsbp_spec.validation import shown

LOSSES: dict[str, Loss] = {loss.name: loss for loss in (VanRossum(), Hamming(), SpikeCount())}
"""All losses of spike trains by name."""

OF_CLASSES: dict[str, CrossEntropy] = {loss.name: loss for loss in (CrossEntropy(), CrossEntropyOfMaximum())}
"""All losses of a readout's potentials by name whose targets are classes."""

OF_REAL_TARGETS: dict[str, Loss] = {loss.name: loss for loss in (MeanSquaredError(),)}
"""All losses of a readout's potentials by name whose targets are real numbers."""

OF_POTENTIALS: dict[str, Loss] = {**OF_CLASSES, **OF_REAL_TARGETS}
"""All losses of a readout's potentials by name."""

__all__ = [
    "LOSSES",
    "OF_CLASSES",
    "OF_POTENTIALS",
    "OF_REAL_TARGETS",
    "CrossEntropy",
    "CrossEntropyOfMaximum",
    "Hamming",
    "Loss",
    "MeanSquaredError",
    "SpikeCount",
    "VanRossum",
    "parse_loss",
]


def parse_loss(text: str) -> Loss:
    """Read `"hamming"`, or a class of another module, `"my_module:MyLoss:weight=5"`.

    The module is imported. It may also be in the current folder.

    Raises:
        SpecError: the loss or a parameter is unknown, or a value is outside its domain; the module cannot be imported.
    """
    losses = LOSSES | OF_POTENTIALS
    if names_a_class(text, losses):
        cls: type[Loss] = imported(text, (Loss,), "loss")
        module, name, pairs = split(text)
        title = f"loss {shown(f'{module}:{name}')}"
        values = read_values(cls, pairs, title)
        with calling(f"the {title} cannot be made"):
            return cls(**values)
    if text in losses:
        return losses[text]
    *first, last = map(repr, losses)
    names = f"{', '.join(first)} or {last}"
    raise SpecError(f"a loss is {names}, or a class of your own as module:Class{did_you_mean(text, losses)}")
