"""`stsbp.interop.nir_readings`: what importers are said to do, with one neuron."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from stsbp.interop.nir_readings import READINGS, Float32, Float64, simulate

DT = 1e-4
INPUT = (6, 22, 27, 31, 32, 35, 37, 40, 41, 43, *range(44, 54), *range(67, 79), 84, 85)
"""Tens of steps at which the neuron of `paper/01_lif` of the NIR repository receives a spike."""


def one(value: float) -> Float64:
    return np.array([value])


def spikes_at(importer: str, scale: float = 1.0, tau: float = 0.0025) -> list[int]:
    """When that neuron spikes, as an importer reads it."""
    x = np.zeros((1000, 1), np.float32)
    x[[10 * step for step in INPUT]] = scale
    numbers = {"tau": one(tau), "r": one(1), "v_leak": one(0), "v_threshold": one(0.1), "v_reset": one(0)}
    return [int(step) for step in np.flatnonzero(simulate(READINGS[importer].neurons["LIF"], numbers, DT, x)[1])]


def test_published_traces_of_one_neuron() -> None:
    on_time = [460, 510, 710, 760]
    for importer in ("norse", "snntorch", "spikingjelly"):
        assert spikes_at(importer) == on_time, importer
    # Importers that take the input as it is were given 0.04 of it.
    assert spikes_at("spyx", 0.04) == [step + 1 for step in on_time]
    # ... and this one a time constant in steps.
    assert spikes_at("sinabs", 0.04, 25) == [450, 500, 710, 760]


def run_at_threshold(importer: str, kind: str) -> tuple[Float32, Float32]:
    """Potentials and spikes of a neuron that forgets all, and is fed its threshold, more, and nothing."""
    tau = DT if importer != "sinabs" else 1e-9
    numbers = {name: one(tau) for name in ("tau", "tau_mem", "tau_syn")}
    numbers |= {"r": one(1), "w_in": one(1), "v_leak": one(0), "v_threshold": one(1), "v_reset": one(0)}
    x = np.array([1, 2.5, 0, 0], np.float32)[:, None]
    return simulate(READINGS[importer].neurons[kind], numbers, DT, x)


@pytest.mark.parametrize(
    ("importer", "spikes"),
    [
        ("spikingjelly", [1, 1, 0, 0]),
        ("norse", [0, 1, 0, 0]),
        ("snntorch", [0, 1, 0, 0]),
        ("spyx", [0, 0, 1, 0]),
        ("sinabs", [1, 2, 0, 0]),
    ],
)
def test_a_potential_that_meets_the_threshold(importer: str, spikes: list[int]) -> None:
    kinds = [kind for kind in ("CubaLIF", "LIF") if kind in READINGS[importer].neurons]
    for kind in kinds:
        spikes_of_neuron = run_at_threshold(importer, kind)[1][:, 0].tolist()
        # spyx takes the threshold off what would have been forgotten, and stays above it for a step.
        assert spikes_of_neuron[:2] == spikes[:2], kind
        assert spikes_of_neuron[2] == spikes[2] or importer == "spyx"


def test_rockpool_guesses_its_step() -> None:
    numbers = {"tau_mem": one(5 * DT), "tau_syn": one(3 * DT), "r": one(5), "w_in": one(3), "v_leak": one(0)}
    numbers |= {"v_threshold": one(1), "v_reset": one(0)}
    x = np.array([[1.0], [0.0]], np.float32)
    potentials, _ = simulate(READINGS["rockpool"].neurons["CubaLIF"], numbers, DT, x)
    step = 5 * DT / 6
    first = np.exp(-step / (3 * DT))
    assert potentials[0, 0] == pytest.approx(first, rel=1e-6)
    assert potentials[1, 0] == pytest.approx(first * (np.exp(-step / (5 * DT)) + first), rel=1e-6)


def test_what_is_asked_for_is_checked() -> None:
    good = {"tau_mem": one(5 * DT), "tau_syn": one(3 * DT), "r": one(5), "w_in": one(3), "v_leak": one(0)}
    good |= {"v_threshold": one(1), "v_reset": one(0)}
    bad = {
        "r": ("r = tau_mem / dt", one(1)),
        "w_in": ("w_in = tau_syn / dt", one(1)),
        "v_leak": ("v_leak = 0", one(0.1)),
        "v_threshold": ("one value", np.array([1.0, 2.0])),
    }
    asks = READINGS["spikingjelly"].neurons["CubaLIF"].asks
    assert all(ask.holds(good, DT) for ask in asks)
    for name, (text, values) in bad.items():
        failed = [ask.text for ask in asks if not ask.holds({**good, name: values}, DT)]
        assert len(failed) == 1
        assert text in failed[0]
    too_short = [ask.text for ask in asks if not ask.holds({**good, "tau_syn": one(DT / 2), "w_in": one(0.5)}, DT)]
    assert too_short == ["tau_syn and tau_mem at least dt"]


def test_snntorch_scales_the_threshold() -> None:
    numbers = {"tau": one(5 * DT), "r": one(2.5), "v_leak": one(0), "v_threshold": one(1), "v_reset": one(0)}
    x = np.array([[1.5], [1.0]], np.float32)
    _, spikes = simulate(READINGS["snntorch"].neurons["LIF"], numbers, DT, x)
    assert spikes[:, 0].tolist() == [0, 1]


def test_the_documentation_has_the_same_readings() -> None:
    page = Path(__file__).parents[3] / "benchmarks" / "results" / "interop.md"
    if not page.is_file():
        pytest.skip("the documentation is not beside the packages")
    text = page.read_text(encoding="utf-8").replace("`", "")
    for name, reading in READINGS.items():
        assert f"| {name} {reading.version} |" in text
        if (neuron := reading.neurons.get("CubaLIF")) is not None:
            row = next(line for line in text.splitlines() if line.startswith(f"| {name} {reading.version} |"))
            assert f"| {' '.join(neuron.update.split())} |" in " ".join(row.split())
            assert f"| {neuron.spike}, {neuron.reset} |" in row
            assert all(parameter in row.split("|")[-2] for parameter in neuron.ignores)


def test_readings_name_what_they_read() -> None:
    for name, reading in READINGS.items():
        assert reading.name == name
        assert {"Input", "Output", "Affine"} <= reading.layers
        for neuron in reading.neurons.values():
            assert neuron.update
            assert neuron.spike
            assert neuron.reset
