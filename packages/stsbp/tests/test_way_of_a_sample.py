"""docs/way_of_a_sample.md names every file that a sample goes through on numpy, from the disk to the weights, and
every file that a training step goes through on other backends.

A function counts if one of its arguments is, or holds, an array or bytes of samples. Numbers of samples, steps and
events are chosen so that nothing else (weights, labels, indices) has a size that they divide. Of a step, arrays of
weights and gradients count too.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from stsbp.datasets import load
from stsbp.training import loop
from stsbp_spec import LOSSES, AdamW, Batch, NetworkSpec, initial_weights, open_backend
from stsbp_spec.engine.trainer import Trainer
from stsbp_spec.typing import Precision

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "way_of_a_sample.md"
pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="the documentation is not beside the packages")

BATCH, STEPS, EVENTS = 11, 13, 4 * 11 * 13
_SMALLEST = 50
"""Labels and indices of a batch or of all samples are smaller."""
_RANDOM = (np.uint32, np.uint64)


def _is_of_samples(x: Any) -> bool | None:
    """Whether an array or bytes are of samples; None for anything else."""
    if not isinstance(x, (np.ndarray, bytes)):
        return None
    size = x.size if isinstance(x, np.ndarray) else len(x)
    words = isinstance(x, np.ndarray) and x.dtype in _RANDOM
    return size >= _SMALLEST and not words and (size % BATCH == 0 or size % STEPS == 0)


def _is_of_a_step(x: Any) -> bool | None:
    """Whether an array of any library, or one that JAX traces, is as large as those of a step; None for others."""
    if isinstance(x, np.ndarray) or type(x).__module__.partition(".")[0] in ("torch", "jax", "jaxlib"):
        shape = getattr(x, "shape", None)
        return isinstance(shape, tuple) and math.prod(shape) >= _SMALLEST
    return None


def _holds(x: Any, counts: Callable[[Any], bool | None], depth: int = 4) -> bool:
    """Whether `x` is an array that counts, or a container or a record of such."""
    if (is_counted := counts(x)) is not None:
        return is_counted
    if depth == 0 or isinstance(x, type):
        return False
    if isinstance(x, dict):
        return any(_holds(value, counts, depth - 1) for value in x.values())
    if isinstance(x, (tuple, list)):
        return any(_holds(value, counts, depth - 1) for value in x)
    return dataclasses.is_dataclass(x) and any(_holds(value, counts, depth - 1) for value in vars(x).values())


@contextmanager
def _traced(
    functions_by_file: dict[str, set[str]], counts: Callable[[Any], bool | None] = _is_of_samples
) -> Iterator[Callable[[], None]]:
    """Fill `functions_by_file` with the functions that receive arrays that count, by file; yields what ends it."""
    on = threading.Event()
    on.set()

    def look(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        _, source, name = code.co_filename.partition(f"{ROOT}/packages/")
        if event != "call" or not source or not on.is_set() or "/src/" not in name:
            return
        count = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 4) + bool(code.co_flags & 8)
        if any(_holds(frame.f_locals.get(argument), counts) for argument in code.co_varnames[:count]):
            functions_by_file.setdefault(f"packages/{name}", set()).add(code.co_qualname)

    threading.setprofile(look)
    sys.setprofile(look)
    try:
        yield on.clear
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def _listed(heading: str) -> list[str]:
    """The files that the page lists below a heading, one an item."""
    _, separator, text = PAGE.read_text(encoding="utf-8").partition(f"\n## {heading}\n")
    assert separator, heading
    return re.findall(r"^(?:\d+\.|-) `(packages/\S+?\.py)`", text.partition("\n## ")[0], re.MULTILINE)


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """33 recordings in the layout of N-MNIST."""
    for number in range(33):
        rng = np.random.default_rng(number)
        x, y = rng.integers(0, 34, (2, EVENTS))
        p, t = rng.integers(0, 2, EVENTS), np.sort(rng.integers(0, 310_000, EVENTS))
        events = np.stack([x, y, (p << 7) | (t >> 16), (t >> 8) & 255, t & 255], axis=1)
        path = tmp_path / "NMNIST" / "Train" / str(number % 10) / f"{number:05}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(events.astype(np.uint8).tobytes())
    return tmp_path


def test_recordings_reach_the_cache_through_the_files_of_the_page(recordings: Path) -> None:
    pytest.importorskip("tonic")
    functions_by_file: dict[str, set[str]] = {}
    with _traced(functions_by_file):
        # Eight steps a byte: of so many steps the bytes are seen as well.
        load("nmnist", data_dir=recordings, steps=8 * BATCH, holdout=BATCH, cache_dir=recordings / "cache")
    assert sorted(functions_by_file) == sorted(_listed("From a recording to the cache")), functions_by_file


def test_samples_reach_the_weights_through_the_files_of_the_page(
    recordings: Path, stsbp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tonic")
    monkeypatch.setenv("STSBP_CACHE", str(recordings / "cache"))
    functions_by_file: dict[str, set[str]] = {}
    updates: list[int] = []
    epochs, step = loop._TrainingLoop.epochs, Trainer.step

    def traced_epochs(self: Any) -> Any:
        with _traced(functions_by_file) as end:

            def traced_step(*arguments: Any) -> Any:
                result = step(*arguments)
                # The loss is measured, and the outputs are scored, after the update.
                end()
                updates.append(result[0].step)
                return result

            monkeypatch.setattr(Trainer, "step", traced_step)
            return epochs(self)

    monkeypatch.setattr(loop._TrainingLoop, "epochs", traced_epochs)
    common = ("--steps", STEPS, "--batch-size", BATCH, "--epochs", 1, "--no-test", "--limit", BATCH, "--dropout", 0.2)
    events = ("nmnist", "--data-dir", recordings, "--net", "2C5-P2-4C5-P2")
    images = ("digits", "--net", "2C3-P2-8")
    for precision in ("fast", "reproducible"):
        for number, data in enumerate((events, images)):
            run = ("--precision", precision, "--init-rate", 0, "--out", recordings / f"{precision}-{number}")
            result = stsbp("train", *data, *common, *run)
            assert result.exit_code == 0, result.output
    assert updates == [1, 1, 1, 1]
    files = _listed("The way of a sample")
    assert sorted(functions_by_file) == sorted(files), functions_by_file
    assert len(files) <= 12


_PRECISIONS: tuple[Precision, ...] = ("fast", "reproducible")
MOST_FILES = {"numpy": 18, "torch": 32, "jax": 32}


@pytest.mark.parametrize("name", MOST_FILES)
def test_a_training_step_goes_through_the_files_of_the_page(name: str) -> None:
    """In a new process, since the first step of a process goes through files that trace and print equations."""
    if name != "numpy":
        pytest.importorskip(f"stsbp_{name}")
    done = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    functions_by_file: dict[str, list[str]] = json.loads(done.stdout)
    files = _listed(f"A training step on {name}")
    assert sorted(functions_by_file) == sorted(files), functions_by_file
    assert len(files) <= MOST_FILES[name]


def _step(name: str) -> dict[str, set[str]]:
    """The functions that receive arrays in a step of two convolutions, pooling, dropout and an output, by file."""
    backend = open_backend(name, None if name == "numpy" else "cpu")
    network = NetworkSpec.parse("4C5-P2-6C5d0.2-P2", input_shape=(2, 28, 28), outputs=10)
    rng = np.random.default_rng(0)
    inputs, targets = ((rng.random((STEPS, BATCH, *shape)) < 0.3).astype(np.uint8) for shape in ((2, 28, 28), (10,)))
    functions_by_file: dict[str, set[str]] = {}
    for precision in _PRECISIONS:
        trainer = backend.trainer(network, LOSSES["van-rossum"], AdamW(), precision=precision, seed=1)
        state = trainer.init(initial_weights(network, 1, 3.0))
        with _traced(functions_by_file, _is_of_a_step), pytest.MonkeyPatch.context() as patch:
            if name == "jax":
                _follow_into_threads_of_xla(patch)
            trainer.step(state, Batch(inputs, targets))
    return functions_by_file


def _follow_into_threads_of_xla(patch: pytest.MonkeyPatch) -> None:
    """XLA calls kernels in its own threads, which Python does not trace by itself."""
    from stsbp_jax.engine import host_callback

    run, look = host_callback._run, sys.getprofile()

    def followed(*arguments: Any) -> None:
        profile = sys.getprofile()
        sys.setprofile(look)
        try:
            run(*arguments)
        finally:
            sys.setprofile(profile)

    patch.setattr(host_callback, "_run", followed)


if __name__ == "__main__":
    print(json.dumps({file: sorted(functions) for file, functions in _step(sys.argv[1]).items()}))
