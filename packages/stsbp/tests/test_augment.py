"""Random distortions of training inputs."""

from __future__ import annotations

import numpy as np
import pytest
from stsbp.training.augment import Augmentation, augment
from stsbp_spec.models.encoders import PackedFrames

EVERYTHING = Augmentation(shift=2, flip=True, rotate=15.0, scale=0.2, shear=0.2, elastic=2.0, cutout=3)


def inputs(events: bool, side: int = 9) -> np.ndarray:
    rng = np.random.default_rng(0)
    shape = (40, 2, side, side - 1)
    return (rng.random((3, *shape) if events else shape) < 0.5).astype(np.uint8)


@pytest.mark.parametrize("events", [False, True], ids=["images", "frames"])
def test_every_sample_is_one_shift_of_its_input(events: bool) -> None:
    x = inputs(events)
    y = augment(x, np.arange(40), seed=1, epoch=2, augmentation=Augmentation(shift=2, flip=True))
    padded = np.pad(x, [(0, 0)] * (x.ndim - 2) + [(2, 2), (2, 2)])
    shifts = set()
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
        shifts.add(candidates[0])
    assert len({(dy, dx) for dy, dx, _ in shifts}) > 12
    assert {flip for *_, flip in shifts} == {False, True}


@pytest.mark.parametrize("augmentation", [Augmentation(shift=2), EVERYTHING], ids=["shift", "everything"])
def test_a_sample_moves_the_same_way_in_any_batch_and_another_way_in_another_epoch(augmentation: Augmentation) -> None:
    x, order = inputs(True), np.random.default_rng(1).permutation(40)
    augmented = augment(x, np.arange(40), seed=1, epoch=0, augmentation=augmentation)
    assert np.array_equal(augment(x[:, order], order, seed=1, epoch=0, augmentation=augmentation), augmented[:, order])
    assert not np.array_equal(augment(x, np.arange(40), seed=1, epoch=1, augmentation=augmentation), augmented)
    assert not np.array_equal(augment(x, np.arange(40), seed=2, epoch=0, augmentation=augmentation), augmented)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_bits_move_as_the_frames_do(channels: int) -> None:
    frames = (np.random.default_rng(3).random((11, 40, channels, 9, 8)) < 0.5).astype(np.uint8)
    moved = augment(PackedFrames.of(frames), np.arange(40), seed=1, epoch=0, augmentation=EVERYTHING)
    expected = augment(frames, np.arange(40), seed=1, epoch=0, augmentation=EVERYTHING)
    assert np.array_equal(moved.unpacked(), expected)
    assert not np.array_equal(expected, frames)
    # A still image is one of these frames.
    assert np.array_equal(augment(frames[0], np.arange(40), seed=1, epoch=0, augmentation=EVERYTHING), expected[0])


def test_all_frames_and_channels_of_a_sample_move_together() -> None:
    x = np.broadcast_to(inputs(False)[None, :, :1], (3, 40, 2, 9, 8)).copy()
    y = augment(x, np.arange(40), seed=1, epoch=0, augmentation=EVERYTHING)
    assert (y == y[:1, :, :1]).all()
    assert not np.array_equal(y, x)


@pytest.mark.parametrize("steps", [1, 7, 8, 9, 25])
def test_spikes_and_counts_move_from_the_same_places(steps: int) -> None:
    spikes = (np.random.default_rng(2).random((steps, 40, 2, 9, 8)) < 0.5).astype(np.uint8)
    of_spikes, of_counts = (
        augment(x, np.arange(40), seed=1, epoch=0, augmentation=EVERYTHING) for x in (spikes, 3 * spikes)
    )
    assert of_spikes.dtype == np.uint8
    assert np.array_equal(3 * of_spikes, of_counts)


def test_nothing_to_do_returns_the_input() -> None:
    x = inputs(False)
    assert augment(x, np.arange(40), seed=1, epoch=0, augmentation=Augmentation()) is x


def moved(augmentation: Augmentation, samples: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Where pixels of a 33 x 33 field come from: rows and columns from the centre, `[B, 33, 33]`; NaN: from outside."""
    rows, columns = np.mgrid[1:34, 1:34].astype(np.uint8)
    field = np.broadcast_to(np.stack([rows, columns]), (samples, 2, 33, 33)).copy()
    y = augment(field, np.arange(samples), seed=3, epoch=0, augmentation=augmentation).astype(np.float64)
    y[y == 0] = np.nan
    return y[:, 0] - 17, y[:, 1] - 17


def test_rotation_turns_about_the_centre_by_up_to_the_angle() -> None:
    rows, columns = moved(Augmentation(rotate=20.0))
    # The pixel 16 columns to the right of the centre comes from a point of the same circle.
    angle = np.degrees(np.arctan2(rows[:, 16, 26], columns[:, 16, 26]))
    assert np.abs(np.hypot(rows[:, 16, 26], columns[:, 16, 26]) - 10).max() < 0.75
    assert np.abs(angle).max() < 20 + 3
    assert angle.min() < -15
    assert angle.max() > 15
    assert (rows[:, 16, 16] == 0).all()
    assert (columns[:, 16, 16] == 0).all()


def test_scale_stretches_rows_and_columns_by_themselves() -> None:
    rows, columns = moved(Augmentation(scale=0.3))
    down, right = rows[:, 26, 16], columns[:, 16, 26]
    assert (down.min(), down.max(), right.min(), right.max()) == (7, 13, 7, 13)
    assert abs(np.corrcoef(down, right)[0, 1]) < 0.2


def test_shear_moves_columns_by_a_share_of_the_rows() -> None:
    rows, columns = moved(Augmentation(shear=0.3))
    assert (rows[:, 26, 16] == 10).all()
    assert (columns[:, 26, 16].min(), columns[:, 26, 16].max()) == (-3, 3)
    assert np.array_equal(columns[:, 26, 16], -columns[:, 6, 16])


def test_elastic_bends_smoothly_by_up_to_the_amount() -> None:
    rows, columns = moved(Augmentation(elastic=3.0))
    down = rows - np.arange(-16, 17)[:, None]
    right = columns - np.arange(-16, 17)
    for displacement in (down, right):
        assert 2 < np.nanmax(np.abs(displacement)) <= 3
        # A node every 11 pixels: the displacement changes by at most 6/11 a pixel, and by rounding.
        assert np.nanmax(np.abs(np.diff(displacement, axis=1))) <= 1
        assert np.nanmax(np.abs(np.diff(displacement, axis=2))) <= 1
    assert abs(np.nanmean(down)) < 0.3
    assert np.nanstd(down[:, 16, 16]) > 0.5


@pytest.mark.parametrize("shape", [(1, 33), (33, 1), (1, 1)])
def test_pictures_of_one_row_or_column_bend_as_well(shape: tuple[int, int]) -> None:
    x = np.random.default_rng(0).integers(1, 256, (20, 1, *shape), dtype=np.uint8)
    y = augment(x, np.arange(20), seed=1, epoch=0, augmentation=Augmentation(elastic=3.0))
    assert y.shape == x.shape
    assert not np.array_equal(x, y)
    for image, augmented in zip(x, y, strict=True):
        assert set(np.unique(augmented)) <= {0, *np.unique(image)}


def test_cutout_empties_one_square_anywhere() -> None:
    x = np.ones((300, 1, 12, 12), dtype=np.uint8)
    y = augment(x, np.arange(300), seed=1, epoch=0, augmentation=Augmentation(cutout=4))
    assert int((1 - y).sum(axis=(1, 2, 3)).max()) == 16
    assert int((1 - y).sum(axis=(1, 2, 3)).min()) >= 4
    assert (y.min(axis=(0, 1)) == 0).all()
    assert set(np.unique(y)) == {0, 1}


def test_values_are_moved_and_never_mixed() -> None:
    x = np.random.default_rng(0).integers(0, 256, (40, 3, 9, 8), dtype=np.uint8)
    y = augment(x, np.arange(40), seed=1, epoch=0, augmentation=EVERYTHING)
    for image, augmented in zip(x, y, strict=True):
        colours = {tuple(c) for c in image.reshape(3, -1).T} | {(0, 0, 0)}
        assert {tuple(c) for c in augmented.reshape(3, -1).T} <= colours


@pytest.mark.parametrize(
    "augmentation",
    [Augmentation(shift=2), Augmentation(rotate=20, scale=0.2, elastic=2.0, cutout=3)],
    ids=["shift", "bend"],
)
def test_frames_of_a_row_of_neurons_move_as_a_picture_of_steps_and_neurons(augmentation: Augmentation) -> None:
    frames = (np.random.default_rng(4).random((11, 3, 9)) < 0.4).astype(np.uint8)
    numbers = np.array([5, 9, 2])
    moved = augment(frames, numbers, seed=1, epoch=2, augmentation=augmentation)
    pictures = augment(frames.transpose(1, 0, 2)[:, None], numbers, seed=1, epoch=2, augmentation=augmentation)
    assert np.array_equal(moved, pictures[:, 0].transpose(1, 0, 2))
    assert moved.shape == frames.shape
    assert not np.array_equal(moved, frames)
    bits = augment(PackedFrames.of(frames), numbers, seed=1, epoch=2, augmentation=augmentation)
    assert np.array_equal(bits.unpacked(), moved)
