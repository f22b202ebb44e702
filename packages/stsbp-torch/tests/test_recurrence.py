"""Recurrence and several inputs by the kernels of the CPU: the bits of the spec's own steps on plain tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numba import config, set_num_threads
from stsbp_cpu.engine.recurrent import FusedRecurrent
from stsbp_cpu.equations import recurrence as kernel
from stsbp_cpu.equations.recurrence import RUNS_BEFORE_COMPILING
from stsbp_cpu.ops.sparse import linear as sparse
from stsbp_spec import Batch, NetworkSpec, VanRossum, initial_weights
from stsbp_spec.engine.plan import Recurrent, plan
from stsbp_spec.equations.assembly import neuron_equations
from stsbp_spec.equations.expressions import Recurrence, exp, variable
from stsbp_spec.models.neurons import ALIF, LIF, PLIF, NeuronModel
from stsbp_spec.models.surrogates import Triangle
from stsbp_spec.networks.ops import Linear
from stsbp_spec.networks.ops.psp import PSP, Biased
from stsbp_spec.typing import AnyArray, Coding
from stsbp_torch.backend import TorchBackend
from stsbp_torch.ops import linear

FUSED, PLAIN = TorchBackend("cpu"), TorchBackend("cpu:eager")
LIF_ = LIF(3, 5 / 3, 0.4)
CASES: dict[str, tuple[str, NeuronModel, int, int, Coding]] = {
    "dense": ("13R-17R", LIF_, 9, 5, "events"),
    "more samples than go together": ("7R", LIF_, 6, 41, "events"),
    "whole vectors": ("32R-48R", LIF_, 7, 3, "events"),
    "direct coding": ("13R", LIF_, 9, 5, "direct"),
    "one step": ("13R", LIF_, 1, 4, "events"),
    "bias": ("13Rb-9Rb", LIF_, 9, 5, "events"),
    "bias, direct coding": ("13Rb", LIF_, 9, 5, "direct"),
    "delay and dropout": ("13Rd0.3-17R{delay=2}d0.2", LIF_, 9, 5, "events"),
    "soft reset": ("13R{reset=subtract}-17R", LIF_, 9, 5, "events"),
    "second order": ("13R{tau_s=4,tau_rise=2}-17R{tau_s=4,tau_rise=2}", LIF_, 9, 5, "events"),
    "alif": ("13R-17Rb", ALIF(3, beta=0.6, tau_a=9, threshold=0.4), 9, 5, "events"),
    "plif": ("13R-17R", PLIF(3, threshold=0.4), 9, 5, "events"),
    "errors of which most are zero": ("13R-17R", LIF(3, 5 / 3, 0.4, Triangle(0.7)), 9, 5, "events"),
    "few bits": ("13R{recurrent_bits=3}-17R{bits=4}", LIF_, 9, 5, "events"),
    "one-to-one": ("13{recurrent=one-to-one}-17b{recurrent=one-to-one}", LIF_, 9, 5, "events"),
    "one neuron": ("1R", LIF_, 9, 5, "events"),
}
"""Notation, neuron, steps, samples, coding."""


def forward_and_gradients(
    backend: TorchBackend, net: NetworkSpec, precision: Any, samples: int, steps: int
) -> dict[str, AnyArray]:
    """Everything that a forward pass shows, and the gradients in training, by name."""
    rng = np.random.default_rng(3)
    lead = (samples,) if net.coding == "direct" else (steps, samples)
    inputs = rng.integers(0, 256 if net.coding == "direct" else 2, (*lead, *net.input_shape)).astype(np.uint8)
    batch = Batch(inputs, (rng.random((steps, samples, net.outputs)) < 0.4).astype(np.uint8))
    weights = initial_weights(net, 2, 3.0)
    for name in weights:
        if "bias" in name:
            weights[name] = (rng.standard_normal(weights[name].shape) / 4).astype(np.float32)
    run = backend.run(net, weights, inputs, steps)
    result = backend.value_and_grad(net, VanRossum(), weights, batch, precision=precision, dropout=(3, 1))
    arrays: dict[str, AnyArray] = {"loss": np.array([result.loss]), **result.gradients}
    for name, layer in run.layers.items():
        arrays |= {f"{name} spikes": layer.spikes, f"{name} potentials": layer.potentials}
    return arrays


def _net(case: str) -> NetworkSpec:
    notation, neuron, _, _, coding = CASES[case]
    return NetworkSpec.parse(notation, input_shape=(11,), outputs=4, neuron=neuron, coding=coding)


@pytest.mark.parametrize("exact", [True, False])
def test_an_equation_that_is_run_often_is_compiled_and_its_bits_stay(
    exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, d = variable("x"), variable("d")
    states, outputs = {"d": x - 0.7 * d}, {"y": x * d if exact else exp(d), "o": d > x}
    equation = Recurrence(f"often_{exact}", (), ("x",), states, outputs)
    interpreted = list[Recurrence]()

    def noted(recurrence: Recurrence, *arguments: Any) -> None:
        interpreted.append(recurrence)
        run(recurrence, *arguments)

    run = kernel.recur
    monkeypatch.setattr(kernel, "recur", noted)
    inputs = {"x": torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))}
    calls = [FUSED.recur(equation, {}, inputs, 5, summed=("y",)) for _ in range(RUNS_BEFORE_COMPILING + 3)]
    assert len(interpreted) == (3 if exact else 0)
    for outputs_of_call in calls[1:]:
        assert all(torch.equal(array, outputs_of_call[name]) for name, array in calls[0].items())


def test_the_kernel_is_taken() -> None:
    for case in CASES:
        steps = plan(FUSED, _net(case).graph).steps
        assert any(type(step) is FusedRecurrent for step in steps), case
        assert not any(type(step) is Recurrent for step in steps), case


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("threads", sorted({1, config.NUMBA_NUM_THREADS}))
def test_bits_are_those_of_the_steps_on_plain_tensors(case: str, threads: int) -> None:
    _, _, steps, samples, _ = CASES[case]
    net = _net(case)
    set_num_threads(threads)
    try:
        got = forward_and_gradients(FUSED, net, "reproducible", samples, steps)
    finally:
        set_num_threads(config.NUMBA_NUM_THREADS)
    expected = forward_and_gradients(PLAIN, net, "reproducible", samples, steps)
    assert list(got) == list(expected)
    for name, x in expected.items():
        assert np.array_equal(got[name], x), name
        assert np.count_nonzero(x) > 0 or steps == 1, name
    rates = [float(x.mean()) for name, x in expected.items() if name.endswith("spikes")]
    assert 0.03 < rates[0] < 0.97


def test_bits_stay_where_spikes_are_few_enough_to_choose_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "SPARSE_BELOW", 2)
    monkeypatch.setattr(sparse, "FRAMES", 1)
    monkeypatch.setattr(sparse, "UNITS", 1)
    net = NetworkSpec.parse("6C3-P2-13Rd0.3-17", input_shape=(2, 8, 8), outputs=4, neuron=LIF_)
    assert linear.saved_for_backward(
        Linear(3), torch.zeros(1, 1, 5, dtype=torch.uint8), torch.ones(3, 5), fused=True
    ).flat.dtype is (torch.uint8)
    got, expected = (forward_and_gradients(backend, net, "reproducible", 5, 9) for backend in (FUSED, PLAIN))
    for name, x in expected.items():
        assert np.array_equal(got[name], x), name
        assert np.count_nonzero(x) > 0, name


@pytest.mark.parametrize("case", ["dense", "bias, direct coding", "one-to-one"])
def test_fast_gradients_are_the_same_up_to_rounding(case: str) -> None:
    _, _, steps, samples, _ = CASES[case]
    net = _net(case)
    got, expected = (forward_and_gradients(backend, net, "fast", samples, steps) for backend in (FUSED, PLAIN))
    for name, x in expected.items():
        assert np.abs(got[name] - x).max() <= 1e-5 * np.abs(x).max(), name


@pytest.mark.parametrize("neuron", [LIF_, ALIF(3, beta=0.6, tau_a=9, threshold=0.4), PLIF(3, threshold=0.4)])
@pytest.mark.parametrize("shape", [(3, 4, 7, 5), (2, 700)], ids=["images", "more than a run"])
def test_neurons_that_read_several_projections(neuron: NeuronModel, shape: tuple[int, ...]) -> None:
    steps, rng = 6, np.random.default_rng(4)
    plain, slow = PSP(3).filter(), PSP(5, 2).filter(1.25)
    static = (False, True, False, False)
    equations = neuron_equations((plain, plain, Biased(slow, np.float32(1)), plain), neuron, static)
    assert len(set(equations.errors)) < len(equations.errors), "two share their filter"
    zs = [rng.standard_normal((1 if is_static else steps, *shape)).astype(np.float32) for is_static in static]
    g = rng.standard_normal((steps, *shape)).astype(np.float32)
    learned = {name: rng.uniform(0.1, 0.5, shape[1]).astype(np.float32) for name in equations.learned}
    results = []
    for backend in (FUSED, PLAIN):
        sums = [backend.asarray(z) for z in zs]
        tensors = {name: backend.asarray(x) for name, x in learned.items()}
        spikes, residuals = backend.population_forward(equations, sums, steps, tensors)
        errors, terms = backend.population_backward(equations, residuals, backend.asarray(g), static)
        assert 0.05 < backend.spike_rate(spikes) < 0.95
        assert [len(x) for x in errors] == [len(z) for z in zs]
        results.append([backend.numpy(x) for x in (spikes, *residuals.kept.values(), *errors, *terms.values())])
    for got, expected in zip(*results, strict=True):
        assert np.array_equal(got, expected)
