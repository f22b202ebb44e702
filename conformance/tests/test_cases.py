"""The cases are what they say: every layer fires, thresholds are met, floors are reached, grids are coarsened."""

import ast
from pathlib import Path

import numpy as np
import pytest
from stsbp_conformance import reference
from stsbp_conformance.cases import EXACT_LOSSES, NetworkCase, normal
from stsbp_conformance.check import Unavailable
from stsbp_conformance.tiers import bits, elementwise, neurons, pairs, rational, reproducible, trainer
from stsbp_spec.contract.grid import FLOOR, MIN_WEIGHT_BITS
from stsbp_spec.models.neurons import LIF
from stsbp_spec.networks.ops import PSP

CASES = (*bits.CASES, *bits.READOUTS, *reproducible.SMALL, reproducible.NMNIST, reproducible.CIFAR10)


LARGE = {case.id for case in CASES if "96C3" in case.id or "128C3" in case.id}


@pytest.mark.parametrize(
    "case", [pytest.param(x, id=x.id, marks=[pytest.mark.long] if x.id in LARGE else []) for x in CASES]
)
def test_every_layer_fires(case: NetworkCase) -> None:
    try:
        layers = reference.run(case).layers
    except Unavailable as reason:
        pytest.skip(str(reason))
    for name in (block.name for block in case.network.blocks if block.neuron.makes_spikes):
        rate = float(np.mean(layers[name].spikes))
        least = 0.0 if case.source == "burst" else 0.01
        assert least < rate < 0.8, f"{name} fires at {rate}"


def test_potentials_equal_the_threshold() -> None:
    layers = reference.run(bits.EXACT_HITS).layers
    hits = {name: int((layer.potentials == 1).sum()) for name, layer in layers.items()}
    assert min(hits.values()) >= 5, hits


def test_silence_reaches_the_floor() -> None:
    case = bits.FLOOR
    neuron = case.network.blocks[0].neuron
    assert isinstance(neuron, LIF)
    for name, layer in reference.run(case).layers.items():
        decayed = np.abs(layer.potentials[:-1]) * np.float32(neuron.constants()["km"]) < FLOOR
        snapped = (layer.potentials[:-1] != 0) & (layer.potentials[1:] == 0) & decayed & (layer.spikes[:-1] == 0)
        assert snapped.any(), name


def test_the_bound_makes_a_grid_coarser() -> None:
    block = pairs.IMAGES
    _, grid = reference.NUMPY.weight_grid(block, np.abs(normal(block.weight_shape, 36)))
    assert 2 <= grid.bits < 12


def test_a_grid_ends_as_coarse_as_it_may_be() -> None:
    _, grid = reference.NUMPY.weight_grid(pairs.WIDE, np.full(pairs.WIDE.weight_shape, 0.6, np.float32))
    assert grid.bits == MIN_WEIGHT_BITS < pairs.WIDE.synapse.weight_bits


def test_lif_pair_decays_into_the_floor_in_both_directions() -> None:
    (z, ds), neuron, filter = neurons.silent(), LIF(3, 2, 0.5), PSP(5 / 3).filter()
    _, residuals = reference.NUMPY.neuron_forward(neuron, filter, z, len(ds))
    u = residuals.kept["u"]
    assert (u[-1] == 0).any()
    dz = reference.NUMPY.neuron_backward(neuron, filter, residuals, ds)[0]
    assert (dz[0] == 0).any()
    assert (dz[-1] != 0).any()


@pytest.mark.parametrize("case", rational.CASES, ids=[case.id for case in rational.CASES])
def test_rational_case_spikes_and_has_gradients(case: rational.RationalCase) -> None:
    result = rational.oracle(case)
    trains = list(result.run.o.values())
    for spikes in trains[:-1] if case.network.has_readout else trains:
        assert 0.1 <= np.stack(spikes).astype(float).mean() <= 0.9
    for gradient in result.gradients.values():
        assert (gradient != 0).mean() >= 0.3


@pytest.mark.parametrize("loss", ["van-rossum", "spike-count", "mse"])
def test_a_plain_sum_of_the_many_samples_depends_on_their_order(loss: str) -> None:
    sums, case = set(), trainer.MANY_READOUTS if loss == "mse" else trainer.MANY
    for number in range(6):
        batch = trainer.shuffled(case, number)
        layers = reference.NUMPY.run(case.network, reference.weights(case), batch.inputs, case.steps).layers
        output = list(layers.values())[-1]
        outputs = output.potentials if loss == "mse" else output.spikes
        distances = EXACT_LOSSES[loss].distance(outputs, batch.targets, case.network.output_psp)
        sums.add(float(np.cumsum(distances)[-1]))
    assert len(sums) > 1


def test_real_targets_and_potentials_have_every_kind() -> None:
    targets = bits.READOUT.data().targets
    assert targets.dtype == np.float32
    assert ((targets < 0) | (targets > 1)).mean() > 0.3
    assert (targets == 0).any()
    assert ((targets != 0) & (np.abs(targets) < np.finfo(np.float32).tiny)).any()
    u, targets = elementwise.readout_data((330, 3, 10), 640)
    assert ((u == 0) | (np.abs(u) >= FLOOR)).all()
    difference = u.astype(np.float64) - targets
    for kind in (difference == 0, np.abs(difference) == FLOOR, np.abs(difference) > 1e28):
        assert kind.any()
    assert ((difference != 0) & (np.abs(difference) < FLOOR)).sum() > 1000


def test_dropout_changes_the_gradients() -> None:
    case = reproducible.SMALL[0]
    on = reference.gradients(case, "van-rossum", "reproducible", (3, 5))
    off = reference.gradients(case, "van-rossum", "reproducible", None)
    for name, gradient in on.gradients.items():
        assert not np.array_equal(gradient, off.gradients[name])


def test_training_moves_every_weight_and_clips() -> None:
    _, results = reference.trained(trainer.CASE, "van-rossum", reproducible.OPTIMIZER, 20)
    state, _ = reference.trained(trainer.CASE, "van-rossum", reproducible.OPTIMIZER, 20)
    for name, w in reference.weights(trainer.CASE).items():
        assert (state[f"weight/{name}"] != w).all()
    clip = reproducible.OPTIMIZER.clip_norm
    assert clip is not None
    assert any(result.gradient_norm > clip for result in results)


def test_checks_that_the_session_xla_leaves_out_are_quick_ones_of_tier_2() -> None:
    """pytest says nothing about a check of another name that is to be left out."""
    tree = ast.parse((Path(__file__).parents[2] / "noxfile.py").read_text(encoding="utf-8"))
    (names,) = (
        ast.literal_eval(statement.value)
        for statement in tree.body
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "XLA_REPEATED"
    )
    quick = {check.id for check in bits.CHECKS if check.quick}
    assert set(names) < quick
    assert len(names) < len(quick) / 2
