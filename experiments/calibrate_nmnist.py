"""How well `nmnist-sim` resembles N-MNIST, and where the numbers of its camera come from.

    python experiments/calibrate_nmnist.py --data-dir D --picture docs/calibration.png
    python experiments/calibrate_nmnist.py --data-dir D --fit

Recording k of N-MNIST's training set shows training digit k - 1 of MNIST, so every recording can be laid beside the
simulation of its digit. The numbers are fitted on the first 700 pairs, and everything that is reported is measured on
the others. D holds `NMNIST/Train` and MNIST's idx files.

The fit has two parts. The path of the digit over the sensor, the blur, the display's gamma and the stray light minimise
the squared difference between the measured sum of polarities, times a threshold, and the change of log intensity, in
windows of 20 ms (gradient descent, needs torch). The thresholds, mismatch and randomness are then chosen so that five
quantities are close to those of the real recordings: event counts, active pixels, isolated pixels, the deviation of a
pixel's events from the mean of its neighbours, and the difference between two simulations of a digit (coordinate
descent on the simulator itself). The rates of noise are counted where no part of a digit ever comes.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from stsbp.datasets import mnist
from stsbp.datasets.nmnist import read_recording
from stsbp.datasets.nmnist_sim import CAMERA
from stsbp.datasets.saccades import ImagePosition, SaccadeCamera, SaccadeEvents
from stsbp_spec.models.encoders import EventBinning

FITTED = 700
"""Pairs that the numbers are fitted on; the others are reported."""
BINNING = EventBinning(steps=25)
SACCADES_US = (0, 105_000, 222_000, 320_000)
"""Where the measured path turns: the second saccade begins late, the third at 222 ms."""
KNOT_US = 5000
KNOTS = 64


class Pairs(NamedTuple):
    """Digits `[n, 28, 28]`, their numbers `[n]` and their real recordings."""

    images: Any
    numbers: Any
    recordings: list[SaccadeEvents]

    def some(self, chosen: slice) -> Pairs:
        """A part of the pairs."""
        return Pairs(self.images[chosen], self.numbers[chosen], self.recordings[chosen])


def read_pairs(data_dir: Path) -> Pairs:
    """All pairs in order of the digits' numbers."""
    paths = sorted((data_dir / "NMNIST" / "Train").glob("*/*.bin"), key=lambda path: int(path.stem))
    if len(paths) <= FITTED:
        raise SystemExit(f"{data_dir}/NMNIST/Train holds {len(paths)} recordings: more than {FITTED} are needed")
    digits = mnist.read(data_dir, "train")
    numbers = np.array([int(path.stem) - 1 for path in paths])
    wrong = [
        path for path, number in zip(paths, numbers, strict=True) if int(path.parent.name) != digits.labels[number]
    ]
    if wrong:
        raise SystemExit(f"{wrong[0]} does not show the digit of its number; are these MNIST and N-MNIST?")
    return Pairs(digits.images[numbers], numbers, [SaccadeEvents(*read_recording(p.read_bytes(), p)) for p in paths])


def simulate(camera: SaccadeCamera, pairs: Pairs) -> list[SaccadeEvents]:
    """The simulated recordings of the pairs' digits."""
    return camera.record(pairs.images, pairs.numbers)


def frames(recordings: Sequence[SaccadeEvents]) -> Any:
    """Binary frames `[n, T, 2, H, W]`, bool."""
    return np.stack([BINNING.frames(*recording) for recording in recordings]).astype(bool)


def events(recordings: Sequence[SaccadeEvents], *bins: int) -> Any:
    """Events of each recording, `[n, ...]`, by what `bins` keeps: 1 polarity, 2 saccade, 3 row, 4 column."""
    counts = np.zeros((len(recordings), 2, 3, 34, 34))
    for recording_counts, (x, y, p, t) in zip(counts, recordings, strict=True):
        np.add.at(recording_counts, (p, np.clip(np.searchsorted(SACCADES_US, t, "right") - 1, 0, 2), y, x), 1)
    return counts.sum(axis=tuple(axis for axis in (1, 2, 3, 4) if axis not in bins))


def profile(recordings: Sequence[SaccadeEvents]) -> Any:
    """Events of a recording by polarity and 5 ms, `[2, 64]`."""
    total = np.zeros((2, KNOTS))
    for _, _, p, t in recordings:
        np.add.at(total, (p, np.minimum(t // KNOT_US, KNOTS - 1)), 1)
    return total / len(recordings)


def correlation(a: Any, b: Any) -> float:
    """Mean correlation of two arrays `[n, ...]`, sample by sample."""
    pairs = zip(a.reshape(len(a), -1), b.reshape(len(b), -1), strict=True)
    return float(np.mean([np.corrcoef(one, other)[0, 1] for one, other in pairs]))


def overlap(a: Any, b: Any) -> float:
    """Mean share of the active pixels of either that are active in both (intersection over union)."""
    axes = tuple(range(1, a.ndim))
    return float(((a & b).sum(axes) / (a | b).sum(axes)).mean())


def alone(active: Any) -> float:
    """Share of the active pixels of frames that have no active neighbour in their own frame and polarity."""
    padded = np.pad(active, ((0, 0), (0, 0), (0, 0), (1, 1), (1, 1)))
    shifts = [shift for shift in itertools.product(range(3), repeat=2) if shift != (1, 1)]
    has_neighbour = np.any([padded[..., row : row + 34, column : column + 34] for row, column in shifts], axis=0)
    return float((active & ~has_neighbour).sum() / active.sum())


def speckle(recordings: Sequence[SaccadeEvents]) -> float:
    """How far a pixel's mean events are from the mean of its neighbours, in shares; the median where there are many."""
    mean = events(recordings, 3, 4).mean(axis=0)
    neighbour_mean = sum(np.roll(mean, shift, (0, 1)) for shift in ((0, 1), (1, 0), (0, -1), (-1, 0))) / 4
    many = mean > mean.max() / 3
    return float(np.median(np.abs(mean[many] / neighbour_mean[many] - 1)))


def intervals(recordings: Sequence[SaccadeEvents]) -> tuple[float, float, float]:
    """Milliseconds: what 1 % of the intervals between a pixel's events are below, and the median time from a pixel's
    first to its last event in a saccade where there are three or more, OFF and ON."""
    gaps: list[Any] = []
    spans: tuple[list[Any], list[Any]] = [], []
    for x, y, p, t in recordings:
        pixel = 34 * y + x
        order = np.lexsort((t, pixel))
        gaps.append(np.diff(t[order])[np.diff(pixel[order]) == 0])
        part = np.searchsorted(SACCADES_US, t, "right")
        for polarity, durations in enumerate(spans):
            of_polarity = p == polarity
            _, group, count = np.unique(
                4 * pixel[of_polarity] + part[of_polarity], return_inverse=True, return_counts=True
            )
            first, last = np.full(len(count), t.max()), np.zeros(len(count), dtype=np.int64)
            np.minimum.at(first, group, t[of_polarity])
            np.maximum.at(last, group, t[of_polarity])
            durations.append((last - first)[count >= 3])
    off, on = (float(np.median(np.concatenate(durations))) for durations in spans)
    return float(np.percentile(np.concatenate(gaps), 1)) / 1000, off / 1000, on / 1000


def table(real: list[SaccadeEvents], simulated: dict[str, list[SaccadeEvents]]) -> list[str]:
    """Real and simulated recordings of the same digits, as the lines of a Markdown table."""
    sets = {"real": real, **simulated}
    rows: dict[str, list[str]] = {"": list(sets)}
    real_frames, real_profile = frames(real), profile(real)
    real_counts, real_maps = events(real), events(real, 1, 2, 3, 4)
    for name, recordings in sets.items():
        counts = events(recordings, 1, 2).mean(axis=0)
        for (saccade, polarity), mean in zip(itertools.product(range(3), range(2)), counts.T.reshape(-1), strict=True):
            rows.setdefault(f"events, saccade {saccade + 1}, {('OFF', 'ON')[polarity]}", []).append(f"{mean:.0f}")
        active = frames(recordings)
        shortest, off, on = intervals(recordings)
        measures = {
            "active pixels, all frames": f"{active.sum() / len(active):.0f}",
            "of them alone": f"{alone(active):.1%}",
            "1 % of the intervals between a pixel's events, below": f"{shortest:.1f} ms",
            "first to last event of a pixel in a saccade, OFF and ON": f"{off:.1f} and {on:.1f} ms",
            "events of a pixel, away from its neighbours' mean": f"{speckle(recordings):.1%}",
        }
        if name == "real":
            against = ["1", "0", "1", "1"]
        else:
            difference = np.abs(profile(recordings) / profile(recordings).sum() - real_profile / real_profile.sum())
            against = [
                f"{np.corrcoef(real_counts, events(recordings))[0, 1]:.3f}",
                f"{difference.sum() / 2:.3f}",
                f"{correlation(real_maps, events(recordings, 1, 2, 3, 4)):.3f}",
                f"{overlap(real_frames, active):.3f}",
            ]
        names = (
            "events of a digit: correlation with real",
            "temporal profile: share of events at another time",
            "spatial profile (saccade, polarity, pixel): correlation with real",
            "frames: overlap of active pixels with real",
        )
        for label, value in (*measures.items(), *zip(names, against, strict=True)):
            rows.setdefault(label, []).append(value)
    lines = [f"| {label} | {' | '.join(values)} |" for label, values in rows.items()]
    return [lines[0], "|---" * (len(sets) + 1) + "|", *lines[1:]]


def draw(path: Path, pairs: Pairs, simulated: dict[str, list[SaccadeEvents]]) -> None:
    """Temporal profiles, spatial profiles, and frames of one digit, real and simulated, as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sets = {"real": pairs.recordings, **simulated}
    figure = pyplot.figure(figsize=(11, 10), layout="constrained")
    subfigures: Any = figure.subfigures(3, 1, height_ratios=(2, 2.2, 3))
    top, middle, bottom = subfigures
    time = np.arange(KNOTS) * KNOT_US / 1000
    for polarity, axes in enumerate(top.subplots(1, 2, sharey=True)):
        for name, recordings in sets.items():
            axes.step(time, profile(recordings)[polarity], where="post", label=name)
        axes.set(title=("OFF", "ON")[polarity], xlabel="time in ms", ylabel="events in 5 ms")
        axes.legend()
    maps = {name: events(recordings, 2, 3, 4).mean(axis=0) for name, recordings in sets.items()}
    brightest = max(float(values.max()) for values in maps.values())
    grid = middle.subplots(3, 3)
    for row, (name, values) in zip(grid, maps.items(), strict=True):
        for saccade, axes in enumerate(row):
            axes.imshow(values[saccade], vmin=0, vmax=brightest, cmap="viridis")
            axes.set(xticks=[], yticks=[], title=f"{name}, saccade {saccade + 1}: mean events")
    steps = range(1, 25, 3)
    grid = bottom.subplots(3, len(steps))
    for row, (name, recordings) in zip(grid, sets.items(), strict=True):
        active = frames(recordings[:1])[0]
        for step, axes in zip(steps, row, strict=True):
            off, on = active[step]
            axes.imshow(np.stack([1 - off, 1 - on * 1.0 - off * (~on), 1 - on], axis=-1).clip(0, 1))
            axes.set(xticks=[], yticks=[], title=f"{name}, step {step}")
    figure.savefig(path, dpi=80)


def fit_optics(pairs: Pairs, iterations: int) -> SaccadeCamera:
    """Path, blur, gamma and stray light by gradient descent; every knot is a place in time."""
    import torch

    window, border, batch, reach = 4, 6, 24, 4
    torch.manual_seed(0)
    net = np.zeros((len(pairs.numbers), KNOTS, 34, 34), dtype=np.int16)
    for recording_net, (x, y, p, t) in zip(net, pairs.recordings, strict=True):
        np.add.at(recording_net, (np.minimum(t // KNOT_US + 1, KNOTS - 1), y, x), np.where(p == 1, 1, -1))
    # The picture is dark on bright, so an ON event says that less of the digit covers the pixel.
    measured = torch.from_numpy(np.cumsum(net, axis=1, dtype=np.int16))
    images = torch.from_numpy(pairs.images.astype(np.float32) / 255)
    start = [(0, 1.2, 0.5), (30, 2.3, 0.4), (70, 6.5, 1.6), (115, 6.5, 2.3), (150, 4.3, 4.3), (180, 1.5, 5.3)]
    start += [(230, 1.4, 5.7), (260, 1.4, 2.8), (280, 1.2, 1.2), (300, 1.2, 0.6)]
    times, rows, columns = zip(*start, strict=True)
    ms = np.arange(KNOTS) * KNOT_US / 1000
    place = np.stack([np.interp(ms, times, rows), np.interp(ms, times, columns)], axis=1)
    knots = torch.tensor(place, dtype=torch.float32, requires_grad=True)
    start_values = (0.5, 1.2, -1.7, 0.9, 1.0, 0.0)
    others = [torch.tensor(value, requires_grad=True) for value in start_values]
    sigma, gain, floor, gamma, zoom, turn = others
    optimizer = torch.optim.Adam([{"params": [knots], "lr": 0.03}, {"params": others, "lr": 0.02}])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    row, column = torch.meshgrid(torch.arange(34.0), torch.arange(34.0), indexing="ij")
    tap = torch.arange(-reach, reach + 1.0)

    def log_intensity(chosen: Any) -> Any:
        """`[B, KNOTS, 34, 34]`."""
        covered = torch.where(chosen > 0, chosen.clamp(min=1e-3) ** gamma, 0.0)
        covered = torch.nn.functional.pad(covered[:, None], (border,) * 4)
        kernel = torch.exp(-(tap**2) / (2 * sigma**2))
        kernel = kernel / kernel.sum()
        covered = torch.nn.functional.conv2d(covered, kernel.view(1, 1, 1, -1), padding=(0, reach))
        covered = torch.nn.functional.conv2d(covered, kernel.view(1, 1, -1, 1), padding=(reach, 0))
        half = (14 + border) * zoom
        down, right = (axis - (knots[:, k, None, None] + 13.5) for k, axis in enumerate((row, column)))
        across, along = torch.cos(turn) / half, torch.sin(turn) / half
        grid = torch.stack([across * right + along * down, across * down - along * right], dim=-1).reshape(
            1, KNOTS * 34, 34, 2
        )
        moved = torch.nn.functional.grid_sample(covered, grid.expand(len(chosen), -1, -1, -1), align_corners=False)
        return torch.log(floor.exp() + (1 - moved.view(-1, KNOTS, 34, 34)).clamp(min=0))

    for iteration in range(iterations):
        chosen = torch.randint(len(images), (batch,))
        light, sums = log_intensity(images[chosen]) * gain.exp(), measured[chosen].float()
        predicted, observed = light[:, window:] - light[:, :-window], sums[:, window:] - sums[:, :-window]
        loss = ((predicted - observed) ** 2).mean() / (observed**2).mean()
        bend = (knots[2:] - 2 * knots[1:-1] + knots[:-2]).square().sum()
        optimizer.zero_grad()
        (loss + 0.0005 * bend).backward()
        optimizer.step()
        schedule.step()
        if iteration % 100 == 99 or iteration == iterations - 1:
            print(f"iteration {iteration + 1}: unexplained {loss.item():.4f}", flush=True)
    blur, log_gain, log_floor, exponent, scale, angle = (float(value.detach()) for value in others)
    path = [
        ImagePosition(k * KNOT_US, round(64 * r) / 64, round(64 * c) / 64) for k, (r, c) in enumerate(knots.tolist())
    ]
    return dataclasses.replace(
        CAMERA,
        path=tuple(path),
        threshold=round(math.exp(-log_gain), 3),
        off_threshold=round(math.exp(-log_gain), 3),
        blur=round(blur, 3),
        floor=round(math.exp(log_floor), 3),
        gamma=round(exponent, 3),
        zoom=round(scale, 4),
        turn=round(angle, 4),
    )


def noise_rates(pairs: Pairs) -> tuple[float, float]:
    """OFF and ON events in a pixel and second where no part of the digit comes."""
    counts, time = np.zeros(2), 0.0
    for image, (x, y, p, t) in zip(pairs.images, pairs.recordings, strict=True):
        reached = np.zeros((34, 34), dtype=bool)
        for down, right in itertools.product(range(-1, 9), range(-1, 9)):
            moved = np.zeros((44, 44), dtype=bool)
            moved[1 + down : 29 + down, 1 + right : 29 + right] = image > 0
            reached |= moved[1:35, 1:35]
        blank = ~reached[y, x]
        counts += np.bincount(p[blank], minlength=2)
        time += (~reached).sum() * t.max() / 1e6
    return round(float(counts[0] / time), 3), round(float(counts[1] / time), 3)


def fit_sensor(camera: SaccadeCamera, pairs: Pairs) -> SaccadeCamera:
    """Thresholds, mismatch and randomness by coordinate descent on what simulations look like."""
    real, real_events = frames(pairs.recordings), events(pairs.recordings, 1, 2).mean(axis=0)
    real_active, real_alone, real_speckle = real.sum((0, 3, 4)), alone(real), speckle(pairs.recordings)

    def cost(candidate: SaccadeCamera) -> float:
        one, repeated = (simulate(dataclasses.replace(candidate, seed=seed), pairs) for seed in (0, 1))
        active = frames(one)
        terms = (
            ((events(one, 1, 2).mean(axis=0) / real_events - 1) ** 2).mean(),
            ((active.sum((0, 3, 4)) - real_active) ** 2).mean() / real_active.mean() ** 2,
            (alone(active) / real_alone - 1) ** 2 / 10,
            (speckle(one) / real_speckle - 1) ** 2 / 10,
            (overlap(active, frames(repeated)) - overlap(active, real)) ** 2,
        )
        print(", ".join(f"{term:.4f}" for term in terms), flush=True)
        return float(sum(terms))

    steps = {"threshold": 0.02, "off_threshold": 0.02, "mismatch": 0.1, "start": 0.2, "jitter": 0.2}
    best = cost(camera)
    for _ in range(3):
        for name, step in steps.items():
            for sign in (1, -1):
                moved = round(getattr(camera, name) + sign * step, 4)
                candidate = dataclasses.replace(camera, **{name: moved})
                if moved >= 0 and (cost_of_candidate := cost(candidate)) < best:
                    camera, best = candidate, cost_of_candidate
                    print(f"{name} {moved}: {best:.4f}", flush=True)
                    break
        steps = {name: step * 0.6 for name, step in steps.items()}
    return camera


def main() -> None:
    """Fit and print a camera, or report on that of `nmnist-sim`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--fit", action="store_true", help="fit a camera and print it (minutes)")
    parser.add_argument("--iterations", type=int, default=600, help="of the gradient descent")
    parser.add_argument("--picture", type=Path, help="draw profiles and frames into this file")
    arguments = parser.parse_args()
    pairs = read_pairs(arguments.data_dir)
    camera = CAMERA
    if arguments.fit:
        fitted = pairs.some(slice(FITTED))
        off, on = noise_rates(fitted)
        camera = dataclasses.replace(fit_optics(fitted, arguments.iterations), noise_off=off, noise_on=on)
        print(camera)
        camera = fit_sensor(camera, fitted.some(slice(None, None, 7)))
        print(f"rows in 1/64 pixel: {[round(64 * place.row) for place in camera.path]}")
        print(f"columns in 1/64 pixel: {[round(64 * place.column) for place in camera.path]}")
        print(dataclasses.replace(camera, path=()))
    held_out = pairs.some(slice(FITTED, None))
    simulated = {"before": simulate(SaccadeCamera(), held_out), "after": simulate(camera, held_out)}
    print("\n".join(table(held_out.recordings, simulated)))
    if arguments.picture is not None:
        draw(arguments.picture, held_out, simulated)


if __name__ == "__main__":
    main()
