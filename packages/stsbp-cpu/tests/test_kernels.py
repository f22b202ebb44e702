"""Blocks by lists of spikes: the bits of pooling, dropout, convolution and neurons one after the other."""

from __future__ import annotations

import numpy as np
import pytest
from numba import get_num_threads, set_num_threads
from stsbp_cpu.equations.vectors import LANES
from stsbp_cpu.ops.sparse import kernels
from stsbp_cpu.ops.sparse.spikes import NO_MASK, density
from stsbp_spec.equations.assembly import neuron_equations
from stsbp_spec.models.neurons import ALIF, LIF, NeuronModel
from stsbp_spec.models.neurons.plif import PLIF
from stsbp_spec.models.surrogates import Rectangle
from stsbp_spec.networks.ops import PSP, AvgPool2d, Conv2d
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import AnyArray

REFERENCE = NumpyBackend()
FILTER = PSP(4, 2).filter()
STEPS, BATCH, SHAPE = 6, 3, (4, 9, 8)
"""Channels, unlike rows and columns of the kernels: an axis that stands for another one is seen."""


def _last(x: AnyArray) -> AnyArray:
    """`[..., C, H, W]` as `[..., H, W, C]`."""
    return np.ascontiguousarray(np.moveaxis(x, -3, -1))


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("pooled", [1, 2], ids=["", "pooled above"])
@pytest.mark.parametrize(("size", "masked"), [(1, 0), (1, 1), (2, 0), (2, 1), (2, 2)])
@pytest.mark.parametrize("conv", [Conv2d(5, 3, padding=1), Conv2d(32, 2)], ids=["scattered", "gathered"])
@pytest.mark.parametrize(
    "neuron",
    [LIF(3, surrogate=Rectangle(0.7)), ALIF(3, beta=0.6, tau_a=9), PLIF(3, reset="subtract", per="channel")],
    ids=["lif", "alif", "plif"],
)
def test_bits_are_those_of_one_pair_after_the_other(
    neuron: NeuronModel, conv: Conv2d, size: int, masked: int, pooled: int, bands: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "bands_of", lambda shape, numbers: bands)
    rng = np.random.default_rng(4)
    assert kernels.gathers(conv) is (conv.channels == 32)
    s = (rng.random((STEPS, BATCH, *SHAPE)) < 0.3).astype(np.uint8)
    inner = (SHAPE[0], SHAPE[1] // size, SHAPE[2] // size)
    mask = (rng.random((BATCH, *(SHAPE if masked == 1 else inner))) < 0.7).astype(np.uint8)
    wq = rng.integers(-64, 65, conv.weight_shape(inner)).astype(np.float32) * np.float32(2**-4)
    pool = AvgPool2d(size)
    entering = s.astype(np.float32)
    if masked == 1:
        entering *= mask
    if size > 1:
        entering = REFERENCE.rule(pool).forward(pool, entering)[0]
    if masked == 2:
        entering *= mask
    z, residuals = REFERENCE.rule(conv).forward(conv, entering, wq)
    learned = {name: rng.random(conv.channels).astype(np.float32) for name in neuron.learned()}
    expected, expected_residuals = REFERENCE.neuron_forward(neuron, FILTER, z, STEPS, learned)
    assert 0.05 < expected.mean() < 0.95

    equations = neuron_equations(FILTER, neuron)
    kernel_input = kernels.KernelInput(_last(s), size, _last(mask) if masked else NO_MASK[None], masked)
    memory = _last(expected).shape
    u, spikes = np.full(memory, np.nan, np.float32), np.full(memory, 9, np.uint8)
    saved = np.full((len(equations.kept) - 1, STEPS, u[0].size), np.nan, np.float32)
    numbers = np.array([_last(x).ravel() for x in expected_residuals.learned.values()], np.float32).reshape(
        -1, u[0].size
    )
    kernels.forward(conv, equations, kernel_input, wq, u, spikes, saved, numbers)
    assert np.array_equal(spikes, _last(expected))
    for name, actual in zip(equations.kept, (u, *saved), strict=True):
        assert actual.tobytes() == _last(expected_residuals.kept[name]).tobytes(), name

    output_shape = conv.output_shape(inner)
    ds = rng.standard_normal(
        (STEPS, BATCH, output_shape[0], output_shape[1] // pooled, output_shape[2] // pooled)
    ).astype(np.float32)
    grad_spikes = ds if pooled == 1 else REFERENCE.rules[AvgPool2d].backward(AvgPool2d(pooled), expected.shape, ds)
    grad_sums, adding = REFERENCE.neuron_backward(neuron, FILTER, expected_residuals, grad_spikes)
    _, gradient = REFERENCE.rule(conv).backward(conv, residuals, grad_sums, precision="fast", need_input=False)
    threads = get_num_threads()
    for count in {1, threads}:
        set_num_threads(count)
        try:
            dz = np.full(memory, np.nan, np.float32)
            terms = np.full_like(numbers, np.nan)
            learned_arrays = numbers, terms
            dw = kernels.backward(
                conv, equations, kernel_input, u, saved, _last(ds), pooled, dz, *learned_arrays, need_weights=True
            )
        finally:
            set_num_threads(threads)
        assert dz.tobytes() == _last(grad_sums).tobytes()
        for name, actual in zip(equations.terms, terms, strict=True):
            assert actual.tobytes() == _last(adding[name]).tobytes()
            assert np.count_nonzero(actual) > actual.size // 4
        assert dw is not None
        # Sums of floats in another order.
        assert np.abs(dw - gradient).max() <= 2e-6 * np.abs(gradient).max()
    none = np.empty((0,) * 5, np.float32)
    without_error = kernels.backward(
        conv, equations, kernel_input, u, saved, _last(ds), pooled, none, *learned_arrays, need_weights=True
    )
    assert without_error is not None
    assert dw is not None
    assert without_error.tobytes() == dw.tobytes()
    dz[:] = np.nan
    terms[:] = np.nan
    last = kernels.backward(
        conv, equations, kernel_input, u, saved, _last(ds), pooled, dz, *learned_arrays, need_weights=False
    )
    assert last is None
    assert not np.isnan(terms).any()
    assert dz.tobytes() == _last(grad_sums).tobytes()


@pytest.mark.parametrize("channels", [1, 15, 16, 17])
def test_errors_above_a_pooling_are_spread_over_a_row_and_one_vector(channels: int) -> None:
    errors = np.random.default_rng(0).standard_normal((3, channels)).astype(np.float32)
    scaled = np.full(errors.size + 2 * LANES, np.nan, np.float32)
    unpooled = np.full(2 * errors.size + 2 * LANES, 7, np.float32)
    row, margin = np.split(unpooled, [2 * errors.size])
    kernels._unpool(errors.ravel(), 2, channels, scaled[:-LANES], unpooled[:-LANES])
    assert np.array_equal(row, np.repeat(errors / 4, 2, axis=0).ravel())
    assert not margin[:LANES].any()
    assert (margin[LANES:] == 7).all(), "written beyond the array"


def test_bands_have_rows_whose_states_fit() -> None:
    line = kernels._IN_CACHE // (3 * 4 * 10)
    assert kernels.bands_of((5, 2, 10, 1, line), 3) == 1
    assert kernels.bands_of((5, 2, 11, 1, line), 3) == 2
    assert kernels.bands_of((5, 2, 20, 1, line), 3) == 2
    assert kernels.bands_of((5, 2, 20, 3, line), 3) == 7
    # A row that does not fit by itself.
    assert kernels.bands_of((5, 2, 4, 100, line), 3) == 4


def test_density_counts_what_is_left_after_the_pooling() -> None:
    s = np.zeros((6, 4, 5, 6), np.uint8)
    s[3, 0, 1, 2] = 3
    s[3, 1, 0, 2] = 1
    s[4, 0, 4, 0] = 1  # a column that a window of 2 does not reach
    assert density(s, 1, 1) == 3 / s.size
    assert density(s, 2, 1) == 1 / (6 * 2 * 2 * 6)
    assert density(s, 1, 4) == 1 / (2 * 4 * 5 * 6)  # of frames 0 and 4
