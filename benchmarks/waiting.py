"""Steps of a training loop of one's own, with and without `OMP_WAIT_POLICY`: `python benchmarks/waiting.py`.

Each loop trains a small network (`load_run`: predicts with one): T = 60, 20 samples, five layers of 64 neurons. Two
processes run it in turn: in `reference`, `OMP_WAIT_POLICY=PASSIVE` is set before Python starts; in `plain`, no variable
is set and torch is imported first. Busy processes, such as workers of a data loader, compute without a pause beside
them. Good is a ratio of plain to reference of at most 1.2 on an idle machine, and of at most 1.5 for the median and for
the slowest tenth beside busy processes. The loop `trainer` computes what `stsbp train` computes in a step.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from harness import guarded, parser_of, table, write_report
from stsbp.benchmarks.timing import alternated
from workers import Worker, serve

STEPS, SAMPLES, NEURONS, LAYERS = 60, 20, 64, 5
POLICIES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_PATIENCE = 900.0
COLUMNS = "loop, busy processes, plain in ms, slowest tenth, reference in ms, slowest tenth, ratio, slowest tenth"

Step = Callable[[], object]


def _arrays() -> tuple[Any, Any]:
    generator = np.random.default_rng(0)
    inputs, targets = (generator.random((2, STEPS, SAMPLES, NEURONS)) < 0.1).astype(np.uint8)
    return inputs, targets


def _network() -> Any:
    from stsbp_spec import NetworkSpec

    return NetworkSpec.parse("-".join([str(NEURONS)] * (LAYERS - 1)), input_shape=(NEURONS,), outputs=NEURONS)


def _torch_loop(module: Any, output: Callable[[Any], Any]) -> Step:
    import torch
    from stsbp_torch import VanRossum, spike_loss

    inputs, targets = map(torch.from_numpy, _arrays())
    optimizer = torch.optim.Adam(module.parameters(), 1e-3)
    psp = _network().output_psp

    def step() -> None:
        optimizer.zero_grad()
        loss: Any = spike_loss(VanRossum(), output(inputs), targets, psp=psp)
        loss.backward()
        optimizer.step()

    return step


def _layers(_: Path) -> Step:
    import torch
    from stsbp_torch import SpikingLinear

    psp = _network().output_psp
    layers = torch.nn.Sequential(*(SpikingLinear(NEURONS, NEURONS, psp=psp) for _ in range(LAYERS)))
    return _torch_loop(layers, layers)


def _whole_network(_: Path) -> Step:
    from stsbp_torch import Network

    network = Network(_network())
    return _torch_loop(network, lambda inputs: network(inputs, STEPS))


def _trainer(_: Path, name: str) -> Step:
    from stsbp_spec import AdamW, Batch, VanRossum, initial_weights, open_backend

    trainer = open_backend(name).trainer(_network(), VanRossum(), AdamW(lr=1e-3))
    state = [trainer.init(initial_weights(_network(), seed=0))]
    batch = Batch(*_arrays())

    def step() -> None:
        state[0], _ = trainer.step(state[0], batch)

    return step


def _jax_loop(_: Path) -> Step:
    import jax
    import optax
    from stsbp_jax import VanRossum, apply, distance, initial_weights

    network, optimizer, (inputs, targets) = _network(), optax.adam(1e-3), _arrays()
    weights: Any = initial_weights(network, seed=0)
    state = [weights, optimizer.init(weights)]

    def objective(weights: Any) -> Any:
        return distance(VanRossum(), network.output_psp, apply(network, weights, inputs, steps=STEPS), targets)

    @jax.jit
    def update(weights: Any, moments: Any) -> Any:
        changes, moments = optimizer.update(jax.grad(objective)(weights), moments, weights)
        return optax.apply_updates(weights, changes), moments

    ready: Callable[[Any], Any] = jax.block_until_ready

    def step() -> None:
        state[:] = ready(update(*state))

    return step


def _load_run(folder: Path) -> Step:
    import stsbp

    run = stsbp.load_run(folder / "run", backend="torch")
    images = (np.random.default_rng(0).random((SAMPLES, *run.network.input_shape)) * 255).astype(np.uint8)
    return lambda: run.predict(images)


LOOPS: dict[str, Callable[[Path], Step]] = {
    "layers": _layers,
    "Network": _whole_network,
    "trainer": partial(_trainer, name="torch"),
    "trainer, cpu": partial(_trainer, name="cpu"),
    "trainer, jax": partial(_trainer, name="jax"),
    "jax": _jax_loop,
    "load_run": _load_run,
}
"""The name of each loop, and what prepares it. The folder holds a trained run."""


def looping(name: str, folder: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The process of a loop: it answers `steps COUNT` with the seconds of each."""
    if name not in ("trainer, cpu", "trainer, jax", "jax"):
        import torch  # noqa: F401 - before this project, as users do
    step = LOOPS[name](Path(folder))

    def steps(number: int) -> dict[str, list[float]]:
        times = [time.perf_counter()]
        for _ in range(number):
            step()
            times.append(time.perf_counter())
        return {"seconds": np.diff(times).tolist()}

    steps(20)
    return {}, {"steps": steps}


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Processes that compute without a pause."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def turn(worker: Worker, steps: int, seconds: list[float]) -> float:
    """Add the seconds of so many steps to those of the turns before; their sum."""
    answer = worker.ask("steps", steps)["seconds"]
    seconds += answer
    return float(sum(answer))


def measure(names: list[str], crowds: list[int], *, rounds: int, steps: int, folder: Path) -> list[dict[str, Any]]:
    """Time each loop with and without the variable, in turn, beside so many busy processes.

    Args:
        names: keys of `LOOPS`.
        crowds: numbers of busy processes.
        rounds: turns of each of the two processes.
        steps: steps of a turn.
        folder: where the trained run and the output of the processes go.

    Raises:
        WorkerError: a loop does not run.
    """
    environment = {name: value for name, value in os.environ.items() if name not in POLICIES}
    if "load_run" in names:
        train = ["--backend", "torch", "train", "digits", "--epochs", "1", "--out", str(folder / "run"), "--overwrite"]
        subprocess.run([sys.executable, "-m", "stsbp", *train], check=True, capture_output=True, env=environment)
    rows = []
    for name in names:
        with ExitStack() as stack:
            workers = {}
            for kind, variables in (("reference", {"OMP_WAIT_POLICY": "PASSIVE"}), ("plain", {})):
                command = [sys.executable, __file__, "--serve", name, folder]
                worker = Worker(f"the loop {name}", command, folder / f"{kind}.log", environment | variables)
                workers[kind] = stack.enter_context(worker).wait(_PATIENCE)
            for crowd in crowds:
                seconds: dict[str, list[float]] = {kind: [] for kind in workers}
                turns = {kind: partial(turn, workers[kind], steps, seconds[kind]) for kind in workers}
                with busy(crowd):
                    alternated(turns, rounds=rounds)
                rows.append({"loop": name, "busy": crowd, **{kind: summary(x) for kind, x in seconds.items()}})
                print(f"{name}, {crowd} busy", file=sys.stderr, flush=True)
    return rows


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and 90th percentile, in milliseconds."""
    median, slow = np.percentile(np.array(seconds) * 1e3, [50, 90])
    return {"median": float(median), "p90": float(slow)}


def ratios(row: dict[str, Any]) -> list[float]:
    """Plain to reference, of the median and of the slowest tenth."""
    return [row["plain"][key] / row["reference"][key] for key in ("median", "p90")]


def loop_table(rows: list[dict[str, Any]]) -> str:
    """The report as Markdown."""
    cells = []
    for row in rows:
        times = [f"{row[kind][key]:.1f}" for kind in ("plain", "reference") for key in ("median", "p90")]
        cells.append((row["loop"], row["busy"], *times, *(f"{ratio:.2f}" for ratio in ratios(row))))
    return table(COLUMNS.split(", "), cells)


def main(arguments: list[str] | None = None) -> int:
    """Read the command line, measure, print a table. Exit code 1: a ratio is above its limit."""
    parser = parser_of(__doc__, "rounds", "out")
    parser.add_argument("--loops", nargs="+", choices=LOOPS, default=list(LOOPS), help="which loops")
    parser.add_argument("--busy", nargs="+", type=int, default=[0, 2, 4], help="numbers of busy processes")
    parser.add_argument("--steps", type=int, default=40, help="steps of a turn")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options.loops, options.busy, rounds=options.rounds, steps=options.steps, folder=Path(folder))
    print(loop_table(rows))
    write_report(options.out, None, {"rounds": options.rounds, "steps": options.steps}, rows=rows)
    return int(any(max(ratios(row)) > 1.5 if row["busy"] else ratios(row)[0] > 1.2 for row in rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(lambda: looping(*sys.argv[2:]))
    else:
        sys.exit(guarded(main))
