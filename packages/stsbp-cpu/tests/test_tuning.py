"""The trial of how the neuron kernels access memory: the fastest manner is used and stored.

test_neurons.py compares the bits of every manner with the reference.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from numba import get_num_threads
from stsbp_cpu.engine import tuning
from stsbp_cpu.engine.compiling import own_folder
from stsbp_cpu.engine.tuning import CHOICES, TRIED_FROM, Manner, in_best_manner

FAVOURITE = CHOICES[2]


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing was tried before."""
    monkeypatch.setenv("STSBP_CACHE", str(tmp_path))
    monkeypatch.delenv("STSBP_TUNE", raising=False)
    monkeypatch.setattr(tuning, "_chosen", {})


class Work:
    """Takes less time in the favourite manner, and notes in which ones it was done."""

    def __init__(self, seconds: float = 0.01) -> None:
        self.seconds = seconds
        self.done: list[Manner] = []

    def __call__(self, *manner: object) -> None:
        self.done.append(Manner(*manner))  # type: ignore[arg-type]
        time.sleep(0.0 if self.done[-1] == FAVOURITE else self.seconds)


@pytest.mark.usefixtures("fresh")
def test_the_fastest_is_taken_and_found_again_by_the_next_process(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work()
    in_best_manner("forward", TRIED_FROM, 10**6, work)
    assert set(work.done) == set(CHOICES)
    later = Work()
    in_best_manner("forward", TRIED_FROM, 10**6, later)
    monkeypatch.setattr(tuning, "_chosen", {})
    in_best_manner("forward", TRIED_FROM, 10**6, later)
    assert later.done == [FAVOURITE, FAVOURITE]
    # Another kind of work, and another size, are tried by themselves.
    for kind, size in (("backward", TRIED_FROM), ("forward", 4 * TRIED_FROM)):
        other = Work()
        in_best_manner(kind, size, 10**6, other)
        assert set(other.done) == set(CHOICES)


@pytest.mark.usefixtures("fresh")
def test_a_damaged_choice_is_made_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    in_best_manner("forward", TRIED_FROM, 10**6, Work())
    (file,) = tmp_path.rglob("manner-*.json*")
    folder = own_folder()
    assert folder is not None
    for damaged in (b"[1, true", b"[7, true, true]", b'{"a": 1}'):
        folder.write(file.name, damaged)
        monkeypatch.setattr(tuning, "_chosen", {})
        work = Work()
        in_best_manner("forward", TRIED_FROM, 10**6, work)
        assert set(work.done) == set(CHOICES)


@pytest.mark.usefixtures("fresh")
def test_small_arrays_and_a_switch_leave_the_trial_out(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work()
    in_best_manner("forward", TRIED_FROM - 1, 10**6, work)
    monkeypatch.setenv("STSBP_TUNE", "0")
    in_best_manner("forward", 2**25, 10**6, work)
    assert work.done == [CHOICES[1], CHOICES[0]]


@pytest.mark.usefixtures("fresh")
def test_every_thread_has_chunks() -> None:
    work = Work()
    in_best_manner("forward", TRIED_FROM, 4096, work)
    assert all(manner.chunk * 4 * get_num_threads() <= max(4096, 4 * 512 * get_num_threads()) for manner in work.done)
