"""Tier 3 itself: what its float64 is, where its bound holds and the former one breaks, and which faults it sees."""

import numpy as np
import pytest
from stsbp_conformance import adversarial, reference
from stsbp_conformance.adversarial import AdversarialCase
from stsbp_conformance.cases import NetworkCase
from stsbp_conformance.check import SPREADS, Compared, Mismatch, largest_ratio
from stsbp_conformance.faults import BACKENDS
from stsbp_conformance.oracles.roundoff import Near, Potentials
from stsbp_conformance.reference import NUMPY
from stsbp_conformance.search import drawn_case, ratios
from stsbp_conformance.tiers import bits, gradients
from stsbp_spec.models.losses import LOSSES
from stsbp_spec.models.neurons import LIF
from stsbp_spec.models.surrogates import Rectangle, derivative
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import AnyArray

_CASES = {f"{case.id}, {loss}": (case, loss) for case, loss in adversarial.CASES}
_BROKEN = {
    "reset factor above 1, fast-sigmoid, None": 20,
    "reset factor above 1, arctan, None": 10,
    "reset factor above 1, logistic, None": 5,
    "reset factor above 1, events, None": 1,
    "strongly cancelling sums, None": 1e4,
    "potentials on the edges, threshold 0.3, width 0.4, None": 1e4,
}
"""Adversarial cases that leave the former bound, 4 u sqrt(n) max |float64|, by at least so many times."""


@pytest.mark.parametrize("potentials", ["float32", "float64"])
@pytest.mark.parametrize("name", _CASES)
def test_adversarial_cases_stay_within_the_bound_and_leave_the_former(name: str, potentials: Potentials) -> None:
    case_ratios = ratios(NUMPY, *_CASES[name], potentials)
    assert case_ratios is not None
    bound, _, former = case_ratios
    assert 0 < bound <= 1
    assert former > _BROKEN.get(name, 0)


def test_equal_summands_leave_the_former_bound_where_they_are_added_one_by_one() -> None:
    # Whether numpy's own product does so depends on the order in which it adds, which processors differ in.
    n, u, one = 65_536, 2.0**-24, np.float32(0.1)
    exact = n * float(one)
    added = float(np.cumsum(np.full(n, one), dtype=np.float32)[-1])
    assert abs(added - exact) > 4 * (4 * u * np.sqrt(n) * exact)
    assert abs(added - exact) < n * u * exact


@pytest.mark.parametrize("loss", [*LOSSES, None])
@pytest.mark.parametrize(
    "case",
    [
        bits.SMALL[1],
        bits.MODELS,
        bits.LEARNED,
        *bits.MODELS_DIRECT,
        bits.DIRECT,
        bits.COUNTS,
        bits.FLOOR,
        bits.RECURRENT,
        bits.RECURRENT_DIRECT,
    ],
    ids=lambda case: case.id,
)
def test_the_error_analysis_has_the_values_of_the_literal_form(case: NetworkCase, loss: str | None) -> None:
    literal = gradients.float64_gradients(case, loss)
    for name, near in gradients.analysed(case, loss, "float32", None).items():
        assert np.abs(near.value - literal[name]).max() <= 1e-13 * np.abs(literal[name]).max(), name


@pytest.mark.parametrize("loss", ["mse", None])
@pytest.mark.parametrize("case", bits.READOUTS, ids=lambda case: case.id)
def test_the_error_analysis_of_a_readout_has_the_values_of_the_literal_form(
    case: NetworkCase, loss: str | None
) -> None:
    test_the_error_analysis_has_the_values_of_the_literal_form(case, loss)


@pytest.mark.parametrize(("steps", "least", "most"), [(10, 1e-6, 1e-5), (100, 1.0, 1e5)])
def test_the_bound_of_a_recurrence_grows_with_time_and_its_spread_does_not(
    steps: int, least: float, most: float
) -> None:
    network = NetworkSpec.parse("20R", input_shape=(30,), outputs=5, neuron=LIF(8, 4, 0.4))
    case = NetworkCase("recurrence over time", network, steps, 4, gain=1.5)
    near, got = gradients.near_gradients(case, None)["linear1"], gradients.computed(NUMPY, case, None)["linear1"]
    largest, distance = np.abs(near.value).max(), np.abs(got - near.value)
    assert least < np.median(near.bound) / largest < most
    assert np.median(near.spread) / largest < 1e-5
    assert largest_ratio(distance, near.bound)[0] <= 1
    assert largest_ratio(distance, near.spread)[0] < 1


def test_potentials_stand_on_edges_and_thresholds() -> None:
    cases = [case for case, _ in adversarial.CASES if case.id.startswith("potentials on the edges")]
    assert len(cases) == 4
    for case in cases:
        neuron = case.network.blocks[0].neuron
        surrogate = neuron.surrogate
        assert isinstance(surrogate, Rectangle)
        u = np.concatenate([x.potentials.reshape(-1) for x in reference.run(case).layers.values()])
        wide = np.abs(u.astype(np.float64) - neuron.threshold)
        assert (wide == surrogate.width / 2).sum() >= 20, case.id
        narrow = np.abs(u - np.float32(neuron.threshold)) < np.float32(surrogate.width / 2)
        differ = narrow != (wide < surrogate.width / 2)
        assert differ.any() == (surrogate.width == 0.4), case.id
        if neuron.threshold == 1:
            assert (u == 1).sum() >= 20, case.id


@pytest.mark.parametrize(
    "name", [name for name in _CASES if name.startswith("reset factor") and "logistic" not in name]
)
def test_the_factor_through_the_reset_exceeds_1_at_every_step(name: str) -> None:
    case, _ = _CASES[name]
    neuron = case.network.blocks[0].neuron
    assert isinstance(neuron, LIF)
    u = reference.run(case).layers["linear1"].potentials[40:].astype(np.float64)
    silent = u < neuron.threshold
    factor = neuron.constants()["km"] * (silent - derivative(neuron.surrogate, u - neuron.threshold) * u)
    growth = np.exp(np.log(np.abs(factor)).mean())
    assert growth > 1.02


@pytest.mark.parametrize(("seed", "graphs"), [*((s, False) for s in range(24)), *((s, True) for s in range(12))])
def test_drawn_networks_stay_within_the_bound(seed: int, graphs: bool) -> None:
    case, loss = drawn_case(seed, graphs=graphs)
    kinds: tuple[Potentials, ...] = ("float32", "float64")
    for potentials in kinds:
        case_ratios = ratios(NUMPY, case, loss, potentials)
        assert case_ratios is None or case_ratios[0] <= 1


def test_spreads_see_what_wide_sums_hide_from_the_bound() -> None:
    """A surrogate wider by one part in a million: within the bound of long sums, outside of what roundings give."""
    case = bits.SMALL[1]
    near = gradients.near_gradients(case, "van-rossum")["conv2"]
    got = gradients.computed(BACKENDS["WiderSurrogate"](), case, "van-rossum")["conv2"]
    distance = np.abs(got.astype(np.float64) - near.value)
    assert largest_ratio(distance, near.bound)[0] <= 1
    assert largest_ratio(distance, near.spread)[0] > SPREADS
    with pytest.raises(Mismatch, match="spreads of independent roundings"):
        Compared().within("conv2", got, near, random=True)
    Compared().within("conv2", got, near, random=False)


def _near(value: list[float], error: float, spread: float) -> Near:
    wide = np.array(value, np.float64)
    return Near(wide, np.full_like(wide, error), np.full_like(wide, spread))


@pytest.mark.parametrize(
    ("got", "message"),
    [
        ([1, 2, 3.5], r"the distance 0.5 at \[2\] exceeds its bound 0.25"),
        ([1, np.nan, 3], r"the distance nan at \[1\] exceeds its bound"),
        ([1, 2, 3.2], r"the distance 0.2 at \[2\] is 20 spreads"),
        ([1, 2], r"expected shape \[3\], got \[2\]"),
    ],
)
def test_within_says_what_is_outside(got: list[float], message: str) -> None:
    with pytest.raises(Mismatch, match=message):
        Compared().within("gradient", np.array(got), _near([1, 2, 3], 0.25, 0.01), random=True)


def test_within_keeps_the_largest_figures() -> None:
    compared = Compared()
    compared.within("a", np.array([1.1, 2.0]), _near([1, 2], 0.5, 0.05), random=True)
    compared.within("b", np.array([1.0, 2.0]), _near([1, 2], 0.0, 0.0), random=True)
    verdict = compared.verdict()
    assert (verdict.kind, verdict.values) == ("bound", 4)
    assert verdict.margin == pytest.approx(0.2, rel=1e-5)
    assert verdict.spreads == pytest.approx(2)


def test_cotangents_that_cancel_do() -> None:
    (case,) = (case for case, _ in adversarial.CASES if case.errors == "opposite")
    drawn: AnyArray = case.cotangents()
    assert np.abs(drawn.sum(axis=1)).max() < 2.0**-18 * np.abs(drawn).sum(axis=1).max()
    inputs = case.inputs()
    assert np.array_equal(inputs[:, : case.batch // 2], inputs[:, case.batch // 2 :])
    assert isinstance(case, AdversarialCase)
    assert not case.random
