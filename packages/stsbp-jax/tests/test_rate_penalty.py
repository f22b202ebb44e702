"""`stsbp_jax.rate_penalty`: the value and the gradient of the spec's penalty, also in a function of `apply`."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stsbp_jax
from jax import Array
from stsbp_spec.engine.backend import Batch
from stsbp_spec.errors import NumericError, ShapeError, SpecError
from stsbp_spec.models.losses import VanRossum
from stsbp_spec.models.rate_penalty import RatePenalty
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import Float32, UInt8

NETWORK = NetworkSpec.parse("6C3p1-P2-8C3p1-12", input_shape=(2, 8, 8), outputs=4)
STEPS, LENGTHS = 9, np.array([9, 4, 7])
PENALTY = RatePenalty(0.1, 30.0)
NUMPY = NumpyBackend()


def _spikes(*shape: int, seed: int = 1) -> UInt8:
    return (np.random.default_rng(seed).random(shape) < 0.4).astype(np.uint8)


def _error(s: UInt8, lengths: Any) -> Float32:
    """The error that numpy computes, at every step."""
    if lengths is None:
        return np.broadcast_to(NUMPY.rate_penalty(PENALTY, s, s.shape[1])[0], s.shape)
    inside = (np.arange(len(s))[:, None] < lengths).astype(np.uint8)
    constants = PENALTY.constants_of_lengths(s.shape[2:], lengths, s.shape[1])
    error, _ = NUMPY.rate_penalty(PENALTY, s, s.shape[1], inside, constants)
    return NUMPY.mask_steps(error, inside)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["all steps", "lengths"])
@pytest.mark.parametrize("shape", [(5,), (3, 4, 2)])
@pytest.mark.parametrize("traced", [False, True])
def test_value_and_gradient(shape: tuple[int, ...], lengths: Any, traced: bool) -> None:
    s = _spikes(STEPS, 3, *shape)

    def penalty(x: Array, lengths: Any) -> Array:
        return stsbp_jax.rate_penalty(x, PENALTY.target, PENALTY.weight, lengths)

    function: Any = jax.value_and_grad(penalty)
    value, gradient = (jax.jit(function) if traced else function)(jnp.asarray(s, np.float32), lengths)
    steps = np.full(3, STEPS) if lengths is None else lengths
    counts = (s * (np.arange(STEPS)[:, None] < steps).reshape(STEPS, 3, *(1,) * len(shape))).sum(0)
    assert float(value) == pytest.approx(PENALTY.of_counts(counts, steps), rel=1e-5)
    expected = _error(s, lengths)
    assert np.count_nonzero(expected) > 0.2 * expected.size
    assert np.array_equal(gradient, expected)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["all steps", "lengths"])
def test_a_function_of_apply_has_the_gradients_of_the_trainer(lengths: Any) -> None:
    weights = initial_weights(NETWORK, 1, 2.5)
    inputs, targets = _spikes(STEPS, 3, *NETWORK.input_shape), _spikes(STEPS, 3, 4, seed=2)
    penalties = {block.name: PENALTY for block in NETWORK.blocks}
    expected = NUMPY.value_and_grad(
        NETWORK, VanRossum(), weights, Batch(inputs, targets, lengths), precision="reproducible", rate_penalty=penalties
    )

    def total(weights: dict[str, Array]) -> Array:
        output = stsbp_jax.apply(NETWORK, weights, inputs, STEPS, precision="reproducible", full=True)
        loss = stsbp_jax.distance(VanRossum(), NETWORK.output_psp, output.spikes, targets, lengths)
        for block in NETWORK.blocks:
            s = output.layer_spikes[block.name]
            loss = loss + stsbp_jax.rate_penalty(s, PENALTY.target, PENALTY.weight, lengths)
        return loss

    gradients = jax.grad(total)({name: jnp.asarray(w) for name, w in weights.items()})
    for name, gradient in expected.gradients.items():
        assert np.array_equal(gradients[name], gradient), name


def test_mapped() -> None:
    spikes = jnp.asarray(_spikes(2, STEPS, 3, 5), np.float32)
    function = jax.grad(partial(stsbp_jax.rate_penalty, target=PENALTY.target, weight=PENALTY.weight))
    assert np.array_equal(jax.vmap(function)(spikes), jnp.stack([function(x) for x in spikes]))


def test_wrong_arguments() -> None:
    good = jnp.zeros((4, 2, 3))
    with pytest.raises(SpecError, match="target must be a rate"):
        stsbp_jax.rate_penalty(good, 1.0, 1.0)
    with pytest.raises(SpecError, match="weight must be from"):
        stsbp_jax.rate_penalty(good, 0.1, 0.0)
    with pytest.raises(ShapeError, match=r"must be \[T, B, ...\]"):
        stsbp_jax.rate_penalty(good[0], 0.1, 1.0)
    with pytest.raises(ShapeError, match="0 or 1"):
        stsbp_jax.rate_penalty(good + 2, 0.1, 1.0)
    with pytest.raises(NumericError, match="not finite"):
        stsbp_jax.rate_penalty(good + jnp.nan, 0.1, 1.0)
    with pytest.raises(ShapeError, match="length"):
        stsbp_jax.rate_penalty(good, 0.1, 1.0, np.array([5, 1]))
    wrong = jax.jit(partial(stsbp_jax.rate_penalty, target=0.1, weight=1.0))(good + 2)
    assert np.isnan(wrong)
    assert np.isnan(jax.jit(partial(stsbp_jax.rate_penalty, target=0.1, weight=1.0))(good, lengths=np.array([5, 1])))
