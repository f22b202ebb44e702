"""A trained network in onnxruntime beside stsbp: spikes and potentials of its held-out samples, and the time it takes.

`python benchmarks/interop_onnx.py RUN... [--data-dir D] [--limit N] [--rounds N] [--out FILE.json]`. Each run is
exported with `--layers` and run at every level of onnxruntime's optimisation, on one and on two threads; spikes and
potentials are compared with those of the backend bit by bit. Inference of one sample is timed on one thread, taken in
turn. `--forms` shows what the optimiser makes of forms that the export avoids. The exit code is 1 where a bit differs.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from harness import count, guarded, parser_of, table, tested, write_report
from stsbp.benchmarks.timing import interleaved
from stsbp.errors import ConfigError
from stsbp.interop.onnx_file import write
from stsbp.interop.program import About, program
from stsbp.threads import limit_threads
from stsbp.training.trained import Trained
from stsbp_spec.engine.results import LayerRun
from stsbp_spec.registry import open_backend
from stsbp_spec.typing import AnyArray

LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")
THREADS = (1, 2)


def open_session(path: str | bytes, level: str = LEVELS[-1], threads: int = 1, optimised: Path | None = None) -> Any:
    """A model in onnxruntime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def fed(run: Trained, inputs: AnyArray) -> dict[str, AnyArray]:
    """Inputs of the model."""
    steps = np.array(run.settings.steps, np.int64)
    return {"frames": inputs} if run.network.coding == "events" else {"images": inputs, "steps": steps}


def bits_differing(one: AnyArray, other: AnyArray) -> int:
    """Numbers of two arrays that are not the same to the bit."""
    if one.dtype != other.dtype or one.shape != other.shape:
        raise ConfigError(f"{one.dtype} {one.shape} cannot be compared with {other.dtype} {other.shape}")
    kind = np.dtype(f"u{one.dtype.itemsize}")
    return int(np.count_nonzero(one.view(kind) != other.view(kind)))


@dataclass
class Layer:
    """What is found of a layer: its spikes, of how many, and by session how many bits of the model differ."""

    name: str
    before: str
    spikes: int = 0
    compared: int = 0
    differing: dict[str, int] = field(default_factory=dict)
    potentials: dict[str, int] = field(default_factory=dict)

    def add(self, session: str, outputs: Mapping[str, AnyArray], expected: LayerRun) -> None:
        """Compare the outputs of a session."""
        for counts, kind, values in (
            (self.differing, "spikes", expected.spikes),
            (self.potentials, "potentials", expected.potentials),
        ):
            counts[session] = counts.get(session, 0) + bits_differing(outputs[f"{self.before}{kind}"], values)


def compared(run: Trained, sessions: Mapping[str, Any], batches: Iterable[tuple[AnyArray, AnyArray, AnyArray]]) -> Any:
    """Layers, and how many samples of how many were read rightly; of batches of inputs, targets and labels."""
    blocks = run.network.blocks
    layers = [Layer(block.name, "" if block is blocks[-1] else f"{block.population}/") for block in blocks]
    correct = samples = 0
    for inputs, targets, labels in batches:
        expected = run.backend.run(run.network, run.weights, inputs, run.settings.steps).layers
        for layer in layers:
            layer.spikes += int(expected[layer.name].spikes.sum())
            layer.compared += expected[layer.name].spikes.size
        for name, session in sessions.items():
            outputs = [output.name for output in session.get_outputs()]
            arrays = dict(zip(outputs, session.run(None, fed(run, inputs)), strict=True))
            for layer in layers:
                layer.add(name, arrays, expected[layer.name])
        scored = arrays["potentials" if run.network.has_readout else "spikes"]
        nearest = run.task.score(scored, targets, labels).nearest
        correct += 0 if nearest is None else int((nearest == labels).sum())
        samples += len(labels)
    return {"layers": [asdict(layer) for layer in layers], "right": correct, "samples": samples}


def measured(folder: Path, options: Any, temporary: Path) -> dict[str, Any]:
    """What is found of a run."""
    run, split = tested(folder, open_backend(options.backend, "cpu"), options.data_dir)
    network_program = program(run.network, run.weights)
    about = About(folder.name, run.info["sha256"], run.settings.steps, run.names)
    write(network_program, about, temporary / "layers.onnx", layers=True)
    write(network_program, about, temporary / "plain.onnx")
    sessions = {
        f"{level} {threads}": open_session(str(temporary / "layers.onnx"), level, threads)
        for level in LEVELS
        for threads in THREADS
    }
    number, size = min(options.limit or len(split), len(split)), run.settings.batch_size
    index_batches = [np.arange(first, min(first + size, number)) for first in range(0, number, size)]
    batches = (
        (split.inputs(samples), run.task.targets(split, samples), split.labels[samples]) for samples in index_batches
    )
    comparison = compared(run, sessions, batches)
    sample, plain_session = split.inputs(np.arange(1)), open_session(str(temporary / "plain.onnx"))
    work = {
        "onnxruntime": lambda: plain_session.run(None, fed(run, sample)),
        run.backend.name: lambda: run.task.trainer.predict(run.state, sample, run.settings.steps),
    }
    times = interleaved(work, rounds=options.rounds, clock=time.process_time)
    return {
        "run": str(folder),
        "network": str(run.network),
        "steps": run.settings.steps,
        **comparison,
        "seconds": {name: timing.median for name, timing in times.items()},
    }


def shown(report: Mapping[str, Any]) -> int:
    """Print what was found of a run; returns how many bits differed."""
    print(f"\n{report['run']}: {report['network']}, {report['samples']} samples, {report['steps']} steps")
    rows = []
    for row in report["layers"]:
        differing, potentials = (sum(row[name].values()) for name in ("differing", "potentials"))
        rows.append((row["name"], f"{row['spikes'] / row['compared']:.4f}", row["compared"], differing, potentials))
    print(table(["layer", "firing rate", "spikes compared", "differing", "potentials differing"], rows))
    print(f"differing: over {', '.join(LEVELS)}, each on {' and '.join(map(str, THREADS))} threads")
    print(f"right by the nearest label sequence, of onnxruntime's output: {report['right']} of {report['samples']}")
    times = ", ".join(f"{name} {1e3 * seconds:.2f} ms" for name, seconds in report["seconds"].items())
    print(f"one sample on one thread, processor time, median: {times}")
    return sum(differing + potentials for *_, differing, potentials in rows)


# What the optimiser makes of other forms.


def forms() -> dict[str, tuple[list[tuple[str, list[str], str]], dict[str, AnyArray], AnyArray]]:
    """Nodes, constants and an input `x` of each form, weights on the grid and spikes."""
    rng = np.random.default_rng(1)

    def weights(*shape: int) -> AnyArray:
        return (rng.integers(-2047, 2048, shape) / 2**10).astype(np.float32)

    def spikes(*shape: int) -> AnyArray:
        return (rng.random(shape) < 0.3).astype(np.float32)

    third, frames, rows = np.array(1 / 3, np.float32), spikes(4, 8, 20, 20), spikes(9, 600)
    conv = ("Conv", ["x", "w"], "z"), {"w": weights(16, 8, 3, 3)}
    product = ("MatMul", ["x", "w"], "z"), {"w": weights(600, 64)}
    shifts = rng.normal(size=(16, 1, 1)).astype(np.float32), rng.normal(size=64).astype(np.float32)
    return {
        "convolution, then a factor": ([conv[0], ("Mul", ["z", "c"], "y")], {**conv[1], "c": third}, frames),
        "convolution, then a bias": ([conv[0], ("Add", ["z", "b"], "y")], {**conv[1], "b": shifts[0]}, frames),
        "product of matrices, then a factor": (
            [product[0], ("Mul", ["z", "c"], "y")],
            {**product[1], "c": third},
            rows,
        ),
        "product of matrices, then a bias": (
            [product[0], ("Add", ["z", "b"], "y")],
            {**product[1], "b": shifts[1]},
            rows,
        ),
        "(1/(x/3)) x": (
            [("Mul", ["x", "c"], "z"), ("Div", ["one", "z"], "r"), ("Mul", ["r", "x"], "y")],
            {"c": third, "one": np.array(1, np.float32)},
            rng.normal(size=(1, 10_000)).astype(np.float32),
        ),
    }


def judged(temporary: Path) -> list[dict[str, Any]]:
    """What each level makes of each form, and how many results change."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rows = []
    for name, (nodes, constants, x) in forms().items():
        model_nodes = [helper.make_node(op, inputs, [output]) for op, inputs, output in nodes]
        model_input = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", *x.shape[1:]])
        model_output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        initializers = [
            numpy_helper.from_array(values, name_of_constant) for name_of_constant, values in constants.items()
        ]
        graph = helper.make_graph(model_nodes, "form", [model_input], [model_output], initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
        unoptimised = open_session(model.SerializeToString(), LEVELS[0]).run(None, {"x": x})[0]
        for level in LEVELS[1:]:
            path = temporary / "optimised.onnx"
            result = open_session(model.SerializeToString(), level, optimised=path).run(None, {"x": x})[0]
            remaining = [node.op_type for node in onnx.load(path).graph.node]
            row = {"form": name, "level": level, "left": remaining, "changed": bits_differing(unoptimised, result)}
            rows.append({**row, "results": unoptimised.size})
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Compare, print and write."""
    parser = parser_of(__doc__, "backend", "data-dir", "rounds", "out", rounds=31)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="folders of trained runs")
    parser.add_argument("--limit", type=count, help="samples of each run; default: all of its test split")
    parser.add_argument("--forms", action="store_true", help="show what the optimiser makes of other forms")
    options = parser.parse_args(arguments)
    limit_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        runs = [measured(folder, options, Path(temporary)) for folder in options.runs]
        others = judged(Path(temporary)) if options.forms else []
    differing = sum(shown(report) for report in runs)
    for row in others:
        print(f"{row['form']:36} {row['level']:20} {row['changed']:6,} of {row['results']:,} {', '.join(row['left'])}")
    settings = {"rounds": options.rounds, "levels": LEVELS, "threads": THREADS}
    write_report(options.out, open_backend(options.backend, "cpu"), settings, runs=runs, forms=others)
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(guarded(main))
