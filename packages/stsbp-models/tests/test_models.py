"""The trained networks of the package: their cards, their weights, and every command that reads them."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shlex
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stsbp as stsbp_api
import stsbp_models
from click.testing import CliRunner, Result
from stsbp.cli import cli
from stsbp.errors import CheckpointError, ConfigError
from stsbp.hub.folder import hub_settings
from stsbp.hub.network import read_folder
from stsbp.hub.packing import safetensors_bytes
from stsbp_spec.registry import installed_backends

ROOT = Path(__file__).parents[3]
NAMES = ("fashion-mnist", "fsdd", "mnist", "nmnist", "patterns")
FOLDERS = stsbp_models.folders()
OTHERS = [name for name in ("numpy", "cpu", "torch", "jax") if name in installed_backends()]


@pytest.fixture
def stsbp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    """The command line in this process, on the numpy backend unless another is given, in an empty working folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: Any, backend: str = "numpy") -> Result:
        return CliRunner().invoke(cli, ["--backend", backend, *map(str, arguments)], prog_name="stsbp")

    return call


def config_of(name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((FOLDERS[name] / "config.json").read_text())
    return values


def commands_of(name: str) -> list[list[str]]:
    """The words of the commands in the model card that make it."""
    card = (FOLDERS[name] / "README.md").read_text()
    section = card.partition("## Training")[2]
    block = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert block is not None
    return [shlex.split(line) for line in block[1].splitlines()]


def test_the_models_are_there_in_few_bytes() -> None:
    assert tuple(FOLDERS) == NAMES
    files = [path for folder in FOLDERS.values() for path in folder.iterdir()]
    assert {path.name for path in files} - {".lock"} == {"README.md", "config.json", "model.packed"}
    assert sum(path.stat().st_size for path in files) <= 3e6


@pytest.mark.parametrize("name", NAMES)
def test_weights_have_the_sha256_of_the_card(name: str) -> None:
    network = read_folder(FOLDERS[name], name)
    sha256 = hashlib.sha256(safetensors_bytes(network.weights)).hexdigest()
    assert sha256 == config_of(name)["sha256"]
    assert f"| SHA-256 of the weights | `{sha256}` |" in (FOLDERS[name] / "README.md").read_text()
    assert network.settings.precision == "reproducible"
    assert network.settings.dataset == name


@pytest.mark.parametrize("name", NAMES)
def test_command_of_the_card_has_the_stored_settings(name: str, stsbp: Callable[..., Result]) -> None:
    train, export = commands_of(name)
    assert train[:2] == ["stsbp", "train"]
    shown = stsbp(*train[1:], "--show-config")
    assert shown.exit_code == 0, shown.output
    settings = read_folder(FOLDERS[name], name).settings
    typed = settings.model_copy(update=tomllib.loads(shown.stdout))
    assert hub_settings(typed) == hub_settings(settings)
    assert export == ["stsbp", "export", "RUN", "--to", "hub", "--packed", "--out", "RUN-hub"]


@pytest.mark.slow
@pytest.mark.long  # beside the stored hashes of the suite, of weights after 20 updates, and the settings above
@pytest.mark.parametrize("backend", ["cpu"] if "cpu" in OTHERS else ["numpy"])
def test_command_of_the_card_gives_the_same_weights(backend: str, stsbp: Callable[..., Result], tmp_path: Path) -> None:
    # The model was trained with torch. Other models take minutes, and data.
    train, export = commands_of("patterns")
    trained = stsbp(*train[1:], backend=backend)
    assert trained.exit_code == 0, trained.output
    exported = stsbp(*export[1:])
    assert exported.exit_code == 0, exported.output
    assert f"SHA-256 {config_of('patterns')['sha256']}" in exported.stdout
    made = json.loads((tmp_path / "RUN-hub" / "config.json").read_text())
    stored = config_of("patterns")
    for key in ("contents", "inputs", "settings", "packed", "step", "sha256", "test"):
        assert made[key] == stored[key], key


def test_page_has_the_table_of_the_models() -> None:
    spec = importlib.util.spec_from_file_location("tools_models", ROOT / "tools" / "models.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert page == tool.with_table(page, tool.table())
    assert page.count("| `") >= len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_card_has_the_accuracy_and_its_interval(name: str) -> None:
    test, card = config_of(name)["test"], (FOLDERS[name] / "README.md").read_text()
    assert f"{test['samples']} test samples" in card
    expected = "F1 100.00%" if name == "patterns" else f"Accuracy {test['accuracy']:.2%} on"
    assert expected in card
    assert ("95 % confidence interval" in card) == (name != "patterns")
    assert "license: apache-2.0" in card
    assert name == "patterns" or "the data have the licence " in card


def test_evaluate_gives_the_test_of_the_card(stsbp: Callable[..., Result]) -> None:
    for backend in OTHERS:
        done = stsbp("evaluate", "model:patterns", "--json", backend=backend)
        assert done.exit_code == 0, done.output
        result, test = json.loads(done.stdout), config_of("patterns")["test"]
        assert {key: result[key] for key in test} == test, backend


@pytest.mark.data
@pytest.mark.parametrize("name", ["fashion-mnist", "fsdd", "mnist", "nmnist"])
def test_evaluate_on_real_data_gives_the_test_of_the_card(name: str, stsbp: Callable[..., Result]) -> None:
    data = os.environ.get("STSBP_DATA")
    folder = Path(data or "") / ("NMNIST" if name == "nmnist" else name)
    if data is None or not folder.exists():
        pytest.skip(f"STSBP_DATA has no {folder.name}")
    backend = "cpu" if "cpu" in OTHERS else "numpy"
    done = stsbp("evaluate", f"model:{name}", "--json", backend=backend)
    if "are not those that the run was trained on" in done.output:
        pytest.skip("these are other samples than those of the training")
    assert done.exit_code == 0, done.output
    test = config_of(name)["test"]
    result = json.loads(done.stdout)
    # The rates of the cards were added in another order.
    rates = test.pop("rates")
    assert result["rates"] == pytest.approx(rates, rel=1e-12)
    assert {key: result[key] for key in test} == test


def test_predict_reads_a_file_and_samples(stsbp: Callable[..., Result], tmp_path: Path) -> None:
    image = np.zeros((28, 28), np.uint8)
    image[4:24, 13:16] = 255  # a stroke, which is a one
    np.save(tmp_path / "one.npy", image)
    done = stsbp("predict", "model:mnist", "one.npy", "--json", "--draw", "one.html")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["class"] == "1"
    assert "Read by the network in mnist" in (tmp_path / "one.html").read_text()
    sample = stsbp("predict", "model:patterns", "--sample", "2", "--json")
    assert sample.exit_code == 0, sample.output
    record = json.loads(sample.stdout)
    assert record["spikes"] == record["targets"]


def test_export_and_report_read_a_model(stsbp: Callable[..., Result], tmp_path: Path) -> None:
    assert stsbp("export", "model:fsdd", "--to", "c", "--out", "firmware").exit_code == 0
    assert {path.name for path in (tmp_path / "firmware").glob("fsdd.*")} == {"fsdd.c", "fsdd.h"}
    done = stsbp("report", "model:patterns")
    assert done.exit_code == 0, done.output
    page = (tmp_path / "patterns.html").read_text()
    assert "<h1>patterns</h1>" in page
    assert "100.00%" in page
    assert stsbp("export", "model:patterns", "--to", "hub", "--packed", "--out", "again").exit_code == 0
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert again == config_of("patterns")


def test_training_begins_with_a_model(stsbp: Callable[..., Result], tmp_path: Path) -> None:
    done = stsbp("train", "patterns", "--init-from", "model:patterns", "--epochs", "1", "--lr", "1e-9", "--out", "run")
    assert done.exit_code == 0, done.output
    run = stsbp_api.load_run(tmp_path / "run", backend="numpy")
    assert run.settings.init_from == "model:patterns"
    assert run.settings.init_sha256 == config_of("patterns")["sha256"]
    weights = stsbp_api.load_hub("model:patterns", backend="numpy").weights
    assert all(np.allclose(run.weights[name], x, rtol=0, atol=1e-5) for name, x in weights.items())
    # The hidden layers are those of the model, unless the command names others.
    shown = stsbp("train", "mnist", "--init-from", "model:mnist", "--show-config")
    assert tomllib.loads(shown.stdout)["net"] == "400"
    other = stsbp("train", "mnist", "--init-from", "model:mnist", "--net", "200", "--show-config")
    assert tomllib.loads(other.stdout)["net"] == "200"


def test_python_reads_a_model() -> None:
    trained = stsbp_api.load_hub("model:mnist", backend="numpy")
    images = np.zeros((2, 1, 28, 28), np.uint8)
    images[0, 0, 4:24, 13:16] = 255
    assert trained.predict(images).classes[0] == "1"
    assert read_folder(FOLDERS["mnist"], "x").settings == trained.settings


def test_torch_reads_a_model() -> None:
    torch = pytest.importorskip("torch")
    stsbp_torch = pytest.importorskip("stsbp_torch")
    network = stsbp_torch.Network.from_pretrained("model:mnist").eval()
    images = np.random.default_rng(1).integers(0, 256, (3, 1, 28, 28), dtype=np.uint8)
    trained = stsbp_api.load_hub("model:mnist", backend="numpy")
    with torch.no_grad():
        spikes = network(torch.from_numpy(images), trained.settings.steps).numpy().astype(np.uint8)
    assert spikes.tobytes() == trained.predict(images).spikes.tobytes()


def test_unknown_names_are_told(stsbp: Callable[..., Result]) -> None:
    for command in (
        ("evaluate", "model:mnits"),
        ("predict", "model:mnits", "a.png"),
        ("report", "model:mnits"),
        ("export", "model:mnits", "--to", "c", "--out", "c"),
        ("train", "mnist", "--init-from", "model:mnits"),
        ("models", "mnits"),
    ):
        done = stsbp(*command)
        assert done.exit_code == 1, command
        assert (
            "there is no model 'mnits' (did you mean mnist?); the models are fashion-mnist, fsdd, mnist" in done.output
        )
    assert "leave --checkpoint out" in stsbp("evaluate", "model:mnist", "--checkpoint", "best").output
    # Commands that read more than a network say so.
    for command in (("compare", "model:mnist"), ("convert", "model:mnist", "--psp-gain", "unit", "--out", "copy")):
        assert "this command needs the folder of a run" in stsbp(*command).output, command
    with pytest.raises(ConfigError, match=r"there is no model '\.\./mnist'"):
        stsbp_api.load_hub("model:../mnist", backend="numpy")
    with pytest.raises(CheckpointError, match=r"stsbp\.load_hub"):
        stsbp_api.load_run("model:mnist")


def test_missing_package_is_named(stsbp: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stsbp_models", None)
    for command in (("evaluate", "model:mnist"), ("models",), ("train", "mnist", "--init-from", "model:mnist")):
        done = stsbp(*command)
        assert done.exit_code == 1
        assert 'python -m pip install "stsbp[models]"' in done.output


def test_models_are_listed(stsbp: Callable[..., Result]) -> None:
    lines = stsbp("models").stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(NAMES)
    assert "accuracy 98.21% (97.93% to 98.45%), 10000 test samples" in lines[2]
    records = [json.loads(line) for line in stsbp("models", "--json").stdout.splitlines()]
    for record in records:
        stored = config_of(record["name"])
        assert (record["sha256"], record["test"]) == (stored["sha256"], stored["test"])
        assert record["bytes"] == (FOLDERS[record["name"]] / "model.packed").stat().st_size
    card = (FOLDERS["fsdd"] / "README.md").read_text().rstrip()
    assert stsbp("models", "fsdd").stdout.rstrip() == card
