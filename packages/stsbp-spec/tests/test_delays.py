"""Learned delays: the rule in exact fractions, differences of the interpolated signal, notation, update, states."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from stsbp_spec import SGD, Adam, AdamW, Batch, LearnedDelay, NetworkSpec, initial_weights
from stsbp_spec.contract.grid import is_on_grid
from stsbp_spec.distributed.collective import BatchSlice
from stsbp_spec.engine.plan import Delays, plan
from stsbp_spec.engine.rules import Deferred, PassContext
from stsbp_spec.engine.trainer import Trainer
from stsbp_spec.errors import ExactnessError, NetworkError, NumericError, ShapeError, SpecError
from stsbp_spec.models.losses import VanRossum
from stsbp_spec.models.neurons import LIF
from stsbp_spec.networks.ops.base import Values
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import AnyArray, Float32, UInt8

NUMPY = NumpyBackend()
NET = "T5-6C3-P2-T3-F-T2-8R"
SPEC = NetworkSpec.parse(NET, input_shape=(2, 8, 8), outputs=3, neuron=LIF(3, 5 / 3, 0.4))
STEPS, BATCH = 7, 6
DELAYS = np.array([0.0, 0.5, 1.5, 2.5, 2.4999998, 3.0, 7.75, 2.0**-100], np.float32)


def spikes(*shape: int, seed: int = 0, density: float = 0.4, largest: int = 1) -> UInt8:
    rng = np.random.default_rng(seed)
    return ((rng.random(shape) < density) * rng.integers(1, largest + 1, shape)).astype(np.uint8)


def batch(lengths: Any = None) -> Batch:
    return Batch(spikes(STEPS, BATCH, 2, 8, 8), spikes(STEPS, BATCH, 3, seed=1), lengths)


def rounded(d: float) -> int:
    """Half to even, from the definition."""
    low = math.floor(d)
    if Fraction(d) - low == Fraction(1, 2):
        return low + low % 2
    return low + (Fraction(d) - low > Fraction(1, 2))


def at(x: AnyArray, t: int) -> AnyArray:
    return x[t] if 0 <= t < len(x) else np.zeros_like(x[0])


@pytest.mark.parametrize("largest", [1, 255])
@pytest.mark.parametrize("shape", [(8,), (8, 2, 3)])
def test_the_rule_in_exact_fractions(shape: tuple[int, ...], largest: int) -> None:
    s = spikes(STEPS, 3, *shape, largest=largest)
    g = np.random.default_rng(3).normal(size=s.shape).astype(np.float32)
    bits = LearnedDelay.error_bits(Values(shape, maximum=float(largest)), frames=STEPS * 3)
    on_grid, _ = NUMPY.error_grid(g, bits)
    y, ds = NUMPY.delay_forward(s, DELAYS), NUMPY.delay_backward(g, DELAYS)
    assert y.dtype == np.uint8
    totals = NUMPY.delay_gradient(s, DELAYS, on_grid)
    for c, d in enumerate(map(float, DELAYS)):
        low, total = math.floor(d), Fraction(0)
        for t in range(STEPS):
            assert np.array_equal(y[t, :, c], at(s[:, :, c], t - rounded(d)))
            assert np.array_equal(ds[t, :, c], at(g[:, :, c], t + rounded(d)))
            slope = at(s[:, :, c], t - low - 1).astype(int) - at(s[:, :, c], t - low)
            for error, change in zip(on_grid[t, :, c].flat, np.reshape(slope, -1), strict=True):
                total += Fraction(float(error)) * int(change)
        assert Fraction(float(totals[c])) == total
    # In another order, the sum has the same bits.
    backwards = NUMPY.delay_gradient(s[:, ::-1], DELAYS, on_grid[:, ::-1])
    assert backwards.tobytes() == totals.tobytes()


def test_the_error_grid_is_the_finest_whose_sums_are_exact() -> None:
    assert LearnedDelay.error_bits(Values((5,)), frames=64) == 53 - 6
    assert LearnedDelay.error_bits(Values((5, 3, 3), exponent=2), frames=64) == 53 - 10 - 2
    assert LearnedDelay.error_bits(Values((5,), maximum=255.0), frames=65) == 53 - 7 - 8
    with pytest.raises(ExactnessError, match="would keep only 7 bits"):
        LearnedDelay.error_bits(Values((5, 2**20, 2**20)), frames=64)


def _interpolated(s: AnyArray, d: AnyArray, w: AnyArray) -> float:
    """`sum w y` for `y` by linear interpolation between steps, float64."""
    total = 0.0
    for c, delay in enumerate(d):
        low = math.floor(delay)
        for t in range(len(s)):
            y = (1 - delay + low) * at(s[:, c], t - low) + (delay - low) * at(s[:, c], t - low - 1)
            total += float(w[t, c] @ y)
    return total


def test_gradients_are_those_of_linear_interpolation() -> None:
    rng, d = np.random.default_rng(0), np.array([0.3, 1.0625, 2.5, 3.75])
    s, w = rng.normal(size=(9, 4, 5)), rng.normal(size=(9, 4, 5)).astype(np.float32)
    native = np.moveaxis(s, 2, 1)
    totals = NUMPY.delay_gradient(native, d.astype(np.float32), np.moveaxis(w, 2, 1))
    for c in range(4):
        more, fewer = d.copy(), d.copy()
        more[c] += 2.0**-10
        fewer[c] -= 2.0**-10
        slope = (_interpolated(s, more, w) - _interpolated(s, fewer, w)) * 2.0**9
        assert totals[c] == pytest.approx(slope, rel=1e-9)
    # At whole delays, the interpolated signal is the delayed one. Its derivative in each value of the signal:
    whole = np.array([0.0, 1.0, 2.0, 5.0])
    ds = NUMPY.delay_backward(np.moveaxis(w, 2, 1), whole.astype(np.float32))
    for _ in range(5):
        change = rng.normal(size=s.shape)
        slope = (_interpolated(s + change, whole, w) - _interpolated(s - change, whole, w)) / 2
        assert float(np.sum(np.moveaxis(ds, 1, 2) * change)) == pytest.approx(slope, rel=1e-9)


def test_a_network_passes_its_errors_to_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of each delay is the rule of the signal before it and the error after it, rounded once."""
    calls = list[tuple[AnyArray, Float32, Float32]]()
    correct = NumpyBackend.delay_gradient

    def watched(self: NumpyBackend, x: AnyArray, delays: Float32, error: Float32) -> AnyArray:
        calls.append((x, delays, error))
        return correct(self, x, delays, error)

    monkeypatch.setattr(NumpyBackend, "delay_gradient", watched)
    weights = initial_weights(SPEC, 3, 3.0)
    got = NUMPY.value_and_grad(SPEC, VanRossum(), weights, batch(), precision="reproducible")
    names = [name for name, parameter in SPEC.parameters.items() if parameter.is_delay]
    assert names == ["delay1.steps", "delay2.steps", "delay2.3.steps"]
    for name, (x, delays, error) in zip(reversed(names), calls, strict=True):
        assert np.array_equal(delays, weights[name])
        bits = LearnedDelay.error_bits(SPEC.graph.values[name.removesuffix(".steps")], frames=STEPS * BATCH)
        largest = float(np.abs(error).max())
        assert largest > 0
        assert is_on_grid(error, bits - math.frexp(largest)[1])
        for c in range(len(delays)):
            low, total = math.floor(delays[c]), Fraction(0)
            for t in range(STEPS):
                slope = at(x[:, :, c], t - low - 1).astype(np.float64) - at(x[:, :, c], t - low)
                for e, change in zip(error[t, :, c].flat, slope.flat, strict=True):
                    total += Fraction(float(e)) * Fraction(float(change))
            assert got.gradients[name][c] == np.float32(float(total))
        assert np.count_nonzero(got.gradients[name]) > 0


def _trained(optimizer: Any, updates: int = 3, spec: NetworkSpec = SPEC, **options: Any) -> dict[str, AnyArray]:
    trainer = Trainer(NUMPY, spec, VanRossum(), optimizer, precision="reproducible", **options)
    state = trainer.init(initial_weights(spec, 3, 3.0))
    for _ in range(updates):
        state, _ = trainer.step(state, batch())
    return trainer.export_state(state)


@pytest.mark.parametrize("options", [{"micro_batch": 1}, {"micro_batch": 4}, {"memory": "low"}], ids=str)
def test_parts_of_a_batch_change_no_bit(options: dict[str, Any]) -> None:
    optimizer = AdamW(lr=0.01, delay_lr=0.25)
    whole, parts = _trained(optimizer), _trained(optimizer, **options)
    assert {name: x.tobytes() for name, x in whole.items()} == {name: x.tobytes() for name, x in parts.items()}


def test_padding_changes_no_gradient() -> None:
    """Samples of different lengths: the mean of the gradients of each sample alone, without its padding."""
    lengths = np.array([7, 3, 5, 6, 1, 7])
    weights, (inputs, targets, _) = initial_weights(SPEC, 3, 3.0), batch(lengths)
    got = NUMPY.value_and_grad(SPEC, VanRossum(), weights, batch(lengths))
    singles = [
        NUMPY.value_and_grad(SPEC, VanRossum(), weights, Batch(inputs[:n, i : i + 1], targets[:n, i : i + 1]))
        for i, n in enumerate(lengths)
    ]
    for name, gradient in got.gradients.items():
        mean = np.mean([single.gradients[name] for single in singles], axis=0, dtype=np.float64)
        assert np.abs(gradient - mean).max() <= 1e-5 * np.abs(mean).max(), name


@pytest.mark.parametrize("kind", [AdamW, Adam, SGD])
def test_delays_have_a_learning_rate_of_their_own_and_no_decay(kind: Any) -> None:
    plain = {"total_steps": 10, "warmup_steps": 2, "weight_decay": 0.5, "lr": 2.0**-9}
    without_delays = {name for name, parameter in SPEC.parameters.items() if not parameter.is_delay}
    start = {f"weight/{name}": x for name, x in initial_weights(SPEC, 3, 3.0).items()}
    slow, fast = _trained(kind(**plain, delay_lr=2.0**-10), 1), _trained(kind(**plain, delay_lr=2.0**-3), 1)
    default, still = _trained(kind(**plain), 1), _trained(kind(**plain, delay_lr=0.0), 1)
    for name in start:
        if name.removeprefix("weight/") in without_delays:
            assert fast[name].tobytes() == slow[name].tobytes() == default[name].tobytes() == still[name].tobytes()
            continue
        assert still[name].tobytes() == start[name].tobytes()
        of_slow, of_fast = slow[name] - start[name], fast[name] - start[name]
        maximum = SPEC.graph.delays[name.removeprefix("weight/")]
        free = (fast[name] > 0) & (fast[name] < maximum) & (of_fast != 0)
        assert free.any()
        assert of_fast[free] == pytest.approx(of_slow[free] * 2.0**7, rel=1e-2, abs=1e-4)
    assert kind(**plain).for_delays() == kind(**{**plain, "lr": 100 * 2.0**-9, "weight_decay": 0.0})
    assert kind(lr=1e38).for_delays().lr == float(np.finfo(np.float32).max)
    with pytest.raises(SpecError, match="delay_lr is outside its domain"):
        kind(delay_lr=-1.0)


def test_delays_stay_in_their_domain() -> None:
    exported = _trained(AdamW(lr=0.0, delay_lr=100.0), 2)
    for name, maximum in SPEC.graph.delays.items():
        x = exported[f"weight/{name}"]
        assert set(np.unique(x)) <= {0.0, float(maximum)} | set(initial_weights(SPEC, 3, 3.0)[name])
        assert {0.0, float(maximum)} & set(np.unique(x))
    weights = initial_weights(SPEC, 0)
    weights["delay1.steps"][1] = 5.5
    with pytest.raises(NumericError, match=r"delay1\.steps must be from 0 to 5"):
        NUMPY.run(SPEC, weights, batch().inputs, STEPS)
    weights["delay1.steps"] = np.zeros(3, np.float32)
    with pytest.raises(ShapeError, match=r"delay1\.steps must be float32 \(2,\)"):
        NUMPY.run(SPEC, weights, batch().inputs, STEPS)


def test_frozen_delays() -> None:
    start = initial_weights(SPEC, 3, 3.0)
    exported = _trained(AdamW(lr=0.01), frozen=("delay1.steps", "delay2.steps", "delay2.3.steps"))
    assert all(exported[f"weight/{name}"].tobytes() == start[name].tobytes() for name in SPEC.graph.delays)
    others = tuple(set(SPEC.parameters) - {"delay2.steps"})
    exported = _trained(AdamW(lr=0.01), frozen=others)
    assert all(exported[f"weight/{name}"].tobytes() == start[name].tobytes() for name in others)
    assert exported["weight/delay2.steps"].tobytes() != start["delay2.steps"].tobytes()


def test_initial_delays_are_uniform_and_leave_the_weights_as_they_were() -> None:
    spec = NetworkSpec.parse("T20-64", input_shape=(2000,), outputs=3)
    weights = initial_weights(spec, 5)
    x = weights["delay1.steps"]
    assert x.dtype == np.float32
    assert x.shape == (2000,)
    assert x.min() >= 0
    assert x.max() <= 20
    assert abs(x.mean() - 10) < 0.5
    assert abs(x.std() - 20 / math.sqrt(12)) < 0.3
    without = initial_weights(NetworkSpec.parse("64", input_shape=(2000,), outputs=3), 5)
    assert all(x.tobytes() == weights[name].tobytes() for name, x in without.items())
    assert not np.array_equal(x, initial_weights(spec, 6)["delay1.steps"])


def test_whole_delays_equal_fixed_delays() -> None:
    """With the same delay for all channels, the network is that of `{delay=...}`, also in its gradients."""
    neuron = LIF(3, 5 / 3, 0.4)
    learned = NetworkSpec.parse("5-T4-6-T2-3", input_shape=(9,), neuron=neuron)
    fixed = NetworkSpec.parse("5-6{delay=3}-3{delay=2}", input_shape=(9,), neuron=neuron)
    weights = initial_weights(fixed, 1, 4.0)
    data = Batch(spikes(STEPS, BATCH, 9), spikes(STEPS, BATCH, 3, seed=1))
    expected = NUMPY.value_and_grad(fixed, VanRossum(), weights, data, precision="reproducible")
    for first, second in ((3.0, 2.0), (3.4, 1.6)):
        delays = {"delay2.steps": np.full(5, first, np.float32), "delay3.steps": np.full(6, second, np.float32)}
        got = NUMPY.value_and_grad(learned, VanRossum(), {**weights, **delays}, data, precision="reproducible")
        assert np.array_equal(got.spikes, expected.spikes)
        assert expected.spikes.any()
        for name, gradient in expected.gradients.items():
            assert gradient.tobytes() == got.gradients[name].tobytes()
            assert gradient.any()


def test_a_delay_longer_than_the_run_silences_its_channel() -> None:
    spec = NetworkSpec.parse("T100-6-3", input_shape=(4,), neuron=LIF(3, 5 / 3, 0.4))
    weights = initial_weights(spec, 1, 4.0)
    weights["delay1.steps"][:] = STEPS
    assert not NUMPY.run(spec, weights, spikes(STEPS, 2, 4), STEPS).layers["linear1"].spikes.any()


@pytest.mark.parametrize(
    ("notation", "names"),
    [
        ("T25-128-T25-128", ["delay1.steps", "delay2.steps"]),
        ("4C3-T4-F-T3-8", ["delay2.steps", "delay2.2.steps"]),
        ("T3-138R", ["delay1.steps"]),
        ("4C3-[T2-4C3p1|T3-4C1]+-P2-8", ["delay2.steps", "delay3.steps"]),
        ("4C3-D0.5-T7-8", ["delay2.steps"]),
    ],
)
def test_notation(notation: str, names: list[str]) -> None:
    spec = NetworkSpec.parse(notation, input_shape=(2, 8, 8), outputs=3)
    again = NetworkSpec.parse(spec.notation, input_shape=(2, 8, 8))
    assert again == spec
    assert again.graph == spec.graph
    assert str(spec).startswith(notation.split("-")[0])
    assert [name for name, parameter in spec.parameters.items() if parameter.is_delay][: len(names)] == names
    for name, parameter in spec.parameters.items():
        assert parameter.is_delay == name.endswith(".steps")
        assert parameter.is_delay == (name in spec.graph.delays)
        if parameter.is_delay:
            assert parameter.shape == (spec.graph.values[name.removesuffix(".steps")].shape[0],)


NODES = """
[[node]]
name = "late"
layer = "T6"
from = "input"
[[node]]
name = "hidden"
weights = "5"
from = [{node = "late", delay = 2}]
[[node]]
name = "fires"
neurons = ""
from = ["hidden"]
[[node]]
name = "later"
layer = "T2"
from = ["fires"]
[[node]]
name = "both"
concat = true
from = ["fires", "later"]
[[node]]
name = "out"
weights = "3"
from = ["both"]
[[node]]
name = "output"
neurons = ""
from = ["out"]
"""


def test_nodes() -> None:
    spec = NetworkSpec.parse(NODES, input_shape=(4,), outputs=3, neuron=LIF(3, 5 / 3, 0.4))
    assert spec.graph.delays == {"late.steps": 6, "later.steps": 2}
    assert NetworkSpec.parse(spec.notation, input_shape=(4,)) == spec
    assert "T6 <- input" in spec.table()
    assert 'layer = "T6"' in spec.notation
    got = NUMPY.value_and_grad(
        spec,
        VanRossum(),
        initial_weights(spec, 1, 4.0),
        Batch(spikes(STEPS, 2, 4), spikes(STEPS, 2, 3, seed=1)),
        precision="reproducible",
    )
    assert got.gradients["late.steps"].any()
    assert got.gradients["later.steps"].any()


def test_table_counts_delays() -> None:
    table = SPEC.table().splitlines()
    assert table[2].split() == ["T5", "2x8x8", "2"]
    assert table[7].split() == ["T2", "54", "54"]
    assert table[-1].split()[1] == f"{sum(math.prod(p.shape) for p in SPEC.parameters.values()):,}"


@pytest.mark.parametrize(
    ("notation", "options", "message"),
    [
        ("T0-8", {}, "the largest learned delay is 1 to 65536 steps, got 0"),
        ("T65537-8", {}, "the largest learned delay is 1 to 65536 steps, got 65537"),
        ("T-8", {}, r"unknown layer 'T'; known forms: .*T20 \(learned delays\)"),
        ("T2.5-8", {}, r"learned delays take no option, got '\.5'"),
        ("T3b-8", {}, "learned delays take no option, got 'b'"),
        ("T1234567890-8", {}, "a number has at most 9 digits, got 10"),
        ("T3-8", {"coding": "direct"}, "its input is the same at every step, so delays have no effect"),
    ],
)
def test_refused(notation: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(NetworkError, match=message):
        NetworkSpec.parse(notation, input_shape=(4,), outputs=3, **options)


def test_names_of_delays_are_unique() -> None:
    with pytest.raises(NetworkError, match="has a parameter of this name; rename the node"):
        NetworkSpec.parse(NODES.replace("both", "late.steps"), input_shape=(4,), outputs=3)


def test_gradients_after_a_state_read_the_steps_before_it() -> None:
    """The gradient of a chunk is that of the whole run whose errors before the chunk are zero."""
    network = NetworkSpec.parse("T3-4", input_shape=(5,), outputs=3).graph
    step = plan(NUMPY, network, of_input=True, fused=False).segments[0].steps[0]
    assert isinstance(step, Delays)
    x, delays = spikes(9, BATCH, 5), np.array([0.0, 0.75, 1.5, 2.5, 3.0], np.float32)
    error = np.random.default_rng(4).normal(size=x.shape).astype(np.float32)
    part = BatchSlice(0, BATCH, BATCH)

    def passes(x: AnyArray, error: Float32, states: Any) -> tuple[AnyArray, AnyArray, AnyArray, Any]:
        run = PassContext({"delay1.steps": delays}, len(x), None, part, initial_states=states)
        output, saved = next(step.forward([run], iter([(x,)])))
        result = next(step.backward([run], iter([saved]), iter([error]), "reproducible"))
        (ds,) = result.grad_inputs
        assert not isinstance(ds, (Deferred, type(None)))
        return output, ds, result.gradients["delay1.steps"], saved.after

    for first in (1, 2, 6):
        late = error.copy()
        late[:first] = 0
        output, ds, gradient, nothing = passes(x, late, None)
        assert nothing == ()
        before, _, of_zeros, after = passes(x[:first], late[:first], {})
        assert not of_zeros.any()
        chunk, of_chunk, gradient_of_chunk, _ = passes(x[first:], late[first:], {step.name: after})
        assert np.array_equal(np.concatenate([before, chunk]), output)
        assert np.array_equal(of_chunk, ds[first:])
        # A grid for fewer steps has more bits.
        assert gradient_of_chunk == pytest.approx(gradient, rel=1e-10)
        assert gradient.all()
