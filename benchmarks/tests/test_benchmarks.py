"""The scripts in benchmarks/, on tiny sizes: structure and arithmetic, never times."""

from __future__ import annotations

import json
import math
import platform
import re
import shutil
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from click.testing import CliRunner
from stsbp.benchmarks import cases, device, kernels
from stsbp.benchmarks.cases import Case
from stsbp.benchmarks.result import Report
from stsbp.cli import cli
from stsbp.errors import StsbpError
from stsbp.training.build import Inputs
from stsbp_spec.distributed.collective import Alone
from stsbp_spec.engine.kernel_cache import cache_root
from stsbp_spec.registry import open_backend

BENCHMARKS = Path(__file__).parents[1]
sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS / "gpu"), str(BENCHMARKS / "peers")]

# The scripts are found on the path above.
import beside  # noqa: E402
import beside_worker  # noqa: E402
import check  # noqa: E402
import compare  # noqa: E402
import host_calls  # noqa: E402
import interop_c  # noqa: E402
import metadata  # noqa: E402
import options  # noqa: E402
import parts  # noqa: E402
import processes  # noqa: E402
import processes_worker  # noqa: E402
import scaling  # noqa: E402
import waiting  # noqa: E402
from problem import Problem  # noqa: E402

TEN = tuple("0123456789")
TINY = Case("CIFAR-10", "cifar10", "digits", "2C3-P4-8", Inputs((3, 32, 32), "direct", TEN), 3, 4)


def ratios(forward: float, step: float) -> dict[str, Any]:
    """A report of `stsbp benchmark` with two ratios and what is not compared."""
    rows = [
        {"what": "lif forward", "case": "T=4", "ratio": forward},
        {"what": "training step", "case": "net", "ratio": step},
        {"what": "memory", "case": "net", "ratio": 9.0},
        {"what": "copy", "case": "T=4", "ratio": None},
    ]
    return {"rows": rows}


def test_the_guard_compares_ratios_in_the_right_direction() -> None:
    stored = ratios(0.8, 1.0)
    assert check.worse(stored, ratios(0.8, 1.0), 0.25) == []
    assert check.worse(stored, ratios(2.0, 0.1), 0.25) == [], "what got better is not worse"
    assert check.worse(stored, ratios(0.65, 1.24), 0.25) == [], "within the band"
    assert len(check.worse(stored, ratios(0.6, 1.0), 0.25)) == 1
    assert check.worse(stored, ratios(0.8, 1.3), 0.25) == [
        "training step, net: 1.30, was 1.00 (30% worse, 25% allowed)"
    ]
    with pytest.raises(ValueError, match="no measurement in common"):
        check.worse(stored, {"rows": []}, 0.25)


@pytest.mark.parametrize("name", ["torch-cpu.json"])
def test_the_guard_reads_the_stored_results(name: str) -> None:
    path = BENCHMARKS / "results" / name
    if not path.is_file():
        pytest.skip(f"no stored results {name}")
    stored = json.loads(path.read_text())
    assert {name_of_ratio for name_of_ratio, _ in check.ratios(stored)} == set(check.RATIOS)
    assert stored["machine"]["settings"]["scale"] == 1.0


def test_the_guard_fails_after_two_bad_measurements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = {"settings": {}, "processor": "p", "versions": {"torch": "1"}, "date": "2026-01-01T00:00:00"}
    path = tmp_path / "torch-cpu.json"
    path.write_text(json.dumps({**ratios(0.8, 1.0), "machine": machine}))
    answers = [ratios(0.8, 2.0), ratios(0.8, 1.0), ratios(0.8, 2.0), ratios(0.8, 2.0)]
    monkeypatch.setattr(check, "measure", lambda *_: {**answers.pop(0), "machine": machine})
    assert check.main(["--stored", str(path)]) == 0, "one bad measurement is taken again"
    assert check.main(["--stored", str(path)]) == 1
    assert answers == []


def test_the_guard_says_what_to_do_without_stored_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(["--stored", str(tmp_path / "nosuch.json")]) == 2
    assert "stsbp benchmark --json" in capsys.readouterr().err


def test_exponents_are_slopes() -> None:
    assert scaling.exponent([1, 2, 4], [3, 6, 12]) == pytest.approx(1)
    assert scaling.exponent([1, 2, 4], [1, 4, 16]) == pytest.approx(2)


@pytest.mark.parametrize("axis", ["T", "depth"])
def test_scaling_measures_every_size_of_an_axis(axis: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(scaling.AXES, axis, scaling.AXES[axis][:3])
    monkeypatch.setattr(scaling, "BASE", {"T": 8, "B": 2, "C": 4, "depth": 1, "density": 0.1})
    measured = scaling.measure(open_backend("numpy"), axis, rounds=1, shrink=2)
    assert len(measured["seconds"]) == 3
    assert len(measured["local"]) == 2
    assert all(next(iter(rates.values())) > 0 for rates in measured["rates"]), "the first layer is silent"
    assert scaling.table(measured).count("|") == 6


def test_large_sizes_are_measured_with_their_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = {"T": 4, "B": 2, "C": 2, "depth": 1, "density": 0.1}
    monkeypatch.setattr(scaling, "LARGE", {"N": (base, (100.0, 500.0))})
    out = tmp_path / "large.json"
    scaling.main(
        ["--large", "--axes", "N", "--backend", "numpy", "--rounds", "1", "--memory", "low", "--out", str(out)]
    )
    report = json.loads(out.read_text())
    (axis,) = report["axes"]
    assert report["machine"]["settings"]["memory"] == "low"
    # 2 channels of 8 x 8 and of 16 x 16 pixels, and 10 neurons; inputs of 2 channels.
    kept_bytes = [4 * 2 * (2 * side**2 + 5 * (2 * side**2 + 10)) for side in (8, 16)]
    assert axis["kept_bytes"] == kept_bytes
    assert all(seconds["median"] > 0 for seconds in axis["seconds"])
    assert all(rates["conv1"] > 0 for rates in axis["rates"])
    rows = capsys.readouterr().out.splitlines()[-3:]
    for row, begin in zip(rows, ("| N | 100 | ", "| N | 500 | ", "| N | straight line | "), strict=True):
        assert row.startswith(begin)
        assert row.count("|") == scaling.LARGE_HEAD.splitlines()[0].count("|")
    exponent = math.log(axis["seconds"][1]["median"] / axis["seconds"][0]["median"]) / math.log(5)
    assert f"| {exponent:.2f} |" in rows[1]


@pytest.mark.parametrize(
    "arguments", [["--axes", "N"], ["--large", "--axes", "C"], ["--memory", "low"]], ids=["N", "C", "memory"]
)
def test_scaling_refuses_what_belongs_to_other_sizes(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        scaling.main(["--backend", "numpy", *arguments])


@pytest.fixture
def tiny_problem(monkeypatch: pytest.MonkeyPatch) -> Problem:
    """A small network on four digits."""
    monkeypatch.setitem(cases.CASES, TINY.name, TINY)
    problem, source = compare.make_problem(TINY, scale=1.0, data_dir=None, device=None)
    assert source == "digits, enlarged"
    return problem


def test_a_problem_is_read_as_it_was_written(tiny_problem: Problem, tmp_path: Path) -> None:
    tiny_problem.write(tmp_path / "p.npz")
    read = Problem.read(tmp_path / "p.npz")
    assert [layer["kind"] for layer in read.layers] == ["conv", "pool", "linear", "linear"]
    assert read.frames.shape == (3, 4, 3, 32, 32)
    assert read.layers == tiny_problem.layers
    for name, w in tiny_problem.weights.items():
        np.testing.assert_array_equal(read.weights[name], w)
    assert (read.steps, read.tau_m, read.tau_s, read.lr) == (3, 5.0, 3.0, 1e-3)


def test_a_comparison_names_what_does_not_run(tiny_problem: Problem, tmp_path: Path) -> None:
    # The worker looks the case up by its name, so the network of this run is the full one: keep the batch small.
    problem, _ = compare.make_problem(Case(**{**vars(TINY), "net": "2C3-P4-8"}), scale=1.0, data_dir=None, device=None)
    interpreter = Path(sys.executable)
    records = compare.compare(problem, [(interpreter, "nosuch", "plain")], rounds=1, logs=tmp_path)
    problem_found = "exit code 1: ModuleNotFoundError: No module named 'peer_nosuch'"
    assert records == [{"name": "nosuch", "mode": "plain", "problem": problem_found}]
    assert "not timed: exit code 1" in compare.table(records)


def test_a_worker_that_takes_too_long_is_given_up(tiny_problem: Problem, tmp_path: Path) -> None:
    interpreter = Path(sys.executable)
    records = compare.compare(tiny_problem, [(interpreter, "stsbp", "floor")], rounds=1, logs=tmp_path, patience=0.01)
    assert [record["problem"] for record in records] == ["not ready after 0 s"]


def test_parts_add_up(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(cases.CASES, "CIFAR-10", TINY)
    parts.measure("numpy", None, "CIFAR-10", rounds=1, scale=1.0, data_dir=None)
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.endswith(" ms")]
    ms = {" ".join(cells[:-2]): float(cells[-2]) for cells in lines}
    populations = sum(ms[f"neurons{i} forward"] for i in (1, 2, 3))
    # Each is printed to a hundredth of a millisecond.
    assert 0 < ms["population_forward"] <= populations + 4 * 0.005
    steps = sum(value for part, value in ms.items() if part.endswith((" forward", " backward")))
    assert ms["population_forward"] < steps < ms["step by parts"]


def test_a_prediction_is_divided_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(cases.CASES, "CIFAR-10", TINY)
    parts.measure("numpy", None, "CIFAR-10", rounds=1, scale=1.0, data_dir=None, work="prediction")
    out = capsys.readouterr().out
    assert "own prediction" in out
    assert "prediction by parts" in out
    assert "neurons2 forward" in out
    assert "backward" not in out


def test_the_torch_network_of_the_peers_is_the_network(tiny_problem: Problem) -> None:
    torch = pytest.importorskip("torch")
    torch_network = pytest.importorskip("torch_network")
    fired: list[Any] = []

    class Threshold(torch.nn.Module):  # type: ignore[misc,name-defined]
        def forward(self, z: Any) -> Any:
            fired.append(z.shape)
            return (z > 0.1).float()

    for batch_first in (False, True):
        fired.clear()
        network = torch_network.TorchNetwork(tiny_problem, lambda _: Threshold(), gain=1.0, batch_first=batch_first)
        x = torch.from_numpy(tiny_problem.frames).float() * tiny_problem.input_scale
        x = (
            (x.transpose(0, 1) if batch_first else x)
            .reshape(-1, 3, 32, 32)
            .contiguous(memory_format=torch.channels_last)
        )
        out, layers = network(x)
        lead = (4, 3) if batch_first else (3, 4)
        assert [tuple(shape) for shape in fired] == [(*lead, 32, 32, 2), (*lead, 8), (*lead, 10)]
        weights = {name: torch.from_numpy(w) for name, w in tiny_problem.weights.items()}
        s = (torch.nn.functional.conv2d(x, weights["conv1"], padding=1) > 0.1).float()
        s = torch.nn.functional.avg_pool2d(s, 4).flatten(1)
        for name in ("linear2", "linear3"):
            s = (s @ weights[name].T > 0.1).float()
        torch.testing.assert_close(out.reshape(-1, 10), s)
        assert len(layers) == 3


def test_metadata_makes_a_checkout_importable_without_installing(tmp_path: Path) -> None:
    from importlib.metadata import distributions

    metadata.main(str(tmp_path))
    installed = {d.metadata["Name"]: d for d in distributions(path=[str(tmp_path)])}
    assert {"stsbp", "stsbp-spec", "stsbp-torch", "stsbp-conformance"} <= set(installed)
    points = {(p.group, p.name): p.value for p in installed["stsbp-torch"].entry_points}
    assert points == {("stsbp.backends", "torch"): "stsbp_torch.backend:TorchBackend"}
    assert not [p for p in installed["stsbp-conformance"].entry_points if p.group == "pytest11"]


def timed(name: str, mode: str, median: float) -> dict[str, Any]:
    """A record of compare.py."""
    seconds = {"median": median, "low": median, "high": median, "least": median, "runs": 1}
    fields = {
        "samples_per_second": 1 / median,
        "peak_bytes": 1e6,
        "versions": {name: "1.0"},
        "checks": {"spike_rates": [0.05]},
    }
    return {"name": name, "mode": mode, "problem": None, "seconds": seconds, **fields}


def test_the_page_takes_its_numbers_from_the_results(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    import report as page

    machine = device.describe(
        open_backend("numpy"),
        {"rounds": 9, "own": ["torch"], "peers": ["norse", "spyx"], "modes": ["plain", "neuron"], "patience": 60.0},
    )
    records = [timed("stsbp", "floor", 0.2), timed("stsbp", "torch", 0.1), timed("norse", "plain", 0.4)]
    records += [timed("norse", "neuron", 0.25), {"name": "spyx", "mode": "plain", "problem": "exit code 1"}]
    report = {"machine": machine, "cases": [{"case": "N-MNIST", "network": "n", "data": "d", "records": records}]}
    (tmp_path / "peers.json").write_text(json.dumps(report))
    settings = {"group": "kernels", "data_dir": None, "rounds": 2}
    measured = Report(device.describe(open_backend("numpy"), settings), []).to_json()
    (tmp_path / "numpy-cpu.json").write_text(json.dumps(measured))
    text = tmp_path / "benchmarks.md"
    text.write_text(f"before\n{page.BEGIN}\nold\n{page.END}\nafter\n")
    page.main(tmp_path, text)
    page.main(tmp_path, text)
    written = text.read_text()
    assert written.startswith("before\n")
    assert written.endswith("after\n")
    assert "old" not in written
    assert (
        "stsbp trains 2.50 times as many samples per second as norse (mode *neuron*), the fastest other library."
        in written
    )
    assert "| spyx | plain | not timed: exit code 1 |" in written
    assert (tmp_path / "benchmarks-peers.png").is_file()
    assert "numpy on cpu" not in written
    others = (tmp_path / "README.md").read_text()
    assert others.startswith(page.HEAD)
    assert "## numpy on cpu\n" in others
    assert "norse" not in others


def test_a_backends_report_becomes_a_table() -> None:
    import report as page

    backend = open_backend("numpy")
    rows = kernels.measure(backend, scale=0.0001, rounds=2, announce=lambda _: None)
    settings = {"group": "kernels", "data_dir": None, "rounds": 2}
    text = page.backend_section(Report(device.describe(backend, settings), rows).to_json())
    assert text.startswith("## numpy on cpu\n")
    assert sum(line.startswith("| T=") for line in text.splitlines()) == 9
    assert "% of copy" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "--rounds: must be at least 1"),
        (["--scale", "nan"], "--scale: must be above 0"),
        (["--data-dir", "nowhere"], "--data-dir: there is no folder nowhere"),
        (["--backend", "none"], "no backend 'none' is installed"),
    ],
)
def test_a_mistake_in_the_command_is_a_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["parts.py", *arguments])
    try:
        code = options.guarded(parts.main)
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code > 0
    assert message in capsys.readouterr().err


def test_a_checkout_is_slower_where_median_and_quartiles_say_so() -> None:
    old = [1.0, 2.0, 4.0, 1.0, 2.0]
    row = beside.record("x", {"old": old, "new": [1.02 * x for x in old]})
    assert row["ratio"]["median"] == pytest.approx(1.02)
    assert row["good"], "within the band"
    assert not beside.record("x", {"old": old, "new": [1.04 * x for x in old]})["good"]
    assert beside.record("x", {"old": old, "new": [1.04 * x for x in old]}, 1.1)["good"]
    noisy = [0.9 * 1.0, 1.3 * 2.0, 0.95 * 4.0, 1.2 * 1.0, 1.1 * 2.0]
    row = beside.record("x", {"old": old, "new": noisy})
    assert row["ratio"]["median"] == pytest.approx(1.1)
    assert row["good"], "1 lies between the quartiles"
    assert "SLOWER" not in beside.table([row])
    assert beside.table([row | {"good": False}]).endswith("| 0.950 - 1.200 | SLOWER |")
    assert beside.order(0) != beside.order(1)


class StubWorker:
    """A worker that computes nothing: the new checkout takes twice as long."""

    requests: ClassVar[list[tuple[str, str]]] = []

    def __init__(self, name: str, losses: dict[str, str]) -> None:
        self.name, self.problem = name, None
        self.ready = {"names": ["a", f"{name} only", "b"], "losses": losses}

    def wait(self, patience: float) -> None: ...

    def stop(self) -> None: ...

    def ask(self, request: str) -> dict[str, float]:
        self.requests.append((self.name, request))
        return {"seconds": 0.05 if self.name == "old" else 0.1}


def test_pairs_are_taken_in_turn_and_refused_where_results_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {"old": {"b": "1"}, "new": {"b": "1"}}
    monkeypatch.setattr(compare.Worker, "start", lambda command, env, name, *_: StubWorker(name, losses[name]))
    rows = beside.pairs({"old": {}, "new": {}}, [], rounds=2, logs=tmp_path)
    assert [(row["what"], row["ratio"]["median"], row["good"]) for row in rows] == [("a", 2, False), ("b", 2, False)]
    requests = [(checkout, f"{work} 3") for checkout in ("old", "new") for work in "ab"]
    assert StubWorker.requests[:2] == [("old", "a 1"), ("old", "b 1")]
    assert StubWorker.requests[2:] == [requests[i] for i in (0, 2, 1, 3, 2, 0, 3, 1)]
    losses["new"] = {"b": "2"}
    with pytest.raises(StsbpError, match="b: the checkouts compute different spikes or losses"):
        beside.pairs({"old": {}, "new": {}}, [], rounds=2, logs=tmp_path)


def test_the_workers_of_two_checkouts_answer(tmp_path: Path) -> None:
    checkout = BENCHMARKS.parent
    # What other tests have compiled serves both.
    variables = {name: beside.environment(checkout, cache_root(), 1) for name in ("old", "new")}
    names = ["AdamW", "sparse block forward", "sparse block backward"]
    rows = beside.pairs(variables, names, rounds=2, logs=tmp_path)
    assert [row["what"] for row in rows] == names
    assert {row["ratio"]["runs"] for row in rows} == {2}
    with pytest.raises(StsbpError, match="is no checkout"):
        beside.environment(tmp_path, tmp_path, None)


def test_a_worker_takes_a_pair_by_its_former_name() -> None:
    backend = open_backend("torch")
    assert callable(beside_worker.method(backend, "neuron_forward"))
    with pytest.raises(AttributeError, match="the backend has no nosuch"):
        beside_worker.method(backend, "nosuch")


def test_processes_are_summed_up_by_the_slowest_of_them() -> None:
    def answer(seconds: float, waited: float) -> dict[str, Any]:
        return {"seconds": seconds, "waited": waited, "messages": 5.0, "bytes": 2048.0, "loss": 0.5}

    group = processes.Group.__new__(processes.Group)
    group.size = 2
    group.turns = [
        [answer(1.0, 0.9), answer(2.0, 0.1)],
        [answer(4.0, 1.0), answer(3.0, 2.0)],
        [answer(8.0, 0.0), answer(1.0, 4.0)],
    ]
    summary = processes.summary(group)
    assert (summary["seconds"], summary["waited"], summary["share"]) == (4.0, 2.0, 0.5)
    assert (summary["messages"], summary["bytes"], summary["loss"]) == (5.0, 2048.0, 0.5)
    (_, _, row) = processes.table([{"case": "net", "precision": "fast", **summary}]).splitlines()
    assert row == "| net | fast | 2 | 4000.0 | 2000.0 - 8000.0 | 2000.0 ms, 50% | 5 | 2.0 |"


def test_traffic_counts_what_is_sent_and_how_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    collective: Alone[Any] = Alone()
    traffic = processes_worker.Traffic(collective)
    collective.largest(np.zeros(1, np.int32))
    wait = collective.start_total(np.zeros((2, 3)))
    assert wait().shape == (2, 3)
    collective.gather(np.zeros(7, np.uint8))
    assert (traffic.messages, traffic.bytes) == (3, 4 + 48 + 7)
    assert traffic.seconds == 4, "both parts of the sum are timed"


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc")
def test_exported_c_is_compared_and_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "digits"
    settings = (
        "--net",
        "4C3-P2",
        "--steps",
        "4",
        "--epochs",
        "1",
        "--limit",
        "40",
        "--holdout",
        "12",
        "--out",
        str(run),
    )
    assert CliRunner().invoke(cli, ["--backend", "numpy", "train", "digits", *settings]).exit_code == 0
    target = f"gcc {platform.machine()} -O2"
    arguments = ["--samples", "11", "--targets", target, "--rounds", "1", "--beside", "numpy"]
    arguments += ["--out", str(tmp_path / "report.json")]
    assert interop_c.main([str(run), *arguments]) == 0
    printed = capsys.readouterr().out
    assert f"{target}: 0 spikes and 0 potentials differ" in printed
    assert re.search(r"^conv1 +256 +0\.\d{4} +0 +0$", printed, re.MULTILINE)
    report = json.loads((tmp_path / "report.json").read_text())[str(run)]
    assert report["targets"][target][0]["values"] == 11 * 4 * 256
    assert set(report["milliseconds"]) == {"C, -O2", "C, -O3", "C, -O3 -march=native", "numpy"}


def test_calls_of_the_host_are_timed() -> None:
    times = host_calls.times(rounds=1, large=10)
    assert [len(timing.seconds) for timing in times.values()] == 7 * [10] + 3 * [1]
    assert list(times)[-3:] == ["call, large", "pure_callback, large", "numpy alone, large"]


def test_a_loop_is_timed_with_and_without_the_variable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    waiting.main(
        [
            "--loops",
            "trainer, cpu",
            "--busy",
            "0",
            "1",
            "--rounds",
            "1",
            "--steps",
            "2",
            "--out",
            str(tmp_path / "x.json"),
        ]
    )
    rows = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert [(row["loop"], row["busy"]) for row in rows] == [("trainer, cpu", 0), ("trainer, cpu", 1)]
    assert all(0 < row[kind]["median"] <= row[kind]["p90"] for row in rows for kind in ("plain", "reference"))
    assert waiting.line_of(rows[1]) in capsys.readouterr().out
    slow = {"median": 3.0, "p90": 8.0}
    row = {"loop": "layers", "busy": 2, "plain": slow, "reference": {"median": 2.0, "p90": 4.0}}
    assert waiting.line_of(row) == "| layers | 2 | 3.0 | 8.0 | 2.0 | 4.0 | 1.50 | 2.00 |"


@pytest.mark.parametrize(
    ("busy", "median", "slow", "good"),
    [(0, 1.2, 3.0, True), (0, 1.3, 1.0, False), (2, 1.5, 1.5, True), (2, 1.6, 1.0, False), (4, 1.0, 1.6, False)],
)
def test_waiting_fails_above_its_limits(
    busy: int, median: float, slow: float, good: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {
        "loop": "jax",
        "busy": busy,
        "plain": {"median": median, "p90": slow},
        "reference": {"median": 1.0, "p90": 1.0},
    }
    monkeypatch.setattr(waiting, "measure", lambda *_, **__: [row])
    assert waiting.main([]) == (0 if good else 1)
