"""Encoders turn images, recordings and labels into sequences of T steps. They only use numpy and are the same for all
backends."""

from __future__ import annotations

from stsbp_spec.models.encoders.events import SACCADE_US, EventBinning, bin_events, stabilise_events
from stsbp_spec.models.encoders.label_sequence import LabelCode, encode_repeat
from stsbp_spec.models.encoders.latency import encode_latency
from stsbp_spec.models.encoders.packed import PackedFrames
from stsbp_spec.models.encoders.poisson import encode_poisson
from stsbp_spec.models.encoders.repeat import IMAGE_SCALE, repeat

__all__ = [
    "IMAGE_SCALE",
    "SACCADE_US",
    "EventBinning",
    "LabelCode",
    "PackedFrames",
    "bin_events",
    "encode_latency",
    "encode_poisson",
    "encode_repeat",
    "repeat",
    "stabilise_events",
]
