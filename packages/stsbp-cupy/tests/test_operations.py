"""Each forward/backward pair alone, against the numpy reference, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from stsbp_conformance.oracles import roundoff
from stsbp_cupy import CupyBackend
from stsbp_cupy.ops import conv2d
from stsbp_spec import LIF, PSP, AvgPool2d, Conv2d, Linear, NetworkSpec
from stsbp_spec.contract import random
from stsbp_spec.contract.grid import round_to_grid
from stsbp_spec.errors import BackendError, ExactnessError, NumericError
from stsbp_spec.models.optim import AdamW
from stsbp_spec.models.surrogates import SURROGATES, Arctan, FastSigmoid, Rectangle, Surrogate, Triangle
from stsbp_spec.networks.ops import IDENTITY, MaxPool2d
from stsbp_spec.networks.ops.avgpool2d import Pool2d
from stsbp_spec.networks.ops.axes import PerAxis
from stsbp_spec.networks.ops.psp import SynapticFilter
from stsbp_spec.networks.spec import Block
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import AnyArray, Float32

TAUS = (3.0, 5 / 3)
WIDTHS = {Rectangle: 0.7, Triangle: 0.9, FastSigmoid: 3.0, Arctan: 2.0}
EXACT = [
    cls(WIDTHS[cls]) if cls in WIDTHS else cls()  # type: ignore[call-arg]
    for cls in SURROGATES.values()
    if cls().exact
]
SHAPES = {"flat": (3, 10), "flat-odd": (3, 7), "spatial": (2, 8, 5, 6), "spatial-odd": (2, 3, 5, 5)}


def bits(x: AnyArray) -> AnyArray:
    """The array's bits; zeros have no sign, and NaN has no payload (docs/decisions/0001)."""
    x = np.where(x == 0, x.dtype.type(0), x)
    if x.dtype.kind == "f":
        x = np.where(np.isnan(x), x.dtype.type(np.nan), x)
    return x.view({4: np.uint32, 1: np.uint8, 8: np.uint64}[x.itemsize])


def assert_same_bits(actual: AnyArray, expected: AnyArray) -> None:
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    differing = int(np.count_nonzero(bits(actual) != bits(expected)))
    assert differing == 0, f"{differing} of {expected.size} values differ"


def spikes_of(rng: np.random.Generator, shape: tuple[int, ...], density: float = 0.3) -> AnyArray:
    return (rng.random(shape) < density).astype(np.uint8)


def both_lif(
    backend: CupyBackend, reference: NumpyBackend, neuron: LIF, filter: SynapticFilter, z: Float32, ds: Float32
) -> tuple[AnyArray, AnyArray]:
    """Forward and backward on both, bits compared; returns spikes and potentials."""
    steps = len(ds)
    expected, expected_residuals = reference.neuron_forward(neuron, filter, z, steps)
    actual, residuals = backend.neuron_forward(neuron, filter, backend.asarray(z), steps)
    assert_same_bits(backend.numpy(actual), expected)
    assert_same_bits(
        backend.numpy(backend.neuron_potentials(residuals)), reference.neuron_potentials(expected_residuals)
    )
    assert_same_bits(
        backend.numpy(backend.neuron_backward(neuron, filter, residuals, backend.asarray(ds))[0]),
        reference.neuron_backward(neuron, filter, expected_residuals, ds)[0],
    )
    return expected, expected_residuals.kept["u"]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("surrogate", EXACT, ids=lambda s: s.name)
@pytest.mark.parametrize("tau", TAUS)
def test_lif(
    backend: CupyBackend,
    reference: NumpyBackend,
    rng: np.random.Generator,
    tau: float,
    surrogate: Surrogate,
    shape: tuple[int, ...],
) -> None:
    neuron = LIF(tau_m=tau, tau_s=7 / 3, threshold=0.9, surrogate=surrogate)
    z = rng.normal(0.4, 1, (12, *shape)).astype(np.float32)
    ds = rng.normal(0, 1, z.shape).astype(np.float32)
    spikes, _ = both_lif(backend, reference, neuron, PSP(tau).filter(1.25), z, ds)
    assert 0.05 < spikes.mean() < 0.8


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("tau", TAUS)
def test_lif_with_a_static_input_sums_the_error_over_steps(
    backend: CupyBackend, reference: NumpyBackend, rng: np.random.Generator, tau: float, shape: tuple[int, ...]
) -> None:
    z = rng.normal(0.3, 0.5, (1, *shape)).astype(np.float32)
    ds = rng.normal(0, 1, (9, *shape)).astype(np.float32)
    both_lif(backend, reference, LIF(tau_m=tau), IDENTITY, z, ds)
    # One step: the input counts as a sequence of length 1, not as static.
    both_lif(backend, reference, LIF(tau_m=tau), IDENTITY, z, ds[:1])


def test_lif_that_reaches_the_threshold_exactly_fires(backend: CupyBackend, reference: NumpyBackend) -> None:
    neuron = LIF(tau_m=2, tau_s=2, threshold=0.75)
    z = np.zeros((3, 1, 8), np.float32)
    z[0] = 0.75  # Reached at once,
    z[0, 0, 4:] = 0.5
    z[1, 0, 4:] = 0.5  # by 0.5 / 2 + 0.5,
    z[0, 0, 7] = np.nextafter(np.float32(0.75), np.float32(0))  # missed by one unit in the last place.
    z[1, 0, 7] = 0
    spikes, u = both_lif(backend, reference, neuron, IDENTITY, z, np.ones_like(z))
    assert spikes[0].tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]]
    assert spikes[1].tolist() == [[0, 0, 0, 0, 1, 1, 1, 0]]
    assert (u[1, 0, 4:7] == 0.75).all()


def test_lif_that_decays_into_the_floor_becomes_zero(backend: CupyBackend, reference: NumpyBackend) -> None:
    z = np.zeros((180, 1, 8), np.float32)
    z[0] = np.linspace(-0.9, 0.9, 8, dtype=np.float32) * np.float32(2.0**-20)
    ds = np.zeros_like(z)
    ds[-1] = np.float32(2.0**-30)
    _, u = both_lif(backend, reference, LIF(tau_m=3, tau_s=5 / 3), PSP(5 / 3).filter(), z, ds)
    assert (u[-1] == 0).all()
    assert (u[60] != 0).any()
    smallest = np.abs(u[u != 0]).min()
    assert 2.0**-100 <= smallest < 2.0**-99


def test_lif_backward_snaps_the_path_through_the_reset(backend: CupyBackend, reference: NumpyBackend) -> None:
    # p = u d1 is just below the floor while h p, with h = 2, would be above it.
    neuron = LIF(tau_m=2, threshold=0.75, surrogate=Rectangle(0.5))
    z = np.full((2, 1, 8), 0.6, np.float32)
    ds = np.zeros_like(z)
    ds[1] = np.linspace(1.0, 1.6, 8, dtype=np.float32) * np.float32(2.0**-100)
    both_lif(backend, reference, neuron, IDENTITY, z, ds)
    _, residuals = backend.neuron_forward(neuron, IDENTITY, backend.asarray(z), 2)
    p = np.float32(0.6) * np.float32(0.5) * np.float32(2) * ds[1]
    assert (p < 2.0**-100).all()
    assert (2 * p >= 2.0**-100).all()
    # Nothing is left at t = 0 but the path that does not pass the reset.
    dz = backend.numpy(backend.neuron_backward(neuron, IDENTITY, residuals, backend.asarray(ds))[0])
    assert dz[1].all()
    assert np.array_equal(dz[0], dz[1] / 2)


def test_lif_at_the_edge_of_the_rectangle_has_no_gradient(backend: CupyBackend, reference: NumpyBackend) -> None:
    neuron = LIF(threshold=0.75, surrogate=Rectangle(0.5))
    z = np.array([0.5, 1.0, np.nextafter(np.float32(0.5), np.float32(1)), 0.75], np.float32).reshape(1, 1, 4)
    both_lif(backend, reference, neuron, IDENTITY, z, np.ones_like(z))
    _, residuals = backend.neuron_forward(neuron, IDENTITY, backend.asarray(z), 1)
    ds = backend.asarray(np.ones_like(z))
    assert backend.neuron_backward(neuron, IDENTITY, residuals, ds)[0].tolist() == [[[0, 0, 2, 2]]]


def test_lif_carries_values_that_are_not_finite(backend: CupyBackend, reference: NumpyBackend) -> None:
    z = np.ones((4, 1, 8), np.float32)
    z[1, 0, :3] = np.nan, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        spikes, _ = both_lif(backend, reference, LIF(tau_m=4), PSP(3).filter(), z, np.ones_like(z))
    assert spikes[1, 0, 0] == 0


@pytest.mark.parametrize("channels", [1, 3, 8])
@pytest.mark.parametrize(("size", "height", "width"), [(1, 3, 4), (2, 6, 8), (2, 7, 5), (4, 9, 13), ((3, 2), 7, 5)])
@pytest.mark.parametrize("kind", [AvgPool2d, MaxPool2d])
def test_pooling(
    backend: CupyBackend,
    reference: NumpyBackend,
    rng: np.random.Generator,
    kind: type[Pool2d],
    size: PerAxis,
    height: int,
    width: int,
    channels: int,
) -> None:
    pool, shape = kind(size), (3, 2, channels, height, width)
    for s in (spikes_of(rng, shape), (rng.integers(0, 256, shape) / 256).astype(np.float32)):
        expected, expected_residuals = reference.rule(pool).forward(pool, s)
        actual, residuals = backend.rule(pool).forward(pool, backend.asarray(s))
        assert_same_bits(backend.numpy(actual), expected)
    d = rng.normal(0, 1, expected.shape).astype(np.float32)
    assert_same_bits(
        backend.numpy(backend.rule(pool).backward(pool, residuals, backend.asarray(d))),
        reference.rule(pool).backward(pool, expected_residuals, d),
    )


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1 - 2.0**-33])
@pytest.mark.parametrize("shape", [(3, 7), (2, 3, 5, 4), (1, 1, 1, 1)], ids=str)
def test_dropout(
    backend: CupyBackend, reference: NumpyBackend, rng: np.random.Generator, shape: tuple[int, ...], rate: float
) -> None:
    seed, layer, step = 2**32 - 1, 35, 2**33 + 12345
    mask = backend.dropout_mask(seed, layer, step, shape, rate)
    expected = reference.dropout_mask(seed, layer, step, shape, rate)
    assert_same_bits(backend.numpy(mask), expected)
    s = spikes_of(rng, (4, *shape))
    ds = rng.normal(0, 1, s.shape).astype(np.float32)
    for x in (s, ds):
        actual = backend.numpy(backend.dropout(mask, backend.asarray(x)))
        assert_same_bits(actual, reference.dropout(expected, x))


def test_dropout_keeps_a_word_that_equals_the_threshold(backend: CupyBackend, reference: NumpyBackend) -> None:
    words = random.bits(4, random.Stream.DROPOUT, 100, substream=2, step=1)
    for element in (0, 1, 98, 99):
        rate = int(words[element]) / 2**32
        mask = backend.numpy(backend.dropout_mask(4, 2, 1, (5, 20), rate))
        assert mask.reshape(-1)[element] == 1
        assert_same_bits(mask, reference.dropout_mask(4, 2, 1, (5, 20), rate))


CONVOLUTIONS = {
    "2C5": (Conv2d(2, 5), (1, 9, 8)),
    "12C5-two-channels": (Conv2d(12, 5), (2, 11, 10)),
    "8C3p1": (Conv2d(8, 3, padding=1), (4, 6, 7)),
    "5C3s2": (Conv2d(5, 3, stride=2), (3, 8, 9)),
    "6C4s3p2": (Conv2d(6, 4, stride=3, padding=2), (8, 7, 10)),
    "3C1": (Conv2d(3, 1), (5, 4, 4)),
    "7C2s4": (Conv2d(7, 2, stride=4), (6, 9, 9)),
}


def grid_weights(rng: np.random.Generator, shape: tuple[int, ...]) -> Float32:
    return round_to_grid(rng.normal(0, 0.3, shape).astype(np.float32), 10)


@pytest.mark.parametrize("spikes", [True, False], ids=["spikes", "pooled"])
@pytest.mark.parametrize(("synapse", "shape"), CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_conv2d(
    backend: CupyBackend,
    reference: NumpyBackend,
    rng: np.random.Generator,
    synapse: Conv2d,
    shape: tuple[int, ...],
    spikes: bool,
) -> None:
    check_synapse(backend, reference, rng, synapse, shape, spikes)


@pytest.mark.parametrize("spikes", [True, False], ids=["spikes", "pooled"])
@pytest.mark.parametrize("shape", [(13,), (4, 3, 5)], ids=str)
def test_linear(
    backend: CupyBackend, reference: NumpyBackend, rng: np.random.Generator, shape: tuple[int, ...], spikes: bool
) -> None:
    check_synapse(backend, reference, rng, Linear(6), shape, spikes)


def check_synapse(
    backend: CupyBackend,
    reference: NumpyBackend,
    rng: np.random.Generator,
    synapse: Conv2d | Linear,
    shape: tuple[int, ...],
    spikes: bool,
) -> None:
    lead = (3, 2, *shape)
    s: AnyArray = spikes_of(rng, lead) if spikes else (rng.integers(0, 17, lead) / 16).astype(np.float32)
    wq = grid_weights(rng, synapse.weight_shape(shape))
    expected, expected_residuals = reference.rule(synapse).forward(synapse, s, wq)
    actual, residuals = backend.rule(synapse).forward(synapse, backend.asarray(s), backend.asarray(wq))
    assert_same_bits(backend.numpy(actual), expected)
    dz, _ = reference.error_grid(rng.normal(0, 1, expected.shape).astype(np.float32), 20)
    for need_input in (True, False):
        pair = [
            b.rule(synapse).backward(synapse, r, b.asarray(dz), precision="reproducible", need_input=need_input)
            for b, r in ((backend, residuals), (reference, expected_residuals))
        ]
        (ds, dw), (expected_ds, expected_dw) = pair
        assert_same_bits(backend.numpy(dw), expected_dw)
        assert (ds is None) == (expected_ds is None) == (not need_input)
        if expected_ds is not None and ds is not None:
            assert_same_bits(backend.numpy(ds), expected_ds)
    near = roundoff.synapse_backward(synapse, s, wq, roundoff.exact(dz), need_input=True)
    fast = backend.rule(synapse).backward(synapse, residuals, backend.asarray(dz), precision="fast", need_input=True)
    for value, expected_near in zip(fast, near, strict=True):
        assert value is not None
        assert expected_near is not None
        assert (np.abs(backend.numpy(value) - expected_near.value) <= expected_near.bound).all()


def test_conv2d_in_chunks_of_frames_gives_the_same_bits(
    backend: CupyBackend, reference: NumpyBackend, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(backend.rt), "chunk_bytes", 5000)
    check_synapse(backend, reference, rng, Conv2d(8, 3, padding=1), (4, 6, 7), True)


def block_of(notation: str = "4C3", **options: object) -> Block:
    return NetworkSpec.parse(notation, input_shape=(2, 8, 8), outputs=3, **options).blocks[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("weight_bits", [2, 5, 12])
@pytest.mark.parametrize("scale", [2.0**-90, 1e-3, 1.0, 3e5])
def test_weight_grid(
    backend: CupyBackend, reference: NumpyBackend, rng: np.random.Generator, scale: float, weight_bits: int
) -> None:
    block = block_of(weight_bits=weight_bits)
    w = (rng.normal(0, 1, block.weight_shape) * scale).astype(np.float32)
    actual, grid = backend.weight_grid(block, backend.asarray(w))
    expected, expected_grid = reference.weight_grid(block, w)
    assert_same_bits(backend.numpy(actual), expected)
    assert grid == expected_grid


def test_weight_grid_whose_largest_weight_rounds_beyond_the_range(
    backend: CupyBackend, reference: NumpyBackend
) -> None:
    block = block_of()
    w = np.full(block.weight_shape, 0.25, np.float32)
    w[0, 0, 0, 0] = np.nextafter(np.float32(1), np.float32(0))
    actual, grid = backend.weight_grid(block, backend.asarray(w))
    expected, expected_grid = reference.weight_grid(block, w)
    assert_same_bits(backend.numpy(actual), expected)
    assert grid == expected_grid
    assert grid.exponent == 10  # 11 would need 2048 units.


def test_weight_grid_takes_a_coarser_grid_where_sums_are_long(
    backend: CupyBackend, reference: NumpyBackend, rng: np.random.Generator
) -> None:
    network = NetworkSpec.parse("3000-10", input_shape=(8000,), coding="direct")
    block = network.blocks[0]
    w = (1 + 0.1 * rng.random(block.weight_shape)).astype(np.float32)[:40]
    actual, grid = backend.weight_grid(block, backend.asarray(w))
    expected, expected_grid = reference.weight_grid(block, w)
    assert_same_bits(backend.numpy(actual), expected)
    assert grid == expected_grid
    assert grid.bits < 12


def test_weight_grid_that_cannot_hold_raises(backend: CupyBackend) -> None:
    block = block_of()
    block = replace(block, input=replace(block.input, exponent=24))
    with pytest.raises(ExactnessError, match="layer conv1: sums of 18 inputs leave the range"):
        backend.weight_grid(block, backend.asarray(np.ones(block.weight_shape, np.float32)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weight_grid_of_a_weight_that_is_not_finite_names_the_layer(backend: CupyBackend, value: float) -> None:
    w = np.ones(block_of().weight_shape, np.float32)
    w[1, 0, 2, 2] = value
    with pytest.raises(NumericError, match="layer conv1: a weight is not finite"):
        backend.weight_grid(block_of(), backend.asarray(w))


@pytest.mark.parametrize("count", [1, 6, 1024])
@pytest.mark.parametrize("scale", [0.0, 2.0**-101, 2.0**-99, 1e-4, 1.0, 1e30])
@pytest.mark.parametrize("error_bits", [8, 19, 24, 33, 51])
def test_error_grid(
    backend: CupyBackend,
    reference: NumpyBackend,
    rng: np.random.Generator,
    error_bits: int,
    scale: float,
    count: int,
) -> None:
    dz = (np.clip(rng.normal(0, 1, (2, 1, count)), -1, 1) * scale).astype(np.float32)
    got, counts = backend.error_grid(backend.asarray(dz), error_bits)
    expected, numbers = reference.error_grid(dz, error_bits)
    assert_same_bits(backend.numpy(got), expected)
    assert backend.numpy(counts).tolist() == numbers.tolist()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_error_grid_carries_values_that_are_not_finite(
    backend: CupyBackend, reference: NumpyBackend, rng: np.random.Generator, value: float
) -> None:
    dz = rng.normal(0, 1, (2, 1, 8)).astype(np.float32)
    dz[1, 0, 3] = value
    rounded, _ = backend.error_grid(backend.asarray(dz), 10)
    assert_same_bits(backend.numpy(rounded), reference.error_grid(dz, 10)[0])


def test_pairs_leave_their_inputs_alone(backend: CupyBackend, rng: np.random.Generator) -> None:
    scalars = AdamW().scalars(0, np.float32(1))
    arrays = [backend.asarray(rng.normal(0, 1, (3, 4)).astype(np.float32) ** 2) for _ in range(4)]
    copies = [x.copy() for x in arrays]
    backend.updated(scalars, None, *arrays)
    backend.error_grid(arrays[0][None], 20)
    backend.weight_grid(block_of("6"), arrays[1].reshape(1, 12)[:, :1].repeat(128, axis=1))
    for x, copy in zip(arrays, copies, strict=True):
        assert_same_bits(backend.numpy(x), backend.numpy(copy))


class Large:
    """A shape without its memory."""

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def __len__(self) -> int:
        return self.shape[0]


@pytest.mark.parametrize(
    ("conv", "shape"),
    [(Conv2d(4, 1, stride=8), (3000, 1024, 1024, 4)), (Conv2d(4, 5, padding=2), (40, 4_000, 4_000, 1))],
    ids=["frames", "windows"],
)
def test_conv2d_chunks_have_values_that_32_bits_count(
    backend: CupyBackend, monkeypatch: pytest.MonkeyPatch, conv: Conv2d, shape: tuple[int, ...]
) -> None:
    monkeypatch.setattr(type(backend.rt), "chunk_bytes", 2**44)
    chunks = [frames for frames, _ in conv2d._chunks(backend.rt, conv, Large(*shape), 4)]  # type: ignore[arg-type]
    _, height, width, channels = shape
    _, rows, columns = conv.output_shape((channels, height, width))
    most = max(part.stop - part.start for part in chunks)
    assert most * max(rows * columns * conv.area * channels, height * width * channels) < 2**32
    assert (chunks[0].start, chunks[-1].stop, most > 1) == (0, shape[0], True)


def test_conv2d_refuses_a_frame_whose_values_32_bits_do_not_count(backend: CupyBackend) -> None:
    frames: Any = Large(3, 25_000, 1_000, 40)
    with pytest.raises(BackendError, match=r"a frame of 40 x 25000 x 1000 has 9000000000 values in its windows"):
        next(conv2d._chunks(backend.rt, Conv2d(4, 3, padding=1), frames, 4))


@pytest.mark.parametrize("sizes", [(1,), (31, 33), (32,), (256, 257), (5000, 1, 70)], ids=str)
def test_gradient_squares(
    backend: CupyBackend, reference: NumpyBackend, rng: np.random.Generator, sizes: tuple[int, ...]
) -> None:
    """Sums within a warp, of several warps, and of several blocks."""
    gradients = [rng.normal(0, 1, size).astype(np.float32) for size in sizes]
    squares = backend.gradient_squares([backend.asarray(g) for g in gradients])
    assert backend.numpy(squares).tolist() == reference.gradient_squares(gradients).tolist()


@pytest.mark.parametrize("shape", [(7,), (300,), (2, 3, 4, 5, 6)], ids=str)
def test_rounded_keeps_subnormal_numbers(
    backend: CupyBackend, rng: np.random.Generator, shape: tuple[int, ...]
) -> None:
    wide = np.ldexp(rng.normal(0, 1, shape), rng.integers(-150, -120, shape))
    for x in (wide, np.moveaxis(wide, 0, -1)):
        narrow = backend.numpy(backend.rounded(backend.asarray(x)))
        assert_same_bits(narrow, x.astype(np.float32))
        assert (np.abs(narrow[narrow != 0]) < 2.0**-126).any()
