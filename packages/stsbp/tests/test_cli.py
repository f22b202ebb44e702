"""The commands: what they print and write, and that the help is quick."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest
import stsbp as package
from click.shell_completion import BashComplete
from click.testing import CliRunner, Result
from stsbp.cli import COMMANDS, cli
from stsbp.cli.evaluate import _text
from stsbp.config import SECTIONS, RunConfig
from stsbp.datasets import load
from stsbp.errors import CheckpointError
from stsbp.files import OpenFolder
from stsbp.records import Recorded
from stsbp.training.evaluate import Evaluation
from stsbp.training.metrics import LabelDistances, MetricsFile, Sums, check_records
from stsbp_spec import LOSSES, PSP, NetworkSpec, VanRossum, registry
from stsbp_spec.errors import BackendError
from stsbp_spec.models.decoders import distances
from stsbp_spec.models.encoders import LabelCode, encode_repeat
from stsbp_spec.models.metrics import match_spikes
from stsbp_spec.registry import KNOWN_BACKENDS, installed_backends


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_help_takes_less_than_0_3_seconds() -> None:
    times = []
    for _ in range(5):
        began = time.perf_counter()
        result = run_python("-m", "stsbp", "--help")
        times.append(time.perf_counter() - began)
        assert result.returncode == 0
    assert min(times) < 0.3, times
    assert all(name in result.stdout for name in COMMANDS)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, stsbp.cli; stsbp.cli.cli.main(['--help'], standalone_mode=False);"
        "heavy = 'numpy', 'pydantic', 'rich', 'torch', 'stsbp_spec', 'safetensors', 'jinja2';"
        "print([m for m in heavy if m in sys.modules])"
    )
    assert run_python("-c", code).stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.short_help == COMMANDS[name]


def test_version() -> None:
    assert run_python("-m", "stsbp", "--version").stdout == f"stsbp, version {package.__version__}\n"


def test_every_setting_is_an_option_of_train() -> None:
    command = cli.get_command(click.Context(cli), "train")
    assert command is not None
    options = {option for parameter in command.params for option in parameter.opts}
    for name in RunConfig.model_fields:
        assert name == "dataset" or "--" + name.replace("_", "-") in options


def test_every_command_and_option_is_documented() -> None:
    docs = Path(__file__).parents[3] / "docs"
    if not docs.is_dir():
        pytest.skip("the documentation is not beside the packages")
    explained = (docs / "cli.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^## ([\w-]+)\n(.*?)(?=^## |\Z)", (docs / "options.md").read_text(), re.M | re.S))
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        assert f"\n## {name}\n" in explained or re.search(rf"`stsbp {name}\b", explained)
        for parameter in command.params:
            if isinstance(parameter, click.Option) and parameter.name not in RunConfig.model_fields:
                assert f"`{parameter.opts[0]}" in listed[name], (name, parameter.opts[0])


def test_backends_lists_installed_and_known_ones(stsbp: Callable[..., Result]) -> None:
    rows = json.loads(stsbp("backends", "--json").stdout)
    numpy = next(row for row in rows if row["backend"] == "numpy")
    assert numpy["device"] == "cpu"
    assert numpy["problem"] is None
    assert {row["backend"] for row in rows} == set(installed_backends()) | set(KNOWN_BACKENDS)
    text = stsbp("backends").stdout
    for row in rows:
        if row["problem"] is not None:
            assert row["problem"] in text


def test_backends_says_what_is_not_installed_or_broken(
    stsbp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib.metadata import EntryPoint

    from stsbp_spec import registry

    points = [
        EntryPoint("numpy", "stsbp_spec.reference.backend:NumpyBackend", registry.GROUP),
        EntryPoint("broken", "no_such_module:Backend", registry.GROUP),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    text = stsbp("backends").stdout
    assert "cannot run: backend 'broken' is installed but cannot be imported: ModuleNotFoundError" in text
    assert "not installed: python -m pip install stsbp-torch" in text


def test_backends_compile_says_what_was_compiled(stsbp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    from stsbp.cli import backends

    answers = {"all": (0, 9), "none": (0, 0), "some": (2, 9)}

    def load(name: str) -> Any:
        if name == "broken":
            raise BackendError("it does not import")
        return SimpleNamespace(compile_ahead=lambda: answers[name])

    monkeypatch.setattr(backends, "installed_backends", lambda: ("all", "broken", "none", "some"))
    monkeypatch.setattr(backends, "load_backend", load)
    assert stsbp("backends", "--compile").stdout.splitlines() == [
        "all: 9 kernels, 0 of them compiled",
        "broken: cannot run: it does not import",
        "none: this backend has no kernels to compile in advance",
        "some: 9 kernels, 2 of them compiled in 0 s",
    ]
    refused = stsbp("backends", "--compile", "--json")
    assert refused.exit_code == 2
    assert "give only one of them" in refused.stderr


@pytest.mark.parametrize(
    ("installed", "chosen"),
    [
        (["cpu", "numpy", "torch"], "torch"),
        (["cupy", "jax"], "cupy"),
        (["cpu", "jax", "numpy"], "jax"),
        (["cpu", "numpy"], "cpu"),
        (["another", "numpy"], "another"),
    ],
)
def test_default_backend(installed: list[str], chosen: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from stsbp.cli import Globals, common

    class Backend:
        device = "cpu"

    opened: list[tuple[str, str | None]] = []

    def open_backend(name: str, device: str | None) -> Backend:
        opened.append((name, device))
        return Backend()

    monkeypatch.setattr(registry, "installed_backends", lambda: tuple(installed))
    monkeypatch.setattr(common, "open_backend", open_backend)
    common.choose_backend(Globals(None, None))
    assert opened == [(chosen, None)]
    assert capsys.readouterr().err == f"backend {chosen} on cpu (chosen by default, see stsbp backends)\n"


def test_networks_prints_the_table(stsbp: Callable[..., Result]) -> None:
    network = NetworkSpec.parse("12C5-P2-64C5-P2", input_shape=(2, 34, 34), outputs=10)
    assert stsbp("networks", "12C5-P2-64C5-P2").stdout == network.table() + "\n"
    direct = NetworkSpec.parse("8C3-P2", input_shape=(1, 8, 8), outputs=3, coding="direct", padding="same")
    result = stsbp(
        "networks", "8C3-P2", "--input-shape", "1x8x8", "--outputs", 3, "--coding", "direct", "--padding", "same"
    )
    assert result.stdout == direct.table() + "\n"


def test_networks_points_at_the_token(stsbp: Callable[..., Result]) -> None:
    result = stsbp("networks", "12C5-Q2-64C5")
    assert result.exit_code == 1
    assert "12C5-Q2-64C5\n       ^^" in result.stderr


def test_train_writes_a_run(train_tiny: Callable[..., Result], tmp_path: Path) -> None:
    result = train_tiny(tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "test accuracy " in result.stdout
    names = {path.name for path in (tmp_path / "run").iterdir() if path.suffix != ".safetensors"}
    assert names == {".lock", "best.json", "config.toml", "environment.json", "last.json", "metrics.jsonl"}
    settings = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert set(settings) == set(RunConfig.model_fields)
    assert (settings["dataset"], settings["epochs"], settings["tau_m"]) == ("digits", 3, 5.0)
    (start,) = json.loads((tmp_path / "run" / "environment.json").read_text())["starts"]
    assert (start["backend"], start["device"], start["step"]) == ("numpy", "cpu", 0)
    assert start["versions"]["numpy"] == np.__version__


def test_config_of_a_run_repeats_it(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], tmp_path: Path, tensors: Callable[..., bytes]
) -> None:
    train_tiny(tmp_path / "run", "--loss", "hamming")
    result = stsbp("train", "--config", tmp_path / "run" / "config.toml", "--out", tmp_path / "again")
    assert result.exit_code == 0
    assert tensors(tmp_path / "again") == tensors(tmp_path / "run")


def test_show_config_shows_and_does_nothing(stsbp: Callable[..., Result], tmp_path: Path) -> None:
    result = stsbp("train", "nmnist", "--show-config", "--epochs", 3)
    settings = tomllib.loads(result.stdout)
    assert (settings["net"], settings["epochs"]) == ("12C5-P2-64C5-P2", 3)
    assert list(tmp_path.iterdir()) == []


def test_default_folder_is_named_after_data_set_and_time(stsbp: Callable[..., Result], tmp_path: Path) -> None:
    result = stsbp("train", "digits", "--net", 8, "--steps", 2, "--epochs", 1, "--limit", 20, "--holdout", 10)
    assert result.exit_code == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("digits-2")


def test_overwrite_replaces_a_run_and_only_a_run(
    train_tiny: Callable[..., Result], tmp_path: Path, tensors: Callable[..., bytes]
) -> None:
    run = tmp_path / "run"
    train_tiny(run, "--seed", 1)
    train_tiny(tmp_path / "other")
    assert train_tiny(run, "--overwrite").exit_code == 0
    assert tensors(run) == tensors(tmp_path / "other")
    (run / "thesis.tex").write_text("precious")
    result = train_tiny(run, "--overwrite")
    assert result.exit_code == 1
    assert "holds files that no run wrote (thesis.tex)" in result.stderr
    assert tensors(run) == tensors(tmp_path / "other")


def test_resume_keeps_copies_of_checkpoints(
    train_tiny: Callable[..., Result], stsbp: Callable[..., Result], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train_tiny(run)
    copies = [run / "best-keep.safetensors", run / "last-for-paper.safetensors"]
    for path in copies:
        path.write_bytes(b"precious")
    assert stsbp("train", "--resume", run).exit_code == 0
    assert [path.read_bytes() for path in copies] == [b"precious", b"precious"]
    result = train_tiny(run, "--overwrite")
    assert "holds files that no run wrote (best-keep.safetensors, last-for-paper.safetensors)" in result.stderr
    assert (run / "last.json").exists()


@pytest.mark.parametrize("option", [(), ("--overwrite",), ("--resume",)])
def test_train_replaces_no_settings_that_no_run_wrote(
    option: tuple[str, ...],
    stsbp: Callable[..., Result],
    tmp_path: Path,
    refused: Callable[..., None],
) -> None:
    settings = tmp_path / "exp" / "config.toml"
    settings.parent.mkdir()
    settings.write_text('# my notes\ndataset = "digits"\nepochs = 1\nlimit = 20\n')
    content = settings.read_bytes()
    refused(stsbp("train", "--config", settings, "--out", "exp", *option), "exp", "no run", "choose another --out")
    assert settings.read_bytes() == content
    assert stsbp("train", "--config", settings, "--out", "exp/run", "--net", 4).exit_code == 0


def test_overwrite_of_a_folder_with_names_of_a_run(
    train_tiny: Callable[..., Result], tmp_path: Path, refused: Callable[..., None]
) -> None:
    texts = {"config.toml": "[package]\n", "metrics.jsonl": "{}\n", "best-model.safetensors": "precious"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    named = "holds files that no run wrote (best-model.safetensors, config.toml, metrics.jsonl)"
    refused(train_tiny(tmp_path, "--overwrite"), named)
    assert {path.name: path.read_text() for path in tmp_path.iterdir() if path.suffix != ".lock"} == texts


@pytest.mark.parametrize("damaged", ["config.toml", "environment.json", "last.json"])
def test_overwrite_replaces_a_damaged_run(damaged: str, train_tiny: Callable[..., Result], tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_tiny(run)
    (run / damaged).write_bytes(b"\0")
    assert train_tiny(run, "--overwrite").exit_code == 0
    (run / "environment.json").unlink()
    (run / "config.toml").write_bytes(b"\0")
    assert train_tiny(run, "--overwrite").exit_code == 0


def test_overwrite_that_was_killed_can_be_repeated(
    train_tiny: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_tiny(tmp_path / "whole")
    # A person may have edited the settings, which then no longer show that a run wrote them.
    config = tmp_path / "whole" / "config.toml"
    config.write_text(f"# edited\n{config.read_text()}")
    files = sorted(path.name for path in (tmp_path / "whole").iterdir() if path.name != ".lock")
    remove, removals = OpenFolder.remove, 0

    def stopped(self: OpenFolder, name: str) -> None:
        nonlocal removals
        removals -= 1
        if removals < 0:
            raise KeyboardInterrupt
        remove(self, name)

    for count in range(len(files)):
        run = tmp_path / str(count)
        shutil.copytree(tmp_path / "whole", run)
        removals = count
        with monkeypatch.context() as patched:
            patched.setattr(OpenFolder, "remove", stopped)
            assert train_tiny(run, "--overwrite").exit_code != 0
        assert len([path for path in run.iterdir() if path.name != ".lock"]) == len(files) - count
        assert train_tiny(run, "--overwrite", "--epochs", 1).exit_code == 0, count


def test_run_that_was_killed_after_it_wrote_its_settings_goes_on(
    train_tiny: Callable[..., Result], tmp_path: Path
) -> None:
    train_tiny(tmp_path / "whole")
    for option in ("--resume", "--overwrite"):
        run = tmp_path / option.strip("-")
        run.mkdir()
        shutil.copy(tmp_path / "whole" / "config.toml", run)
        assert train_tiny(run, option).exit_code == 0


@pytest.mark.parametrize(
    "form", [("--resume", "RUN"), ("digits", "--out", "RUN", "--resume"), ("--resume", "digits", "--out", "RUN")]
)
def test_forms_of_resume(
    form: tuple[str, ...], stsbp: Callable[..., Result], train_tiny: Callable[..., Result], tmp_path: Path
) -> None:
    train_tiny(tmp_path / "run")
    result = stsbp("train", *(str(tmp_path / "run") if word == "RUN" else word for word in form))
    assert result.exit_code == 0, result.output
    assert "is finished" in result.stderr
    starts = json.loads((tmp_path / "run" / "environment.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, 6]


def test_resume_of_a_network_in_a_file(
    stsbp: Callable[..., Result], tiny: tuple[str, ...], refused: Callable[..., None], tmp_path: Path
) -> None:
    nodes = """[[node]]
name = "out"
weights = "10"
from = "input"
[[node]]
name = "output"
neurons = ""
from = "out"
"""
    for name, weights in (("net", "10"), ("other", "10b")):
        (tmp_path / f"{name}.toml").write_text(nodes.replace('"10"', f'"{weights}"'))
    train = ("train", "digits", *tiny, "--out", "run", "--net")
    assert stsbp(*train, "net.toml").exit_code == 0
    result = stsbp(*train, "net.toml", "--resume")
    assert result.exit_code == 0, result.output
    assert "run is finished" in result.stderr
    refused(stsbp(*train, "other.toml", "--resume"), "begun with other settings", '"other.toml" asked')


def test_the_last_characters_of_a_networks_file_make_it_no_name(
    stsbp: Callable[..., Result], tiny: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "net.toml").write_text(
        '[[node]]\nname = "out"\nweights = "10"\nfrom = "input"\n'
        '[[node]]\nname = "output"\nneurons = ""\nfrom = "out"\n# the end of net.toml'
    )
    assert stsbp("train", "digits", *tiny, "--out", "run", "--net", "net.toml").exit_code == 0
    for command in (
        ("train", "--resume", "run"),
        ("evaluate", "run"),
        ("train", "--config", "run/config.toml", "--show-config"),
    ):
        result = stsbp(*command)
        assert result.exit_code == 0, result.output


def test_resume_may_change_where_and_how(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], tmp_path: Path
) -> None:
    train_tiny(tmp_path / "run")
    result = stsbp("train", "--resume", tmp_path / "run", "--threads", 1, "--checkpoint-every", 5, "--epochs", 3)
    assert result.exit_code == 0, result.output


def test_evaluate_agrees_with_the_run(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train_tiny(run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for split in ("test", "validation"):
        expected = [line for line in lines if line.get("split") == split][-1]
        figures = json.loads(stsbp("evaluate", run, "--split", split, "--batch-size", 7, "--json").stdout)
        for key in ("loss", "accuracy", "accuracy_spike_count", "samples"):
            assert figures[key] == pytest.approx(expected[key], rel=1e-12)
        assert figures["rates"] == pytest.approx(expected["rates"], rel=1e-12)
        confusion = np.array(figures["confusion"])
        assert confusion.sum() == figures["samples"]
        assert np.trace(confusion) / confusion.sum() == pytest.approx(figures["accuracy"])
    data = load("digits", limit=50, holdout=30)
    figures = json.loads(stsbp("evaluate", run, "--json").stdout)
    assert np.array(figures["confusion"]).sum(axis=1).tolist() == np.bincount(data.test.labels, minlength=10).tolist()
    text = stsbp("evaluate", run).stdout
    assert f"{figures['accuracy']:.2%}  nearest label sequence" in text
    assert "confusion matrix" in text


def test_evaluate_shows_no_recall_of_a_class_without_samples() -> None:
    confusion = np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
    sums = Sums(batches=1, samples=6, correct=5, correct_by_count=5, seconds=1.0, rates={"conv1": 0.1, "linear10": 0.2})
    network = NetworkSpec.parse("4", input_shape=(2,), outputs=3)
    lines = _text(Evaluation(sums, confusion), "test", ("a", "b", "c"), network, 1).splitlines()
    assert [line.split()[-1] for line in lines[-3:]] == ["75.0%", "100.0%", "-"]
    assert len({len(line) for line in lines[-3:]}) == 1
    first, second = (next(line for line in lines if name in line) for name in ("conv1", "linear10"))
    assert len(first) == len(second)


def test_evaluate_prints_no_matrix_of_very_many_classes() -> None:
    classes = tuple(map(str, range(201)))
    sums = Sums(batches=1, samples=6, correct=5, correct_by_count=5, seconds=1.0, rates={"linear1": 0.1})
    network = NetworkSpec.parse("201", input_shape=(2,))
    lines = _text(Evaluation(sums, np.zeros((201, 201), np.int64)), "test", classes, network, 1).splitlines()
    assert lines[-1] == "The confusion matrix of 201 classes is in the output of --json."


def test_an_early_end_of_a_file_is_no_interrupt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def damaged(_: str) -> None:
        raise EOFError("marshal data too short")

    module: Any = sys.modules["stsbp.cli"]
    monkeypatch.setattr(module, "importlib", SimpleNamespace(import_module=damaged))
    monkeypatch.setattr(sys, "argv", ["stsbp", "backends"])
    assert module._run() == 1
    message = capsys.readouterr().err
    assert "Error: a compiled file of Python ended early (marshal data too short); remove the folders" in message


def test_evaluate_best_is_the_epoch_that_best_json_names(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train_tiny(run, "--epochs", 8, "--lr", 0.05)
    best = json.loads((run / "best.json").read_text())["best"]
    figures = json.loads(stsbp("evaluate", run, "--checkpoint", "best", "--split", "validation", "--json").stdout)
    assert figures["accuracy"] == best["value"]
    assert figures["step"] == best["step"]


def test_printed_commands_name_a_run_whose_name_begins_with_a_dash(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result]
) -> None:
    stopped = train_tiny(Path("-run"), "--stop-after", 1e-9)
    resume_command = shlex.split(stopped.stderr.splitlines()[-1].partition("Continue with: ")[2])
    assert resume_command == ["stsbp", "--backend", "numpy", "train", "--resume", "./-run"]
    stopped = stsbp("train", "--resume=-run", "--stop-after", 1e-9)
    assert stopped.exit_code == 75, stopped.output
    evaluate = stsbp(*resume_command[3:]).stdout.splitlines()[-1]
    assert evaluate == "run -run: stsbp evaluate ./-run"
    assert stsbp(*shlex.split(evaluate)[3:]).exit_code == 0


def test_printed_commands_are_on_the_path(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after `nox -s train`, whose environment is on nobody's PATH."""
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "stsbp"
    script.write_text("")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    printed = train_tiny(tmp_path / "a", "--epochs", 1).stdout.splitlines()[-1]
    assert printed == f"run {tmp_path / 'a'}: {script} evaluate {tmp_path / 'a'}"
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    printed_on_path = train_tiny(tmp_path / "b", "--epochs", 1).stdout.splitlines()[-1]
    assert printed_on_path == f"run {tmp_path / 'b'}: stsbp evaluate {tmp_path / 'b'}"


def test_the_learning_rate_has_two_names(train_tiny: Callable[..., Result], tmp_path: Path) -> None:
    shown = train_tiny(tmp_path / "a", "--learning-rate", 0.5, "--show-config")
    assert "lr = 0.5\n" in shown.stdout
    (tmp_path / "a.toml").write_text("learning_rate = 0.5")
    refused_setting = train_tiny(tmp_path / "a", "--config", tmp_path / "a.toml")
    assert "unknown setting 'learning_rate' (did you mean lr?)" in refused_setting.stderr


def test_predict_reads_arrays_and_images(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], tmp_path: Path
) -> None:
    pillow = pytest.importorskip("PIL.Image", reason="Pillow writes the image")
    run = tmp_path / "run"
    train_tiny(run, "--epochs", 20)
    images = load("digits", holdout=30).test.inputs(np.arange(4))
    np.save(tmp_path / "a.npy", images[0])
    np.save(tmp_path / "b.npy", images[1, 0])
    pillow.fromarray(images[2, 0]).save(tmp_path / "c.png")
    pillow.fromarray(images[3, 0]).resize((40, 40), pillow.Resampling.NEAREST).save(tmp_path / "d.bmp")
    paths = [tmp_path / name for name in ("a.npy", "b.npy", "c.png", "d.bmp")]
    rows = [json.loads(line) for line in stsbp("predict", run, *paths, "--json").stdout.splitlines()]
    assert [row["file"] for row in rows] == list(map(str, paths))
    for row in rows:
        assert row["class"] == min(row["distances"], key=row["distances"].get)
    # The same sample as an image and as an array.
    np.save(tmp_path / "c.npy", images[2])
    row_of_array = json.loads(stsbp("predict", run, tmp_path / "c.npy", "--json").stdout)
    assert row_of_array["distances"] == rows[2]["distances"]
    text = stsbp("predict", run, paths[0]).stdout
    assert text.startswith(f"{paths[0]}: {rows[0]['class']} (by spike count {rows[0]['class_spike_count']})")


def test_predict_takes_samples_of_the_data_set_and_classes_from_folders(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], tmp_path: Path, refused: Callable[..., None]
) -> None:
    run = tmp_path / "run"
    train_tiny(run, "--epochs", 20)
    data = load("digits", limit=50, holdout=30)
    (tmp_path / "3").mkdir()
    np.save(tmp_path / "3" / "a.npy", data.test.inputs(np.array([4]))[0])
    arguments = ("predict", run, tmp_path / "3" / "a.npy", "--sample", 4, "--sample", 0)
    file, fourth, first = (json.loads(line) for line in stsbp(*arguments, "--json").stdout.splitlines())
    assert (fourth["split"], fourth["sample"], first["sample"]) == ("test", 4, 0)
    assert fourth["distances"] == file["distances"]
    assert [row["label"] for row in (file, fourth, first)] == ["3", *map(str, data.test.labels[[4, 0]])]
    text = stsbp(*arguments, "--draw", tmp_path / "x.html").stdout
    assert f"test sample 4: {fourth['class']} (by spike count {fourth['class_spike_count']}), label" in text
    assert "of the 3 samples whose class is known" in text
    assert "test sample 4" in (tmp_path / "x.html").read_text()
    one = json.loads(stsbp("predict", run, "--sample", 1, "--split", "validation", "--json").stdout)
    assert one["split"] == "validation"
    refused(stsbp("predict", run, "--sample", 30), "--sample 30: the test split has the samples 0 to 29")
    refused(stsbp("predict", run, "--sample", 0, "--stream"), "--stream cannot be combined with --sample")
    refused(stsbp("predict", run, "x.npy", "--split", "train"), "--split and --data-dir are for samples")


def test_predict_takes_the_threads_of_the_run_unless_told(
    train_tiny: Callable[..., Result], stsbp: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    limits: list[int] = []
    assert train_tiny(run, "--epochs", 1, "--threads", 1).exit_code == 0
    monkeypatch.setattr("stsbp.cli.predict.limit_threads", limits.append)
    np.save(tmp_path / "a.npy", np.zeros((1, 8, 8), np.uint8))
    for options in ((), ("--threads", 2)):
        result = stsbp("predict", run, tmp_path / "a.npy", *options)
        assert result.exit_code == 0, result.output
    assert limits == [1, 2]


def test_outputs_are_held_against_their_label_sequences(
    train_tiny: Callable[..., Result], stsbp: Callable[..., Result], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    result = train_tiny(run, "--epochs", 20, "--steps", 8, "--label-pattern", "01")
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("outputs follow"))
    trained = package.load_run(run, backend="numpy")
    test = load("digits", limit=50, holdout=30).test
    outputs = trained.predict(test.inputs(np.arange(30))).spikes
    targets = encode_repeat(test.labels, 10, 8, LabelCode("01"))
    psp = trained.network.output_psp
    for tolerance in (0, 1):
        figures = json.loads(stsbp("evaluate", run, "--tolerance", tolerance, "--json").stdout)
        matched, spikes, target_spikes = (int(x.sum()) for x in match_spikes(outputs, targets, tolerance))
        assert 0 < matched < target_spikes
        assert (figures["precision"], figures["recall"]) == (matched / spikes, matched / target_spikes)
        assert figures["f1"] == 2 * matched / (spikes + target_spikes)
        assert figures["hamming"] == pytest.approx((outputs != targets).sum() / 30)
        assert figures["van_rossum"] == pytest.approx(VanRossum().distances(outputs, targets, psp).mean())
        assert figures["tolerance"] == tolerance
    assert f"F1 {figures['f1']:.2%} (spikes within 1 step), Hamming distance {figures['hamming']:.4g}" in line
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["f1"] == figures["f1"]
    assert all("f1" not in line for line in lines if line["kind"] != "evaluation")
    text = stsbp("evaluate", run).stdout
    assert f"precision   {figures['precision']:.2%}  spike times within 1 step, {matched} of {spikes} output" in text
    page = stsbp("report", run, "--no-samples")
    assert page.exit_code == 0, page.output
    assert f"<b>{figures['f1']:.2%}</b>F1 of test outputs" in run.with_suffix(".html").read_text()


def test_a_tolerance_of_spike_times_is_refused_where_there_are_none(
    train_tiny: Callable[..., Result], stsbp: Callable[..., Result], tmp_path: Path, refused: Callable[..., None]
) -> None:
    train_tiny(tmp_path / "run", "--epochs", 1, "--loss", "cross-entropy")
    result = stsbp("evaluate", tmp_path / "run", "--tolerance", 1)
    refused(result, "--tolerance applies to output spikes, but the readout of this run has none; leave --tolerance out")
    assert "f1" not in json.loads(stsbp("evaluate", tmp_path / "run", "--json").stdout)


def test_a_limit_above_the_number_of_samples_is_reported(train_tiny: Callable[..., Result], tmp_path: Path) -> None:
    result = train_tiny(tmp_path / "run", "--epochs", 1, "--limit", 5000)
    assert "limit 5,000 has no effect: there are only 1,767 training samples" in result.stderr


@pytest.mark.usefixtures("few_recordings")
def test_predict_reads_recordings_and_frames(stsbp: Callable[..., Result], tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("tonic", reason="tonic reads recordings")
    from stsbp.cli.predict import read_inputs
    from stsbp.datasets.nmnist import read_recording
    from stsbp.errors import DataError
    from stsbp.training.build import Inputs
    from stsbp_spec.models.encoders import EventBinning

    monkeypatch.setenv("STSBP_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "run"
    settings = ("--net", 8, "--steps", 5, "--epochs", 1, "--limit", 20, "--holdout", 10)
    binned = ("--bin-ms", "40", "--stabilise", "--saccades", "all")
    assert stsbp("train", "digits-events", *settings, *binned, "--out", run).exit_code == 0
    recording = tmp_path / "a.bin"
    # x, y, polarity bit and 23 bits of microseconds of each event.
    times = range(0, 300_000, 1000)
    recording.write_bytes(
        b"".join(bytes([n % 34, n % 33, (n % 2) << 7 | t >> 16, t >> 8 & 255, t & 255]) for n, t in enumerate(times))
    )
    frames = EventBinning(steps=5, window_us=200_000, stabilise=True).frames(
        *read_recording(recording.read_bytes(), recording)
    )
    np.save(tmp_path / "a.npy", frames)
    rows = [json.loads(s) for s in stsbp("predict", run, recording, tmp_path / "a.npy", "--json").stdout.splitlines()]
    assert rows[0]["distances"] == rows[1]["distances"]
    assert frames.sum() > 100
    smaller = Inputs((2, 20, 20), "events", ("a", "b"))
    with pytest.raises(DataError, match=rf"^{recording}: an event's x is out of range: expected 0 to 19, got 0 to 33"):
        read_inputs([recording], smaller, EventBinning(steps=5, window_us=200_000), "nmnist")


def test_binning_is_refused_where_there_are_no_recordings(stsbp: Callable[..., Result]) -> None:
    failed = stsbp("train", "digits", "--stabilise", "--bin-ms", "3")
    assert failed.exit_code == 1
    assert "bin_ms, stabilise apply only to recordings (digits-events, nmnist" in failed.output


def test_closed_pipe_is_quiet() -> None:
    command = f"{sys.executable} -m stsbp networks 12C5-P2-64C5-P2 | true; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert result.stderr == ""
    assert result.stdout.strip() == "141"


def test_training_outlives_the_reader_of_its_progress(tmp_path: Path) -> None:
    settings = "--net 8 --steps 2 --epochs 2 --limit 20 --holdout 10"
    train = f"{sys.executable} -m stsbp --backend numpy train digits {settings} --out {tmp_path / 'run'}"
    command = f"{train} 2>&1 >{tmp_path / 'out'} | true"
    subprocess.run(["bash", "-c", command], timeout=60, check=False)
    assert json.loads((tmp_path / "run" / "last.json").read_text())["finished"] is True
    assert "test accuracy" in (tmp_path / "out").read_text()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("stsbp tr", ["train"]),
        ("stsbp train nm", ["nmnist", "nmnist-sim"]),
        ("stsbp train --test-on nmnist-", ["nmnist-sim"]),
        ("stsbp evaluate run --on mo", ["motor"]),
        ("stsbp experiment digi", ["digits", "digits-events"]),
        ("stsbp experiment cifar10-tssl-1 --dataset cif", ["cifar10-dvs", "cifar10"]),
        ("stsbp train --preset nmnist-h", ["nmnist-hamming"]),
        ("stsbp presets cifar10-tssl-", ["cifar10-tssl-1", "cifar10-tssl-2"]),
        ("stsbp --backend num", ["numpy"]),
        ("stsbp train digits --surrogate fa", ["fast-sigmoid"]),
        ("stsbp train digits --loss ham", ["hamming"]),
        ("stsbp train digits --init-r", ["--init-rate"]),
    ],
)
def test_shell_completion(words: str, expected: list[str]) -> None:
    typed = words.split()
    completion = BashComplete(cli, {}, "stsbp", "_STSBP_COMPLETE")
    completions = completion.get_completions(typed[1:-1], typed[-1])
    assert [item.value for item in completions] == expected


def test_shell_completion_of_folders() -> None:
    completion = BashComplete(cli, {}, "stsbp", "_STSBP_COMPLETE")
    for option in ("--data-dir", "--init-from"):
        (item,) = completion.get_completions(["train", "digits", option], "ru")
        assert (item.value, item.type) == ("ru", "dir")


def test_documented_line_enables_completion() -> None:
    import os

    code = "import sys; sys.argv[0] = 'stsbp'; from stsbp.cli import main; main()"

    def run(**variables: str) -> str:
        environment = {**os.environ, **variables}
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60, check=False
        ).stdout

    assert "complete -o nosort -F" in run(_STSBP_COMPLETE="bash_source")
    answer = run(_STSBP_COMPLETE="bash_complete", COMP_WORDS="stsbp train nm", COMP_CWORD="2")
    assert answer.split() == ["plain,nmnist", "plain,nmnist-sim"]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (("trian", "digits"), "(did you mean train?)"),
        (("train", "digits", "--epoch", 3), "Did you mean '--epochs'?"),
        (("train", "digits", "--loss", "hammin"), "(did you mean hamming?)"),
        (("train", "digits", "--surrogate", "arctn"), "(did you mean arctan?)"),
        (("train", "digtis"), "(did you mean digits?)"),
        (("train", "digits", "--test-on", "digits-event"), "(did you mean digits-events?)"),
        (("train", "--preset", "nmnist-haming"), "(did you mean nmnist-hamming?)"),
        (("experiment", "nmnist-haming"), "(did you mean nmnist-hamming?)"),
        (("evaluate", "run", "--split", "tset"), "(did you mean test?)"),
        (("networks", "12", "--coding", "event"), "(did you mean events?)"),
        (("benchmark", "stpe"), "(did you mean step?)"),
        (("--backend", "numpi", "train", "digits"), "(did you mean numpy?)"),
    ],
)
def test_mistyped_names_have_a_suggestion(stsbp: Callable[..., Result], typed: tuple[Any, ...], meant: str) -> None:
    done = stsbp(*typed)
    assert done.exit_code in (1, 2)
    assert meant in done.stderr


def test_names_far_from_any_have_none(stsbp: Callable[..., Result]) -> None:
    for typed in (("qqq",), ("train", "qqq"), ("train", "digits", "--loss", "qqq")):
        assert "did you mean" not in stsbp(*typed).stderr


def sections_of_help(name: str) -> dict[str, list[str]]:
    """Long options by the heading of their section on the help page."""
    sections: dict[str, list[str]] = {}
    # The text above the first section may begin a line with an option.
    options: list[str] = []
    for line in CliRunner().invoke(cli, [name, "--help"], terminal_width=100).output.splitlines():
        if re.fullmatch(r"[A-Z][\w ]*:", line):
            options = sections.setdefault(line[:-1].lower(), [])
        elif match := re.match(r"  (?:-\w, )?(--[\w-]+)", line):
            options.append(match[1])
    return sections


def test_help_shows_the_settings_in_their_sections() -> None:
    documented = {title.lower(): ["--" + name.replace("_", "-") for name in names] for title, names in SECTIONS.items()}
    for command in ("train", "experiment", "sweep"):
        shown = sections_of_help(command)
        assert shown.pop("options")[-1] == "--help"
        assert shown == documented, command


def test_the_help_of_experiment_shows_how_many_samples_it_holds_out() -> None:
    for name, default in (("train", "0"), ("experiment", "one tenth of the training samples")):
        text = CliRunner().invoke(cli, [name, "--help"], terminal_width=100).output
        option = text.partition("\n  --validation ")[2].partition(" --")[0]
        assert f"[default: {default}]" in " ".join(option.split())


def test_sections_hold_every_setting_once() -> None:
    names = [name for section in SECTIONS.values() for name in section]
    assert sorted(names) == sorted(set(RunConfig.model_fields) - {"dataset"})


def test_texts_say_what_a_number_does_in_words() -> None:
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        for option in command.params:
            text = getattr(option, "help", None) or ""
            assert not re.search(r"(^|[ ;.])\d: ", text), (name, option.name, text)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=lambda loss: str(loss.name))
@pytest.mark.parametrize("code", [LabelCode(), LabelCode("01", "1000")], ids=["default", "patterns"])
def test_distances_are_those_of_the_spec(loss: Any, code: LabelCode) -> None:
    spikes = (np.random.default_rng(0).random((9, 6, 5)) < 0.4).astype(np.uint8)
    fast = LabelDistances(code, 5, 9, loss, PSP(3.0))(spikes)
    np.testing.assert_allclose(fast, distances(spikes, code.sequences(5, 9), loss, PSP(3.0)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=lambda loss: str(loss.name))
@pytest.mark.parametrize("code", [LabelCode(), LabelCode("01", "1000")], ids=["default", "patterns"])
@pytest.mark.parametrize("size", [1, 7])
def test_the_loss_beside_the_distances_has_the_bits_of_the_spec(loss: Any, code: LabelCode, size: int) -> None:
    rng = np.random.default_rng(1)
    spikes, labels = (rng.random((40, size, 19)) < 0.3).astype(np.uint8), rng.integers(0, 19, size)
    measure = LabelDistances(code, 19, 40, loss, PSP(5 / 3))
    targets = encode_repeat(labels, 19, 40, code)
    together, losses = measure.with_loss(spikes, targets, labels)
    assert losses.tolist() == loss.distance(spikes, targets, PSP(5 / 3)).tolist()
    assert together.tolist() == measure(spikes).tolist()


def test_where_records_end(tmp_path: Path) -> None:
    figures = {"loss": 1.0, "rates": {}, "samples": 1, "accuracy": 1.0, "accuracy_spike_count": 1.0, "seconds": 1.0}
    lines = [
        json.dumps({"kind": "evaluation", "split": "test", "step": 3 * epoch, "epoch": epoch, **figures}) + "\n"
        for epoch in (1, 2, 3)
    ]
    path, (first, second) = tmp_path / "metrics.jsonl", (len(lines[0]), len(lines[0] + lines[1]))

    def check(size: int, step: int, epoch: int, text: str | None = None) -> None:
        digest = None if text is None else hashlib.sha256(text.encode()).hexdigest()
        check_records(Recorded(step=step, epoch=epoch, metrics_bytes=size, metrics_sha256=digest), tmp_path)

    check(100, 6, 2)
    path.write_text("".join(lines))
    check(second, 6, 2)
    # A checkpoint between the last update of an epoch and its evaluation is of the epoch before.
    check(first, 6, 1)
    with pytest.raises(CheckpointError, match=f"metrics_bytes is {first}, but update 6 comes after it"):
        check(first, 6, 2)
    with pytest.raises(CheckpointError, match=f"metrics_bytes is {second}, but update 6 comes before it"):
        check(second, 5, 1)
    for size in (1, first - 1, first + 1):
        with pytest.raises(CheckpointError, match="within a line"):
            check(size, 3, 1)
    check(second, 6, 2, lines[0] + lines[1])
    with pytest.raises(CheckpointError, match=f"its first {second} bytes do not have the SHA-256"):
        check(second, 6, 2, lines[0] + lines[2])
    with pytest.raises(CheckpointError, match=f"metrics_bytes is {first}, but update 6 comes after it"):
        check(first, 6, 2, lines[0])
    # A file that has lost its end is continued, if nothing says what it was.
    path.write_text(lines[0] + lines[1][:9])
    check(second, 6, 2)
    with pytest.raises(CheckpointError, match="do not have the SHA-256"):
        check(second, 6, 2, lines[0] + lines[1])
    path.write_text("")
    check(second, 6, 2, lines[0] + lines[1])


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege")
@pytest.mark.parametrize("link", [Path.hardlink_to, Path.symlink_to])
def test_metrics_file_does_not_change_what_it_is_linked_to(link: Callable[[Path, Path], None], tmp_path: Path) -> None:
    other, run = tmp_path / "other", tmp_path / "run"
    run.mkdir()
    other.write_text('{"a": 1}\n{"b": 2}\n')
    link(run / "metrics.jsonl", other)
    with OpenFolder(run) as folder, MetricsFile(folder, len('{"a": 1}\n')) as file:
        file.write({"c": 3})
    assert (run / "metrics.jsonl").read_text() == '{"a": 1}\n{"c": 3}\n'
    assert other.read_text() == '{"a": 1}\n{"b": 2}\n'


def test_metrics_file_is_cut_to_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with OpenFolder(tmp_path) as folder:
        with MetricsFile(folder) as file:
            file.write({"a": 1})
            size = file.sync()
            file.write({"b": 2})
        with MetricsFile(folder, size) as file:
            assert not file.has_lost_lines
            file.write({"c": 3})
        assert path.read_text() == '{"a": 1}\n{"c": 3}\n'
        path.write_text('{"a": 1}\n{"c"')
        with MetricsFile(folder, 100) as file:
            assert file.has_lost_lines
        assert path.read_text() == '{"a": 1}\n'
