"""docs/write_a_loss.md as a stranger would follow it: its files, its commands, what it promises."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from stsbp_spec.models.losses import VanRossum
from stsbp_spec.models.surrogates import derivative
from stsbp_spec.networks.ops import PSP
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.registry import installed_backends, open_backend

PAGE = Path(__file__).parents[3] / "docs" / "write_a_loss.md"
TEXT = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
FILES, COMMANDS = (re.findall(rf"^```{kind}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE) for kind in ("python", "sh"))
OTHERS = [name for name in ("torch", "jax", "cupy") if name in installed_backends()]

pytestmark = pytest.mark.skipif(not TEXT, reason="the documentation is not beside the packages")


def _write(folder: Path) -> None:
    (folder / "my_losses.py").write_text(FILES[0])
    (folder / "my_surrogates.py").write_text(FILES[1])


def _run(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *shlex.split(line)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def _stsbp(line: str, folder: Path) -> str:
    run = _run(line, folder)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("page")
    _write(folder)
    scope: dict[str, Any] = {"__name__": "page"}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        exec(compile(FILES[2], str(PAGE), "exec", dont_inherit=True), scope)
        yield scope


@pytest.mark.parametrize("name", OTHERS)
def test_every_backend_gives_the_bytes_of_the_page(name: str, page: dict[str, Any]) -> None:
    loss, state = page["trained"](open_backend(name, "host" if name == "cupy" else None))
    assert loss == page["loss"]
    assert state == page["state"]


def test_the_commands_give_one_sha256_and_the_runs_outlive_the_modules(tmp_path: Path) -> None:
    _write(tmp_path)
    shown, first, *others = COMMANDS[0].splitlines()
    text = _stsbp(shown, tmp_path)
    assert "__fmul_rn(extra_" in text
    weights = {}
    for name, line in zip(("numpy", "torch"), (first, *others), strict=True):
        if name in installed_backends():
            _stsbp(line, tmp_path)
            weights[name] = json.loads((tmp_path / "runs" / f"by-{name}" / "last.json").read_text())["sha256"]
    assert len(set(weights.values())) == 1, weights
    config = (tmp_path / "runs/by-numpy/config.toml").read_text()
    assert 'loss = "my_losses:Missed:weight=5"' in config
    assert 'surrogate = "my_surrogates:Lopsided:above=3"' in config
    evaluate, outputs = COMMANDS[1].strip().replace("by-torch", "by-numpy"), []
    for _ in range(2):
        # The first line says how fast it was.
        outputs.append(_stsbp(evaluate, tmp_path).splitlines()[1:])
        for module in tmp_path.glob("my_*.py"):
            module.unlink()
    assert len(outputs[0]) > 5
    assert outputs[0] == outputs[1]
    # Resumed, it ends with the state of an uninterrupted run of two epochs.
    _stsbp("stsbp --backend numpy train --resume runs/by-numpy --epochs 2", tmp_path)
    _write(tmp_path)
    _stsbp(first.replace("--epochs 1", "--epochs 2").replace("by-numpy", "whole"), tmp_path)
    ends = [json.loads((tmp_path / "runs" / run / "last.json").read_text())["sha256"] for run in ("by-numpy", "whole")]
    assert ends[0] != weights["numpy"]
    compared = _stsbp("stsbp compare runs/by-numpy runs/whole --json", tmp_path)
    assert compared.count("my_losses:Missed:weight=5") == 2
    _stsbp("stsbp --backend numpy report runs/whole", tmp_path)
    assert "my_losses:Missed:weight=5" in (tmp_path / "runs/whole.html").read_text()
    # The same name with other equations is told apart. Settings are compared with the checkpoint, if there is one.
    (tmp_path / "runs/whole/last.json").unlink()
    config = (tmp_path / "runs/whole/config.toml").read_text()
    (tmp_path / "runs/whole/config.toml").write_text(config.replace("0x1.0000000000000p+2", "0x1.0000000000000p+1"))
    rows = _stsbp("stsbp compare runs/by-numpy runs/whole", tmp_path).splitlines()
    (row,) = (row for row in rows if row.startswith("loss_model"))
    assert row.split()[1:] == ["version", "1", "version", "2"]


def test_the_loss_is_counted_and_its_error_is_right(page: dict[str, Any]) -> None:
    o = np.array([[[1, 0, 1, 0]]], np.uint8)
    target = np.array([[[1, 1, 0, 0]]], np.uint8)
    loss = page["Missed"](weight=5.0)
    assert loss.distance(o, target, PSP(2)) == 6
    assert NumpyBackend().loss_error(loss, PSP(2), o, target).tolist() == [[[0, -5, 1, 0]]]


def test_a_loss_with_a_forward_pass_has_the_error_of_its_distance() -> None:
    scope: dict[str, Any] = {"__name__": "page"}
    exec(compile(FILES[3], str(PAGE), "exec", dont_inherit=True), scope)
    rng = np.random.default_rng(0)
    o, target = ((rng.random((9, 4, 3)) < 0.4).astype(np.uint8) for _ in range(2))
    psp, backend = PSP(3), NumpyBackend()
    even, leaning = scope["Leaning"](weight=1.0), scope["Leaning"](weight=5.0)
    assert np.allclose(even.distance(o, target, psp), VanRossum().distance(o, target, psp), rtol=1e-12)
    expected = backend.loss_error(VanRossum(), psp, o, target)
    assert np.allclose(backend.loss_error(even, psp, o, target), expected, rtol=1e-5, atol=1e-7)
    silent = np.zeros_like(o)
    assert np.allclose(leaning.distance(silent, target, psp), 5 * even.distance(silent, target, psp))
    assert np.allclose(leaning.distance(target, silent, psp), even.distance(target, silent, psp))


def test_the_surrogate_is_the_derivative_of_its_primitive(page: dict[str, Any]) -> None:
    surrogate = page["Lopsided"](below=1.5, above=3.0)
    x = np.linspace(-2, 2, 41) + 0.01
    slope = (surrogate.primitive(x + 1e-6) - surrogate.primitive(x - 1e-6)) / 2e-6
    assert np.abs(slope - derivative(surrogate, x)).max() < 1e-7
    assert surrogate.exact


@pytest.fixture
def folder_of_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the files of the page."""
    _write(tmp_path)
    monkeypatch.chdir(tmp_path)
    for module in ("my_losses", "my_surrogates", "broken"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    return tmp_path


def _refused(stsbp: Callable[..., Result], message: str, *arguments: str) -> None:
    done = stsbp("--backend", "numpy", "train", "digits", *arguments, "--out", "run")
    assert done.exit_code in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 5
    assert not Path("run").exists()


BROKEN = """
from dataclasses import dataclass
from my_losses import Missed
from stsbp_spec.models.losses.base import LossStep
from stsbp_spec.models.surrogates import derivative
from stsbp_spec.models.surrogates import derivative

class Plain(Missed): pass

@dataclass(frozen=True)
class InNumpy(Missed):
    def distance(self, spikes, targets, psp):
        return (spikes != targets).sum(axis=(0, -1)) / 1.0

@dataclass(frozen=True)
class Powers(Missed):
    def constants(self, psp, steps, batch):
        return {"scale": batch ** -1, "extra": 0.0}

@dataclass(frozen=True)
class Forks(Missed):
    def constants(self, psp, steps, batch):
        return {"scale": 1 / batch, "extra": 0.0 if type(steps) is int else 1.0}

@dataclass(frozen=True)
class Fails(Missed):
    def back(self, p, s, x):
        return LossStep({}, 1 // 0)

@dataclass(frozen=True)
class Reward(Missed):
    def measure(self, p, x):
        return 0 - x.o * x.target

@dataclass(frozen=True)
class Lacks(Missed):
    parameters = ("scale", "extra", "more")
"""


def test_a_run_with_a_negative_loss_is_decoded_and_continues(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], folder_of_modules: Path
) -> None:
    (folder_of_modules / "broken.py").write_text(BROKEN)
    done = train_tiny(folder_of_modules / "run", "--loss", "broken:Reward", "--epochs", 1, "--log-every", 50)
    assert done.exit_code == 0, done.output
    done = stsbp("train", "--resume", folder_of_modules / "run", "--epochs", 2)
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in (folder_of_modules / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["loss"] < 0 for line in lines)
    # The loss of a class is the negative number of its spikes.
    assert all(line["accuracy"] == line["accuracy_spike_count"] > 0 for line in lines)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            "nowhere:Missed",
            "the loss 'nowhere:Missed' cannot be imported: ModuleNotFoundError: No module named 'nowhere'",
        ),
        ("my_losses:Mist", "there is no 'my_losses:Mist': the module has no 'Mist' (did you mean Missed?)"),
        ("my_losses:dataclass", "'my_losses:dataclass' is not a loss; it must be a class that derives from Loss"),
        ("broken:Plain", "'broken:Plain' is not a dataclass; write @dataclass(frozen=True) above the class"),
        ("my_losses:Missed:wieght=2", "loss 'my_losses:Missed' has no parameter 'wieght'; it has: weight"),
        ("my_losses:Missed:weight=much", "loss 'my_losses:Missed': weight must be a number, got 'much'"),
        ("my_losses:Missed:weight=inf", "weight must be a finite number, got inf"),
        ("my_losses:Missed:weight", "loss 'my_losses:Missed': expected key=value, got 'weight'"),
        ("broken:InNumpy", "computes its distance in numpy, so a run cannot store it"),
        ("broken:Powers", "may use only + - * / of psp.tau_s, psp.tau_rise, steps, batch and neurons"),
        ("broken:Forks", "cannot be stored: they must be the same + - * / of numbers in every run"),
        ("broken:Fails", "ZeroDivisionError: integer division or modulo by zero"),
        ("broken:Lacks", "its constants lack more, which `parameters` names"),
        ("my_surrogates:Lopsided", "is not a loss; it must be a class that derives from Loss"),
        ("hamming:x=1", "'hamming:x=1' is not one of 'van-rossum', 'hamming', 'spike-count'"),
    ],
)
def test_errors_of_a_loss_take_one_line(
    loss: str, message: str, stsbp: Callable[..., Result], folder_of_modules: Path
) -> None:
    (folder_of_modules / "broken.py").write_text(BROKEN)
    _refused(stsbp, message, "--loss", loss)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--surrogate nowhere:S", "the surrogate 'nowhere:S' cannot be imported: ModuleNotFoundError"),
        ("--surrogate my_surrogates:Lopsided:below=0", "surrogate lopsided: below must be a finite number above 0"),
        ("--surrogate my_surrogates:Lopsided:left=1", "has no parameter 'left'; it has: below, above"),
        ("--surrogate my_losses:Missed", "is not a surrogate; it must be a class that derives from Surrogate"),
        ("--loss-model {}", "loss_model stores a class, but loss does not name one; leave loss_model out"),
        ("--loss a:B --loss-model {}", "--loss-model {}: the stored loss is damaged: KeyError('format')"),
        ("--loss a:B --loss-model evil:E", "the stored loss is damaged: it is not JSON: 'evil:E'"),
        ("--net 8{surrogate=my_surrogates:Lopsided}", "unknown surrogate 'my_surrogates'"),
    ],
)
@pytest.mark.usefixtures("folder_of_modules")
def test_errors_of_a_surrogate_take_one_line(arguments: str, message: str, stsbp: Callable[..., Result]) -> None:
    _refused(stsbp, message, *arguments.split())


def test_a_loss_of_real_targets(stsbp: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    inputs = (random.random((20, 12, 3)) < 0.3).astype(np.uint8)
    np.savez(tmp_path / "real.npz", inputs=inputs, targets=inputs.mean(axis=2, keepdims=True))
    module = tmp_path / "my_regression.py"
    module.write_text(FILES[-1])
    monkeypatch.syspath_prepend(str(tmp_path))
    _, *words = shlex.split(COMMANDS[-1])
    done = stsbp(*words, "--epochs", 1, "--net", 8, "--precision", "reproducible", "--out", "run")
    assert done.exit_code == 0, done.output
    assert "write snap" not in done.output
    # The run has the equations of the loss, and needs the module no more.
    module.unlink()
    evaluated = json.loads(stsbp("evaluate", "run", "--json").stdout)
    assert 0 < evaluated["loss"] < evaluated["mse"]
