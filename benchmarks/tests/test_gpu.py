"""What is ready for a GPU, without one: the expectations on paper, and the script that runs everything in parts."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from stsbp.benchmarks import kernels
from stsbp.benchmarks.cases import CASES, Case
from stsbp.training.build import Inputs
from stsbp_spec.registry import open_backend

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "benchmarks" / "gpu")]

# The scripts are found on the path above.
import expected  # noqa: E402
import machine  # noqa: E402
import run  # noqa: E402
import steps  # noqa: E402
from run import Call, Command, Part  # noqa: E402

H100 = expected.GPUS["h100"]
TINY = Case("CIFAR-10", "cifar10", "digits", "2C3-P4-8", Inputs((3, 32, 32), "direct", tuple("0123456789")), 3, 4)


def test_each_measured_row_has_an_expectation() -> None:
    rows = kernels.measure(open_backend("numpy"), scale=0.0001, rounds=1, announce=lambda _: None)
    for backend in expected.BACKENDS:
        expectations = {
            (expectation.case, expectation.what): expectation for expectation in expected.kernels(H100, backend, 0.0001)
        }
        assert {(row.case, row.what) for row in rows} == set(expectations)
        for row in rows:
            assert expectations[row.case, row.what].bytes == row.detail["bytes"]
    measured, _ = steps.measure("numpy", None, TINY, scale=1.0, rounds=1)
    assert [(row.case, row.what) for row in measured] == [(expected.step(H100, "torch", TINY).case, "training step")]


def test_operations_are_those_of_the_products() -> None:
    step = expected.step(H100, "torch", CASES["N-MNIST"])
    frames, layers = 25 * 50, [12 * 30 * 30 * 2 * 25, 64 * 11 * 11 * 12 * 25, 10 * 64 * 5 * 5]
    # Forward, the weights' gradients, and the errors of all inputs but the network's.
    assert step.operations == 2 * frames * (3 * sum(layers) - layers[0])
    images = expected.step(H100, "torch", CASES["CIFAR-10"])
    first = 32 * 32 * 32 * 3 * 9
    assert images.operations % (2 * 50) == 0
    assert images.operations < 2 * 50 * 5 * 3 * (first + 1e9)


def test_launches_of_cupy_are_those_that_were_counted() -> None:
    """`python -m emulator.gpu.steps launches` counts them on an emulated GPU."""
    first, *_ = CASES.values()
    assert first.net == "12C5-P2-64C5-P2"
    assert expected.step(H100, "cupy", first).launches == 63


def test_a_step_takes_as_long_as_the_slowest_of_device_and_host() -> None:
    work = expected.Work("neurons", "lif", 0.85 * H100.copy * 1e-3)
    assert work.seconds(H100) == pytest.approx(1e-3)
    product = expected.Work("forward", "conv", 1.0, 0.4 * H100.half * 2e-3, "half")
    assert product.seconds(H100) == pytest.approx(2e-3)
    assert expected.Work("rest", "small", 1.0, launches=10).seconds(H100) == pytest.approx(10 * expected.NODE)
    for case in CASES.values():
        for backend in expected.BACKENDS:
            step = expected.step(H100, backend, case)
            host = expected.BACKENDS[backend]
            assert step.seconds >= step.launches * host.launch + host.fixed
            assert step.seconds >= step.operations / H100.half
            assert (step.recorded is None) == (backend == "jax")
            assert step.recorded is None or step.recorded <= step.seconds


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        (0.5, "0.50 x, faster: does it measure what it should?"),
        (1.2, "1.20 x, as expected"),
        (1.9, "1.90 x, slower"),
        (4.0, "4.00 x, much slower: profile it"),
        (9.0, "9.0 x, something is wrong"),
    ],
)
def test_a_verdict_compares_with_the_expected_time(measured: float, verdict: str) -> None:
    assert expected.verdict(measured, 1.0) == verdict


def test_the_written_table_is_the_computed_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected.main(["--out", str(tmp_path / "expected.json")])
    assert capsys.readouterr().out == expected.expectation_table(H100) + "\n"
    written = (ROOT / "benchmarks" / "gpu" / "expected.md").read_text()
    assert expected.expectation_table(H100) in written, "write expected.md anew: `python benchmarks/gpu/expected.py`"
    rows = json.loads((tmp_path / "expected.json").read_text())["rows"]
    assert len(rows) == 3 * (9 + len(CASES))


def test_speeds_of_the_machine_stand_beside_the_assumed_ones() -> None:
    pytest.importorskip("torch")
    speeds = machine.ceilings(H100, "cpu", 64)
    assert list(speeds) == ["copy", "float32", "half", "float64"]
    assert all(speed["measured"] > 0 for speed in speeds.values())
    assert speeds["copy"]["assumed"] == 0.9 * 3.35e12


def settings(out: Path, **fields: Any) -> run.Settings:
    defaults: dict[str, Any] = {
        "backends": (("torch", "cuda"), ("cupy", "cuda"), ("jax", "gpu")),
        "scale": 1.0,
        "shrink": 1,
        "trial": False,
        "gpus": 1,
        "data": None,
    }
    return run.Settings(out, **(defaults | fields))


def command(name: str, code: str, judge: Any = run.ended_well) -> Command:
    return Command(name, run.python_command("-c", code), judge)


def test_parts_come_in_the_order_of_their_worth(tmp_path: Path) -> None:
    parts = [*run.parts(settings(tmp_path, gpus=2, data=tmp_path))]
    names = [part.name for part in parts]
    kinds = list(dict.fromkeys(name.split("-")[0] for name in names))
    assert kinds[:6] == ["machine", "quick", "graphs", "kernels", "steps", "conformance"]
    assert set(kinds) >= {"cifar10", "scaling", "data", "step", "processes"}
    assert max(part.seconds for part in parts) < 480
    commands = [command for part in parts for command in part.commands]
    assert len({command.name for command in commands}) == len(commands)
    recording = {command.name for command in commands if command.environment.get("STSBP_CUDA_GRAPHS") == "1"}
    assert recording == {"graphs-torch-cuda-suite", "graphs-cupy-cuda-suite"}
    for command in commands:
        files = [
            argument
            for argument in command.arguments
            if re.fullmatch(r"(benchmarks|experiments|conformance|packages)/\S+", argument)
        ]
        assert files or "-m" in command.arguments
        assert all((ROOT / argument).is_file() for argument in files), command.arguments


def test_shards_hold_every_tier() -> None:
    tiers = re.findall(r"tier\d", " ".join(run.SHARDS.values()))
    suite = (ROOT / "conformance" / "src" / "stsbp_conformance" / "suite.py").read_text()
    assert sorted(tiers) == sorted(set(re.findall(r"def test_(tier\d)", suite)))


def test_what_ended_well_is_not_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    append = f"import pathlib; p = pathlib.Path({str(tmp_path / 'count')!r}); p.open('a').write('x')"
    good, bad = command("good", append), command("bad", append + "; raise SystemExit(3)")
    part = Part("both", (good, bad), together=True)
    for _ in range(2):
        call = Call.begin(tmp_path, minutes=2)
        assert call.run(part)
    assert (tmp_path / "count").read_text() == "xxx"
    outcomes = json.loads((tmp_path / "summary.json").read_text())["commands"]
    assert (outcomes["good"]["verdict"], outcomes["bad"]["verdict"], outcomes["bad"]["exit"]) == (
        "as expected",
        "failed",
        3,
    )
    assert "bad: failed, exit code 3" in capsys.readouterr().out
    assert "raise SystemExit" in (tmp_path / "bad.log").read_text()


def test_what_takes_too_long_is_cut_off_and_begins_again(tmp_path: Path) -> None:
    call = Call.begin(tmp_path, minutes=2)
    slow = Part("slow", (command("slow", "import time; time.sleep(60)"),), seconds=1)
    assert call.run(slow)
    assert call.outcomes["slow"]["verdict"] == "cut off"
    assert call.outcomes["slow"]["exit"] == 124
    assert not call.done(slow.commands[0])
    assert not Call.begin(tmp_path, minutes=0.001).run(slow)


def test_a_command_knows_how_long_it_may_take(tmp_path: Path) -> None:
    code = "import os; assert os.environ['MINUTES'] == '2.75', os.environ['MINUTES']"
    timed = Command("timed", run.python_command("-c", code), run.ended_well, {"MINUTES": "{minutes}"})
    call = Call.begin(tmp_path, minutes=30)
    assert call.run(Part("timed", (timed,), seconds=240))
    assert call.outcomes["timed"]["exit"] == 0
    (cifar,) = (part for part in run.parts(settings(tmp_path, data=tmp_path)) if part.name == "cifar10")
    assert cifar.commands[0].environment["MINUTES"] == "{minutes}"


def test_a_call_says_whether_there_is_more_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [Part("one", (command("one", "raise SystemExit(75)"),)), Part("two", (command("two", ""),))]
    monkeypatch.setattr(run, "parts", lambda _: parts)
    assert run.main([str(tmp_path), "--try"]) == 75
    assert "failed: nothing" in capsys.readouterr().out
    assert run.main([str(tmp_path), "two", "--try"]) == 0
    with tarfile.open(tmp_path / "results.tar.gz") as tar:
        assert tar.getnames() == ["one.log", "summary.json", "two.log"]
    parts[0] = Part("one", (command("one", "raise SystemExit(2)"),))
    assert run.main([str(tmp_path), "--try"]) == 1
    with pytest.raises(SystemExit):
        run.main([str(tmp_path), "three", "--try"])
    assert "no part begins with three; there are one, two" in capsys.readouterr().err
    monkeypatch.setattr(run, "NEEDED", ("numpy", "nothing_of_this_name"))
    assert run.main([str(tmp_path)]) == 1
    assert "missing here: nothing_of_this_name" in capsys.readouterr().out


def test_a_report_of_tests_is_judged(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\ndef test_good(): pass\ndef test_bad(): assert 1 == 2\n@pytest.mark.skip\ndef test_not(): pass\n"
    )
    pytest_command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--junit-xml",
        str(tmp_path / "it.xml"),
    ]
    run_of_pytest = subprocess.run([*pytest_command, "test_it.py"], cwd=tmp_path, capture_output=True, check=False)
    outcome = run.tests("it")(tmp_path, run_of_pytest.returncode)
    assert (outcome["seen"], outcome["verdict"]) == ("1 passed, 1 failed, 1 skipped", "failed")
    assert outcome["failed"] == ["test_bad: assert 1 == 2"]
    subprocess.run([*pytest_command, "test_it.py", "-k", "good"], cwd=tmp_path, capture_output=True, check=True)
    assert run.tests("it")(tmp_path, 0)["verdict"] == "as expected"
    subprocess.run([*pytest_command, "test_it.py", "-k", "not"], cwd=tmp_path, capture_output=True, check=False)
    assert run.tests("it")(tmp_path, 0)["verdict"] == "failed", "nothing was tested"
    assert run.tests("none")(tmp_path, 0)["verdict"] == "failed"


def test_times_are_judged_beside_the_expected_ones(tmp_path: Path) -> None:
    expectation = expected.step(H100, "torch", CASES["N-MNIST"])
    assert expectation.recorded is not None
    common: dict[str, Any] = {"case": expectation.case, "floor": "", "ratio": None, "detail": {}}
    report = [
        {**common, "what": "training step", "seconds": {"median": 1.1 * expectation.seconds}},
        {**common, "what": "training step, recorded", "seconds": {"median": 3 * expectation.recorded}},
        {**common, "what": "dense floor", "seconds": {"median": 1.0}},
    ]
    (tmp_path / "steps.json").write_text(json.dumps({"rows": report}))
    (tmp_path / "machine.json").write_text(json.dumps({"gpu": "NVIDIA H100 80GB HBM3, 580"}))
    outcome = run.rows("steps", "torch", settings(tmp_path))(tmp_path, 0)
    assert [row["verdict"] for row in outcome["rows"]] == ["1.10 x, as expected", "3.00 x, much slower: profile it"]
    assert outcome["seen"] == "1 of 2 times as expected"
    assert outcome["expected"] == "times on paper of H100 SXM5"
    assert run.rows("steps", "torch", settings(tmp_path))(tmp_path, 1)["verdict"] == "failed"


@pytest.mark.parametrize(
    ("gpu_name", "gpu", "title"),
    [
        ("NVIDIA H100 80GB HBM3", "h100", "H100 SXM5"),
        ("NVIDIA H200", "h200", "H200 SXM"),
        ("NVIDIA A100", "h100", "H100 SXM5, though this is NVIDIA A100"),
        ("", "h100", "H100 SXM5, though this is no GPU"),
    ],
)
def test_peak_numbers_are_those_of_the_gpu(gpu_name: str, gpu: str, title: str, tmp_path: Path) -> None:
    (tmp_path / "machine.json").write_text(json.dumps({"gpu": gpu_name}))
    assert run.gpu_of(tmp_path) == (expected.GPUS[gpu], title)


def test_a_backend_that_cannot_run_is_told(tmp_path: Path) -> None:
    devices = [
        {"name": "cpu", "description": "", "problem": None},
        {"name": "cuda:0", "description": "", "problem": None},
    ]
    unusable = [{"name": "cuda", "description": "", "problem": "no driver"}]
    report = {"backends": {"torch": devices, "cupy": unusable, "jax": "jax is not installed"}}
    (tmp_path / "machine.json").write_text(json.dumps(report))
    outcome = run.machine(settings(tmp_path))(tmp_path, 0)
    assert outcome["verdict"] == "failed"
    assert outcome["seen"] == {"cupy@cuda": unusable, "jax@gpu": "jax is not installed"}
    assert run.machine(settings(tmp_path, backends=(("torch", "cuda"),)))(tmp_path, 0)["verdict"] == "as expected"


def test_the_script_tries_its_parts_on_a_processor(tmp_path: Path) -> None:
    """From the shell, as on a machine where nothing is installed; all parts of a trial take minutes."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler is installed, which device host needs")
    environment = {**os.environ, "BACKENDS": "cupy@host", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    script = ["bash", str(ROOT / "benchmarks" / "gpu" / "run.sh"), str(tmp_path)]
    process = subprocess.run(
        [*script, "machine", "kernels", "quick", "--try"], env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stdout + process.stderr
    outcomes = json.loads((tmp_path / "summary.json").read_text())["commands"]
    assert list(outcomes) == ["machine", "quick-cupy-host-rest", "kernels-cupy-host"]
    assert {outcome["exit"] for outcome in outcomes.values()} == {0}
    assert len(outcomes["kernels-cupy-host"]["rows"]) == 9
    assert " passed, 0 failed, 0 skipped" in outcomes["quick-cupy-host-rest"]["seen"]
