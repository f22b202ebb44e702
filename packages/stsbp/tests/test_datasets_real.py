"""Real recordings and photographs, where they are: `$STSBP_DATA`, or archives in `shared/data` beside the checkout."""

from __future__ import annotations

import gzip
import os
import re
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from stsbp.datasets import load
from stsbp.datasets.nmnist import read_recording
from stsbp.datasets.saccades import SaccadeCamera

_ARCHIVES = Path(__file__).parents[4] / "shared" / "data"
_MEMBER = re.compile(r"NMNIST/Train/[0-9]/[0-9]{5}\.bin")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds NMNIST."""
    if given := os.environ.get("STSBP_DATA"):
        if not (Path(given) / "NMNIST").is_dir():
            pytest.skip(f"{given} has no folder NMNIST")
        return Path(given)
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


def test_simulated_recordings_resemble_the_real_ones_of_the_same_digits(data_dir: Path) -> None:
    """Recording k of N-MNIST shows training digit k - 1 of MNIST."""
    pytest.importorskip("tonic")
    mnist = next(
        (p for p in (data_dir / "mnist", _ARCHIVES / "mnist") if (p / "train-images-idx3-ubyte.gz").is_file()), None
    )
    if mnist is None:
        pytest.skip("needs mnist/train-images-idx3-ubyte.gz")
    with gzip.open(mnist / "train-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(16 + 100 * 784), np.uint8, offset=16).reshape(100, 28, 28)
    paths = {int(path.stem): path for path in (data_dir / "NMNIST" / "Train").glob("*/*.bin")}
    if not set(range(1, 101)) <= set(paths):
        pytest.skip("needs recordings 1 to 100")
    real = [read_recording(paths[k].read_bytes(), paths[k]) for k in range(1, 101)]
    simulated = SaccadeCamera().record(images)
    counts = np.array([[len(r[0]), len(s.t)] for r, s in zip(real, simulated, strict=True)])
    assert 0.8 < counts[:, 1].mean() / counts[:, 0].mean() < 1.25
    assert np.corrcoef(counts.T)[0, 1] > 0.7

    def map_of(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.bincount(34 * y + x, minlength=34 * 34)

    similar = [np.corrcoef(map_of(r[0], r[1]), map_of(s.x, s.y))[0, 1] for r, s in zip(real, simulated, strict=True)]
    assert np.mean(similar) > 0.5
