"""Error signals of the losses, eager on any device: the output layer is small."""

from __future__ import annotations

from collections.abc import Callable

import torch
from stsbp_spec.losses import Hamming, Loss, SpikeCount, VanRossum
from stsbp_spec.synapses.psp import PSP

from stsbp_torch.losses import hamming, spike_count, van_rossum

__all__ = ["ERRORS"]

ERRORS: dict[type[Loss], Callable[[PSP, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    VanRossum: van_rossum.error,
    Hamming: hamming.error,
    SpikeCount: spike_count.error,
}
"""`dL/do` of each loss, from output spikes and targets `[T, B, N]`."""
