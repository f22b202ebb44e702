"""Neuron models: gradients are those that torch derives in float64, and a stranger's has the same bits everywhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from stsbp_conformance.cases import normal
from stsbp_conformance.check import Check, Mismatch
from stsbp_conformance.faults import BACKENDS
from stsbp_conformance.oracles.literal import surrogate_derivative
from stsbp_conformance.reference import NUMPY
from stsbp_conformance.tiers import neurons
from stsbp_spec.contract.grid import FLOOR
from stsbp_spec.equations.assembly import neuron_equations
from stsbp_spec.equations.expressions import Expr, Names, Recurrence, named, snap, spike, sqrt, where
from stsbp_spec.equations.printers import numpy_function
from stsbp_spec.models.neurons import NEURONS, NeuronModel
from stsbp_spec.models.neurons.base import Learned, Step, above_zero, parameter, steps
from stsbp_spec.models.neurons.plif import PLIF
from stsbp_spec.models.surrogates import SURROGATES, Arctan, FastSigmoid, Logistic, Surrogate
from stsbp_spec.networks.ops import IDENTITY, PSP
from stsbp_spec.typing import AnyArray, Float64


@dataclass(frozen=True)
class Resonator(NeuronModel):
    """A stranger's model of three states: a damped rotation whose threshold rises and levels off."""

    name: ClassVar[str] = "resonator"
    states: ClassVar[tuple[str, ...]] = ("x", "y", "b")

    tau_m: float = parameter(3.0, steps)
    tau_s: float = 2.0
    threshold: float = 1.0
    surrogate: Surrogate = field(default_factory=Arctan)
    angle: float = parameter(0.7, above_zero)

    def constants(self) -> Mapping[str, float]:
        keep = 1 - 1 / self.tau_m
        turn = {"cos": keep * float(np.cos(self.angle)), "sin": keep * float(np.sin(self.angle))}
        return {**turn, "vth": self.threshold, "rho": 0.6}

    def step(self, p: Names, s: Names, i: Expr) -> Step:
        u = named("u", snap(p.cos * s.x - p.sin * s.y + i))
        y = named("y", snap(p.sin * s.x + p.cos * s.y))
        raised = named("raised", abs(s.b) / sqrt(1 + s.b * s.b))
        o = spike(u, named("threshold", p.vth + raised))
        return Step(u, o, {"x": where(o, 0, u), "y": y, "b": p.rho * s.b + where(o, 1 - p.rho, 0)})


@dataclass(frozen=True)
class Learner(Resonator):
    """The same, which learns how fast it turns and how high its threshold rises; the second may be negative."""

    name: ClassVar[str] = "learner"

    def constants(self) -> Mapping[str, float]:
        return {"vth": self.threshold, "rho": 0.6, "keep": 0.7}

    def learned(self) -> Mapping[str, Learned]:
        return {
            "turn": Learned(0.3, low=-0.75, high=0.75, per="channel"),
            "rise": Learned(1.0, low=-0.25, high=2.0),
        }

    def step(self, p: Names, s: Names, i: Expr) -> Step:
        keeps = 1 - p.turn * p.turn
        x, y = snap(keeps * s.x) - snap(p.turn * s.y), snap(p.turn * s.x) + snap(keeps * s.y)
        u = named("u", snap(p.keep * x + i))
        raised = named("raised", p.rise * abs(s.b) / sqrt(1 + s.b * s.b))
        o = spike(u, named("threshold", p.vth + raised))
        return Step(u, o, {"x": where(o, 0, u), "y": p.keep * y, "b": p.rho * s.b + where(o, 1 - p.rho, 0)})


STRANGER, LEARNER = Resonator(threshold=0.5), Learner(threshold=0.5)
MODELS = (*neurons.MODELS, *neurons.models(PLIF), STRANGER, LEARNER)
each_model = pytest.mark.parametrize("neuron", MODELS, ids=lambda n: f"{n.name}-{getattr(n, 'reset', '')}".strip("-"))


def test_every_model_and_every_reset_is_there() -> None:
    assert {type(neuron) for neuron in neurons.MODELS} == set(NEURONS.values())
    assert {(n.name, getattr(n, "reset", None)) for n in neurons.MODELS} >= {("lif", "zero"), ("lif", "subtract")}
    assert len(neurons.CHECKS) == 6 * len(neurons.MODELS)


@dataclass(frozen=True)
class Loud(Resonator):
    """Multiplies a product that may be subnormal with something large."""

    def step(self, p: Names, s: Names, i: Expr) -> Step:
        step = super().step(p, s, i)
        return Step(step.u, step.spike, {**step.states, "b": i * i * 2.0**60 * 2.0**60})


def test_a_product_whose_flush_shows_fails_a_check() -> None:
    last = neurons.checks(Loud())[-1]
    with pytest.raises(
        Mismatch, match=r"^resonator_forward: i \* i may be below 2\^-126, .* differs; write snap\(i \* i\)"
    ):
        last.run(NUMPY)
    assert neurons.checks(STRANGER)[-1].run(NUMPY).kind == "equal"


@pytest.mark.parametrize(
    "check",
    [
        # Every surrogate with every model is minutes of compiling: with one, for each change.
        replace(check, quick=neuron is STRANGER or not check.id.endswith("every surrogate"))
        for neuron in (STRANGER, LEARNER, *neurons.models(PLIF))
        for check in neurons.checks(neuron)
    ],
    ids=lambda check: check.id,
)
def test_a_strangers_model_has_the_same_bits_everywhere(check: Check, run_check: Callable[[Check], None]) -> None:
    run_check(check)


def test_the_page_says_how_a_strangers_model_is_held_to_them(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "write_a_neuron.md"
    model, *_, test = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    for name, text in (("my_neurons.py", model), ("test_my_neurons.py", test)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--backend", "numpy"]
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    run = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"numpy: {len(neurons.checks(STRANGER))} passed, 0 failed, 0 skipped" in run.stdout


@each_model
def test_potentials_meet_the_threshold_and_the_number_below_it(neuron: NeuronModel) -> None:
    z, distances = neurons.meeting_the_threshold(neuron)
    fired, _ = NUMPY.neuron_forward(neuron, IDENTITY, z, len(z), neurons.learned_numbers(neuron, IDENTITY, z.shape[2:]))
    met, one_lower = distances[..., 0::3], distances[..., 1::3]
    assert (met == 0).mean() > 0.9
    assert (np.abs(one_lower) < 1e-6).all()
    assert (one_lower < 0).mean() > 2 / 3
    assert fired[..., 0::3][met == 0].all()
    assert not fired[..., 1::3][one_lower < 0].any()


@each_model
def test_silence_and_tiny_numbers_reach_the_floor(neuron: NeuronModel) -> None:
    """Without the floor potentials and errors are other numbers; with it none lies below."""
    small, filter = neurons.near_the_floor(), PSP(2.0).filter()
    for z, ds in (neurons.silent(), *((z, ds) for _, z, ds in small)):
        learned = neurons.learned_numbers(neuron, filter, z.shape[2:])
        saved = NUMPY.neuron_forward(neuron, filter, z, len(ds), learned)[1].kept
        for name, x in saved.items():
            assert not ((x != 0) & (np.abs(x) < FLOOR)).any(), name
    for wrong, (_, z, ds) in ((BACKENDS["NoFloorForward"](), small[0]), (BACKENDS["NoFloorBackward"](), small[1])):
        learned = neurons.learned_numbers(neuron, filter, z.shape[2:])
        residuals, other = (b.neuron_forward(neuron, filter, z, len(ds), learned)[1] for b in (NUMPY, wrong))
        dz, without = (b.neuron_backward(neuron, filter, residuals, ds)[0] for b in (NUMPY, wrong))
        assert (other.kept["u"] != residuals.kept["u"]).any() or (dz != without).any()


# Gradients: torch derives them in float64 from the equations of the literature, written here once more.

torch = pytest.importorskip("torch")


def _spikes(h: Surrogate, smooth: bool) -> Callable[[Any, Any], Any]:
    """`spike(u, threshold)` of torch, with `h` as its derivative; `smooth`: the primitive of `h` in its place."""

    class Spike(torch.autograd.Function):  # type: ignore[misc, name-defined]
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            ctx.save_for_backward(x)
            return torch.from_numpy(h.primitive(x.numpy())) if smooth else (x >= 0).to(x)

        @staticmethod
        def backward(ctx: Any, d: Any) -> Any:
            (x,) = ctx.saved_tensors
            return d * torch.from_numpy(surrogate_derivative(h, x.numpy()))

    return lambda u, threshold: Spike.apply(u - threshold)


def _by_hand(neuron: Any, tau: float, z: Any, learned: Mapping[str, Any], smooth: bool) -> Any:
    """Spikes `[T, N]` of a synaptic filter of time constant `tau` and the neurons after it."""
    fires, vth = _spikes(neuron.surrogate, smooth), neuron.threshold
    i = u = o = a = x = y = torch.zeros_like(z[0])
    v, keep = vth + torch.zeros_like(i), 1.0 if neuron.name == "if" else 1 - 1 / neuron.tau_m
    keep = learned.get("decay", keep)
    fired = []
    for zt in z:
        i = (1 - 1 / tau) * i + zt / tau
        if neuron.name in ("resonator", "learner"):
            x, y, a = x * (1 - o), y, 0.6 * a + 0.4 * o
            if neuron.name == "resonator":
                real, imaginary = keep * np.cos(neuron.angle), keep * np.sin(neuron.angle)
            else:
                real, imaginary = 0.7 * (1 - learned["turn"] ** 2), 0.7 * learned["turn"]
            x, y = real * x - imaginary * y + i, imaginary * x + real * y
            u, v = x, vth + learned.get("rise", 1) * torch.where(a < 0, -a, a) / torch.sqrt(1 + a * a)
        else:
            u = keep * (u * (1 - o) if neuron.reset == "zero" else u - v * o) + i
            if neuron.name == "alif":
                a = (1 - 1 / neuron.tau_a) * a + o / neuron.tau_a
                v = vth + neuron.beta * a
        o = fires(u, v)
        fired.append(o)
    return torch.stack(fired)


def _by_expressions(
    neuron: NeuronModel, tau: float, z: Float64, g: Float64, learned: Mapping[str, AnyArray]
) -> tuple[AnyArray, AnyArray, dict[str, AnyArray]]:
    """Spikes, `dL/dz` `[T, N]` and `dL/d` of what is learned, `[1 or N]`, of the model's own recurrences in float64.

    Constants are unrounded.
    """
    equations = neuron_equations(PSP(tau).filter(), neuron)
    constants = {**equations.unrounded, "k": 1 - 1 / tau, "c": 1 / tau}
    learned_inputs = {free: np.broadcast_to(learned[name], z.shape) for name, free in equations.learned.items()}

    def run(recurrence: Recurrence, inputs: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
        step = numpy_function(recurrence, np.float64)
        parameters = [np.float64(constants[name]) for name in recurrence.parameters]
        states: Sequence[AnyArray] = [np.zeros(z.shape[1:]) for _ in recurrence.states]
        per_step = []
        for t in range(len(z))[:: -1 if recurrence.reverse else 1]:
            states, outputs = step(*parameters, *(inputs[name][t] for name in recurrence.inputs), *states)
            per_step.append(outputs)
        stacked = (np.stack(x[:: -1 if recurrence.reverse else 1]) for x in zip(*per_step, strict=True))
        return dict(zip(recurrence.outputs, stacked, strict=True))

    forward_values = run(equations.forward, {"z": z, **learned_inputs})
    backward_values = run(equations.backward, {**forward_values, **learned_inputs, "g": g})
    sums = {
        name: backward_values[output]
        .sum(axis=0 if len(learned[name]) > 1 else None, keepdims=len(learned[name]) == 1)
        .ravel()
        for name, output in equations.terms.items()
    }
    return forward_values["o"].astype(np.float64), backward_values["dz"], sums


def _learned(neuron: NeuronModel, count: int) -> dict[str, AnyArray]:
    return {name: x.astype(np.float64) for name, x in neurons.learned_numbers(neuron, IDENTITY, (count,)).items()}


@each_model
@pytest.mark.parametrize("surrogate", [cls() for cls in SURROGATES.values()], ids=str)
def test_gradients_are_those_that_torch_derives(neuron: NeuronModel, surrogate: Surrogate) -> None:
    model = neurons.with_surrogate(neuron, surrogate)
    z, g = normal((25, 60), 90).astype(np.float64), normal((25, 60), 91).astype(np.float64)
    learned = _learned(model, 60)
    o, dz, sums = _by_expressions(model, 3.0, z, g, learned)
    variable = torch.tensor(z, requires_grad=True)
    learned_tensors = {name: torch.tensor(x, requires_grad=True) for name, x in learned.items()}
    fired = _by_hand(model, 3.0, variable, learned_tensors, smooth=False)
    assert np.array_equal(o, fired.detach().numpy())
    assert 0.05 < o.mean() < 0.7
    expected, *others = torch.autograd.grad(fired, [variable, *learned_tensors.values()], torch.tensor(g))
    assert np.count_nonzero(dz) > dz.size / 2
    assert np.abs(dz - expected.numpy()).max() <= 1e-12 * np.abs(dz).max()
    for (name, gradient), other in zip(sums.items(), others, strict=True):
        assert np.count_nonzero(gradient) > gradient.size / 2, name
        assert np.abs(gradient - other.numpy()).max() <= 1e-12 * np.abs(gradient).max(), name


@each_model
@pytest.mark.parametrize("surrogate", [Arctan(), FastSigmoid(), Logistic()], ids=str)
def test_what_torch_derives_is_the_slope_of_the_smoothed_spikes(neuron: NeuronModel, surrogate: Surrogate) -> None:
    model = neurons.with_surrogate(neuron, surrogate)
    z, g, direction = (normal((12, 40), seed).astype(np.float64) for seed in (92, 93, 94))
    point = {"z": z, **_learned(model, 40)}
    directions = {
        "z": direction,
        **{name: normal(x.shape, 95).astype(np.float64) for name, x in point.items() if name != "z"},
    }

    def fired(values: Mapping[str, Any]) -> Any:
        tensors = {name: torch.as_tensor(x) for name, x in values.items()}
        return _by_hand(model, 3.0, tensors.pop("z"), tensors, smooth=True)

    variables = {name: torch.tensor(x, requires_grad=True) for name, x in point.items()}
    slopes = torch.autograd.grad(fired(variables), [*variables.values()], torch.tensor(g))
    for (name, x), slope in zip(point.items(), slopes, strict=True):
        up, down = (
            float((fired({**point, name: x + sign * 1e-5 * directions[name]}).numpy() * g).sum()) for sign in (1, -1)
        )
        assert (up - down) / 2e-5 == pytest.approx(float((slope.numpy() * directions[name]).sum()), rel=1e-6), name
