"""What calls printed steps at their addresses: arguments are looked at when a kernel is compiled."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit
from numba.core.errors import TypingError
from stsbp_cpu.models.neurons import fire, fired
from stsbp_spec.equations.assembly import neuron_equations
from stsbp_spec.models.neurons import LIF
from stsbp_spec.networks.ops import PSP
from stsbp_spec.typing import AnyArray

EQUATIONS = neuron_equations(PSP(3).filter(), LIF(4))
STEP, P = fire(EQUATIONS.forward), EQUATIONS.forward_numbers


@njit  # type: ignore[untyped-decorator]
def _once(step: int, p: AnyArray, z: AnyArray, states: AnyArray, u: AnyArray, spikes: AnyArray) -> None:
    fired(step, p, z, states, u, spikes, np.empty((0, 1, 1), np.float32), 0, np.empty((0, 1), np.float32), 0, len(z))


def test_a_step_reads_and_writes_the_arrays_of_its_caller() -> None:
    z, states = np.arange(5, dtype=np.float32), np.zeros((2, 5), np.float32)
    u, spikes = np.full(5, np.nan, np.float32), np.full(5, 9, np.uint8)
    z.flags.writeable = False
    _once(STEP, P, z, states, u, spikes)
    assert u.tolist() == (z * np.float32(1 / 3)).tolist()
    assert spikes.tolist() == [0, 0, 0, 1, 1]
    assert states[0].tolist() == u.tolist()
    assert states[1].tolist() == (u * np.float32(0.75) * (u < 1)).tolist()


@pytest.mark.parametrize(
    ("z", "expected"),
    [
        (np.ones(10, np.float32)[::2], "expected array(float32, 1d, C), got array(float32, 1d, A)"),
        (np.ones(5), "expected array(float32, 1d, C), got array(float64, 1d, C)"),
        (np.ones((5, 1), np.float32), "expected array(float32, 1d, C), got array(float32, 2d, C)"),
    ],
    ids=["every second", "float64", "two dimensions"],
)
def test_an_array_that_does_not_lie_as_the_step_reads_it_is_refused(z: AnyArray, expected: str) -> None:
    arrays = np.zeros((2, 5), np.float32), np.empty(5, np.float32), np.empty(5, np.uint8)
    with pytest.raises(TypingError) as caught:
        _once(STEP, P, z, *arrays)
    assert expected in str(caught.value)
