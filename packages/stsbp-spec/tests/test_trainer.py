"""Training on the reference: dropout, updates, what is reported, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest
from stsbp_spec.contract.random import Stream, uniform
from stsbp_spec.engine.backend import Batch
from stsbp_spec.errors import BackendError, NumericError, ShapeError, SpecError
from stsbp_spec.models.losses import LOSSES, VanRossum
from stsbp_spec.models.neurons import LIF, PLIF
from stsbp_spec.models.optim import SGD, AdamW, clip_factor, gradient_norm
from stsbp_spec.models.surrogates import SURROGATES, Arctan, Logistic
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.networks.ops import Conv2d, Linear
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import AnyArray, Precision, UInt8

NUMPY = NumpyBackend()
_LIF = LIF(3, 5 / 3, 0.5)
_NETWORK = NetworkSpec.parse("6C3p1-P2-20-4", input_shape=(2, 8, 8), neuron=_LIF)


def _trains(shape: tuple[int, ...], density: float, seed: int) -> UInt8:
    return (uniform(seed, Stream.ENCODER, math.prod(shape)) < density).astype(np.uint8).reshape(shape)


def _batch(network: NetworkSpec, steps: int = 10, batch: int = 4) -> Batch:
    inputs = _trains((steps, batch, *network.input_shape), 0.3, 1)
    return Batch(inputs, _trains((steps, batch, network.outputs), 0.3, 2))


def test_dropout_is_a_network_with_masked_and_scaled_weights() -> None:
    """With one sample, dropping inputs of a full connection is masking its weights; with rate 1/2 the gain is exact."""
    dropped = NetworkSpec.parse("24-D0.5-16-D0.5-5", input_shape=(12,), neuron=_LIF, weight_bits=6)
    plain = NetworkSpec.parse("24-16-5", input_shape=(12,), neuron=_LIF, weight_bits=6)
    batch = _batch(plain, batch=1)
    # Weights already on a grid of 6 bits stay on it when masked and doubled.
    weights = {b.name: NUMPY.weight_grid(b, initial_weights(plain, 3, 3.0)[b.name])[0] for b in plain.blocks}
    masks = {b.name: NUMPY.dropout_mask(9, 16 * b.index, 2, (1, *b.input_shape), 0.5)[0] for b in plain.blocks[1:]}
    masked = {name: w * 2 * masks[name] if name in masks else w for name, w in weights.items()}
    assert all(0 < mask.mean() < 1 for mask in masks.values())
    with_dropout = NUMPY.value_and_grad(dropped, VanRossum(), weights, batch, dropout=(9, 2))
    without = NUMPY.value_and_grad(plain, VanRossum(), masked, batch)
    assert np.array_equal(with_dropout.spikes, without.spikes)
    assert without.spikes.any()
    for name, gradient in without.gradients.items():
        expected = gradient * 2 * masks[name] if name in masks else gradient
        bound = 16 * 2.0**-24 * np.abs(expected).max()
        assert np.abs(with_dropout.gradients[name] - expected).max() <= bound
        assert np.abs(expected).max() > 0
    evaluated = NUMPY.value_and_grad(dropped, VanRossum(), weights, batch)
    assert np.array_equal(evaluated.spikes, NUMPY.value_and_grad(plain, VanRossum(), weights, batch).spikes)


def test_masks_differ_by_layer_place_step_and_seed() -> None:
    masks = [
        NUMPY.dropout_mask(seed, layer, step, (2, 50), 0.5)
        for seed, layer, step in ((1, 16, 0), (2, 16, 0), (1, 17, 0), (1, 32, 0), (1, 16, 1))
    ]
    for i, a in enumerate(masks):
        for b in masks[:i]:
            assert 20 < (a != b).sum() < 80


def test_mask_is_the_same_at_every_step_and_differs_by_sample() -> None:
    network = NetworkSpec.parse("D0.5-4", input_shape=(60,), neuron=LIF(1, 1, 0.001))
    trainer = NUMPY.trainer(network, VanRossum(), AdamW(), seed=4)
    state = trainer.init({"linear1": np.ones((4, 60), np.float32)})
    for neuron in range(8):
        # One input neuron spikes at every step: the output spikes always or, where it is dropped, never.
        inputs = np.zeros((6, 3, 60), np.uint8)
        inputs[:, :, neuron] = 1
        mask = NUMPY.dropout_mask(4, 0, state.step, (3, 60), 0.5)[:, neuron]
        state, result = trainer.step(state, Batch(inputs, np.zeros((6, 3, 4), np.uint8)))
        assert np.array_equal(result.spikes, np.broadcast_to(mask[None, :, None], (6, 3, 4)))


@pytest.mark.parametrize("loss", LOSSES)
def test_training_lowers_the_loss(loss: str) -> None:
    batch = _batch(_NETWORK)
    trainer = NUMPY.trainer(_NETWORK, LOSSES[loss], AdamW(lr=0.01))
    state = trainer.init(initial_weights(_NETWORK, 1, 2.0))
    losses = []
    for _ in range(40):
        state, result = trainer.step(state, batch)
        losses.append(result.loss)
    assert losses[-1] < 0.6 * losses[0]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_a_step_reports_the_state_before_it() -> None:
    batch, weights = _batch(_NETWORK), initial_weights(_NETWORK, 1, 2.0)
    optimizer = AdamW(lr=0.01, total_steps=10, clip_norm=1e-3)
    trainer = NUMPY.trainer(_NETWORK, VanRossum(), optimizer)
    old_weights = {name: w.copy() for name, w in weights.items()}
    state, result = trainer.step(trainer.init(weights), batch)
    direct = NUMPY.value_and_grad(_NETWORK, VanRossum(), old_weights, batch, dropout=(0, 0))
    assert (result.loss, result.learning_rate) == (direct.loss, 0.01)
    assert np.array_equal(result.spikes, direct.spikes)
    assert result.gradient_norm == gradient_norm(direct.gradients.values())
    layers = NUMPY.run(_NETWORK, old_weights, batch.inputs, 10).layers
    assert result.rates == {name: layer.spikes.mean() for name, layer in layers.items()}
    assert result.loss == pytest.approx(VanRossum().distance(direct.spikes, batch.targets, _NETWORK.output_psp).mean())
    scalars = optimizer.scalars(0, clip_factor(result.gradient_norm, 1e-3))
    for name, g in direct.gradients.items():
        zero = np.zeros_like(g)
        expected = NUMPY.updated(scalars, None, old_weights[name], g, zero, zero)
        assert np.array_equal(trainer.export_state(state)[f"weight/{name}"], expected[0])
        assert np.array_equal(trainer.export_state(state)[f"adamw.v/{name}"], expected[2])


@pytest.mark.parametrize("precision", ["fast", "reproducible"])
def test_a_run_resumed_from_its_exported_state_ends_in_the_same_bits(precision: Any) -> None:
    network = NetworkSpec.parse("6C3p1d0.2-P2-20d0.5-4", input_shape=(2, 8, 8), neuron=_LIF)
    batch, optimizer = _batch(network), AdamW(lr=0.01, total_steps=8, warmup_steps=2)
    finals = []
    for interrupted in (False, True):
        trainer = NUMPY.trainer(network, VanRossum(), optimizer, precision=precision, seed=5)
        state = trainer.init(initial_weights(network, 1, 2.0))
        for step in range(8):
            if interrupted and step == 3:
                exported = trainer.export_state(state)
                trainer = NUMPY.trainer(network, VanRossum(), optimizer, precision=precision, seed=5)
                state = trainer.import_state(exported)
            state, _ = trainer.step(state, batch)
        finals.append(trainer.export_state(state))
    assert finals[0]["step"] == 8
    for name, x in finals[0].items():
        assert np.array_equal(finals[1][name], x)


def test_reproducible_gradients_are_near_the_fast_ones_and_do_not_depend_on_the_batchs_order() -> None:
    batch, weights = _batch(_NETWORK, batch=6), initial_weights(_NETWORK, 1, 2.0)
    fast = NUMPY.value_and_grad(_NETWORK, VanRossum(), weights, batch)
    first = NUMPY.value_and_grad(_NETWORK, VanRossum(), weights, batch, precision="reproducible")
    order = np.array([3, 0, 5, 2, 1, 4])
    mixed = Batch(batch.inputs[:, order], batch.targets[:, order])
    second = NUMPY.value_and_grad(_NETWORK, VanRossum(), weights, mixed, precision="reproducible")
    for name, gradient in first.gradients.items():
        assert np.array_equal(second.gradients[name], gradient)
        assert np.abs(fast.gradients[name] - gradient).max() <= 2e-6 * np.abs(gradient).max()


class _Signed(NumpyBackend):
    """Gradients and potentials with zeros of the other sign, as the order of a sum may leave them."""

    @property
    def rules(self) -> Any:
        def signed(backward: Any, *args: Any, **kwargs: Any) -> Any:
            ds, dw = backward(*args, **kwargs)
            return ds, np.where(dw == 0, np.float32(-0.0), dw)

        rules = super().rules
        weights = {op: replace(rules[op], backward=partial(signed, rules[op].backward)) for op in (Conv2d, Linear)}
        return {**rules, **weights}

    def neuron_potentials(self, residuals: Any) -> Any:
        u = super().neuron_potentials(residuals)
        return np.where(u == 0, np.float32(-0.0), u)


def test_zeros_at_the_door_have_one_sign() -> None:
    weights, batch = initial_weights(_NETWORK, 1, 2.0), _batch(_NETWORK, steps=2, batch=1)
    batch.inputs[:, :, :, 3:] = 0
    batch.inputs[:, :, 1] = 0
    signed = _Signed()
    results = [b.value_and_grad(_NETWORK, VanRossum(), weights, batch) for b in (NUMPY, signed)]
    runs = [b.run(_NETWORK, weights, batch.inputs, 2) for b in (NUMPY, signed)]
    assert all((run.layers["conv1"].potentials == 0).any() for run in runs)
    states = []
    for backend in (NUMPY, signed):
        trainer = backend.trainer(_NETWORK, VanRossum(), AdamW(weight_decay=0.1))
        state, _ = trainer.step(trainer.init(weights), batch)
        states.append(trainer.export_state(state))
    for name, gradient in results[0].gradients.items():
        assert (gradient == 0).any()
        assert results[1].gradients[name].tobytes() == gradient.tobytes()
        potentials = [run.layers[name].potentials for run in runs]
        assert potentials[0].tobytes() == potentials[1].tobytes()
    assert all(states[1][name].tobytes() == x.tobytes() for name, x in states[0].items())


def test_a_learning_rate_that_is_too_large_stops_with_the_step() -> None:
    trainer = NUMPY.trainer(_NETWORK, VanRossum(), AdamW(lr=1e38))
    state = trainer.init(initial_weights(_NETWORK, 1, 2.0))

    def train() -> None:
        nonlocal state
        for _ in range(6):
            state, _ = trainer.step(state, _batch(_NETWORK))

    # numpy's warnings, which are errors here, do not come before it.
    with pytest.raises(NumericError, match=r"layer (conv1|linear[23])"):
        train()


def test_gradients_that_overflow_are_one_error_and_no_warning() -> None:
    network = NetworkSpec.parse("8-8-4", input_shape=(6,), neuron=_LIF)
    # The first layer is silent, so that no surrogate is saturated, and errors grow by 2^95 in each layer above.
    weights = {
        name: w * np.float32(2.0**-20 if name == "linear1" else 2.0**95)
        for name, w in initial_weights(network, 1, 2.0).items()
    }
    for precision in ("fast", "reproducible"):
        with pytest.raises(NumericError, match="the gradient of layer linear1 is not finite"):
            NUMPY.value_and_grad(network, VanRossum(), weights, _batch(network), precision=precision)


def test_a_gradient_that_is_not_finite_in_one_place_is_named() -> None:
    """The last layer in the order of the network, since errors go from the output to the input."""
    network = NetworkSpec.parse("8-8-4", input_shape=(6,), neuron=_LIF)
    for layers, named in (({"linear2"}, "linear2"), ({"linear1", "linear2"}, "linear2"), ({"linear1"}, "linear1")):

        class Broken(NumpyBackend):
            broken: ClassVar = layers

            def rounded(self, x: AnyArray) -> AnyArray:
                shapes = {network.weight_shapes[name] for name in self.broken}
                gradient = super().rounded(x).copy()
                if gradient.shape in shapes:
                    gradient.flat[3] = np.inf
                return gradient

        with pytest.raises(NumericError, match=f"the gradient of layer {named} is not finite"):
            Broken().value_and_grad(network, VanRossum(), initial_weights(network, 1, 2.0), _batch(network))


def test_no_mask_is_drawn_where_nothing_is_dropped() -> None:
    class Drawing(NumpyBackend):
        def dropout_mask(self, *arguments: Any, **named: Any) -> AnyArray:
            rates.append(arguments[4])
            return super().dropout_mask(*arguments, **named)

    rates: list[float] = []
    network = NetworkSpec.parse("8-D0-8-D0.5-4", input_shape=(6,), neuron=_LIF)
    trainer = Drawing().trainer(network, VanRossum(), AdamW())
    state, _ = trainer.step(trainer.init(initial_weights(network, 1)), _batch(network))
    trainer.predict(state, _batch(network).inputs, 10)
    assert rates == [0.5]


@pytest.mark.parametrize("state", [None, [1.0], 3])
def test_a_state_that_is_no_mapping_is_refused(state: Any) -> None:
    with pytest.raises(ShapeError, match="a state must be numpy arrays by name, got"):
        NUMPY.trainer(_NETWORK, VanRossum(), AdamW()).import_state(state)


def test_subnormal_weights_and_negative_zeros_count_as_zero_where_they_enter_and_leave() -> None:
    """Some libraries flush them, so that runs would end in other bits."""
    trainer = NUMPY.trainer(_NETWORK, VanRossum(), AdamW())
    weights = initial_weights(_NETWORK, 1)
    weights["linear2"].flat[:4] = [1e-39, -1e-39, -0.0, 2.0**-126]
    for state in (trainer.init(weights), trainer.import_state(trainer.export_state(trainer.init(weights)))):
        for bits in (state.weights["linear2"], trainer.export_state(state)["weight/linear2"]):
            assert bits.flat[:4].tobytes() == np.array([0, 0, 0, 2.0**-126], np.float32).tobytes()
            assert np.array_equal(bits.flat[4:], weights["linear2"].flat[4:])
    state = trainer.init(weights)
    state.weights["linear2"].flat[0] = -1e-39
    assert trainer.export_state(state)["weight/linear2"].flat[:1].tobytes() == bytes(4)


class _Unreadable:
    """An array that its library cannot copy to numpy."""

    def __array__(self, *_: object, **__: object) -> AnyArray:
        raise MemoryError


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("step", None, ShapeError),
        ("step", _Unreadable(), ShapeError),
        ("step", np.ma.masked_array(3, True), ShapeError),
        ("step", np.asarray(-1), ShapeError),
        ("step", np.asarray(2**32), ShapeError),
        ("step", np.asarray(1.5), ShapeError),
        ("step", np.arange(3), ShapeError),
        ("adamw.m/linear2", np.nan, NumericError),
        ("adamw.v/linear2", np.nan, NumericError),
        ("adamw.v/linear2", -1, NumericError),
        ("adamw.m/linear2", 1e38, NumericError),
        ("adamw.m/linear2", 1e-12, NumericError),
        ("adamw.m/linear2", -np.inf, NumericError),
    ],
)
def test_a_state_that_no_update_leaves_is_refused(name: str, value: Any, error: type[Exception]) -> None:
    trainer = NUMPY.trainer(_NETWORK, VanRossum(), AdamW())
    exported = trainer.export_state(trainer.init(initial_weights(_NETWORK, 1)))
    trainer.import_state(exported)
    if value is None:
        del exported[name]
    else:
        exported[name] = value if name == "step" else np.full_like(exported[name], value)
    with pytest.raises(error, match="step of a state" if name == "step" else "no update can produce"):
        trainer.import_state(exported)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda b: Batch(b.inputs.astype(np.float32), b.targets),
            "inputs must be uint8, got float32; convert spikes with inputs.ast",
        ),
        (lambda b: Batch(b.inputs.tolist(), b.targets), "inputs must be a numpy array, got list"),
        (lambda b: Batch(b.inputs, b.targets.tolist()), "targets must be a numpy array, got list"),
        (lambda b: Batch(b.inputs[:, :, :1], b.targets), r"must be \[T, B, \.\.\.\], \.\.\. = \(2, 8, 8\), got"),
        (lambda b: Batch(b.inputs[0], b.targets), r'if these are images, .* only a network with coding="direct" reads'),
        (lambda b: Batch(b.inputs[0, 0], b.targets), "the axes of time and samples are missing"),
        (lambda b: Batch(b.inputs[:5], b.targets), "inputs have 5 steps, expected 10$"),
        (
            lambda b: Batch(b.inputs.swapaxes(0, 1), b.targets),
            r"inputs have 4 steps, expected 10; they look like \[B, T, ...\], and time must be the first axis: swap",
        ),
        (
            lambda b: Batch(b.inputs, b.targets, np.full(10, 4)),
            "; they fit samples in the first axis, but the first axis of spikes and targets is time",
        ),
        (lambda b: Batch(b.inputs[:, :0], b.targets[:, :0]), "the batch is empty"),
        (
            lambda b: Batch(b.inputs * np.uint8(2), b.targets),
            r"holds the count 2, but the network allows at most 1 \(input_max\)",
        ),
        (
            lambda b: Batch(b.inputs, b.targets[..., :3]),
            r"targets must be \[T, B, N\] = \(10, 4, 4\), got \(10, 4, 3\)",
        ),
        (lambda b: Batch(b.inputs, b.targets.astype(np.int8)), r"targets must be uint8 \[T, B, N\]"),
        (lambda b: Batch(b.inputs, b.targets * np.uint8(3)), "spike trains of 0 and 1"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(change: Any, message: str) -> None:
    weights = initial_weights(_NETWORK, 1)
    with pytest.raises(ShapeError, match=message):
        NUMPY.value_and_grad(_NETWORK, VanRossum(), weights, change(_batch(_NETWORK)))


def test_spikes_may_be_bool() -> None:
    weights, batch = initial_weights(_NETWORK, 1, 4.0), _batch(_NETWORK)
    as_bool = Batch(batch.inputs.astype(bool), batch.targets.astype(bool))
    expected, result = (NUMPY.value_and_grad(_NETWORK, VanRossum(), weights, b) for b in (batch, as_bool))
    assert expected.spikes.any()
    assert result.loss == expected.loss
    assert all(np.array_equal(result.gradients[name], g) for name, g in expected.gradients.items())
    trainer, steps = NUMPY.trainer(_NETWORK, VanRossum(), AdamW()), len(batch.targets)
    _, step = trainer.step(trainer.init(weights), as_bool)
    predicted = trainer.predict(trainer.init(weights), as_bool.inputs, steps)
    run = NUMPY.run(_NETWORK, weights, as_bool.inputs, steps)
    stream = NUMPY.stream(_NETWORK, weights, batch.targets.shape[1])
    streamed = np.stack([stream.step(frame) for frame in as_bool.inputs])
    for spikes in (step.spikes, predicted.spikes, run.layers[_NETWORK.blocks[-1].name].spikes, streamed):
        assert np.array_equal(spikes, expected.spikes)
    images = NetworkSpec.parse("4", input_shape=(1, 4, 4), outputs=3, coding="direct")
    with pytest.raises(ShapeError, match="inputs must be uint8, got bool"):
        NUMPY.run(images, initial_weights(images, 1), np.ones((2, 1, 4, 4), bool), 3)


def test_a_batch_without_samples_is_refused() -> None:
    trainer = NUMPY.trainer(_NETWORK, VanRossum(), AdamW())
    state, batch = trainer.init(initial_weights(_NETWORK, 1)), _batch(_NETWORK)
    one = batch.inputs[:, :1]
    with pytest.raises(ShapeError, match="a batch has at least 1 sample, got 0"):
        trainer.step(state, Batch(one, batch.targets[:, :0]))
    for size in (0, -1, "a"):
        with pytest.raises(ShapeError, match=f"a batch has at least 1 sample, got {size!r}"):
            trainer.predict(state, one, len(one), batch=size)  # type: ignore[arg-type]


def test_the_loss_of_a_step_does_not_change_with_the_arrays_of_its_batch() -> None:
    trainer, batch = NUMPY.trainer(_NETWORK, VanRossum(), AdamW()), _batch(_NETWORK)
    lengths = np.full(batch.targets.shape[1], 7)
    losses = []
    for change in (False, True):
        copied = Batch(batch.inputs, batch.targets.copy(), lengths.copy())
        _, result = trainer.step(trainer.init(initial_weights(_NETWORK, 1)), copied)
        if change:
            copied.targets[:], copied.lengths[:] = 1 - copied.targets, 3  # type: ignore[index]
        losses.append(result.loss)
    assert losses[0] == losses[1]


def test_weights_that_do_not_fit_are_refused() -> None:
    weights, batch = initial_weights(_NETWORK, 1), _batch(_NETWORK)
    changes: tuple[tuple[dict[str, Any], str], ...] = (
        ({"conv9": weights["conv1"]}, "must have the layers conv1, linear2, linear3, got conv1"),
        (
            {"conv1": weights["conv1"][:2]},
            r"weights of conv1 must be float32 \(6, 2, 3, 3\), got float32 \(2, 2, 3, 3\)",
        ),
        ({"conv1": weights["conv1"].astype(np.float64)}, r"got float64"),
        ({"conv1": weights["conv1"].tolist()}, r"weights of conv1 must be a numpy array, got list"),
    )
    for change, message in changes:
        with pytest.raises(ShapeError, match=message):
            NUMPY.value_and_grad(_NETWORK, VanRossum(), {**weights, **change}, batch)
    broken = {**weights, "linear2": weights["linear2"] * np.float32(np.nan)}
    with pytest.raises(NumericError, match="layer linear2: a weight is not finite"):
        NUMPY.run(_NETWORK, broken, batch.inputs, 10)


@pytest.mark.parametrize("weights", [None, [1.0], 3])
def test_weights_that_are_no_mapping_are_refused(weights: Any) -> None:
    batch = _batch(_NETWORK)
    for call in (
        lambda: NUMPY.value_and_grad(_NETWORK, VanRossum(), weights, batch),
        lambda: NUMPY.run(_NETWORK, weights, batch.inputs, 10),
        lambda: NUMPY.trainer(_NETWORK, VanRossum(), AdamW()).init(weights),
    ):
        with pytest.raises(ShapeError, match="weights must be numpy arrays by layer name, got"):
            call()


@pytest.mark.parametrize("steps", [0, -3, 2.5, None, "4"])
def test_steps_are_an_integer_from_1_on(steps: Any) -> None:
    network = NetworkSpec.parse("4", input_shape=(6,), coding="direct")
    weights, images = initial_weights(network, 1), np.zeros((2, 6), np.uint8)
    trainer = NUMPY.trainer(network, VanRossum(), AdamW())
    state = trainer.init(weights)
    with pytest.raises(ShapeError, match="steps must be an integer from 1 to"):
        NUMPY.run(network, weights, images, steps)
    with pytest.raises(ShapeError, match="steps must be an integer from 1 to"):
        trainer.predict(state, images, steps)
    five: Any = np.uint8(5)
    assert NUMPY.run(network, weights, images, five).layers["linear1"].spikes.shape == (5, 2, 4)
    assert trainer.predict(state, images, five).spikes.shape == (5, 2, 4)


@pytest.mark.parametrize("loss", ["van-rossum", None, VanRossum])
def test_a_loss_that_is_none_is_refused(loss: Any) -> None:
    message = r"a loss is one of VanRossum\(\), Hamming\(\), SpikeCount\(\), got"
    with pytest.raises(SpecError, match=message):
        NUMPY.value_and_grad(_NETWORK, loss, initial_weights(_NETWORK, 1), _batch(_NETWORK))
    with pytest.raises(SpecError, match=message):
        NUMPY.trainer(_NETWORK, loss, AdamW())


@pytest.mark.parametrize("batch", [None, (1, 2), [1], VanRossum()])
def test_a_batch_that_is_none_is_refused(batch: Any) -> None:
    weights = initial_weights(_NETWORK, 1)
    trainer = NUMPY.trainer(_NETWORK, VanRossum(), AdamW())
    for call in (
        lambda: NUMPY.value_and_grad(_NETWORK, VanRossum(), weights, batch),
        lambda: trainer.step(trainer.init(weights), batch),
    ):
        with pytest.raises(ShapeError, match="a batch is a Batch of inputs and targets, got"):
            call()


@pytest.mark.parametrize("network", [None, "6C3-4", NetworkSpec, 3])
def test_a_network_that_is_none_is_refused(network: Any) -> None:
    weights, batch = initial_weights(_NETWORK, 1), _batch(_NETWORK)
    for call in (
        lambda: NUMPY.value_and_grad(network, VanRossum(), weights, batch),
        lambda: NUMPY.run(network, weights, batch.inputs, 10),
        lambda: NUMPY.trainer(network, VanRossum(), AdamW()),
    ):
        with pytest.raises(SpecError, match=r"a network is a NetworkSpec, for example of NetworkSpec\.parse, got"):
            call()


@pytest.mark.parametrize("optimizer", [None, "adamw", AdamW, SGD])
def test_an_optimiser_that_is_none_is_refused(optimizer: Any) -> None:
    with pytest.raises(SpecError, match=r"an optimiser is one of AdamW\(\), Adam\(\), SGD\(\); got"):
        NUMPY.trainer(_NETWORK, VanRossum(), optimizer)


@pytest.mark.parametrize("memory", ["much", None, ["low"]])
def test_a_memory_setting_that_is_none_is_refused(memory: Any) -> None:
    with pytest.raises(SpecError, match="memory is 'full' or 'low', got"):
        NUMPY.trainer(_NETWORK, VanRossum(), AdamW(), memory=memory)


@pytest.mark.parametrize("notation", ["4", "8-D0.5-4"])
def test_dropout_outside_32_bits_is_refused_also_where_there_is_none(notation: str) -> None:
    network = NetworkSpec.parse(notation, input_shape=(6,))
    weights, batch = initial_weights(network, 1), _batch(network)
    changes: tuple[tuple[Any, str], ...] = (
        ((-1, 0), "seed must be an integer from 0"),
        ((2**40, 0), "seed must be an integer from 0"),
        ((0.5, 0), "seed must be an integer from 0"),
        ((0, -1), "step of dropout must be an integer from 0"),
        ((0, 2**32), "step of dropout must be an integer from 0"),
        (7, r"dropout is None or \(seed, step\), got 7"),
    )
    for dropout, message in changes:
        with pytest.raises(SpecError, match=message):
            NUMPY.value_and_grad(network, VanRossum(), weights, batch, dropout=dropout)
    NUMPY.value_and_grad(network, VanRossum(), weights, batch, dropout=(2**32 - 1, 2**32 - 1))
    with pytest.raises(SpecError, match="seed must be an integer from 0"):
        NUMPY.trainer(network, VanRossum(), AdamW(), seed=-1)


@pytest.mark.parametrize("step", [-1, 2**32, 2**40, 0.5, True])
def test_step_from_a_state_whose_step_is_outside_32_bits_is_refused(step: Any) -> None:
    network = NetworkSpec.parse("8-D0.5-4", input_shape=(6,))
    trainer = NUMPY.trainer(network, VanRossum(), AdamW())
    state = trainer.init(initial_weights(network, 1))
    with pytest.raises(SpecError, match=r"step of dropout must be an integer from 0 to 2\*\*32 - 1, got"):
        trainer.step(replace(state, step=step), _batch(network))


def test_reproducible_precision_refuses_an_inexact_surrogate_and_names_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also a surrogate that the spec gets later."""
    network = NetworkSpec.parse("4", input_shape=(3,), neuron=LIF(surrogate=Logistic()))
    exact = [name for name in SURROGATES if name != Logistic.name]
    monkeypatch.setitem(SURROGATES, "later", Arctan)
    with pytest.raises(SpecError, match=rf"logistic uses exp.* one of {', '.join([*exact, 'later'])}$"):
        NUMPY.trainer(network, VanRossum(), AdamW(), precision="reproducible")
    with pytest.raises(SpecError, match="precision is 'fast' or 'reproducible', got 'double'"):
        NUMPY.trainer(network, VanRossum(), AdamW(), precision="double")  # type: ignore[arg-type]


def test_a_precision_that_the_device_lacks_is_refused_before_anything_is_computed() -> None:
    class Fast(NumpyBackend):
        def check_precision(self, precision: Precision) -> None:
            if precision == "reproducible":
                raise BackendError("this device has no float64")

    weights, batch = initial_weights(_NETWORK, 1), _batch(_NETWORK)
    for precision in ("fast", "reproducible"):
        for call in (
            lambda p: Fast().trainer(_NETWORK, VanRossum(), AdamW(), precision=p),
            lambda p: Fast().value_and_grad(_NETWORK, VanRossum(), weights, batch, precision=p),
        ):
            if precision == "fast":
                call(precision)
            else:
                with pytest.raises(BackendError, match="no float64"):
                    call(precision)


@pytest.mark.parametrize("notation", ["6-4", "6bn-4"])
def test_a_predictor_keeps_its_weights_when_an_update_works_in_place(notation: str) -> None:
    class InPlace(NumpyBackend):
        def updated(self, scalars: Any, domain: Any, w: AnyArray, *arrays: AnyArray) -> tuple[AnyArray, ...]:
            new, *moments = super().updated(scalars, domain, w, *arrays)
            w[...] = new
            return w, *moments

    network = NetworkSpec.parse(notation, input_shape=(5,), neuron=PLIF(3.0, 5 / 3, 0.2))
    batch = _batch(network)
    trainer = InPlace().trainer(network, VanRossum(), AdamW(lr=0.5))
    state = trainer.init(initial_weights(network, 1, 2.0))
    predict = trainer.predictor(state)
    first = predict(batch.inputs, 10)
    state, _ = trainer.step(state, batch)
    assert not np.array_equal(trainer.predict(state, batch.inputs, 10).spikes, first.spikes)
    assert np.array_equal(predict(batch.inputs, 10).spikes, first.spikes)


def test_one_step_is_enough() -> None:
    network = NetworkSpec.parse("4", input_shape=(3,), outputs=2)
    weights = {name: np.ones(shape, np.float32) for name, shape in network.weight_shapes.items()}
    batch = Batch(np.ones((1, 2, 3), np.uint8), np.zeros((1, 2, 2), np.uint8))
    computed = NumpyBackend().value_and_grad(network, LOSSES["hamming"], weights, batch)
    assert computed.spikes.shape == (1, 2, 2)
    assert computed.spikes.all()
    assert computed.loss == 2  # both neurons spike, where none should
