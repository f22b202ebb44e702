"""Shifts and reflections of training inputs."""

from __future__ import annotations

import numpy as np
import pytest
from stsbp.training.augment import augment


def inputs(events: bool) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.random((3, 40, 2, 9, 8) if events else (40, 2, 9, 8)) < 0.5).astype(np.uint8)


@pytest.mark.parametrize("events", [False, True], ids=["images", "frames"])
def test_every_sample_is_one_shift_of_its_input(events: bool) -> None:
    x = inputs(events)
    y = augment(x, np.arange(40), seed=1, epoch=2, shift=2, flip=True)
    padded = np.pad(x, [(0, 0)] * (x.ndim - 2) + [(2, 2), (2, 2)])
    seen = set()
    for sample in range(40):
        at = (slice(None), sample) if events else (sample,)
        candidates = [
            (dy, dx, flip)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            for flip in (False, True)
            if np.array_equal(
                (padded[..., ::-1] if flip else padded)[at][..., 2 - dy : 11 - dy, 2 - dx : 10 - dx], y[at]
            )
        ]
        assert len(candidates) == 1
        seen.add(candidates[0])
    assert len({(dy, dx) for dy, dx, _ in seen}) > 12
    assert {flip for *_, flip in seen} == {False, True}


def test_a_sample_moves_the_same_way_in_any_batch_and_another_way_in_another_epoch() -> None:
    x, order = inputs(True), np.random.default_rng(1).permutation(40)
    whole = augment(x, np.arange(40), seed=1, epoch=0, shift=2, flip=False)
    assert np.array_equal(augment(x[:, order], order, seed=1, epoch=0, shift=2, flip=False), whole[:, order])
    assert not np.array_equal(augment(x, np.arange(40), seed=1, epoch=1, shift=2, flip=False), whole)


def test_nothing_to_do_returns_the_input() -> None:
    x = inputs(False)
    assert augment(x, np.arange(40), seed=1, epoch=0, shift=0, flip=False) is x
