"""How importers of NIR interpret neurons: in words, as data, and as one step in numpy.

A node of NIR is a differential equation. `CubaLIF` (nir 1.0.8):

    tau_syn i' = -i + w_in s        tau_mem v' = v_leak - v + r i        spike where v > v_threshold, then v = v_reset

NIR has no time step, so each importer chooses one, a way to integrate, what happens at the threshold, and which
parameters it uses. `LIF` is the same without `i` (`tau v' = v_leak - v + r s`), `IF` without leak (`v' = r s`).

`READINGS` contains for each importer which nodes it reads, how it treats others, its requirements for a neuron's
numbers (`Ask`), the numbers that it ignores, and its step. The step has the order of the importer's own operations,
each rounded to float32. Compiled code may round some of them together (XLA's fused multiply-add, in spyx) or use
another exponential function (sinabs, rockpool). docs/deploy.md has comparisons with the libraries themselves.

`simulate` runs a node as an importer reads it. This module only needs numpy, so that it can be loaded beside any
importer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["READINGS", "Ask", "NeuronReading", "Numbers", "Reading", "Stepped", "simulate"]

Float32: TypeAlias = npt.NDArray[np.float32]
Float64: TypeAlias = npt.NDArray[np.float64]

Numbers: TypeAlias = Mapping[str, Float64]
"""Parameters of a node by their names in NIR, all with the shape of the population."""


class Stepped(NamedTuple):
    """The results of a step: current and potential for the next step, the potential before a reset, and the spikes."""

    i: Float32
    v: Float32
    u: Float32
    spikes: Float32


Step: TypeAlias = Callable[[Numbers, float, Float32, Float32, Float32], Stepped]
"""One step, as a function of the parameters, the time step, the previous current and potential, and the input."""


@dataclass(frozen=True)
class Ask:
    """A requirement of an importer for a node's numbers, in words, and a test whether numbers and a time step meet
    it."""

    text: str
    holds: Callable[[Numbers, float], bool]


@dataclass(frozen=True)
class NeuronReading:
    """How an importer reads one kind of neuron.

    Attributes:
        update: the equations of a step, for an input `x`.
        spike: how a potential `v` is compared with the threshold.
        reset: the potential after a spike.
        ignores: parameters of the node that have no effect.
        asks: requirements; otherwise the importer refuses the node.
        step: the step in numpy.
    """

    update: str
    spike: str
    reset: str
    ignores: tuple[str, ...]
    asks: tuple[Ask, ...]
    step: Step


@dataclass(frozen=True)
class Reading:
    """An importer of NIR.

    Attributes:
        name, version: name and version of the package on PyPI whose sources were read.
        call: how to import a graph with it.
        dt: default time step in seconds; NaN: there is none, or it is guessed for each node.
        dt_given: whether users can set the time step.
        neurons: supported kinds of neurons.
        layers: other supported kinds of nodes.
        otherwise: how it treats nodes of other kinds.
        notes: further information.
        not_simulated: kinds of nodes that it reads and that this module has no step for, and what it makes of them.
    """

    name: str
    version: str
    call: str
    dt: float
    dt_given: bool
    neurons: Mapping[str, NeuronReading]
    layers: frozenset[str]
    otherwise: str
    notes: tuple[str, ...] = ()
    not_simulated: Mapping[str, str] = field(default_factory=dict)


def simulate(reading: NeuronReading, numbers: Numbers, dt: float, x: Float32) -> tuple[Float32, Float32]:
    """Potentials before each reset and spikes, `[T, ...]`, of a population with the input `x`, float32 `[T, ...]`."""
    i = v = np.zeros(x.shape[1:], np.float32)
    steps = []
    for current in x:
        steps.append(reading.step(numbers, dt, i, v, current))
        i, v = steps[-1].i, steps[-1].v
    return np.stack([step.u for step in steps]), np.stack([step.spikes for step in steps])


def _float32(x: Float64 | float) -> Float32:
    return np.asarray(x, np.float32)


def _decay(tau: Float64, dt: float) -> Float32:
    """`1 - dt / tau` in float64, rounded once."""
    return _float32(1.0 - dt / tau)


def _fired(u: Float32, threshold: Float32) -> Float32:
    return (u - threshold > 0).astype(np.float32)


def _close(a: Float64, b: Float64 | float, *, relative: float = 1e-6, absolute: float = 1e-12) -> bool:
    return bool(np.isclose(a, b, rtol=relative, atol=absolute).all())


def _uniform(*names: str) -> Ask:
    return Ask(
        f"{', '.join(names)}: one value for the whole population",
        lambda p, dt: all(np.unique(p[name]).size == 1 for name in names),
    )


# spikingjelly 2.0.0: activation_based/nir_exchange/from_nir.py, functional/neuron.py, _ops/lif/reference.py
def _spikingjelly_reset(p: Numbers, i: Float32, u: Float32) -> Stepped:
    o = (u - _float32(p["v_threshold"]) >= 0).astype(np.float32)
    return Stepped(i, o * _float32(p["v_reset"]) + (1 - o) * u, u, o)


def _spikingjelly_cubalif(p: Numbers, dt: float, i: Float32, v: Float32, x: Float32) -> Stepped:
    i = i * _decay(p["tau_syn"], dt) + x
    return _spikingjelly_reset(p, i, v * _decay(p["tau_mem"], dt) + i)


def _spikingjelly_lif(p: Numbers, dt: float, i: Float32, v: Float32, x: Float32) -> Stepped:
    tau, v_reset = _float32(p["tau"] / dt), _float32(p["v_reset"])
    decays_input = _close(p["r"], 1.0)
    u = _float32(v + (x - (v - v_reset)) / tau if decays_input else v - (v - v_reset) / tau + x)
    return _spikingjelly_reset(p, i, u)


def _spikingjelly_if(p: Numbers, dt: float, i: Float32, v: Float32, x: Float32) -> Stepped:
    return _spikingjelly_reset(p, i, v + x)


_SPIKINGJELLY = Reading(
    name="spikingjelly",
    version="2.0.0",
    call='spikingjelly.activation_based.nir_exchange.import_from_nir("FILE.nir", dt=1e-4)',
    dt=1e-4,
    dt_given=True,
    neurons={
        "CubaLIF": NeuronReading(
            update="i = i (1 - dt/tau_syn) + x;  v = v (1 - dt/tau_mem) + i",
            spike="v >= v_threshold",
            reset="v = v_reset",
            ignores=(),
            asks=(
                _uniform("tau_syn", "tau_mem", "r", "w_in", "v_leak", "v_threshold", "v_reset"),
                Ask(
                    "tau_syn and tau_mem at least dt",
                    lambda p, dt: bool(min(p["tau_syn"].min(), p["tau_mem"].min()) >= dt),
                ),
                Ask("r = tau_mem / dt", lambda p, dt: _close(p["r"], p["tau_mem"] / dt)),
                Ask("w_in = tau_syn / dt", lambda p, dt: _close(p["w_in"], p["tau_syn"] / dt)),
                Ask("v_leak = 0", lambda p, dt: _close(p["v_leak"], 0.0)),
            ),
            step=_spikingjelly_cubalif,
        ),
        "LIF": NeuronReading(
            update="r = tau/dt: v = v - (v - v_reset) dt/tau + x;  r = 1: v = v + (x - (v - v_reset)) dt/tau",
            spike="v >= v_threshold",
            reset="v = v_reset",
            ignores=(),
            asks=(
                _uniform("tau", "r", "v_leak", "v_threshold", "v_reset"),
                Ask("tau above dt", lambda p, dt: bool(p["tau"].min() / dt > 1)),
                Ask("r = 1 or r = tau / dt", lambda p, dt: _close(p["r"], 1.0) or _close(p["r"], p["tau"] / dt)),
                Ask("v_leak = v_reset", lambda p, dt: _close(p["v_leak"], p["v_reset"])),
            ),
            step=_spikingjelly_lif,
        ),
        "IF": NeuronReading(
            update="v = v + x",
            spike="v >= v_threshold",
            reset="v = v_reset",
            ignores=(),
            asks=(
                _uniform("r", "v_threshold", "v_reset"),
                Ask("r = 1 / dt", lambda p, dt: _close(p["r"], 1 / dt)),
            ),
            step=_spikingjelly_if,
        ),
    },
    layers=frozenset({"Input", "Output", "Affine", "Linear", "Conv1d", "Conv2d", "AvgPool2d", "SumPool2d", "Flatten"}),
    otherwise="ValueError",
    notes=(
        "Convolutions in groups are refused.",
        "SumPool2d is nirtorch's, torch's LPPool2d: the mean of a window, times its size.",
        "Several edges into a node are summed in an order that differs from process to process (a set of strings).",
        "Recurrence: a node reads what another one that comes later gave at the step before; single steps only.",
    ),
)


# norse 1.1.0: torch/utils/import_nir.py, torch/functional/{leaky_integrator_box,lif_box,iaf}.py
def _norse_spiking(p: Numbers, i: Float32, u: Float32) -> Stepped:
    o = _fired(u, _float32(p["v_threshold"]))
    return Stepped(i, (1 - o) * u, u, o)


def _norse_rate(tau: Float64, dt: float) -> Float32:
    return _float32(dt) * (np.float32(1) / _float32(tau))


def _norse_cubalif(p: Numbers, dt: float, i: Float32, v: Float32, x: Float32) -> Stepped:
    leak = _float32(p["v_leak"])
    i = i + _norse_rate(p["tau_syn"], dt) * ((leak - i) + _float32(p["w_in"]) * x)
    return _norse_spiking(p, i, v + _norse_rate(p["tau_mem"], dt) * (_float32(p["r"]) * i + leak - v))


def _norse_lif(p: Numbers, dt: float, i: Float32, v: Float32, x: Float32) -> Stepped:
    return _norse_spiking(p, i, v + _norse_rate(p["tau"], dt) * (x + _float32(p["v_leak"]) - v))


def _norse_if(p: Numbers, dt: float, i: Float32, v: Float32, x: Float32) -> Stepped:
    return _norse_spiking(p, i, v + x)


_NORSE = Reading(
    name="norse",
    version="1.1.0",
    call='norse.torch.from_nir(nir.read("FILE.nir"), dt=1e-4)',
    dt=1e-3,
    dt_given=True,
    neurons={
        "CubaLIF": NeuronReading(
            update="i += dt/tau_syn (v_leak - i + w_in x);  v += dt/tau_mem (r i + v_leak - v), with the new i",
            spike="v > v_threshold",
            reset="v = 0",
            ignores=("v_reset",),
            asks=(),
            step=_norse_cubalif,
        ),
        "LIF": NeuronReading(
            update="v += dt/tau (x + v_leak - v)",
            spike="v > v_threshold",
            reset="v = 0",
            ignores=("r", "v_reset"),
            asks=(),
            step=_norse_lif,
        ),
        "IF": NeuronReading(
            update="v = v + x",
            spike="v > v_threshold",
            reset="v = 0",
            ignores=("r", "v_reset"),
            asks=(),
            step=_norse_if,
        ),
    },
    layers=frozenset({"Input", "Output", "Affine", "Linear", "Conv2d", "SumPool2d", "Flatten"}),
    otherwise="it becomes nothing; running the graph then fails, or skips it",
    notes=(
        "v_leak drives the synaptic current of a CubaLIF too.",
        "An r other than 1 of LIF and IF gives a warning and is ignored.",
        "Flatten takes NIR's axes as torch's, which count the batch: give samples one at a time, without a batch axis.",
        "Padding of SumPool2d gives a warning and is ignored.",
    ),
)


# snntorch 1.0.0: import_nir.py, _neurons/{synaptic,leaky}.py
_SNNTORCH_DT = 1e-4


def _snntorch_threshold(p: Numbers, scale: Float64) -> Float32:
    """The threshold, divided by the missing factor of the input if that is not 1."""
    return _float32(p["v_threshold"] if _close(scale, 1.0, relative=1e-5, absolute=1e-8) else p["v_threshold"] / scale)


def _snntorch_cubalif(p: Numbers, dt: float, i: Float32, v: Float32, x: Float32) -> Stepped:
    i = _decay(p["tau_syn"], _SNNTORCH_DT) * i + x
    u = _decay(p["tau_mem"], _SNNTORCH_DT) * v + i
    o = _fired(u, _snntorch_threshold(p, p["w_in"] * (_SNNTORCH_DT / p["tau_syn"])))
    return Stepped(i, u - o * u, u, o)


def _snntorch_lif(p: Numbers, dt: float, i: Float32, v: Float32, x: Float32) -> Stepped:
    u = _decay(p["tau"], _SNNTORCH_DT) * v + x
    o = _fired(u, _snntorch_threshold(p, p["r"] * _SNNTORCH_DT / p["tau"]))
    return Stepped(i, u - o * u, u, o)


def _snntorch_if(p: Numbers, dt: float, i: Float32, v: Float32, x: Float32) -> Stepped:
    threshold = _float32(p["v_threshold"])
    still_above = _fired(v, threshold)
    u = np.float32(0.9) * v + x - still_above * threshold
    o = _fired(u, threshold)
    return Stepped(i, u - (o - still_above) * threshold, u, o)


_SNNTORCH_LEAK = Ask("v_leak = 0", lambda p, dt: _close(p["v_leak"], 0.0, absolute=1e-8))

_SNNTORCH = Reading(
    name="snntorch",
    version="1.0.0",
    call='snntorch.import_nir.import_from_nir(nir.read("FILE.nir"))',
    dt=_SNNTORCH_DT,
    dt_given=False,
    neurons={
        "CubaLIF": NeuronReading(
            update="i = (1 - dt/tau_syn) i + x;  v = (1 - dt/tau_mem) v + i",
            spike="v > v_threshold tau_syn / (w_in dt)",
            reset="v = 0",
            ignores=("v_reset",),
            asks=(
                _SNNTORCH_LEAK,
                Ask(
                    "r = tau_mem / dt",
                    lambda p, dt: _close(p["r"], p["tau_mem"] / _SNNTORCH_DT, relative=1e-5, absolute=1e-8),
                ),
                _uniform("v_threshold"),
            ),
            step=_snntorch_cubalif,
        ),
        "LIF": NeuronReading(
            update="v = (1 - dt/tau) v + x",
            spike="v > v_threshold tau / (r dt)",
            reset="v = 0",
            ignores=("v_reset",),
            asks=(_SNNTORCH_LEAK, _uniform("v_threshold")),
            step=_snntorch_lif,
        ),
        "IF": NeuronReading(
            update="v = 0.9 v + x",
            spike="v > v_threshold",
            reset="v -= v_threshold; a v that is still above it loses it again at the next step, and gets it back then "
            "unless that spikes",
            ignores=("v_reset",),
            asks=(_uniform("v_threshold", "r"), Ask("r = 1", lambda p, dt: bool((p["r"] == 1).all()))),
            step=_snntorch_if,
        ),
    },
    layers=frozenset({"Input", "Output", "Affine", "Linear", "Conv1d", "Conv2d", "AvgPool2d", "SumPool2d", "Flatten"}),
    otherwise="ValueError",
    notes=(
        "An IF leaks: it becomes a Leaky with beta = 0.9.",
        "Where w_in dt / tau_syn (of a LIF r dt / tau) is not 1, the threshold is divided by it, since the input is "
        "not multiplied by it: potentials are in other units then.",
        "Flatten takes NIR's axes as torch's, which count the batch: give samples one at a time, without a batch axis.",
        "A neuron and a full connection that feed each other become one recurrent layer.",
    ),
)


# spyx 1.0.0: nir.py, nn.py, axn.py
def _spyx_decay(tau: Float64, dt: float) -> Float32:
    return np.clip(_decay(tau, dt), np.float32(0), np.float32(1))


def _spyx_cubalif(p: Numbers, dt: float, i: Float32, v: Float32, x: Float32) -> Stepped:
    threshold = _float32(p["v_threshold"])
    o = _fired(v, threshold)
    v = v - o * threshold
    i = _spyx_decay(p["tau_syn"], dt) * i + x
    v = _spyx_decay(p["tau_mem"], dt) * v + i
    return Stepped(i, v, v, o)


def _spyx_lif(p: Numbers, dt: float, i: Float32, v: Float32, x: Float32) -> Stepped:
    threshold = _float32(p["v_threshold"])
    o = _fired(v, threshold)
    v = _spyx_decay(p["tau"], dt) * v + x - o * threshold
    return Stepped(i, v, v, o)


def _spyx_if(p: Numbers, dt: float, i: Float32, v: Float32, x: Float32) -> Stepped:
    threshold = _float32(p["v_threshold"])
    o = _fired(v, threshold)
    v = v + x - o * threshold
    return Stepped(i, v, v, o)


_SPYX = Reading(
    name="spyx",
    version="1.0.0",
    call='spyx.nir.from_nir(nir.read("FILE.nir"), inputs, dt=1e-4)',
    dt=1.0,
    dt_given=True,
    neurons={
        "CubaLIF": NeuronReading(
            update="spikes of the v of the step before; v -= v_threshold where there is one;  "
            "i = (1 - dt/tau_syn) i + x;  v = (1 - dt/tau_mem) v + i",
            spike="v > v_threshold, a step late",
            reset="v -= v_threshold",
            ignores=("r", "w_in", "v_leak", "v_reset"),
            asks=(),
            step=_spyx_cubalif,
        ),
        "LIF": NeuronReading(
            update="spikes of the v of the step before;  v = (1 - dt/tau) v + x, less v_threshold where there is one",
            spike="v > v_threshold, a step late",
            reset="v -= v_threshold",
            ignores=("r", "v_leak", "v_reset"),
            asks=(),
            step=_spyx_lif,
        ),
        "IF": NeuronReading(
            update="spikes of the v of the step before;  v = v + x, less v_threshold where there is one",
            spike="v > v_threshold, a step late",
            reset="v -= v_threshold",
            ignores=("r", "v_reset"),
            asks=(),
            step=_spyx_if,
        ),
    },
    layers=frozenset({"Input", "Output", "Affine", "Linear", "Conv2d", "SumPool2d", "Flatten"}),
    otherwise="left out silently",
    notes=(
        "Decays are cut to between 0 and 1: with a dt larger than the time constants all of them are 0.",
        "A chain of nodes only, from one called input to one called output; of several edges out of a node, one.",
        "Images are channels-last, and what is flattened is flattened in that order; dilation and groups are ignored.",
        "Reading and running are one call, from_nir.",
    ),
    not_simulated={
        "LI": "with a Threshold after it, both become a PSU_LIF; otherwise ValueError",
        "Threshold": "after an LI, both become a PSU_LIF; otherwise left out silently",
    },
)


# sinabs 3.1.3: nir.py, layers/{lif,iaf}.py, layers/functional/lif.py, activation/
def _sinabs_spiking(p: Numbers, i: Float32, u: Float32) -> Stepped:
    threshold = _float32(p["v_threshold"])
    o = (u > 0) * np.trunc(u / threshold)
    return Stepped(i, u - o * threshold, u, o.astype(np.float32))


def _sinabs_lif(p: Numbers, dt: float, i: Float32, v: Float32, x: Float32) -> Stepped:
    return _sinabs_spiking(p, i, np.exp(np.float32(-1) / _float32(p["tau"])) * v + x)


def _sinabs_if(p: Numbers, dt: float, i: Float32, v: Float32, x: Float32) -> Stepped:
    step, lowest = _sinabs_spiking(p, i, v + x), -_float32(p["v_threshold"])
    return step._replace(v=np.maximum(step.v - lowest, np.float32(0)) + lowest)


_SINABS = Reading(
    name="sinabs",
    version="3.1.3",
    call='sinabs.nir.from_nir(nir.read("FILE.nir"), batch_size=1)',
    dt=float("nan"),
    dt_given=False,
    neurons={
        "LIF": NeuronReading(
            update="v = exp(-1/tau) v + x: tau is in steps",
            spike="trunc(v / v_threshold) spikes where v > 0, several a step",
            reset="v -= v_threshold for each",
            ignores=("r", "v_reset"),
            asks=(Ask("v_leak = 0", lambda p, dt: not p["v_leak"].any()),),
            step=_sinabs_lif,
        ),
        "IF": NeuronReading(
            update="v = v + x, at least -v_threshold",
            spike="trunc(v / v_threshold) spikes where v > 0, several a step",
            reset="v -= v_threshold for each",
            ignores=("r", "v_reset"),
            asks=(),
            step=_sinabs_if,
        ),
    },
    layers=frozenset({"Input", "Output", "Affine", "Conv1d", "Conv2d", "SumPool2d", "Flatten"}),
    otherwise="it becomes nothing; running the graph then fails, or skips it",
    notes=(
        "Linear is not read, Affine is.",
        "It is released for nir 1.0.4, which knows no v_reset.",
    ),
    not_simulated={"LI": "v = exp(-1/tau) v + x: tau is in steps; v_leak must be 0, and r must be 1"},
)


# rockpool 3.1.0: nn/modules/torch/nir.py, nn/modules/torch/lif_torch.py
def _rockpool_cubalif(p: Numbers, dt: float, i: Float32, v: Float32, x: Float32) -> Stepped:
    dt_of_import = np.min(_float32(p["tau_mem"] / (1 + p["r"])))
    threshold = _float32(p["v_threshold"])
    i = (i + x) * np.exp(-dt_of_import / _float32(p["tau_syn"]))
    u = v * np.exp(-dt_of_import / _float32(p["tau_mem"])) + i + _float32(p["v_leak"])
    o = (u >= threshold) * np.floor(u / threshold)
    return Stepped(i, u - o * threshold, u, o.astype(np.float32))


_ROCKPOOL = Reading(
    name="rockpool",
    version="3.1.0",
    call='rockpool.nn.modules.torch.nir.from_nir(nir.read("FILE.nir"))',
    dt=float("nan"),
    dt_given=False,
    neurons={
        "CubaLIF": NeuronReading(
            update="dt = min tau_mem / (1 + r);  i = (i + x) exp(-dt/tau_syn);  v = v exp(-dt/tau_mem) + i + v_leak",
            spike="floor(v / v_threshold) spikes, several a step",
            reset="v -= v_threshold for each",
            ignores=("w_in", "v_reset"),
            asks=(),
            step=_rockpool_cubalif,
        ),
    },
    layers=frozenset({"Input", "Output", "Affine", "Linear"}),
    otherwise="NotImplementedError",
    notes=(
        "It reads LIF nodes by a parameter that they do not have (tau_mem), which is an AttributeError.",
        "The time step is guessed from tau_mem and r, population by population.",
    ),
    not_simulated={"LI": "i = (i + x) exp(-dt/tau), with dt = min tau / (1 + r); tau is cut to an integer"},
)

READINGS: Mapping[str, Reading] = {
    reading.name: reading for reading in (_SPIKINGJELLY, _NORSE, _SNNTORCH, _SPYX, _SINABS, _ROCKPOOL)
}
"""Importers by name."""
