"""The trial of how neurons go through memory: the fastest is taken, kept, and changes no bit."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from numba import get_num_threads
from stsbp_cpu.engine import tuning
from stsbp_cpu.engine.compiling import own_folder
from stsbp_cpu.engine.tuning import CHOICES, TRIED_FROM, Manner, in_best_manner
from stsbp_cpu.models import neurons
from stsbp_spec.equations.assembly import neuron_equations
from stsbp_spec.models.neurons import ALIF, LIF
from stsbp_spec.models.neurons.base import NeuronModel
from stsbp_spec.networks.ops.psp import PSP

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


@pytest.mark.parametrize("neuron", [LIF(), ALIF()], ids=["lif", "alif"])
@pytest.mark.parametrize("once", [False, True], ids=["moving", "static"])
def test_no_manner_changes_a_bit(neuron: NeuronModel, once: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    equations, steps, count = neuron_equations(PSP(3.0).filter(), neuron), 5, 2057
    rng = np.random.default_rng(4)
    z = rng.uniform(-0.3, 1, (1 if once else steps, count)).astype(np.float32)
    ds = rng.standard_normal((steps, count)).astype(np.float32)
    outcomes = set()
    for choice in CHOICES:
        monkeypatch.setattr(neurons, "in_best_manner", lambda _kind, _size, _n, run, choice=choice: run(*choice))
        u, spikes = np.empty((steps, count), np.float32), np.empty((steps, count), np.uint8)
        saved = np.empty((len(equations.kept) - 1, steps, count), np.float32)
        dz = np.empty((len(z), count), np.float32)
        neurons.forward(equations, z, u, spikes, saved)
        neurons.backward(equations, u, saved, ds, dz)
        assert spikes.any()
        outcomes.add((u.tobytes(), spikes.tobytes(), saved.tobytes(), dz.tobytes()))
    assert len(outcomes) == 1
