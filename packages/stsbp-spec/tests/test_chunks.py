"""The reference's convolution in chunks of frames: memory stays bounded, and the chunks do not change a bit."""

from __future__ import annotations

import numpy as np
import pytest
from stsbp_spec.networks.ops import Conv2d
from stsbp_spec.reference import backend

_CONV, _FRAME = Conv2d(4, 3, padding=1), (2, 5, 6)
_WINDOWS = 5 * 6 * 2 * 9  # values of one frame, unfolded


@pytest.mark.parametrize(
    ("limit", "frames"),
    [(1, 1), (4 * _WINDOWS - 1, 1), (4 * _WINDOWS, 1), (8 * _WINDOWS - 1, 1), (8 * _WINDOWS, 2), (1 << 30, 7)],
)
def test_a_chunk_holds_as_many_frames_as_fit_and_one_at_least(
    limit: int, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "_CHUNK_BYTES", limit)
    chunks = [range(7)[chunk] for chunk in backend.chunks(_CONV, np.zeros((7, *_FRAME)), 4)]
    assert [n for numbers in chunks for n in numbers] == list(range(7))
    assert {len(numbers) for numbers in chunks[:-1]} <= {frames}
    assert 1 <= len(chunks[-1]) <= frames


def test_chunks_do_not_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    s = rng.integers(0, 2, (3, 2, *_FRAME)).astype(np.uint8)
    wq = (rng.integers(-9, 10, _CONV.weight_shape(_FRAME)) / 8).astype(np.float32)
    z, residuals = backend.conv_forward(_CONV, s, wq)
    dz = (rng.integers(-9, 10, z.shape) / 8).astype(np.float32)
    unchunked = (z, *backend.conv_backward(_CONV, residuals, dz, precision="reproducible", need_input=True))
    monkeypatch.setattr(backend, "_CHUNK_BYTES", 8 * _WINDOWS)
    z, residuals = backend.conv_forward(_CONV, s, wq)
    parts = (z, *backend.conv_backward(_CONV, residuals, dz, precision="reproducible", need_input=True))
    for part, expected in zip(parts, unchunked, strict=True):
        assert part is not None
        assert expected is not None
        assert part.tobytes() == expected.tobytes()
