"""Steps of a training loop of one's own, with and without `OMP_WAIT_POLICY`: `python benchmarks/waiting.py`.

Each loop trains a small network (`load_run`: predicts with one): T = 60, 20 samples, five layers of 64 neurons. Two
processes run it in turn: in `reference`, `OMP_WAIT_POLICY=PASSIVE` is set before Python starts; in `plain`, no variable
is set and torch is imported first. Busy processes, such as workers of a data loader, compute without a pause beside
them. Good is a ratio of plain to reference of at most 1.2 on an idle machine, and of at most 1.5 for the median and for
the slowest tenth beside busy processes. The loop `trainer` computes what `stsbp train` computes in a step.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from compare import Worker
from options import guarded, parser_of, write_report
from stsbp.errors import StsbpError

__all__ = ["LOOPS", "main", "measure"]

STEPS, SAMPLES, NEURONS, LAYERS = 60, 20, 64, 5
POLICIES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_BUSY = "while True: pass"
_PATIENCE = 900.0

Step = Callable[[], object]


def _arrays() -> tuple[Any, Any]:
    generator = np.random.default_rng(0)
    inputs, targets = (generator.random((2, STEPS, SAMPLES, NEURONS)) < 0.1).astype(np.uint8)
    return inputs, targets


def _network() -> Any:
    from stsbp_spec import NetworkSpec

    return NetworkSpec.parse("-".join([str(NEURONS)] * (LAYERS - 1)), input_shape=(NEURONS,), outputs=NEURONS)


def _torch_loop(network: Any, output: Callable[[Any, Any], Any]) -> Step:
    import torch
    from stsbp_torch import VanRossum, spike_loss

    inputs, targets = map(torch.from_numpy, _arrays())
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    psp = _network().output_psp

    def step() -> None:
        optimizer.zero_grad()
        loss: Any = spike_loss(VanRossum(), output(network, inputs), targets, psp=psp)
        loss.backward()
        optimizer.step()

    return step


def _layers(_: Path) -> Step:
    import torch
    from stsbp_torch import SpikingLinear

    def output(layers: Any, spikes: Any) -> Any:
        for layer in layers:
            spikes = layer(spikes)
        return spikes

    psp = _network().output_psp
    layers = [SpikingLinear(NEURONS, NEURONS, psp=psp) for _ in range(LAYERS)]
    return _torch_loop(torch.nn.ModuleList(layers), output)


def _whole_network(_: Path) -> Step:
    from stsbp_torch import Network

    return _torch_loop(Network(_network()), lambda network, inputs: network(inputs, STEPS))


def _trainer(name: str) -> Callable[[Path], Step]:
    def loop(_: Path) -> Step:
        from stsbp_spec import AdamW, Batch, VanRossum, initial_weights, open_backend

        trainer = open_backend(name).trainer(_network(), VanRossum(), AdamW(lr=1e-3))
        state = [trainer.init(initial_weights(_network(), seed=0))]
        batch = Batch(*_arrays())

        def step() -> None:
            state[0], _ = trainer.step(state[0], batch)

        return step

    return loop


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
    "trainer": _trainer("torch"),
    "trainer, cpu": _trainer("cpu"),
    "trainer, jax": _trainer("jax"),
    "jax": _jax_loop,
    "load_run": _load_run,
}
"""The name of each loop, and what prepares it. The folder holds a trained run."""


def work(name: str, folder: Path) -> None:
    """Serve a loop: for each number on standard input, a line with the seconds of so many steps."""
    if name not in ("trainer, cpu", "trainer, jax", "jax"):
        import torch  # noqa: F401 - before this project, as users do
    step = LOOPS[name](folder)
    for _ in range(20):
        step()
    print("{}", flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            began = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - began)
        print(json.dumps({"seconds": seconds}), flush=True)


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Processes that compute without a pause."""
    processes = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(names: list[str], crowds: list[int], *, rounds: int, steps: int, folder: Path) -> list[dict[str, Any]]:
    """Time each loop with and without the variable, in turn, beside so many busy processes.

    Args:
        names: keys of `LOOPS`.
        crowds: numbers of busy processes.
        rounds: turns of each of the two processes.
        steps: steps of a turn.
        folder: where the trained run and the output of the processes go.

    Raises:
        StsbpError: a loop does not run.
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
                command = [sys.executable, __file__, "--serve", name, "--folder", str(folder)]
                log = folder / f"{kind}.log"
                workers[kind] = Worker.start(command, environment | variables, name, kind, log)
                stack.callback(workers[kind].stop)
                workers[kind].wait(_PATIENCE)
                if workers[kind].problem is not None:
                    raise StsbpError(f"the loop {name} does not run: {workers[kind].problem}")
            for crowd in crowds:
                seconds: dict[str, list[float]] = {kind: [] for kind in workers}
                with busy(crowd):
                    for number in range(rounds):
                        for kind in sorted(workers, reverse=bool(number % 2)):
                            seconds[kind] += workers[kind].ask(str(steps))["seconds"]
                rows.append({"loop": name, "busy": crowd, **{kind: summary(x) for kind, x in seconds.items()}})
                print(line_of(rows[-1]), flush=True)
    return rows


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and 90th percentile, in milliseconds."""
    median, slow = np.percentile(np.array(seconds) * 1e3, [50, 90])
    return {"median": float(median), "p90": float(slow)}


def line_of(row: dict[str, Any]) -> str:
    """A row of the table."""
    plain, reference = row["plain"], row["reference"]
    ratios = [plain[key] / reference[key] for key in ("median", "p90")]
    times = [f"{x[key]:.1f}" for x in (plain, reference) for key in ("median", "p90")]
    cells = [row["loop"], str(row["busy"]), *times, *(f"{ratio:.2f}" for ratio in ratios)]
    return f"| {' | '.join(cells)} |"


def main(arguments: list[str] | None = None) -> int:
    """Read the command line, measure, print a table. Exit code 1: a ratio is above its limit."""
    parser = parser_of(__doc__, "rounds", "out")
    parser.add_argument("--loops", nargs="+", choices=LOOPS, default=list(LOOPS), help="which loops")
    parser.add_argument("--busy", nargs="+", type=int, default=[0, 2, 4], help="numbers of busy processes")
    parser.add_argument("--steps", type=int, default=40, help="steps of a turn")
    parser.add_argument("--serve", choices=LOOPS, help="be the process of a loop")
    parser.add_argument("--folder", type=Path, help="with --serve: the folder of the trained run")
    options = parser.parse_args(arguments)
    if options.serve is not None:
        work(options.serve, options.folder)
        return 0
    print(
        "| loop | busy processes | plain, ms | slowest tenth | reference, ms | slowest tenth | ratio | slowest tenth |"
    )
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options.loops, options.busy, rounds=options.rounds, steps=options.steps, folder=Path(folder))
    write_report({"format": 1, "rows": rows}, options.out)
    limits = [1.5 if row["busy"] else 1.2 for row in rows]
    ratios = [
        max(row["plain"][key] / row["reference"][key] for key in (("median", "p90") if row["busy"] else ("median",)))
        for row in rows
    ]
    return int(any(ratio > limit for ratio, limit in zip(ratios, limits, strict=True)))


if __name__ == "__main__":
    sys.exit(guarded(main))
