"""`stsbp benchmark`: what it measures and reports, on tiny sizes. Times themselves are not tested."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from rich.console import Console
from stsbp.benchmarks import cases, data, device, floor, kernels, memory, show, startup, step
from stsbp.benchmarks.cases import BenchmarkRun, Case, prepare
from stsbp.benchmarks.result import Report, Row
from stsbp.benchmarks.show import remarks
from stsbp.benchmarks.timing import Timing, alternated, interleaved
from stsbp.errors import StsbpError
from stsbp.training.build import Inputs
from stsbp_spec.models.encoders.packed import unpacked
from stsbp_spec.registry import open_backend

TINY = (
    Case("N-MNIST", "nmnist", "digits-events", "2C5-P2", Inputs((2, 34, 34), "events", tuple("0123456789")), 3, 4),
    Case("CIFAR-10", "cifar10", "digits", "2C3-P4-8", Inputs((3, 32, 32), "direct", tuple("0123456789")), 2, 4),
)


@pytest.fixture
def tiny_cases(few_recordings: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, Case]:
    """Networks that take milliseconds."""
    named = {case.name: case for case in TINY}
    for module in (cases, step, data, memory):
        monkeypatch.setattr(module, "CASES", named)
    return named


def silent(_: str) -> None:
    """A listener that does not care."""


def test_work_is_taken_in_turn_after_the_warm_up() -> None:
    order: list[str] = []
    times = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, warmup=1)
    assert order == ["a", "b", "b", "a"] * 2
    assert [len(t.seconds) for t in times.values()] == [3, 3]
    order.clear()
    ticks = iter(range(100))

    def turn(name: str) -> int:
        order.append(name)
        return next(ticks)

    turns = alternated({name: partial(turn, name) for name in "abc"}, rounds=3)
    assert "".join(order) == "abcbcacab", "each comes once at each place"
    assert {name: timing.seconds for name, timing in turns.items()} == {"a": (0, 5, 7), "b": (1, 3, 8), "c": (2, 4, 6)}
    clock = iter((0.0, 4.0))
    assert interleaved({"a": order.clear}, rounds=1, warmup=0, clock=lambda: next(clock))["a"].seconds == (4.0,)
    with pytest.raises(ValueError, match="at least one round"):
        interleaved({}, rounds=0)


def test_a_timing_reports_median_and_quartiles() -> None:
    summary = Timing((5.0, 1.0, 2.0, 4.0, 3.0)).to_json()
    assert summary == {"median": 3.0, "low": 2.0, "high": 4.0, "least": 1.0, "runs": 5}
    assert Timing.ratios(Timing((3.0, 8.0)), Timing((2.0, 4.0))).seconds == (1.5, 2.0)
    with pytest.raises(ValueError):
        Timing.ratios(Timing((3.0, 8.0)), Timing((2.0,)))
    assert Timing((2.0,)).to_json() == {"median": 2.0, "low": 2.0, "high": 2.0, "least": 2.0, "runs": 1}


@pytest.mark.parametrize(("name", "calls"), [("cpu", 1), ("host", 1), ("cuda", 10), ("cuda:1", 10), ("gpu:0", 10)])
def test_calls_are_queued_on_a_device_that_works_by_itself(name: str, calls: int) -> None:
    backend = open_backend("numpy")
    backend.device = name
    assert device.queued(backend) == calls


def test_a_queue_of_calls_is_timed_and_its_share_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, called = open_backend("numpy"), list[str]()

    def counted(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            called.append(name)
            return method(*arguments)

        return call

    for name in ("neuron_forward", "neuron_backward"):
        monkeypatch.setattr(backend, name, counted(name, getattr(backend, name)))
    monkeypatch.setattr(kernels, "queued", lambda _: 4)
    monkeypatch.setattr(kernels, "SIZES", ((2, 30),))

    def once(work: dict[str, Callable[[], object]], *, rounds: int) -> dict[str, Timing]:
        for run in work.values():
            run()
        return {name: Timing((8.0,)) for name in work}

    monkeypatch.setattr(kernels, "interleaved", once)
    rows = kernels.measure(backend, scale=1.0, rounds=1, announce=silent)
    assert [row.timing for row in rows] == [Timing((2.0,))] * 3
    assert (called.count("neuron_forward"), called.count("neuron_backward")) == (1 + 4, 4)


def test_the_copy_copies_everything_and_says_how_much() -> None:
    copy, moved = device.copier(open_backend("numpy"), 1001)
    assert moved == 8 * 1001
    copy()
    copied = np.zeros(1001, np.float32)
    source = np.arange(1001, dtype=np.float32)
    device.threaded_copy(source, copied)()
    np.testing.assert_array_equal(copied, source)


def test_kernels_count_the_bytes_that_must_move() -> None:
    rows = kernels.measure(open_backend("numpy"), scale=0.0001, rounds=2, announce=silent)
    assert [row.what for row in rows] == ["copy", "lif forward", "lif backward"] * 3
    assert rows[1].case == "T=4 N=200"
    assert [row.detail["bytes"] for row in rows[1:3]] == [9 * 4 * 200, 13 * 4 * 200]
    for copy, forward, backward in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        assert 0.02 < forward.detail["spike_rate"] < 0.5, "the neurons must neither be silent nor saturated"
        for row in (forward, backward):
            assert row.ratio == pytest.approx(row.detail["bytes_per_second"] / copy.detail["bytes_per_second"])


@pytest.mark.parametrize("name", ["N-MNIST", "CIFAR-10"])
def test_a_step_learns_on_inputs_that_spike(tiny_cases: dict[str, Case], name: str) -> None:
    backend = open_backend("numpy")
    task, resident = prepare(tiny_cases[name], backend, scale=1.0, surrogate=None, data_dir=None)
    assert len({unpacked(batch.inputs).tobytes() for batch in resident.batches}) == 4
    run = BenchmarkRun(task, resident.batches)
    first_state = run.task.trainer.export_state(run.state)
    run()
    last_state = run.task.trainer.export_state(run.state)
    assert any(
        not np.array_equal(first_state[key], last_state[key]) for key in first_state if key.startswith("weight/")
    )
    assert next(iter(run.rates.values())) > 0.001


def test_the_step_is_measured(tiny_cases: dict[str, Case], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "_memory", lambda *_: {"peak_bytes": 5000, "growth_bytes": 0})
    rows = step.measure(
        open_backend("numpy"), scale=1.0, rounds=1, data_dir=None, surrogate="triangle", announce=silent
    )
    timed = [row for row in rows if row.what == "training step"]
    assert [row.case for row in timed] == ["2C5-P2-10 T=3 B=4", "2C3-P4-8-10 T=2 B=4"]
    assert all(row.detail["surrogate"] == "triangle" for row in timed)
    saved_bytes = [row.detail["kept_bytes"] for row in rows if row.what == "memory"]
    # Inputs 3 x 4 x 2 x 34 x 34; u and spikes of 2 x 30 x 30 and 10 neurons.
    assert saved_bytes[0] == 3 * 4 * 2 * 34 * 34 + 5 * 3 * 4 * (2 * 30 * 30 + 10)
    # numpy has no dense floor, since that is written in torch.
    assert all(row.what != "dense floor" and (row.what != "training step" or row.ratio is None) for row in rows)


def test_the_step_of_torch_is_compared_with_the_dense_floor(
    tiny_cases: dict[str, Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "_memory", lambda *_: {"peak_bytes": 5000, "growth_bytes": 0})
    pytest.importorskip("stsbp_torch")
    rows = step.measure(open_backend("torch"), scale=1.0, rounds=1, data_dir=None, surrogate=None, announce=silent)
    timed = [row for row in rows if row.what == "training step"]
    floors = [row for row in rows if row.what == "dense floor"]
    assert timed[0].timing is not None
    assert floors[0].timing is not None
    assert timed[0].ratio == pytest.approx(timed[0].timing.median / floors[0].timing.median)


def test_the_command_costs_nothing_until_it_is_called_and_imports_no_other_framework() -> None:
    program = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from stsbp.cli import cli\n"
        "assert CliRunner().invoke(cli, ['--help']).exit_code == 0\n"
        "assert not [name for name in sys.modules if name.startswith(('stsbp.benchmarks', 'stsbp.cli.benchmark'))]\n"
        "from stsbp.benchmarks import cases, kernels, step\n"
        "from stsbp.training.build import Inputs\n"
        "from stsbp_spec import open_backend\n"
        "inputs = Inputs((3, 32, 32), 'direct', tuple('0123456789'))\n"
        "step.CASES = {'tiny': cases.Case('CIFAR-10', 'cifar10', 'digits', '2C3-P4-8', inputs, 2, 4)}\n"
        "step._memory = lambda *_: {'peak_bytes': 1, 'growth_bytes': 0}\n"
        "arguments = {'scale': 0.001, 'rounds': 1, 'announce': print}\n"
        "kernels.measure(open_backend('numpy'), **arguments)\n"
        "step.measure(open_backend('numpy'), data_dir=None, surrogate=None, **{**arguments, 'scale': 1.0})\n"
        "assert not {'torch', 'jax', 'cupy', 'numba', 'triton'} & set(sys.modules), sorted(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_first_update_is_timed_until_its_metrics_are_there() -> None:
    program = (
        "import pathlib, sys, time\n"
        "run = pathlib.Path(sys.argv[2]); run.mkdir(); file = run / 'metrics.jsonl'\n"
        "file.touch(); time.sleep(0.2); file.write_text('{}'); time.sleep(60)\n"
    )
    began = time.perf_counter()
    seconds = startup._first_update([sys.executable, "-c", program], dict(os.environ))
    assert 0.2 < seconds <= time.perf_counter() - began < 30
    with pytest.raises(StsbpError, match=r"did not reach its first update: no such thing$"):
        startup._first_update([sys.executable, "-c", "raise SystemExit('no such thing')"], dict(os.environ))


def test_the_dense_floor_is_the_network_without_neurons(
    tiny_cases: dict[str, Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    for case in tiny_cases.values():
        task, resident = prepare(case, open_backend("numpy"), scale=1.0, surrogate=None, data_dir=None)
        weights = BenchmarkRun(task, resident.batches).weights
        batch = resident.batches[0]
        outputs: list[Any] = []
        monkeypatch.setattr(torch.autograd, "backward", lambda x, _, outputs=outputs: outputs.append(x))
        floor.dense_floor(task.network, weights, batch)()
        # The reference's own convolution, pooling and product, one after another.
        reference = open_backend("numpy")
        s = reference.encode(unpacked(batch.inputs), task.network.coding)
        s = np.repeat(s, len(batch.targets), 0) if task.network.coding == "direct" else s
        for block in task.network.blocks:
            for layer, _ in block.entering:
                s, _ = reference.rule(layer).forward(layer, s)
            s, _ = reference.rule(block.synapse).forward(block.synapse, s, weights[block.name])
        np.testing.assert_allclose(outputs[0].detach().numpy(), s.reshape(-1, 10), rtol=1e-3, atol=1e-4)


def test_data_compares_the_loader_with_memory(tiny_cases: dict[str, Case], few_recordings: int) -> None:
    activities: list[str] = []
    rows = data.measure(open_backend("numpy"), scale=0.1, rounds=1, data_dir=None, announce=activities.append)
    assert activities == ["loading, first time", "loading, from the cache", "updates with and without the loader"]
    assert [row.what for row in rows] == [
        "load, first time",
        "load, from the cache",
        "10 updates, loader",
        "10 updates, in memory",
        "10 batches, loading alone",
    ]
    assert all(row.timing is not None for row in rows)
    assert rows[2].ratio is not None
    assert rows[2].floor == "in memory"
    # A pixel takes a bit a step, in whole bytes; labels and description come on top.
    recording = -(-tiny_cases["N-MNIST"].steps // 8) * 2 * 34 * 34
    assert 0 < rows[1].detail["cache_bytes"] - few_recordings * recording < 20_000
    assert rows[4].detail["batch_bytes"] % recording == 0
    texts = remarks(rows[1].detail), remarks(rows[4].detail)
    assert "MB on disk for" in texts[0]
    assert texts[1].endswith("MB per batch")


def test_memory_prints_a_line_of_json(tiny_cases: dict[str, Case], capsys: pytest.CaptureFixture[str]) -> None:
    memory.main("numpy", "cpu", "N-MNIST", "1", "", "low")
    figures = json.loads(capsys.readouterr().out)
    assert set(figures) == {"before_bytes", "peak_bytes", "growth_bytes"}
    if figures["peak_bytes"] is not None:
        assert figures["peak_bytes"] >= 0
        assert figures["growth_bytes"] >= 0


def test_a_failing_memory_process_is_an_error() -> None:
    backend = open_backend("numpy")
    with pytest.raises(StsbpError, match=r"process that measures memory failed.*nosuch"):
        step._memory(backend, replace(TINY[0], name="nosuch"), 1.0, None, "full")


def test_the_command_prints_and_writes_its_report(stsbp: Callable[..., Result], tmp_path: Path) -> None:
    result = stsbp("benchmark", "kernels", "--scale", "0.0001", "--rounds", "2", "--json", tmp_path / "k.json")
    assert result.exit_code == 0, result.output
    assert "lif forward" in result.output
    assert "of copy" in result.output
    report = json.loads((tmp_path / "k.json").read_text())
    assert report["format"] == 1
    assert len(report["rows"]) == 9
    machine = report["machine"]
    assert machine["backend"] == "numpy"
    assert machine["versions"]["numpy"]
    assert machine["date"]
    assert machine["settings"]["scale"] == 0.0001
    assert machine["settings"]["rounds"] == 2
    assert report["rows"][1]["seconds"]["runs"] == 2


def test_a_plot_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = pytest.importorskip("matplotlib.figure")
    drawn: list[Any] = []
    save = figures.Figure.savefig

    def saved(figure: Any, *arguments: Any, **options: Any) -> None:
        drawn.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(figures.Figure, "savefig", saved)
    machine = device.describe(open_backend("numpy"), {})
    rows = [
        Row("kernels", "T=4", "copy", Timing((1e-3, 2e-3))),
        Row("kernels", "T=4", "lif forward", Timing((2e-3, 3e-3)), "copy", 0.5),
        Row("step", "net", "memory", None, "kept", 1.0, {"peak_bytes": 1, "kept_bytes": 1, "growth_bytes": 0}),
        Row("data", "d", "load, first time", Timing((12.0,))),
    ]
    report = Report(machine, rows)
    show.plot(report, tmp_path / "b.png")
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    bars = [[patch.get_width() for patch in panel.patches] for panel in drawn[0].axes]
    assert [panel.get_xlabel() for panel in drawn[0].axes] == ["ms", "ms"]
    assert bars == [pytest.approx([2.5, 1.5]), pytest.approx([12e3])]
    console = Console(width=120, record=True, file=io.StringIO())
    show.print_report(report, console)
    text = console.export_text()
    assert "50% of copy" in text
    assert text.startswith(f"backend numpy on cpu: {machine['processor']}"[:60])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("kernels", "--surrogate", "arctan"), "--surrogate applies only to step, not to kernels; leave it out"),
        (("data", "--surrogate", "arctan"), "--surrogate applies only to step, not to data"),
        (("kernels", "--data-dir", "."), "--data-dir applies only to step and data, not to kernels"),
        (("startup", "--data-dir", "."), "--data-dir applies only to step and data, not to startup"),
        (("all", "--surrogate", "nonsense"), "--surrogate nonsense: "),
        (("kernels", "--json", "b.png", "--plot", "./b.png"), "--json and --plot would write the same file b.png"),
    ],
)
def test_the_command_refuses_before_anything_is_measured(
    stsbp: Callable[..., Result],
    refused: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    says: str,
) -> None:
    monkeypatch.setattr("stsbp.plots.check_plots", lambda: None)
    monkeypatch.setattr("stsbp.cli.benchmark.choose_backend", None)
    refused(stsbp("benchmark", *arguments), says)


def test_a_plot_without_matplotlib_is_refused_before_anything_is_measured(
    stsbp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = stsbp("benchmark", "kernels", "--plot", "b.png")
    assert result.exit_code == 1
    assert 'pip install "stsbp[plots]"' in result.output
