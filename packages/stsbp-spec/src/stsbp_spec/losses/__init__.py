"""Losses: distances between output spike trains and target spike trains."""

from stsbp_spec.losses.base import Loss
from stsbp_spec.losses.hamming import Hamming
from stsbp_spec.losses.spike_count import SpikeCount
from stsbp_spec.losses.van_rossum import VanRossum

LOSSES: dict[str, Loss] = {loss.name: loss for loss in (VanRossum(), Hamming(), SpikeCount())}
"""Every loss by its name."""

__all__ = ["LOSSES", "Hamming", "Loss", "SpikeCount", "VanRossum"]
