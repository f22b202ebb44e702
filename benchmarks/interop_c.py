"""Exported C held against the reference on the held-out samples of runs: `python benchmarks/interop_c.py RUN...`.

A run is exported (`stsbp export RUN --to c`), compiled by every compiler that is here for every target, and run there
over all samples: natively, for Arm in qemu-user, for Cortex-M on the boards that qemu-system-arm has. Each program
compares spikes and potentials of all layers, steps and samples with those of the numpy backend, bit by bit, and
sequences with steps. Printed: a line a target, then a line a layer; then what the compiler's `size` says; then the time
of a sample, beside that of backends and of onnxruntime, one at a time on one core, in turn, CPU time, medians.
"""

from __future__ import annotations

import ctypes
import importlib
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from harness import count, guarded, parser_of, table, tested, write_report
from stsbp.benchmarks.timing import interleaved
from stsbp.errors import ConfigError
from stsbp.interop.c_source import CSource, source
from stsbp.interop.c_source.check import Compared, compared, driver, macros, recorded
from stsbp.interop.export import FORMS
from stsbp.interop.program import About, program
from stsbp.threads import limit_threads
from stsbp.training.run_folder import RunFolder
from stsbp.training.trained import Trained, load_trained
from stsbp_spec.models.decoders import nearest_sequence
from stsbp_spec.registry import open_backend
from stsbp_spec.typing import Int64, UInt8

BOARD = Path(__file__).parent / "cortex_m"
BATCH = 10
"""Samples that the reference computes at a time."""


@dataclass(frozen=True)
class Target:
    """A compiler with options, and what runs its programs.

    Attributes:
        name: as it is printed.
        compiler: command.
        options: besides those that every target has.
        runner: command before the program; none: it runs here.
        board: of qemu-system-arm; None: it is a program of an operating system.
    """

    name: str
    compiler: str
    options: tuple[str, ...]
    runner: tuple[str, ...] = ()
    board: str | None = None

    @property
    def missing(self) -> str | None:
        """A command that is not here."""
        commands = [self.compiler, *self.runner[:1], *(["qemu-system-arm"] if self.board else [])]
        return next((name for name in commands if shutil.which(name) is None), None)

    def compile(self, folder: Path, sources: list[CSource]) -> None:
        """Make the program `check` in the folder."""
        files = ["main.c", *(f"{source.stem}.c" for source in sources), "-o", "check", "-lm"]
        if self.board:
            files += [str(BOARD / "start.c"), "-T", str(BOARD / "mps2.ld"), "--specs=rdimon.specs"]
        _run([self.compiler, *self.options, *macros(sources), *files], folder)

    def run(self, folder: Path) -> str:
        """What the program prints."""
        if self.board is None:
            return _run([*self.runner, "./check"], folder)
        semihosting = ["-semihosting-config", "enable=on,target=native"]
        screen = ["-display", "none", "-monitor", "none", "-serial", "stdio"]
        return _run(["qemu-system-arm", "-M", self.board, *screen, *semihosting, "-kernel", "check"], folder)


def _targets() -> Iterator[Target]:
    levels = ("-O0", "-O1", "-O2", "-O3")
    architecture = platform.machine()
    for compiler in ("gcc", "clang"):
        for level in levels:
            yield Target(f"{compiler} {architecture} {level}", compiler, ("-std=c99", level))
        yield Target(
            f"{compiler} {architecture} -O3 -march=native, GNU C", compiler, ("-std=gnu11", "-O3", "-march=native")
        )
    for level in levels:
        options = ("-std=gnu11", level, "-static")
        yield Target(f"gcc aarch64 {level}", "aarch64-linux-gnu-gcc", options, ("qemu-aarch64",))
    for level in levels:
        options = ("-std=gnu11", level, "-static")
        yield Target(f"gcc armv7 {level}", "arm-linux-gnueabihf-gcc", options, ("qemu-arm",))
    thumb = ("-std=gnu11", "-O3", "-static", "-mthumb", "-mcpu=cortex-a7", "-mfpu=neon-vfpv4")
    yield Target("gcc armv7 -O3 -mcpu=cortex-a7 (fused multiply-add)", "arm-linux-gnueabihf-gcc", thumb, ("qemu-arm",))
    cores: dict[str, tuple[str, tuple[str, ...]]] = {
        "cortex-m0": ("mps2-an385", ()),
        "cortex-m3": ("mps2-an385", ()),
        "cortex-m4": ("mps2-an386", ("-mfloat-abi=hard", "-mfpu=fpv4-sp-d16")),
        "cortex-m7": ("mps2-an500", ("-mfloat-abi=hard", "-mfpu=fpv5-sp-d16")),
    }
    for core, (board, unit) in cores.items():
        flags = ("-std=gnu11", "-O2", "-mthumb", f"-mcpu={core}", *unit)
        yield Target(f"gcc {core} -O2, board {board}", "arm-none-eabi-gcc", flags, board=board)


TARGETS = tuple(_targets())
"""Everything that is tried where its compiler is here."""


def _run(command: list[str], folder: Path) -> str:
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if ran.returncode:
        raise ConfigError(f"{command[0]} ended with {ran.returncode}: {ran.stderr[-2000:]}")
    return ran.stdout


@dataclass(frozen=True)
class Checked:
    """What was found of a run.

    Attributes:
        source: the network in C.
        samples: how many.
        accuracy: share of samples whose nearest label sequence is that of their class; None: labels are spike trains.
        targets: layers by target.
    """

    source: CSource
    samples: int
    accuracy: float | None
    targets: dict[str, list[Compared]]


def check(trained: Trained, name: str, inputs: UInt8, labels: Int64, folder: Path, pattern: str) -> Checked:
    """Export a network into a folder, and compare it on all targets whose name contains `pattern`."""
    about = About(name, trained.info["sha256"], trained.settings.steps, trained.names)
    exported = source(program(trained.network, trained.weights), about)
    (folder / f"{exported.stem}.h").write_text(exported.header)
    (folder / f"{exported.stem}.c").write_text(exported.source)
    (folder / "main.c").write_text(driver([exported]))
    correct = _record(trained, inputs, labels, folder / f"{exported.stem}.bin")
    rows_by_target = {}
    for target in (target for target in TARGETS if pattern in target.name):
        if (missing := target.missing) is not None:
            print(f"{target.name}: left out, there is no {missing}")
            continue
        began = time.perf_counter()
        target.compile(folder, [exported])
        rows = rows_by_target[target.name] = list(compared(target.run(folder)))
        spikes, potentials = sum(row.spikes_differ for row in rows), sum(row.potentials_differ for row in rows)
        took = time.perf_counter() - began
        print(f"{target.name}: {spikes} spikes and {potentials} potentials differ ({took:.0f} s)", flush=True)
    return Checked(exported, len(labels), None if correct is None else correct / len(labels), rows_by_target)


def _record(trained: Trained, inputs: UInt8, labels: Int64, path: Path) -> int | None:
    """Write what the reference computes, and return how many samples it reads right."""
    network, axis = trained.network, 1 if trained.network.coding == "events" else 0
    correct = 0
    with path.open("wb") as file:
        # All layers of all samples would need too much memory.
        for indices in np.array_split(np.arange(len(labels)), -(-len(labels) // BATCH)):
            batch = np.take(inputs, indices, axis)
            run = trained.backend.run(network, trained.weights, batch, trained.settings.steps)
            recorded(file, network, batch, run)
            last = run.layers[network.blocks[-1].name]
            if trained.task.distances is not None and not trained.task.inputs.sequences:
                distances = trained.task.distances(last.potentials if network.has_readout else last.spikes)
                correct += int((nearest_sequence(distances) == labels[indices]).sum())
    return None if trained.task.inputs.sequences else correct


def sizes(exported: CSource, folder: Path) -> Iterator[str]:
    """What compilers make of a network: code and tables in bytes, beside what the header says."""
    for target in TARGETS:
        size = target.compiler.removesuffix("gcc") + "size"
        if target.options[1] == "-O2" and "gcc" in target.compiler and not target.missing and shutil.which(size):
            _run([target.compiler, *target.options, "-c", f"{exported.stem}.c", "-o", "size.o"], folder)
            text, data, bss = _run([size, "size.o"], folder).splitlines()[1].split()[:3]
            used = f"text {int(text):,}, data {data}, bss {bss}"
            yield f"{target.name}: {used}; of it tables {exported.flash:,}; state {exported.ram:,}"


def timed(
    run: Path, trained: Trained, exported: CSource, inputs: UInt8, folder: Path, rounds: int, others: Sequence[str]
) -> dict[str, float]:
    """Milliseconds of CPU time a sample, in turn: compiled C, and backends or onnxruntime beside it."""
    steps, axis = trained.settings.steps, 1 if trained.network.coding == "events" else 0
    samples = [np.ascontiguousarray(np.take(inputs, [b], axis)) for b in range(inputs.shape[axis])]
    work: dict[str, Callable[[UInt8], object]] = {}
    for options in ("-O2", "-O3", "-O3 -march=native"):
        name, library = f"C, {options}", folder / f"timed{len(work)}.so"
        _run(
            ["gcc", "-std=c99", *options.split(), "-shared", "-fPIC", f"{exported.stem}.c", "-o", str(library), "-lm"],
            folder,
        )
        work[name] = _called(library, exported, steps, trained.network.outputs)
    for other in others:
        work[other] = _in_onnxruntime(trained, folder) if other == "onnxruntime" else _predicted(run, other, steps)

    def each(call: Callable[[UInt8], object]) -> None:
        for sample in samples:
            call(sample)

    # The first turn compiles kernels and fills caches.
    calls = {name: partial(each, call) for name, call in work.items()}
    times = interleaved(calls, rounds=rounds, warmup=1, clock=time.process_time)
    return {name: 1e3 * timing.median / len(samples) for name, timing in times.items()}


def _called(library: Path, exported: CSource, steps: int, outputs: int) -> Callable[[UInt8], object]:
    function = getattr(ctypes.CDLL(str(library)), f"{exported.stem}_run")
    state, spikes = np.zeros(exported.ram // 4, np.float32), np.zeros((steps, outputs), np.uint8)

    def call(sample: UInt8) -> object:
        state_, sample_, spikes_ = (ctypes.c_void_p(x.ctypes.data) for x in (state, sample, spikes))
        return function(state_, sample_, steps, spikes_, None)

    return call


def _predicted(run: Path, backend: str, steps: int) -> Callable[[UInt8], object]:
    other = load_trained(RunFolder(run), "last", open_backend(backend))
    return lambda sample: other.task.trainer.predict(other.state, sample, steps)


def _in_onnxruntime(trained: Trained, folder: Path) -> Callable[[UInt8], object]:
    runtime: Any = importlib.import_module("onnxruntime")
    about = About("run", trained.info["sha256"], trained.settings.steps, trained.names)
    path = folder / "run.onnx"
    importlib.import_module(FORMS["onnx"]).write(program(trained.network, trained.weights), about, path)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    first, *others = (value.name for value in session.get_inputs())
    steps = dict.fromkeys(others, np.array(trained.settings.steps))
    return lambda sample: session.run(None, {first: sample, **steps})


def layers(trained: Trained, checked: Checked) -> str:
    """A table of the layers: how often they fire, and the most that differs on any target."""
    cells = []
    for number, block in enumerate(trained.network.blocks):
        if rows := [target_rows[number] for target_rows in checked.targets.values()]:
            neurons = rows[0].values // (checked.samples * trained.settings.steps)
            worst = max(row.spikes_differ for row in rows), max(row.potentials_differ for row in rows)
            cells.append((block.name, f"{neurons:,}", f"{rows[0].spikes / rows[0].values:.4f}", *worst))
    columns = ("layer", "neurons", "spikes a neuron and step", "spikes that differ", "potentials that differ")
    text = table(columns, cells)
    return text if checked.accuracy is None else f"{text}\naccuracy {checked.accuracy:.2%} of {checked.samples} samples"


def main(arguments: list[str] | None = None) -> int:
    """Read the command line, compare, print tables, write JSON; 1 where something differs."""
    parser = parser_of(__doc__, "runs", "rounds", "data-dir", "out", rounds=5)
    parser.add_argument("--samples", type=count, default=10**9, help="test samples at most")
    parser.add_argument("--targets", default="", metavar="TEXT", help="only targets whose name holds this")
    description = "backends, and onnxruntime, whose times stand beside those of C; default: torch"
    parser.add_argument("--beside", nargs="*", default=["torch"], help=description)
    options = parser.parse_args(arguments)
    limit_threads(1)
    backend = open_backend("numpy")
    reports, differences = {}, 0
    for run in options.runs:
        trained, split = tested(run, backend, options.data_dir)
        first = np.arange(min(len(split), options.samples))
        inputs, labels = split.inputs(first), split.labels[first]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            print(f"\n{run}: {trained.network}, {len(labels)} samples, T = {trained.settings.steps}")
            checked = check(trained, run.name, inputs, labels, folder, options.targets)
            print(layers(trained, checked), *sizes(checked.source, folder), sep="\n")
            times = timed(run, trained, checked.source, inputs, folder, options.rounds, options.beside)
        print(*(f"{work}: {milliseconds:.3f} ms a sample" for work, milliseconds in times.items()), sep="\n")
        rows = {target: [asdict(row) for row in target_rows] for target, target_rows in checked.targets.items()}
        differences += sum(row["spikes_differ"] + row["potentials_differ"] for row in chain(*rows.values()))
        reports[str(run)] = {"targets": rows, "accuracy": checked.accuracy, "milliseconds": times}
    write_report(options.out, backend, {"runs": list(reports)}, **reports)
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(guarded(main))
