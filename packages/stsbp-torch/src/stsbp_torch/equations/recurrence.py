"""Computes equations over time, one step after the other in plain tensor expressions, on any device.

On the CPU, an equation that runs repeatedly is compiled (stsbp_cpu/equations/recurrence.py), which gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from stsbp_cpu.equations import recurrence as kernel
from stsbp_spec.contract.grid import FLOOR
from stsbp_spec.equations.assembly import Constants
from stsbp_spec.equations.expressions import Recurrence
from stsbp_spec.equations.printers import LANGUAGES, compiled
from stsbp_spec.typing import Float32

from stsbp_torch.engine.layout import TENSORS, empty

__all__ = ["outputs_of", "recur", "recur_often", "recur_with", "to_device", "to_device_once"]


@cache
def _number(value: float) -> torch.Tensor:
    """A float32 tensor without axes. An expression of Python numbers would be computed in float64."""
    return torch.tensor(value, dtype=torch.float32, device="cpu")


def _snap(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x.abs() < _number(FLOOR), _number(0.0), x)


def _sqrt(x: torch.Tensor) -> torch.Tensor:
    # On the CPU, torch's float32 square root (MKL) is not correctly rounded. The rounded float64 square root is.
    return x.double().sqrt().float()


@cache
def _step(recurrence: Recurrence) -> Callable[..., Any]:
    words = {"number": _number, "snap": _snap, "where": torch.where, "sqrt": _sqrt, "exp": torch.exp}
    return compiled(recurrence, LANGUAGES["torch"], words)


def to_device(numbers: Float32, device: torch.device) -> torch.Tensor:
    """Numbers on a device, float32. The host does not wait for the device."""
    return _to_device(numbers.tobytes(), device)


def to_device_once(numbers: Float32, device: torch.device) -> torch.Tensor:
    """`to_device`, but the same numbers are sent only once."""
    return _to_device_once(numbers.tobytes(), device)


def _to_device(numbers: bytes, device: torch.device) -> torch.Tensor:
    host_tensor = torch.from_numpy(np.frombuffer(numbers, np.float32).copy())
    return host_tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host_tensor


_to_device_once = lru_cache(maxsize=512)(_to_device)


def outputs_of(
    recurrence: Recurrence, steps: int, shape: torch.Size, device: torch.device, summed: tuple[str, ...]
) -> dict[str, torch.Tensor]:
    """Uninitialised tensors for the outputs of `AbstractBackend.recur`. `shape` does not include the steps."""
    return {
        name: empty((1 if name in summed else steps, *shape), torch.uint8 if x.is_condition else torch.float32, device)
        for name, x in recurrence.outputs.items()
    }


def recur(
    recurrence: Recurrence,
    constants: Constants,
    inputs: Mapping[str, torch.Tensor],
    steps: int,
    *,
    summed: tuple[str, ...],
) -> dict[str, torch.Tensor]:
    """Implements `AbstractBackend.recur`."""
    parameters = [_number(float(constants[name])) for name in recurrence.parameters]
    return recur_with(recurrence, parameters, inputs, steps, summed=summed)


def recur_with(
    recurrence: Recurrence,
    parameters: Sequence[torch.Tensor],
    inputs: Mapping[str, torch.Tensor],
    steps: int,
    *,
    summed: tuple[str, ...],
) -> dict[str, torch.Tensor]:
    """`recur` with the recurrence's parameters as tensors without axes."""
    step = _step(recurrence)
    arrays = [inputs[name] for name in recurrence.inputs]
    shape, device = arrays[0].shape[1:], arrays[0].device
    states: Any = [torch.zeros((), dtype=torch.float32, device=device).expand(shape) for _ in recurrence.states]
    results = outputs_of(recurrence, steps, shape, device, summed)
    for name in summed:
        results[name].zero_()
    for t in reversed(range(steps)) if recurrence.reverse else range(steps):
        states, outputs = step(*parameters, *(x[t % len(x)].float() for x in arrays), *states)
        for (name, target), output in zip(results.items(), outputs, strict=True):
            if name in summed:
                target[0] += output
            else:
                target[t] = output
    return results


def recur_often(
    recurrence: Recurrence,
    constants: Constants,
    inputs: Mapping[str, torch.Tensor],
    steps: int,
    *,
    summed: tuple[str, ...],
) -> dict[str, torch.Tensor]:
    """`recur` on the CPU, compiled if the equation runs often.

    Only exact equations are compiled, because the last bits of `exp` differ between libraries.
    """
    if not kernel.pays(recurrence):
        return recur(recurrence, constants, inputs, steps, summed=summed)
    detached = {name: inputs[name].detach() for name in recurrence.inputs}
    arrays = {name: x if x.dtype is torch.uint8 else x.float() for name, x in detached.items()}
    return kernel.recur_of(TENSORS, recurrence, constants, arrays, steps, summed)
