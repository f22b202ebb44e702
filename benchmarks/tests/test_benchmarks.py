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
from stsbp.benchmarks.timing import Timing
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
import check  # noqa: E402
import compare  # noqa: E402
import harness  # noqa: E402
import host_calls  # noqa: E402
import interop_c  # noqa: E402
import metadata  # noqa: E402
import parts  # noqa: E402
import processes  # noqa: E402
import scaling  # noqa: E402
import waiting  # noqa: E402
import workers  # noqa: E402
from problem import Problem  # noqa: E402
from workers import Worker, WorkerError  # noqa: E402

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


def test_scaling_measures_time_and_memory_of_every_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = {"T": 8, "B": 4, "C": 4, "depth": 1, "density": 0.1}
    monkeypatch.setattr(scaling, "AXES", {"depth": (base, (1, 2, 3))})
    out = tmp_path / "scaling.json"
    scaling.main(["--backend", "numpy", "--rounds", "1", "--shrink", "2", "--out", str(out)])
    report = json.loads(out.read_text())
    (axis,) = report["axes"]
    assert (axis["values"], len(axis["seconds"]), len(axis["local"])) == ([1, 2, 3], 3, 2)
    assert [len(rates) for rates in axis["rates"]] == [2, 3, 4]
    assert all(next(iter(rates.values())) > 0 for rates in axis["rates"]), "the first layer is silent"
    # T = 4, B = 2, layers of 2 channels of 16 x 16 pixels, 10 outputs: 5 bytes a neuron and step, and the pooled.
    assert np.diff(axis["kept_bytes"]).tolist() == [4 * 2 * (5 * 2 * 16**2 + 2 * 16**2 * 0)] * 2
    row = capsys.readouterr().out.splitlines()[-1]
    assert row == scaling.scaling_table([axis]).splitlines()[-1]
    assert row.startswith("| depth | 1: ")
    assert row.count("|") == scaling.scaling_table([axis]).splitlines()[0].count("|")


def test_large_sizes_are_measured_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = {"T": 4, "B": 2, "C": 2, "depth": 1, "density": 0.1}
    monkeypatch.setattr(scaling, "LARGE", {"N": (base, (100.0, 500.0))})
    alive: list[Worker] = []
    start = Worker.wait

    def wait(worker: Worker, patience: float) -> Worker:
        assert all(other.process.poll() is not None for other in alive)
        alive.append(worker)
        return start(worker, patience)

    monkeypatch.setattr(Worker, "wait", wait)
    out = tmp_path / "large.json"
    options = ["--large", "--axes", "N", "--backend", "numpy", "--rounds", "1", "--memory", "low", "--out", str(out)]
    scaling.main(options)
    report = json.loads(out.read_text())
    (axis,) = report["axes"]
    assert len(alive) == 2
    assert report["machine"]["settings"]["memory"] == "low"
    # 2 channels of 8 x 8 and of 16 x 16 pixels, and 10 neurons; inputs of 2 channels.
    kept_bytes = [4 * 2 * (2 * side**2 + 5 * (2 * side**2 + 10)) for side in (8, 16)]
    assert axis["kept_bytes"] == kept_bytes
    assert all(seconds["median"] > 0 for seconds in axis["seconds"])
    exponent = math.log(axis["seconds"][1]["median"] / axis["seconds"][0]["median"]) / math.log(5)
    assert axis["local"] == [pytest.approx(exponent)]


@pytest.mark.parametrize("arguments", [["--axes", "N"], ["--large", "--axes", "C"]], ids=["N", "C"])
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
    libraries = [compare.Library(interpreter, "nosuch", "plain")]
    records = compare.compare(problem, libraries, rounds=1, logs=tmp_path)
    problem_found = "exit code 1: ModuleNotFoundError: No module named 'peer_nosuch'"
    assert records == [{"name": "nosuch", "mode": "plain", "problem": problem_found}]
    assert "not timed: exit code 1" in compare.library_table(records)


def test_a_worker_that_takes_too_long_is_given_up(tiny_problem: Problem, tmp_path: Path) -> None:
    interpreter = Path(sys.executable)
    libraries = [compare.Library(interpreter, "stsbp", "floor")]
    records = compare.compare(tiny_problem, libraries, rounds=1, logs=tmp_path, patience=0.01)
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
    assert "- numpy on cpu: " in others
    assert "norse" not in others


def test_a_backends_report_becomes_a_table() -> None:
    import report as page

    backend = open_backend("numpy")
    rows = kernels.measure(backend, scale=0.0001, rounds=2, announce=lambda _: None)
    settings = {"group": "kernels", "data_dir": None, "rounds": 2}
    text = page.backends_section([Report(device.describe(backend, settings), rows).to_json()])
    assert "- numpy on cpu: Machine: " in text
    assert "| case | what | numpy on cpu |" in text
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
        code = harness.guarded(parts.main)
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code > 0
    assert message in capsys.readouterr().err


def test_a_checkout_is_slower_where_median_and_quartiles_say_so() -> None:
    old = [1.0, 2.0, 4.0, 1.0, 2.0]

    def record(new: list[float], band: float = 1.03) -> dict[str, Any]:
        return beside.record("x", {"old": Timing(tuple(old)), "new": Timing(tuple(new))}, band)

    row = record([1.02 * x for x in old])
    assert row["ratio"]["median"] == pytest.approx(1.02)
    assert row["good"], "within the band"
    assert not record([1.04 * x for x in old])["good"]
    assert record([1.04 * x for x in old], 1.1)["good"]
    noisy = [0.9 * 1.0, 1.3 * 2.0, 0.95 * 4.0, 1.2 * 1.0, 1.1 * 2.0]
    row = record(noisy)
    assert row["ratio"]["median"] == pytest.approx(1.1)
    assert row["good"], "1 lies between the quartiles"
    assert "SLOWER" not in beside.pair_table([row])
    assert beside.pair_table([row | {"good": False}]).endswith("| 0.950 - 1.200 | SLOWER |")


class StubWorker:
    """A worker that computes nothing: the new checkout takes twice as long."""

    requests: ClassVar[list[tuple[object, ...]]] = []

    def __init__(self, name: str, losses: dict[str, str]) -> None:
        self.name = name
        self.ready = {"names": ["a", f"{name} only", "b"], "losses": losses}

    def __enter__(self) -> StubWorker:
        return self

    def __exit__(self, *_: object) -> None: ...

    def ask(self, *request: object) -> dict[str, float]:
        self.requests.append((self.name, *request))
        return {"seconds": 0.05 if self.name == "old" else 0.1}


def test_pairs_are_taken_in_turn_and_refused_where_results_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {"old": {"b": "1"}, "new": {"b": "1"}}
    monkeypatch.setattr(beside, "start", lambda name, *_: StubWorker(name, losses[name]))
    rows = beside.pairs({"old": {}, "new": {}}, [], rounds=2, logs=tmp_path)
    assert [(row["what"], row["ratio"]["median"], row["good"]) for row in rows] == [("a", 2, False), ("b", 2, False)]
    order = ["old", "new", "new", "old"]
    for work, requests in zip("ab", (StubWorker.requests[:5], StubWorker.requests[5:]), strict=True):
        assert requests == [("old", "time", work, 1), *((name, "time", work, 3) for name in order)]
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
    summary = processes.summary(group, Timing((2.0, 4.0, 8.0)))
    assert (summary["seconds"], summary["waited"], summary["share"]) == (4.0, 2.0, 0.5)
    assert (summary["messages"], summary["bytes"], summary["loss"]) == (5.0, 2048.0, 0.5)
    (_, _, row) = processes.group_table([{"case": "net", "precision": "fast", **summary}]).splitlines()
    assert row == "| net | fast | 2 | 4000.0 | 3000.0 - 6000.0 | 2000.0 ms, 50% | 5 | 2.0 |"


def test_traffic_counts_what_is_sent_and_how_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    collective: Alone[Any] = Alone()
    traffic = processes.Traffic(collective)
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
    assert re.search(r"^\| conv1 \| 256 \| 0\.\d{4} \| 0 \| 0 \|$", printed, re.MULTILINE)
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
    assert waiting.loop_table(rows) in capsys.readouterr().out
    slow = {"median": 3.0, "p90": 8.0}
    row = {"loop": "layers", "busy": 2, "plain": slow, "reference": {"median": 2.0, "p90": 4.0}}
    assert waiting.loop_table([row]).splitlines()[2] == "| layers | 2 | 3.0 | 8.0 | 2.0 | 4.0 | 1.50 | 2.00 |"


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


ANSWERS = """\
import os, sys, time
from workers import serve

def prepare():
    print("a library's words", flush=True)
    return {"pid": os.getpid()}, {"add": lambda a, b: {"sum": a + b}, "end": lambda: os._exit(3)}

time.sleep(float(sys.argv[1]))
serve(prepare)
"""


def worker(tmp_path: Path, delay: float = 0.0) -> Worker:
    variables = {"PYTHONPATH": str(BENCHMARKS), "PATH": ""}
    return Worker("adder", [sys.executable, "-c", ANSWERS, str(delay)], tmp_path / "log", variables)


def test_a_worker_answers_until_it_ends(tmp_path: Path) -> None:
    with worker(tmp_path) as adder:
        assert adder.wait(60).ready == {"pid": adder.process.pid}
        assert adder.ask("add", 1, 2) == {"sum": 3}
        adder.tell("add", "a", "b")
        assert adder.answer() == {"sum": "ab"}
    assert adder.process.poll() == 0
    assert (tmp_path / "log").read_text() == "a library's words\n", "what a library prints is no answer"


def test_a_worker_that_ends_says_why(tmp_path: Path) -> None:
    with worker(tmp_path) as adder:
        with pytest.raises(WorkerError) as ended:
            adder.wait(60).ask("end")
        with pytest.raises(WorkerError):
            adder.ask("add", 1, 2)
    assert ended.value.reason == "exit code 3: a library's words"
    assert str(ended.value) == f"adder: {ended.value.reason}; all that it printed is in {tmp_path / 'log'}"


def test_a_worker_is_waited_for_no_longer_than_it_may_take(tmp_path: Path) -> None:
    with worker(tmp_path, 60.0) as adder, pytest.raises(WorkerError, match=r"^adder: not ready after 0 s; "):
        adder.wait(0.2)
    assert adder.process.poll() is not None


def test_workers_need_nothing_but_python() -> None:
    """They run in environments of other libraries."""
    source = Path(workers.__file__).read_text()
    imported = set(re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE))
    assert imported <= set(sys.stdlib_module_names)


def test_a_report_is_whole_and_names_machine_and_commit(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    harness.write_report(None, None, {}, rows=[])
    harness.write_report(out, open_backend("numpy"), {"rounds": 3}, rows=[1])
    report = json.loads(out.read_text())
    assert (report["format"], report["rows"], report["machine"]["settings"]) == (1, [1], {"rounds": 3})
    assert {"processor", "versions", "date", "load_average", "threads", "commit"} <= set(report["machine"])
    assert report["machine"]["threads"] >= 1
    before = out.read_text()
    with pytest.raises(TypeError):
        harness.write_report(out, None, {}, rows=[object()])
    assert out.read_text() == before
    assert list(tmp_path.iterdir()) == [out]


def test_a_commit_is_that_of_the_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if (BENCHMARKS.parent / ".git").exists() and shutil.which("git"):
        assert re.fullmatch("[0-9a-f]{40}", str(harness.machine(None, {})["commit"]))
    monkeypatch.setattr(harness, "HERE", tmp_path)
    assert harness.machine(None, {})["commit"] is None
    monkeypatch.setenv("PATH", "")
    assert harness.machine(None, {})["commit"] is None, "there is no git"


def test_a_table_fills_short_rows() -> None:
    assert harness.table(["a", ""], [(1, "x"), ["y"]]) == "| a |  |\n|---|---|\n| 1 | x |\n| y |  |"
    assert harness.spread({"median": 2e-3, "low": 1e-3, "high": 3e-3}) == ["2.0", "1.0 - 3.0"]
    assert harness.spread({"median": 2e-6, "low": 1e-6, "high": 3e-6}, ".0f", 1e6) == ["2", "1 - 3"]


def test_mistakes_and_workers_that_end_are_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(error: Exception) -> Any:
        def main() -> None:
            raise error

        return main

    ended = WorkerError(worker(tmp_path), "exit code 1: no memory")
    assert [harness.guarded(fails(StsbpError("no"))), harness.guarded(fails(ended)), harness.guarded(int)] == [1, 1, 0]
    assert capsys.readouterr().err.splitlines() == ["Error: no", f"Error: {ended}"]


def test_the_recurrent_case_is_compared_in_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "recurrent.json"
    arguments = ["--here", "--peers", "nosuch", "--own", "cpu", "numpy", "--cases", "recurrent", "--scale", "0.03"]
    compare.main([*arguments, "--modes", "cell", "--rounds", "2", "--turn", "1", "--clock", "cpu", "--out", str(out)])
    (case,) = json.loads(out.read_text())["cases"]
    assert case["network"] == "256R-10 T=100 B=2"
    cpu, numpy, nosuch = case["records"]
    assert cpu["checks"] == numpy["checks"]
    assert [record["seconds"]["runs"] for record in (cpu, numpy)] == [2, 2]
    assert (nosuch["name"], nosuch["mode"]) == ("nosuch", "cell")
    assert "| nosuch | cell | not timed: exit code 1: ModuleNotFoundError" in capsys.readouterr().out
