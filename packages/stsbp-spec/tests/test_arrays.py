"""The contract's array arithmetic on any library: the bits of its first form in numpy, and no array on the host."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
from stsbp_spec import initial_weights
from stsbp_spec.contract import random
from stsbp_spec.contract.arrays import NAMES, NUMPY, ArrayArithmetic, NumpyNames
from stsbp_spec.contract.grid import FINEST_ERROR_EXPONENT, FLOOR, SMALLEST_NORMAL
from stsbp_spec.engine.backend import AbstractBackend, Batch, Device
from stsbp_spec.engine.rules import Rule
from stsbp_spec.equations.assembly import Constants
from stsbp_spec.equations.expressions import Recurrence
from stsbp_spec.errors import NumericError
from stsbp_spec.models.encoders.packed import PackedFrames
from stsbp_spec.models.losses import Hamming, SpikeCount, VanRossum
from stsbp_spec.models.losses.base import Loss
from stsbp_spec.models.losses.cross_entropy import CrossEntropy, CrossEntropyOfMaximum
from stsbp_spec.models.neurons import LIF, PLIF, Readout
from stsbp_spec.models.optim.adamw import AdamW, gradient_squares, norm_bits
from stsbp_spec.networks.ops import batchnorm
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.reference.backend import RULES, NumpyBackend, recur
from stsbp_spec.typing import AnyArray, Coding, Float32, Memory, Precision, Shape, UInt8


# An array that only its own library reads.
class Remote:
    """Memory that numpy cannot read: every way in but the functions of `RemoteNames` raises an error."""

    def __init__(self, held: AnyArray) -> None:
        self.held = np.asarray(held)

    __hash__ = None  # type: ignore[assignment]

    @property
    def shape(self) -> Shape:
        return self.held.shape

    @property
    def dtype(self) -> Any:
        return self.held.dtype

    def __len__(self) -> int:
        return len(self.held)

    def __getitem__(self, key: Any) -> Remote:
        return Remote(self.held[key])

    def reshape(self, *shape: Any) -> Remote:
        return Remote(self.held.reshape(*shape))

    def combined(self, apply: Callable[[Any, Any], Any], other: Any) -> Remote:
        # As in numpy 1, an int32 without axes becomes int64 together with a Python number.
        widened = type(other) is int and self.held.shape == () and self.held.dtype == np.int32
        operand = self.held.astype(np.int64) if widened else self.held
        return Remote(apply(operand, other.held if isinstance(other, Remote) else other))

    def __add__(self, other: Any) -> Remote:
        return self.combined(operator.add, other)

    def __neg__(self) -> Remote:
        return Remote(-self.held)

    def _refused(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("an array of the device was read on the host")

    __array__ = __iter__ = __float__ = __int__ = __index__ = __bool__ = __buffer__ = _refused
    __array_ufunc__ = None


def _operator(name: str) -> None:
    apply: Callable[..., Any] = getattr(operator, name)
    bare = name.strip("_")
    setattr(Remote, f"__{bare}__", lambda self, other: self.combined(apply, other))
    setattr(Remote, f"__r{bare}__", lambda self, other: Remote(apply(other, self.held)))


for _name in ("add", "sub", "mul", "truediv", "floordiv", "and_", "rshift", "lshift", "lt", "le", "gt", "ge", "eq"):
    _operator(_name)


def held(x: Any) -> Any:
    """`x`, an array or a tuple, list or mapping of arrays, as numpy arrays."""
    if isinstance(x, Remote):
        return x.held
    if isinstance(x, Mapping):
        return {name: held(remote) for name, remote in x.items()}
    return type(x)(map(held, x)) if type(x) in (tuple, list) else x


class RemoteNames:
    """The functions `NAMES` of the array API standard, and no others."""

    def __init__(self) -> None:
        names = NumpyNames(np)
        for name in NAMES:
            member = getattr(names, name)
            setattr(self, name, member if isinstance(member, type) else self._returns_remote(member))

    @staticmethod
    def _returns_remote(function: Callable[..., Any]) -> Callable[..., Remote]:
        def called(*arguments: Any, **named: Any) -> Remote:
            for x in (*arguments, *named.values()):
                assert not isinstance(x, np.ndarray), "an array of the host was sent"
            return Remote(function(*held(arguments), **named))

        return called


REMOTE: ArrayArithmetic[Remote] = ArrayArithmetic(RemoteNames(), lambda x, dtype: Remote(x.held.view(dtype)))


def on_device(rule: Rule[AnyArray]) -> Rule[Remote]:
    def forward(op: Any, *inputs: Remote) -> tuple[Remote, Any]:
        output, residuals = rule.forward(op, *held(inputs))
        return Remote(output), residuals

    def backward(op: Any, residuals: Any, error: Remote, **options: Any) -> Any:
        grads = rule.backward(op, residuals, error.held, **options)
        return tuple(None if x is None else Remote(x) for x in grads) if options else Remote(grads)

    return Rule(forward, backward)


class RemoteBackend(AbstractBackend[Remote]):
    """The abstract members alone. In a program of the device, no array comes from or goes to the host."""

    name: ClassVar[str] = "remote"
    api: ClassVar[int] = 2
    arithmetic = REMOTE
    in_program = False

    @classmethod
    def devices(cls) -> tuple[Device, ...]:
        return (Device("far", "numpy behind a wall"),)

    def open(self, device: str | None) -> str:
        return "far"

    def asarray(self, x: AnyArray) -> Remote:
        assert not self.in_program, "a program of the device made an array on the host"
        return Remote(x)

    def numpy(self, x: Remote) -> AnyArray:
        assert not self.in_program, "a program of the device read an array on the host"
        return x.held

    def compiled(self, function: Callable[..., Any], *fixed: Any) -> Callable[..., Any]:
        def program(*arguments: Any) -> Any:
            self.in_program = True
            try:
                return function(self, *fixed, *arguments)
            finally:
                self.in_program = False

        return program

    def encode(self, inputs: UInt8, coding: Coding) -> Remote:
        return Remote(inputs if coding == "events" else inputs[None].astype(np.float32) * np.float32(2.0**-8))

    @property
    def rules(self) -> Mapping[Any, Rule[Remote]]:
        return {op: on_device(rule) for op, rule in RULES.items()}

    def dropout_mask(self, seed: int, layer: int, step: int, shape: Shape, rate: float, first: int = 0) -> Remote:
        return Remote(random.keep_mask(seed, layer, step, shape, rate, first))

    def dropout(self, mask: Remote, s: Remote) -> Remote:
        return Remote(s.held * mask.held)

    def recur(
        self,
        recurrence: Recurrence,
        constants: Constants,
        inputs: Mapping[str, Remote],
        steps: int,
        *,
        summed: tuple[str, ...] = (),
    ) -> dict[str, Remote]:
        outputs = recur(recurrence, constants, held(inputs), steps, summed=summed)
        return {name: Remote(x) for name, x in outputs.items()}


def test_the_remote_backend_implements_the_abstract_members_alone() -> None:
    members = {name for name in vars(RemoteBackend) if not name.startswith("_")} - {"name", "api", "in_program"}
    assert members - {"compiled"} == AbstractBackend.__abstractmethods__
    for read in (np.asarray, float, list, bool, memoryview):
        with pytest.raises((AssertionError, TypeError)):
            read(REMOTE.zeros((1,)))


CONCATENATED = "\n".join(
    f'[[node]]\nname = "{name}"\n{operation}\nfrom = {sources}'
    for name, operation, sources in (
        ("conv1", 'weights = "3C3p1"', '"input"'),
        ("one", 'neurons = ""', '"conv1"'),
        ("means", 'layer = "P2"', '"one"'),
        ("conv2", 'weights = "2C2s2"', '"one"'),
        ("two", 'neurons = ""', '"conv2"'),
        ("both", "concat = true", '["two", {node = "means", delay = 1}, "two"]'),
        ("linear3", 'weights = "5"', '"both"'),
        ("three", 'neurons = ""', '"linear3"'),
        ("eight", "concat = true", '["three", {node = "three", delay = 2}]'),
        ("linear4", 'weights = "3"', '"eight"'),
        ("output", 'neurons = ""', '"linear4"'),
    )
)

BACKENDS: tuple[AbstractBackend[Any], ...] = (NumpyBackend(), RemoteBackend())
NETWORKS: dict[str, tuple[NetworkSpec, Loss]] = {
    "convolutions": (
        NetworkSpec.parse("4C3-P2-D0.3-9", input_shape=(2, 8, 8), outputs=3, neuron=PLIF(3.0, 5 / 3, 0.4)),
        VanRossum(),
    ),
    "normalised, recurrent": (
        NetworkSpec.parse("4C3bn-M2-6Rbn-5{delay=2}", input_shape=(2, 7, 7), outputs=3, neuron=LIF(3, 5 / 3, 0.4)),
        Hamming(),
    ),
    "images, branches": (
        NetworkSpec.parse(
            "3C3p1b-[3C3p1b]+-U2-5{recurrent=one-to-one}",
            input_shape=(3, 4, 4), outputs=3, coding="direct", neuron=LIF(3, 5 / 3, 0.4),
        ),
        VanRossum(),
    ),
    "concatenations": (
        NetworkSpec.parse(CONCATENATED, input_shape=(2, 6, 8), neuron=LIF(3, 5 / 3, 0.4)), SpikeCount(),
    ),
    "readout": (
        NetworkSpec.parse("7", input_shape=(2, 4, 4), outputs=3, neuron=LIF(3, 5 / 3, 0.4), output_neuron=Readout(5)),
        CrossEntropy(),
    ),
    "largest of a readout": (
        NetworkSpec.parse("7", input_shape=(2, 4, 4), outputs=3, neuron=LIF(3, 5 / 3, 0.4), output_neuron=Readout(5)),
        CrossEntropyOfMaximum(),
    ),
}  # fmt: skip


def _batch(network: NetworkSpec, *, packed: bool, padded: bool) -> Batch[Any]:
    draw, steps, samples = np.random.default_rng(0), 6, 5
    targets = np.zeros((steps, samples, 3), np.uint8)
    targets[:, range(samples), draw.integers(0, 3, samples)] = 1
    lengths = draw.integers(2, steps + 1, samples) if padded else None
    if network.coding == "direct":
        return Batch(draw.integers(0, 256, (samples, *network.input_shape), np.uint8), targets, lengths)
    frames = (draw.random((steps, samples, *network.input_shape)) < 0.4).astype(np.uint8)
    if lengths is not None:
        inside = np.arange(steps)[:, None] < lengths
        targets *= inside[..., None]
        frames *= inside.reshape(*inside.shape, *(1,) * (frames.ndim - 2))
    return Batch(PackedFrames.of(frames) if packed else frames, targets, lengths)


@pytest.mark.parametrize("precision", ["fast", "reproducible"])
@pytest.mark.parametrize(
    ("memory", "micro_batch", "padded"), [("full", None, False), ("low", 2, False), ("full", None, True)]
)
@pytest.mark.parametrize("case", NETWORKS)
def test_a_training_step_of_a_backend_with_the_abstract_members_stays_on_its_device(
    case: str, memory: Memory, micro_batch: int | None, padded: bool, precision: Precision
) -> None:
    network, loss = NETWORKS[case]
    if network.has_readout and precision == "reproducible":
        pytest.skip("cross entropy is for fast precision")
    if padded and network.coding == "direct":
        pytest.skip("images have no lengths")
    weights, results = initial_weights(network, 1, 3.0), []
    for backend in BACKENDS:
        optimizer = AdamW(lr=0.01, clip_norm=0.1)
        trainer = backend.trainer(network, loss, optimizer, precision=precision, memory=memory, micro_batch=micro_batch)
        state = trainer.init({name: w.copy() for name, w in weights.items()})
        batch, reported = _batch(network, packed=micro_batch is None, padded=padded), []
        for _ in range(2):
            state, result = trainer.step(state, batch)
            reported += [result.spikes.tobytes(), result.gradient_norm, result.loss, result.rates, result.zeroed]
        predicted = trainer.predict(state, batch.inputs, 6)
        exported = {name: x.tobytes() for name, x in trainer.export_state(state).items()}
        results.append((reported, predicted.spikes.tobytes(), exported))
    assert results[0] == results[1]


def test_a_stream_and_a_run_stay_on_the_device() -> None:
    network, _ = NETWORKS["normalised, recurrent"]
    weights, results = initial_weights(network, 1, 3.0), []
    batch = _batch(network, packed=False, padded=False)
    for backend in BACKENDS:
        run = backend.run(network, weights, batch.inputs, 6)
        stream = backend.stream(network, weights, 5)
        steps = [stream.step(frame).tobytes() for frame in batch.inputs]
        results.append(([(x.spikes.tobytes(), x.potentials.tobytes()) for x in run.layers.values()], steps))
    assert results[0] == results[1]


# The first form of each function, in numpy with numbers of the host.
def _rounded(x: AnyArray, exponent: int) -> AnyArray:
    return np.rint(x * np.float32(2.0**exponent)) * np.float32(2.0**-exponent)


def _exponent(x: Float32, bits: int) -> int | None:
    largest = float(np.abs(x).view(np.int32).max().view(np.float32))
    return None if largest < FLOOR else min(bits - math.frexp(largest)[1], FINEST_ERROR_EXPONENT)


def error_grid(dz: Float32, bits: int) -> tuple[Float32, list[int]]:
    q = _exponent(dz, bits)
    on_grid = np.zeros_like(dz) if q is None else _rounded(dz, q)
    normal = np.abs(dz) >= np.float32(SMALLEST_NORMAL)
    return on_grid, [int(np.count_nonzero(normal & (on_grid == 0))), int(np.count_nonzero(normal))]


def sample_grid(dz: Float32, bits: int) -> Float32:
    most = np.abs(dz).reshape(len(dz[0]), -1).view(np.int32).max(axis=1)
    exponent = np.minimum(bits + 126 - (most >> 23), FINEST_ERROR_EXPONENT).reshape(1, -1, *(1,) * (dz.ndim - 2))
    scale, inverse_scale = np.ldexp(np.float32(1), exponent), np.ldexp(np.float32(1), -exponent)
    silent = most.view(np.float32).reshape(exponent.shape) < np.float32(FLOOR)
    return np.where(silent, np.float32(0), np.rint(dz * scale) * inverse_scale)


def squares(gradients: Sequence[Float32]) -> list[int]:
    joined = np.concatenate([g.reshape(-1) for g in gradients])
    q = _exponent(joined, norm_bits(joined.size))
    units = [] if q is None else np.rint(joined * np.float32(2.0**q)).astype(np.int64).tolist()
    return [int(np.abs(joined).view(np.int32).max()), sum(x * x for x in units)]


def channel_sums(x: Float32, count: int) -> list[float]:
    return [float(row.sum(dtype=np.float64)) for row in np.moveaxis(x, 2, 0).reshape(count, -1)]


def moments(z: Float32, exponent: int, dy: Float32) -> tuple[AnyArray, AnyArray]:
    k = np.ldexp(np.moveaxis(z, 2, 0).reshape(z.shape[2], -1).astype(np.float64), exponent).astype(np.int64)
    d = np.moveaxis(dy, 2, 0).reshape(len(k), -1).astype(np.float64)
    squares = [sum(int(x) ** 2 for x in row) for row in k]
    pieces = [k.sum(1), [x >> 24 for x in squares], [x % 2**24 for x in squares]]
    return np.array(pieces, np.int64), np.array([d.sum(1), (d * (k >> 12)).sum(1), (d * (k & 4095)).sum(1)])


class Library:
    """A library's arithmetic, and how the test makes and reads its arrays.

    Args:
        name: `numpy`, `remote`, `torch`, `jax` or `jax, compiled`.
    """

    def __init__(self, name: str) -> None:
        self.make: Callable[[AnyArray], Any] = Remote if name == "remote" else np.array
        self.read: Callable[[Any], AnyArray] = held if name == "remote" else np.asarray
        self.wrap: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda f: f
        self.arithmetic: ArrayArithmetic[Any] = REMOTE if name == "remote" else NUMPY
        if name == "torch":
            torch, arrays = pytest.importorskip("torch"), pytest.importorskip("stsbp_torch.contract.arrays")
            self.make, self.arithmetic = torch.tensor, arrays.arithmetic(torch.device("cpu"))
        if name.startswith("jax"):
            jax, grid = pytest.importorskip("jax"), pytest.importorskip("stsbp_jax.contract.grid")
            self.make, self.arithmetic = jax.numpy.asarray, grid.ARITHMETIC
            compiled = jax.jit if name == "jax, compiled" else lambda f: f
            self.wrap = lambda f: compiled(grid.in_float64(f))

    def __call__(self, function: Callable[..., Any]) -> Callable[..., list[AnyArray]]:
        """A function of the library's arrays as a function of numpy arrays."""
        wrapped = self.wrap(function)

        def called(*arrays: AnyArray) -> list[AnyArray]:
            outputs = wrapped(*map(self.make, arrays))
            return [self.read(x) for x in (outputs if isinstance(outputs, (tuple, list)) else [outputs])]

        return called

    def laid_out(self, x: AnyArray) -> AnyArray:
        """`[T, B, C, ...]` with the channels where the library's arrays have them."""
        return np.moveaxis(x, 2, self.arithmetic.channel_axis)


@pytest.fixture(params=["numpy", "remote", "torch", "jax", "jax, compiled"], scope="module")
def library(request: pytest.FixtureRequest) -> Library:
    return Library(request.param)


def draws() -> Iterator[Float32]:
    """Errors `[1, B, C, ...]` of all sizes, with zeros, subnormal numbers, and numbers that are not finite."""
    draw = np.random.default_rng(0)
    for scale in (-149, -125, -110, -101, -100, -99, -60, -10, 0, 23, 40):
        for spread in (0, 20):
            exponents = scale + spread * draw.normal(size=(1, 3, 2, 4))
            x = (draw.normal(size=exponents.shape) * np.exp2(np.minimum(exponents, 120))).astype(np.float32)
            yield x * (draw.random(x.shape) < 0.8)
    yield np.zeros((1, 3, 2, 4), np.float32)
    for odd in (np.nan, np.inf, -np.inf):
        x = draw.normal(size=(1, 3, 2, 4)).astype(np.float32)
        x[0, 1, 0, 2] = odd
        yield x


def same(computed: AnyArray, expected: AnyArray) -> bool:
    """Whether all values are equal. The sign of a zero, and the bits of a NaN, have no meaning."""
    return computed.dtype.itemsize >= expected.dtype.itemsize and np.array_equal(computed, expected, equal_nan=True)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_grids_are_those_of_the_first_form(library: Library) -> None:
    of = library.arithmetic
    for bits in (8, 51):

        def grids(x: Any, bits: int = bits) -> list[Any]:
            return [*of.error_grid(x, bits), *of.error_grid(x, bits, of.largest_error(x)), of.sample_grid(x, bits)]

        run = library(grids)
        for x in draws():
            expected, counts = error_grid(x, bits)
            first, numbers, second, same_numbers, by_sample = run(x)
            assert same(first, expected)
            assert same(second, expected)
            assert numbers.tolist() == same_numbers.tolist() == counts
            assert same(by_sample, sample_grid(x, bits))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_squares_of_gradients_are_those_of_the_first_form(library: Library) -> None:
    run = library(lambda *gradients: gradient_squares(gradients, library.arithmetic))
    for x in draws():
        parts = x[0, 0], x[0, 1:]
        (computed,) = run(*parts)
        assert computed.dtype == np.int64
        expected = squares(parts) if np.isfinite(x).all() else [computed[0], computed[1]]
        assert computed.tolist() == expected
        assert computed[0] == np.abs(x).view(np.int32).max()


def test_channels_are_those_of_the_first_form(library: Library) -> None:
    of, draw = library.arithmetic, np.random.default_rng(1)
    run = library(lambda z, e, dy: (batchnorm.moments(z, e, of), batchnorm.error_moments(dy, z, e, of)))
    totals = {count: library(lambda x, count=count: of.channel_totals(x, count)) for count in (1, 2)}
    for exponent in (-80, -3, 0, 7, 111, 134):
        z = np.ldexp(draw.integers(-(2**24), 2**24 + 1, (3, 4, 2, 5)), -exponent).astype(np.float32)
        dy = np.rint(draw.normal(size=z.shape) * 2**12).astype(np.float32)
        sums, error_sums = moments(z, exponent, dy)
        native, e = [library.laid_out(x) for x in (z, dy)], np.array([exponent], np.int32)
        computed, computed_errors = run(native[0], e, native[1])
        assert computed.tolist() == sums.tolist()
        assert computed_errors.tolist() == error_sums.tolist()
        for count in (1, 2):
            (computed,) = totals[count](native[1][:1])
            assert computed.tolist() == channel_sums(dy[:1], count)
    values = draw.normal(size=2).astype(np.float32)
    shape = library.laid_out(np.empty((1, 4, 2, 5, 3))).shape[1:]
    (computed,) = library(lambda x: of.broadcast(x, shape))(values)
    assert np.array_equal(computed, library.laid_out(np.broadcast_to(values[:, None, None], (1, 4, 2, 5, 3))))


def test_steps_samples_and_bits_are_those_of_the_first_form(library: Library) -> None:
    of, draw = library.arithmetic, np.random.default_rng(2)
    x, inside = draw.normal(size=(9, 4, 3)).astype(np.float32), (draw.random((9, 4)) < 0.5).astype(np.uint8)
    s = (x > 0).astype(np.uint8)

    def results(x: Any, s: Any, inside: Any, bits: Any, steps: Any) -> list[Any]:
        masked = [array for values in (x, s) for array in (of.mask_steps(values, inside), of.mask_samples(values, 2))]
        return [*masked, of.pack(s), of.unpack(bits, 9 * 4 * 3), of.unpacked(steps, 9)]

    computed = library(results)(x, s, inside, np.packbits(s), np.packbits(s, axis=0, bitorder="little"))
    first = (np.arange(4) < 2)[:, None]
    masked = [array for values in (x, s) for array in (values * inside[..., None], values * first)]
    expected = [*masked, np.packbits(s), s.reshape(-1), s]
    assert [(array.tolist(), array.dtype) for array in computed] == [
        (array.tolist(), array.dtype) for array in expected
    ]


def test_weights_are_on_the_grid_of_the_spec() -> None:
    """The first grid of a device, coarser ones, weights of zero, and weights that are refused."""
    numpy, remote = NumpyBackend(), RemoteBackend()
    network = NetworkSpec.parse("5-4{bits=3}", input_shape=(3, 40, 40), outputs=2, coding="direct")
    draw = np.random.default_rng(3)
    for scale in (0.0, 2.0**-149, 2.0**-100, 1e-9, 1.0, 2.0**90):
        for skew in (0, 3):
            for projection in network.graph.projections:
                w = ((draw.normal(size=projection.weight_shape) + skew) * scale).astype(np.float32)
                expected, grid = numpy.weight_grid(projection, w)
                ((rounded, other),) = remote.weight_grids([projection], [Remote(w)])
                assert rounded.held.tobytes() == (expected + np.float32(0)).tobytes() or same(rounded.held, expected)
                assert other == grid
    first = network.graph.projections[0]
    for bad in (np.nan, np.inf, -np.inf, 2.0**100):
        w = np.ones(first.weight_shape, np.float32)
        w[1, 5:7] = bad
        messages = []
        for backend in BACKENDS:
            with pytest.raises(NumericError) as error, np.errstate(invalid="ignore"):
                backend.weight_grids([first], [backend.asarray(w)])
            messages.append(str(error.value))
        assert messages[0] == messages[1]
