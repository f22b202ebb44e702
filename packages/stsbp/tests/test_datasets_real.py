"""Real recordings and photographs, where they are: `$STSBP_DATA`, or archives in `shared/data` beside the checkout."""

from __future__ import annotations

import os
import re
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from stsbp.datasets import load
from stsbp.datasets.mnist import find, read
from stsbp.datasets.nmnist import read_recording
from stsbp.datasets.nmnist_sim import CAMERA
from stsbp.datasets.saccades import SaccadeCamera

_ARCHIVES = Path(__file__).parents[4] / "shared" / "data"
_MEMBER = re.compile(r"NMNIST/Train/[0-9]/[0-9]{5}\.bin")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds NMNIST."""
    if folder := os.environ.get("STSBP_DATA"):
        if not (Path(folder) / "NMNIST").is_dir():
            pytest.skip(f"{folder} has no folder NMNIST")
        return Path(folder)
    archive = _ARCHIVES / "nmnist-1k.tar.xz"
    if not archive.is_file():
        pytest.skip(f"needs STSBP_DATA or {archive}")
    target = tmp_path_factory.mktemp("data")
    with tarfile.open(archive) as tar:
        for member in tar:
            # Only plain files of the expected names, so that nothing leaves the folder.
            if member.isreg() and _MEMBER.fullmatch(member.name) and (source := tar.extractfile(member)):
                (target / member.name).parent.mkdir(parents=True, exist_ok=True)
                (target / member.name).write_bytes(source.read())
    return target


def test_real_nmnist_loads_and_its_batches_are_fast(data_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("tonic")
    dataset = load("nmnist", data_dir=data_dir, steps=25, cache_dir=tmp_path)
    assert (len(dataset.train) + len(dataset.test)) % 1000 == 0
    assert not dataset.skipped
    indices = np.arange(50) * 7
    frames = dataset.train.inputs(indices)
    assert frames.shape == (25, 50, 2, 34, 34)
    assert set(np.unique(frames)) == {0, 1}
    assert 0.02 < frames.mean() < 0.1
    best = min(_seconds(lambda: dataset.train.inputs(indices)) for _ in range(20))
    # Measured 0.2 ms; the bound leaves room for a busy machine.
    assert best < 0.005
    start = time.perf_counter()
    load("nmnist", data_dir=data_dir, steps=25, cache_dir=tmp_path)
    assert time.perf_counter() - start < 5


def _seconds(work: object) -> float:
    assert callable(work)
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@pytest.mark.parametrize(
    ("camera", "most_apart", "least_alike", "least_map"),
    [(SaccadeCamera(), 0.25, 0.7, 0.5), (CAMERA, 0.1, 0.98, 0.9)],
    ids=["digits-events", "nmnist-sim"],
)
def test_simulated_recordings_resemble_the_real_ones_of_the_same_digits(
    camera: SaccadeCamera, most_apart: float, least_alike: float, least_map: float, data_dir: Path
) -> None:
    """Recording k of N-MNIST shows training digit k - 1 of MNIST; 701 to 1000 served to fit no camera."""
    pytest.importorskip("tonic")
    mnist_dir = next((p for p in (data_dir, _ARCHIVES) if find(p, "train") is not None), None)
    if mnist_dir is None:
        pytest.skip("needs MNIST's training digits")
    paths = {int(path.stem): path for path in (data_dir / "NMNIST" / "Train").glob("*/*.bin")}
    ids = range(901, 1001)
    if not set(ids) <= set(paths):
        pytest.skip("needs recordings 901 to 1000")
    real = [read_recording(paths[k].read_bytes(), paths[k]) for k in ids]
    simulated = camera.record(read(mnist_dir, "train").images[900:1000], np.arange(900, 1000))
    counts = np.array([[len(r[0]), len(s.t)] for r, s in zip(real, simulated, strict=True)])
    assert abs(counts[:, 1].mean() / counts[:, 0].mean() - 1) < most_apart
    assert np.corrcoef(counts.T)[0, 1] > least_alike

    def map_of(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.bincount(34 * y + x, minlength=34 * 34)

    similar = [np.corrcoef(map_of(r[0], r[1]), map_of(s.x, s.y))[0, 1] for r, s in zip(real, simulated, strict=True)]
    assert np.mean(similar) > least_map
