"""Sum of spike trains of several branches: `s = s_1 + s_2 + ...`, integers, the ADD of SEW-ResNet (Fang et al. 2021).

The sum is exact in any order, because the inputs are multiples of one unit. Backward: each input receives the error of
the sum. All branches must have the same pending synaptic filter and the same training gain, because the neurons above
apply both to the sum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from stsbp_spec.errors import ExactnessError, SpecError
from stsbp_spec.grid import EXACT_LIMIT_BITS
from stsbp_spec.synapses.base import Op, Values

__all__ = ["Add"]

_MOST = 255


@dataclass(frozen=True)
class Add(Op):
    """The sum of two or more inputs of the same shape."""

    def infer(self, *inputs: Values) -> Values:
        """The sums, in the finest unit of the inputs."""
        if len(inputs) < 2:
            raise SpecError(f"Add takes two inputs or more, got {len(inputs)}")
        first = inputs[0]
        for values in inputs:
            if values.weighted:
                raise SpecError("Add takes spikes, but one of its inputs is weighted sums; put Neurons between them")
            for what, one, other in (
                ("shape", first.shape, values.shape),
                ("synapse", first.pending, values.pending),
                ("factor of dropout", first.gain, values.gain),
                ("divisor of pooled sums", first.divisor, values.divisor),
            ):
                if one != other:
                    raise SpecError(f"the inputs of Add must have the same {what}, got {one} and {other}")
            if values.static != first.static:
                raise SpecError("Add takes inputs that change with time, or images, not both")
        exponent = max(values.exponent for values in inputs)
        maximum = sum(values.maximum for values in inputs)
        found = replace(first, exponent=exponent, maximum=maximum)
        if exponent == 0 and maximum > _MOST:
            raise ExactnessError(f"sums of spikes are stored in bytes, at most {_MOST}, but these reach {maximum:g}")
        if found.bits > EXACT_LIMIT_BITS:
            raise ExactnessError(f"the sums have {found.bits} bits, but float32 holds only {EXACT_LIMIT_BITS}")
        return found
