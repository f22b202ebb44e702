"""One importer of NIR, in its own environment: runs files of NIR and compares with references (interop_nir.py).

`python interop_nir_peer.py FOLDER PEER READINGS RUNS SMALL REPORT`: READINGS is the file of stsbp.interop.nir_readings,
RUNS and SMALL are JSON lists of cases in FOLDER. Needs numpy, nir and the importer, but not stsbp.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import io
import json
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import nir
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Outcome = tuple[Array, dict[str, tuple[Array, Array]]]
"""Outputs `[T, B, N]`; and of populations that could be seen, spikes and what is left of potentials `[T, B, ...]`."""
DT = 1e-4
POPULATION = 64
TAUS = ((2, 2), (4, 8), (3, 5), (5 / 3, 7), (2.5, 3), (10, 20))
HAS_RESET = "v_reset" in nir.CubaLIF.__dataclass_fields__

FORMS = {
    "spikingjelly": ("plain", "fold"),
    "norse": ("sum", "sum, below"),
    "snntorch": ("plain", "below"),
    "spyx": ("sum, below",),
    "sinabs": ("sum",),
    "rockpool": ("plain",),
}
"""Which files each importer is given."""
SMALL = {"spyx": ("tau 2.5, 3, unit",), "rockpool": ("tau 2.5, 3, unit",), "sinabs": ("tau 2.5, 3, unit",)}
"""Small networks of importers that cannot compute the same; others are given all."""


def hooked(
    model: Any, populations: list[str], potential_of: Callable[[Any, Any], Any]
) -> tuple[dict[str, list[Any]], ...]:
    """Lists that fill with the spikes and potentials of populations while a torch module runs."""
    spikes: dict[str, list[Any]] = {name: [] for name in populations}
    potentials: dict[str, list[Any]] = {name: [] for name in populations}
    modules = dict(model.named_modules())
    for name in populations:

        def hook(module: Any, _inputs: Any, output: Any, name: str = name) -> None:
            spikes[name].append(output[0] if isinstance(output, tuple) else output)
            potentials[name].append(potential_of(module, output))

        modules[name].register_forward_hook(hook)
    return spikes, potentials


def stacked(parts: list[Any]) -> Array:
    """What was seen step by step, `[T, B, ...]`."""
    return np.stack([part.detach().numpy() for part in parts])


def regrouped(parts: list[Any], samples: int) -> Array:
    """What was seen step by step of one sample after the other, `[T, B, ...]`."""
    steps = stacked(parts)
    return steps.reshape(samples, -1, *steps.shape[1:]).swapaxes(0, 1)


def of_spikingjelly(graph: Any, inputs: Array, populations: list[str]) -> Outcome:
    import torch
    from spikingjelly.activation_based.nir_exchange import import_from_nir

    model = import_from_nir(graph, dt=DT).eval()
    spikes, potentials = hooked(model, populations, lambda module, output: output[1][0])
    state, outputs = None, []
    for frame in torch.from_numpy(inputs):
        output, state = model(frame, state)
        outputs.append(output)
    return stacked(outputs), {name: (stacked(spikes[name]), stacked(potentials[name])) for name in populations}


def of_norse(graph: Any, inputs: Array, populations: list[str]) -> Outcome:
    import norse.torch
    import torch

    model = norse.torch.from_nir(graph, dt=DT)

    def potential_of(_module: Any, output: Any) -> Any:
        state = output[1]
        return (state[1] if isinstance(state, tuple) and not hasattr(state, "v") else state).v

    spikes, potentials = hooked(model, populations, potential_of)
    outputs = []
    for sample in torch.from_numpy(inputs.swapaxes(0, 1).copy()):
        state = None
        for frame in sample:
            output, state = model(frame, state)
            outputs.append(output)
    samples = inputs.shape[1]
    recorded = {name: (regrouped(spikes[name], samples), regrouped(potentials[name], samples)) for name in populations}
    return regrouped(outputs, samples), recorded


def of_snntorch(graph: Any, inputs: Array, populations: list[str]) -> Outcome:
    import torch
    from snntorch.import_nir import import_from_nir

    model = import_from_nir(graph)
    modules = dict(model.named_modules())
    spikes, potentials = hooked(model, populations, lambda module, output: module.mem.clone())
    outputs = []
    for sample in torch.from_numpy(inputs.swapaxes(0, 1).copy()):
        for name in populations:
            modules[name].reset_mem()
        state = None
        for frame in sample:
            output, state = model(frame, state)
            # An IF gives its potentials beside the spikes.
            outputs.append(output[0] if isinstance(output, tuple) else output)
    samples = inputs.shape[1]
    recorded = {name: (regrouped(spikes[name], samples), regrouped(potentials[name], samples)) for name in populations}
    return regrouped(outputs, samples), recorded


def of_spyx(graph: Any, inputs: Array, populations: list[str]) -> Outcome:
    import jax.numpy as jnp
    from spyx.nir import from_nir

    frames = inputs.transpose(0, 1, 3, 4, 2) if inputs.ndim == 5 else inputs
    _, outputs = from_nir(graph, jnp.asarray(frames), dt=DT)
    return np.asarray(outputs), {}


def of_sinabs(graph: Any, inputs: Array, populations: list[str]) -> Outcome:
    import torch
    from sinabs.nir import from_nir

    steps, samples = inputs.shape[:2]
    model = from_nir(graph, batch_size=samples)
    flat = torch.from_numpy(inputs.swapaxes(0, 1).reshape(samples * steps, *inputs.shape[2:]).copy())
    output = model(flat)
    output = output[0] if isinstance(output, tuple) else output
    return output.detach().numpy().reshape(samples, steps, -1).swapaxes(0, 1), {}


def of_rockpool(graph: Any, inputs: Array, populations: list[str]) -> Outcome:
    import torch
    from rockpool.nn.modules.torch.nir import from_nir

    output = from_nir(graph)(torch.from_numpy(inputs.swapaxes(0, 1).copy()))
    output = output[0] if isinstance(output, tuple) else output
    return output.detach().numpy().swapaxes(0, 1), {}


RUNNERS: dict[str, Callable[[Any, Array, list[str]], Outcome]] = {
    "spikingjelly": of_spikingjelly,
    "norse": of_norse,
    "snntorch": of_snntorch,
    "spyx": of_spyx,
    "sinabs": of_sinabs,
    "rockpool": of_rockpool,
}


def quietly(run: Callable[[], Any]) -> Any:
    """What a library gives, without what it prints and warns of."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
        return run()


def readable(path: Path) -> Path:
    """A file of NIR; for a nir that knows no v_reset, a copy without it, which it takes to be 0."""
    if HAS_RESET:
        return path
    import h5py

    copy = path.with_suffix(".older.nir")
    copy.write_bytes(path.read_bytes())
    with h5py.File(copy, "r+") as file:
        for node in file["node/nodes"].values():
            if "v_reset" in node:
                del node["v_reset"]
    return copy


def short(error: BaseException) -> str:
    """The end of an error in one line."""
    text = " ".join(str(error).split()).replace("|", "/")
    return f"{type(error).__name__}: {text[:140]}"


def compared(peer: str, folder: Path, case: str, form: str) -> dict[str, Any]:
    """One file beside its reference."""
    row: dict[str, Any] = {"case": case, "form": form}
    data = np.load(folder / "reference.npz")
    inputs, steps = data["inputs"].astype(np.float32), int(data["steps"])
    if data["direct"]:
        inputs = np.broadcast_to(inputs / 256, (steps, *inputs.shape)).astype(np.float32)
    populations = [name.partition("/")[2] for name in data.files if name.startswith("spikes/")]
    try:
        graph = quietly(lambda: nir.read(readable(folder / f"{form}.nir")))
        outputs, recorded = quietly(lambda: RUNNERS[peer](graph, np.ascontiguousarray(inputs), populations))
    except Exception as error:
        return {**row, "problem": short(error)}
    last = populations[-1]
    expected_output = data[f"spikes/{last}"]
    recorded = recorded or {last: (outputs, np.zeros((0,)))}
    differing = potentials = total = spiking = 0
    distance = 0.0
    for name, (spikes, after_reset) in recorded.items():
        expected = data[f"spikes/{name}"]
        if spikes.shape != expected.shape:
            return {**row, "problem": f"{name} has the shape {spikes.shape}, not {expected.shape}"}
        total, differing = total + expected.size, differing + int((spikes != expected).sum())
        spiking += int(expected.sum())
        if after_reset.size:
            expected_after_reset = data[f"left/{name}"]
            potentials += int((after_reset != expected_after_reset).sum())
            distance = max(distance, float(np.abs(after_reset - expected_after_reset).max(initial=0)))
    labels = data["labels"] if "labels" in data.files else None
    accuracy, own_accuracy = (
        None if labels is None else float((x.sum(0).argmax(1) == labels).mean()) for x in (outputs, expected_output)
    )
    late = int((outputs[1:] != expected_output[:-1]).sum())
    numbers = {"differing": differing, "spikes": total, "potentials": potentials, "distance": distance, "late": late}
    numbers |= {"ties": int(data["ties"]), "rate": spiking / max(total, 1)}
    return {**row, **numbers, "accuracy": accuracy, "own_accuracy": own_accuracy}


def loaded(path: str) -> ModuleType:
    """A module of one file."""
    spec = importlib.util.spec_from_file_location("nir_readings", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def full(value: float) -> Array:
    """A parameter of `POPULATION` neurons."""
    return np.full(POPULATION, float(value))


def neuron_of(kind: str, peer: str, tau_m: float, tau_s: float) -> Any:
    """A population as we write it, or, of kinds that we do not, with an input that is taken as it is."""
    reset = {"v_reset": full(0)} if HAS_RESET else {}
    spiking = {"v_threshold": full(1), **reset}
    if kind == "IF":
        return nir.IF(r=full(1 if peer == "snntorch" else 1 / DT), **spiking)
    if kind == "LIF":
        return nir.LIF(tau=full(tau_m * DT), r=full(tau_m), v_leak=full(0), **spiking)
    taus = {"tau_mem": full(tau_m * DT), "tau_syn": full(tau_s * DT)}
    return nir.CubaLIF(**taus, r=full(tau_m), w_in=full(tau_s), v_leak=full(0), **spiking)


def readings(peer: str, path: str) -> list[dict[str, Any]]:
    """Single populations: the library beside what we say of it; inputs are eighths, to meet thresholds exactly."""
    module = loaded(path)
    inputs = (np.random.default_rng(0).integers(-6, 12, (400, 1, POPULATION)) / 8).astype(np.float32)
    rows = []
    for kind, neuron in module.READINGS[peer].neurons.items():
        for tau_m, tau_s in TAUS[:1] if kind == "IF" else TAUS:
            node = neuron_of(kind, peer, tau_m, tau_s)
            ends = {"input": nir.Input(np.array([POPULATION])), "output": nir.Output(np.array([POPULATION]))}
            same = nir.Affine(np.eye(POPULATION, dtype=np.float32), np.zeros(POPULATION, np.float32))
            edges = [("input", "same"), ("same", "neurons"), ("neurons", "output")]
            graph = nir.NIRGraph({**ends, "same": same, "neurons": node}, edges)
            numbers = {k: np.asarray(v, np.float64) for k, v in vars(node).items() if isinstance(v, np.ndarray)}
            potentials, spikes = module.simulate(neuron, {"v_reset": full(0), **numbers}, DT, inputs[:, 0])
            outputs = quietly(functools.partial(RUNNERS[peer], graph, inputs, []))[0][:, 0]
            taus = {"IF": "", "LIF": f" {tau_m:.3g}", "CubaLIF": f" {tau_m:.3g}, {tau_s}"}[kind]
            row = {"node": kind + taus, "differing": int((outputs != spikes).sum()), "spikes": spikes.size}
            rows.append({**row, "ties": int((potentials == 1).sum())})
    return rows


def main() -> None:
    """Run all cases and write the report."""
    folder, peer, path, runs, small, report = sys.argv[1:]
    logging.disable(logging.WARNING)
    cases = [("runs", name) for name in json.loads(runs)]
    cases += [("small", name) for name in json.loads(small) if name in SMALL.get(peer, (name,))]
    rows = [compared(peer, Path(folder) / kind / name, name, form) for kind, name in cases for form in FORMS[peer]]
    report_head = {"version": importlib.metadata.version(peer), "nir": importlib.metadata.version("nir"), "rows": rows}
    Path(report).write_text(json.dumps({**report_head, "readings": readings(peer, path)}, indent=1))


if __name__ == "__main__":
    main()
