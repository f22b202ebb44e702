"""Folders for the Hugging Face Hub: round trips, downloads from a local server, and hostile folders."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import os
import pickle
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import safetensors.numpy
import stsbp as stsbp_api
from click.testing import Result
from stsbp.config import SettingsSource, resolve
from stsbp.errors import CheckpointError, ConfigError, StsbpError
from stsbp.hub.card import wilson_interval
from stsbp.hub.download import push_folder, read_hub
from stsbp.hub.network import read_folder
from stsbp.training.tracking import tracked_settings
from stsbp_spec.registry import installed_backends

Command = Callable[..., Result]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def exported(train_tiny: Command, stsbp: Command, tmp_path: Path) -> Path:
    """The folder of a tiny run, `hub`, beside its run, `run`."""
    assert train_tiny(tmp_path / "run", "--precision", "reproducible").exit_code == 0
    done = stsbp("export", tmp_path / "run", "--to", "hub", "--out", tmp_path / "hub", "--license", "apache-2.0")
    assert done.exit_code == 0, done.output
    return tmp_path / "hub"


def images() -> Any:
    return np.random.default_rng(3).integers(0, 256, (7, 1, 8, 8), dtype=np.uint8)


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change `config.json`."""
    values = json.loads((folder / "config.json").read_text())
    change(values)
    (folder / "config.json").write_text(json.dumps(values))


def with_weights(folder: Path, data: bytes) -> None:
    """Replace the weights, with the right SHA-256."""
    (folder / "model.safetensors").write_bytes(data)
    changed(folder, lambda values: values.update(sha256=hashlib.sha256(data).hexdigest()))


def test_folder_gives_the_spikes_of_the_run_on_every_backend(exported: Path, tmp_path: Path) -> None:
    # The folder needs nothing of the run.
    expected = stsbp_api.load_run(tmp_path / "run", backend="numpy").predict(images()).spikes
    (tmp_path / "run").rename(tmp_path / "gone")
    names = [name for name in ("numpy", "cpu", "torch", "jax") if name in installed_backends()]
    for name in names:
        trained = stsbp_api.load_hub(exported, backend=name)
        assert trained.predict(images()).spikes.tobytes() == expected.tobytes(), name
    assert expected.any()


def test_module_of_torch_gives_the_same_spikes(exported: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    stsbp_torch = pytest.importorskip("stsbp_torch")
    run = stsbp_api.load_run(tmp_path / "run", backend="numpy")
    expected = run.predict(images()).spikes
    network = stsbp_torch.Network.from_pretrained(exported).eval()
    with torch.no_grad():
        spikes = network(torch.from_numpy(images()), run.settings.steps)
    assert spikes.numpy().astype(np.uint8).tobytes() == expected.tobytes()


def test_evaluate_gives_the_test_of_the_run(exported: Path, stsbp: Command, tmp_path: Path) -> None:
    of_run = json.loads(stsbp("evaluate", tmp_path / "run", "--json").stdout)
    of_folder = stsbp("evaluate", f"hub:{exported}", "--json")
    assert of_folder.exit_code == 0, of_folder.output
    values = json.loads(of_folder.stdout)
    for key in ("run", "seconds"):
        del of_run[key], values[key]
    assert values == of_run


def test_card_says_task_test_and_licence(exported: Path, tmp_path: Path, records: Any) -> None:
    card = (exported / "README.md").read_text()
    test = next(r for r in reversed(records(tmp_path / "run")) if r.get("split") == "test")
    low, high = wilson_interval(test["accuracy"], 30)
    sha256 = hashlib.sha256((exported / "model.safetensors").read_bytes()).hexdigest()
    for text in (
        "license: apache-2.0\n",
        f"Accuracy {test['accuracy']:.2%} on 30 test samples",
        f"{low:.2%} to {high:.2%}",
        f"`{sha256}`",
        "reproducible",
        "stsbp train digits ",
        "--net 12",
    ):
        assert text in card
    assert str(tmp_path) not in card + (exported / "config.json").read_text()
    command = next(line for line in card.splitlines() if line.startswith("stsbp train digits"))
    words = command.split()[3:]
    again = {words[i][2:].replace("-", "_"): words[i + 1] for i in range(0, len(words), 2)}
    assert again.pop("out") == "RUN"
    config = stsbp_api.load_run(tmp_path / "run").settings
    texts = {key: str(value) for key, value in config.model_dump().items()}
    assert {key: texts[key] for key in again} == again
    usual = resolve([SettingsSource("", {"dataset": "digits"})]).model_dump()
    assert {key for key, value in config.model_dump().items() if value != usual[key]} <= {*again, "track"}


def test_interval_of_wilson() -> None:
    # At its ends, the normal approximation with the share p of the end just accepts the observed share.
    for share, samples in ((0.5, 20), (0.9, 30), (0.01, 500)):
        for p in wilson_interval(share, samples):
            assert (share - p) ** 2 == pytest.approx(1.959963984540054**2 * p * (1 - p) / samples, rel=1e-9)
    assert wilson_interval(1.0, 30)[1] == pytest.approx(1.0)
    assert wilson_interval(0.0, 30)[0] == 0.0


def test_paths_of_settings_are_left_out(exported: Path, tmp_path: Path) -> None:
    from stsbp.hub.folder import hub_settings

    config = stsbp_api.load_run(tmp_path / "run").settings
    private = {"dataset": "events:/home/me/a.npz", "data_dir": "/home/me", "init_from": "/home/me/run:best"}
    settings = hub_settings(config.model_copy(update={**private, "init_sha256": "a" * 64}))
    assert "/home" not in json.dumps(settings)
    assert settings["dataset"] == "events:a.npz"


def test_exports_replace_only_exports(exported: Path, stsbp: Command, tmp_path: Path, refused: Any) -> None:
    command = ("export", tmp_path / "run", "--to", "hub", "--out", exported)
    assert stsbp(*command).exit_code == 0
    for file in ("README.md", "config.json", "model.safetensors"):
        (tmp_path / "own").mkdir(exist_ok=True)
        (tmp_path / "own" / file).write_text("precious")
        refused(stsbp(*command[:-1], tmp_path / "own"), file, "is there already")
        assert [path.name for path in (tmp_path / "own").iterdir()] == [file]
        (tmp_path / "own" / file).unlink()
    refused(stsbp(*command, "--license", "my own\nlicence"), "--license is an identifier")


class _Hub(BaseHTTPRequestHandler):
    """The part of the Hub that downloads use: the files of one commit, and what was asked for."""

    files: dict[str, bytes]
    asked: list[str]
    size: dict[str, int]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        kind = type(self)
        if body:
            kind.asked.append(self.path)
        prefix = f"/me/net/resolve/{COMMIT}/"
        data = kind.files.get(self.path.removeprefix(prefix)) if self.path.startswith(prefix) else None
        if data is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("Content-Length", str(kind.size.get(self.path.removeprefix(prefix), len(data))))
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture
def hub(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Hub]]:
    """A local server in place of the Hub, with the exported folder and other files as commit COMMIT of `me/net`."""
    pytest.importorskip("huggingface_hub")
    files = {path.name: path.read_bytes() for path in exported.iterdir() if path.name != ".lock"}
    files |= {"pytorch_model.bin": pickle.dumps([1]), "modeling.py": b"raise SystemExit"}
    handler = cast("type[_Hub]", type("Handler", (_Hub,), {"files": files, "asked": [], "size": {}}))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    # Older versions copy this name into another module.
    downloads = importlib.import_module("huggingface_hub.file_download")
    monkeypatch.setattr(downloads, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    yield handler
    server.shutdown()
    server.server_close()


def test_commit_of_the_hub_is_downloaded_and_evaluated(
    hub: type[_Hub], exported: Path, stsbp: Command, tmp_path: Path
) -> None:
    network = read_hub(f"hub:me/net@{COMMIT}")
    expected = read_folder(exported, "a")
    assert network.settings == expected.settings
    assert {name: x.tobytes() for name, x in network.weights.items()} == {
        name: x.tobytes() for name, x in expected.weights.items()
    }
    # Nothing else of the repository is fetched: no pickle, no code, no card.
    prefix = f"/me/net/resolve/{COMMIT}/"
    # The library itself also asks the server about programs that use it.
    asked = [path for path in hub.asked if "/resolve/" in path]
    assert asked == [f"{prefix}config.json", f"{prefix}model.safetensors"]
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".bin", ".py")]
    of_run = json.loads(stsbp("evaluate", tmp_path / "run", "--json").stdout)
    of_hub = stsbp("evaluate", f"hub:me/net@{COMMIT}", "--json")
    assert of_hub.exit_code == 0, of_hub.output
    assert json.loads(of_hub.stdout)["accuracy"] == of_run["accuracy"]
    # The second time, the cache has the files.
    assert [path for path in hub.asked if "/resolve/" in path] == asked
    # The cache may also be read as a folder, whose files are links into the cache.
    (snapshot,) = (tmp_path / "cache").glob("models--me--net/snapshots/*")
    assert read_hub(str(snapshot)).settings == expected.settings


def test_too_large_files_are_not_downloaded(hub: type[_Hub]) -> None:
    hub.size["config.json"] = 2**40
    with pytest.raises(CheckpointError, match=r"config.json has 1099511627776 bytes, more than the 8,388,608"):
        read_hub(f"hub:me/net@{COMMIT}")
    del hub.size["config.json"]
    hub.size["model.safetensors"] = 2**40
    with pytest.raises(StsbpError, match=r"model.safetensors has 1099511627776 bytes"):
        read_hub(f"hub:me/net@{COMMIT}")
    assert not [path for path in hub.asked if path.endswith("safetensors")]


def test_missing_repository_or_file_is_told(hub: type[_Hub]) -> None:
    del hub.files["model.safetensors"]
    for name in (f"hub:me/net@{COMMIT}", f"hub:me/other@{COMMIT}", f"hub:me/net@{'f' * 40}"):
        with pytest.raises(CheckpointError, match="cannot be downloaded"):
            read_hub(name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("hub:me/net", "needs the hash of a commit"),
        ("hub:me/net@main", "needs the hash of a commit"),
        ("hub:me/net@0123abc", "needs the hash of a commit"),
        (f"hub:../net@{COMMIT}", "is neither a folder nor a commit"),
        (f"hub:me/../../net@{COMMIT}", "is neither a folder nor a commit"),
        (f"hub:https://example/me/net@{COMMIT}", "is neither a folder nor a commit"),
        ("hub:", "is neither a folder nor a commit"),
    ],
)
def test_names_without_a_commit_are_refused(stsbp: Command, refused: Any, name: str, reason: str) -> None:
    refused(stsbp("evaluate", name), reason)


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r'pip install "stsbp\[hub\]"'):
        read_hub(f"hub:me/net@{COMMIT}")


def test_push_sends_the_three_files(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    calls: list[tuple[str, Any]] = []

    @dataclasses.dataclass
    class Commit:
        oid: str = COMMIT

    def upload(_: object, **arguments: Any) -> Commit:
        calls.append(("upload", {**arguments, "files": sorted(os.listdir(arguments["folder_path"]))}))
        return Commit()

    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda _, *a, **k: calls.append(("create", (a, k))))
    run = stsbp_api.load_run(tmp_path / "run", backend="numpy")
    assert run.push_to_hub("me/net", private=True, license="mit") == COMMIT
    assert calls[0] == ("create", (("me/net",), {"private": True, "exist_ok": True}))
    assert calls[1][1]["repo_id"] == "me/net"
    assert calls[1][1]["allow_patterns"] == ["config.json", "model.safetensors", "README.md"]
    assert {"README.md", "config.json", "model.safetensors"} == {*calls[1][1]["files"]} - {".lock"}
    with pytest.raises(ConfigError, match="a repository is OWNER/NAME"):
        push_folder(exported, "../net")
    (exported / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="does not describe a network"):
        push_folder(exported, "me/net")


def _settings(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda values: values["settings"].update(changes)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda values: values.clear(), "does not describe a network of stsbp"),
        (lambda values: values.update(library_name="transformers"), "does not describe a network of stsbp"),
        (lambda values: values.update(format=3), "format 3, but this stsbp reads the formats 1 and 2"),
        (lambda values: values.update(format=[]), "this stsbp reads the formats 1 and 2"),
        (lambda values: values.update(format=2), "its field packed does not fit this format"),
        (lambda values: values.update(settings=[1]), "settings"),
        (lambda values: values.update(step="4"), "step"),
        (lambda values: values.update(step=-1), "step"),
        (lambda values: values.update(sha256="../../x"), "sha256"),
        (lambda values: values["inputs"].update(shape=[10**8, 10**8]), "inputs"),
        (lambda values: values["inputs"].update(classes=["a"]), "the weights do not fit the network"),
        (_settings(unknown=1), "unknown setting 'unknown'"),
        (_settings(**{"\udcff": []}), "unknown setting"),
        (_settings(loss="\udcff"), "loss"),
        (_settings(lr="fast"), "lr"),
        (_settings(net="13"), "the weights do not fit the network"),
        (_settings(net="/etc/passwd.toml"), "net names a file"),
        (_settings(data_dir="/etc"), "must not have data_dir"),
        (_settings(init_from="../run"), "must not have init_from"),
        (_settings(track="os:getcwd"), "must not have track"),
        (_settings(dataset="folder:/etc"), "dataset has a path"),
        (_settings(dataset="folder:../x"), "dataset has a path"),
        (_settings(test_on="events:/etc/a.npz"), "test_on has a path"),
        (_settings(neuron="antigravity:Neuron"), "does not import modules that a folder names"),
        (_settings(loss="antigravity:Loss"), "does not import modules that a folder names"),
        (_settings(surrogate_model="__import__('os')"), "settings cannot be used"),
    ],
)
def test_hostile_config_is_refused(
    exported: Path, stsbp: Command, refused: Any, change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    changed(exported, change)
    refused(stsbp("evaluate", f"hub:{exported}"), reason)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000, b'{"a": NaN}', b'{"step": 1e999}'])
def test_config_that_is_no_json_is_refused(exported: Path, stsbp: Command, refused: Any, text: bytes) -> None:
    (exported / "config.json").write_bytes(text)
    refused(stsbp("evaluate", f"hub:{exported}"), "config.json cannot be used")


def test_pickles_are_not_read(exported: Path, stsbp: Command, tmp_path: Path, refused: Any) -> None:
    class Bad:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "made"),)

    data = pickle.dumps(Bad())
    (exported / "pytorch_model.bin").write_bytes(data)
    (exported / "weights.pkl").write_bytes(data)
    assert stsbp("evaluate", f"hub:{exported}").exit_code == 0
    with_weights(exported, data)
    refused(stsbp("evaluate", f"hub:{exported}"), "model.safetensors is not a safetensors file")
    (exported / "model.safetensors").unlink()
    refused(stsbp("evaluate", f"hub:{exported}"), "cannot read model.safetensors")
    assert not (tmp_path / "made").exists()


def test_huge_declared_tensors_are_refused_in_little_memory(exported: Path, stsbp: Command, refused: Any) -> None:
    size = 2**44
    header = json.dumps({"linear1": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    for data in (
        struct.pack("<Q", len(header)) + header,
        struct.pack("<Q", 2**63) + header,
        struct.pack("<Q", len(header)) + header.replace(b"[0, ", b"[-4, "),
        b"\0" * 3,
    ):
        with_weights(exported, data)
        refused(stsbp("evaluate", f"hub:{exported}"), "model.safetensors is not a safetensors file")


def test_weights_that_are_not_those_of_the_network_are_refused(exported: Path, stsbp: Command, refused: Any) -> None:
    weights = safetensors.numpy.load((exported / "model.safetensors").read_bytes())
    first = next(iter(weights))

    def one(value: float) -> Any:
        x = weights[first].copy()
        x.flat[0] = value
        return x

    cases: list[tuple[dict[str, Any], str]] = [
        ({**weights, first: one(np.nan)}, "not finite"),
        ({**weights, first: one(np.inf)}, "not finite"),
        ({**weights, first: one(1e38)}, "the weights do not fit the network"),
        ({**weights, first: weights[first].astype(np.float64)}, "float64, not float32"),
        ({**weights, first: weights[first][:-1]}, "the weights do not fit the network"),
        ({**weights, "../../evil": weights[first]}, "the weights do not fit the network"),
        ({}, "the weights do not fit the network"),
    ]
    for tensors, reason in cases:
        with_weights(exported, safetensors.numpy.save({k: np.ascontiguousarray(x) for k, x in tensors.items()}))
        refused(stsbp("evaluate", f"hub:{exported}"), reason)


def test_changed_weights_are_noticed(exported: Path, stsbp: Command, refused: Any) -> None:
    data = bytearray((exported / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (exported / "model.safetensors").write_bytes(bytes(data))
    refused(stsbp("evaluate", f"hub:{exported}"), "has the SHA-256")


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_links_out_of_the_folder_and_pipes_are_refused(
    exported: Path, stsbp: Command, tmp_path: Path, refused: Any, file: str
) -> None:
    (exported / file).rename(tmp_path / file)
    (exported / file).symlink_to(tmp_path / file)
    refused(stsbp("evaluate", f"hub:{exported}"), f"{file} is a link that leads out of the folder")
    (exported / file).unlink()
    os.mkfifo(exported / file)
    refused(stsbp("evaluate", f"hub:{exported}"), "it is a pipe, not a regular file")
    (exported / file).unlink()
    (exported / file).symlink_to("/dev/zero")
    refused(stsbp("evaluate", f"hub:{exported}"), "leads out of the folder")
    (exported / file).unlink()
    (exported / file).mkdir()
    refused(stsbp("evaluate", f"hub:{exported}"), "it is a folder")


def test_samples_of_a_file_need_their_name(exported: Path, stsbp: Command, refused: Any) -> None:
    changed(exported, _settings(dataset="events:a.npz"))
    refused(stsbp("evaluate", f"hub:{exported}"), "whose path it does not store; name the samples with --on")
    refused(stsbp("evaluate", f"hub:{exported}", "--checkpoint", "best"), "has one checkpoint")


def test_help_imports_no_library_of_the_hub() -> None:
    code = "import sys, stsbp.cli.evaluate, stsbp.cli.export; print('huggingface_hub' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.fixture(params=[False, True], ids=["float32", "packed"])
def folder(request: pytest.FixtureRequest, exported: Path, stsbp: Command, tmp_path: Path) -> Path:
    """The exported folder, with weights of both forms."""
    if not request.param:
        return exported
    done = stsbp("export", tmp_path / "run", "--to", "hub", "--packed", "--out", tmp_path / "packed")
    assert done.exit_code == 0, done.output
    return tmp_path / "packed"


def test_every_command_reads_a_folder(folder: Path, stsbp: Command, tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", images()[0, 0])
    predicted = stsbp("predict", f"hub:{folder}", "one.npy", "--sample", "1", "--json")
    assert predicted.exit_code == 0, predicted.output
    assert predicted.stdout == stsbp("predict", tmp_path / "run", "one.npy", "--sample", "1", "--json").stdout
    assert stsbp("export", f"hub:{folder}", "--to", "c", "--out", "c").exit_code == 0
    assert (tmp_path / "c" / f"{folder.name}.c").exists()
    of_run = stsbp("export", tmp_path / "run", "--to", "c", "--out", "of-run")
    assert of_run.exit_code == 0
    # The same weights and constants; only the names and the SHA-256 differ.
    sizes = [(tmp_path / name).stat().st_size for name in (f"c/{folder.name}.c", "of-run/run.c")]
    assert abs(sizes[0] - sizes[1]) < 1000
    reported = stsbp("report", f"hub:{folder}")
    assert reported.exit_code == 0, reported.output
    page = (tmp_path / f"{folder.name}.html").read_text()
    assert f"<h1>{folder.name}</h1>" in page
    assert "Samples read" in page
    # There is no folder of a run to repeat, to look into, or to train in.
    assert "To train the network again:</p><pre>stsbp train digits --net 12" in page
    for missing in ("config.toml", "environment.json", "Learning"):
        assert missing not in page
    test = json.loads((folder / "config.json").read_text())["test"]
    assert f"{test['accuracy']:.2%}" in page
    for name in ("evaluate", "predict", "report"):
        extra = ("one.npy",) if name == "predict" else ()
        assert "has one checkpoint" in stsbp(name, f"hub:{folder}", *extra, "--checkpoint", "best").output


def test_folder_is_exported_again(folder: Path, stsbp: Command, tmp_path: Path) -> None:
    packed = ("--packed",) if folder.name == "packed" else ()
    done = stsbp("export", f"hub:{folder}", "--to", "hub", *packed, "--out", "again")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "again" / "config.json").read_text() == (folder / "config.json").read_text()
    weights = "model.packed" if packed else "model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (folder / weights).read_bytes()


def test_run_begins_with_a_folder(folder: Path, stsbp: Command, tmp_path: Path) -> None:
    os.chdir(tmp_path)
    sha256 = json.loads((folder / "config.json").read_text())["sha256"]
    start = f"hub:{folder.name}"
    tiny = ("--steps", "3", "--epochs", "1", "--batch-size", "20", "--limit", "50", "--holdout", "30")
    done = stsbp("train", "digits", "--init-from", start, *tiny, "--validation", "10", "--out", "next")
    assert done.exit_code == 0, done.output
    run = stsbp_api.load_run(tmp_path / "next", backend="numpy")
    # The hidden layers are those of the folder; its path does not depend on the working folder.
    assert run.settings.net == "12"
    assert run.settings.init_from == f"hub:{folder}"
    assert run.settings.init_sha256 == sha256
    assert "same content" not in done.output
    # Samples on which the network was trained are noticed, although its settings have no path.
    other = ("--split-seed", "3")
    warned = stsbp("train", "digits", "--init-from", start, *tiny, *other, "--validation", "10", "--out", "other")
    assert warned.exit_code == 0, warned.output
    assert "test samples have the same content as samples that" in warned.output.replace("\n", " ")
    # The setting pins the weights.
    changed(folder, lambda values: values.update(sha256="0" * 64))
    again = stsbp("train", "--config", tmp_path / "next" / "config.toml", "--out", "third")
    assert again.exit_code == 1
    # A path is not told to others.
    tracked = stsbp_api.load_run(tmp_path / "next", backend="numpy").settings
    assert tracked_settings(tracked)["init_from"] == start
    public = f"hub:me/net@{COMMIT}"
    for name in (public, "model:mnist"):
        assert tracked_settings(tracked.model_copy(update={"init_from": name}))["init_from"] == name


def test_packed_weights_give_the_spikes_of_the_run(exported: Path, stsbp: Command, tmp_path: Path) -> None:
    run = stsbp_api.load_run(tmp_path / "run", backend="numpy")
    run.export("hub", tmp_path / "packed", packed=True)
    packed = stsbp_api.load_hub(tmp_path / "packed", backend="numpy")
    assert packed.predict(images()).spikes.tobytes() == run.predict(images()).spikes.tobytes()
    assert (tmp_path / "packed" / "model.packed").stat().st_size < (exported / "model.safetensors").stat().st_size / 2
    assert any(packed.weights[name].tobytes() != x.tobytes() for name, x in run.weights.items())
    card = (tmp_path / "packed" / "README.md").read_text()
    assert "stsbp export RUN --to hub --packed --out RUN-hub" in card
    assert f"`{packed.info['sha256']}`" in card


def test_damaged_packed_weights_are_refused(exported: Path, stsbp: Command, tmp_path: Path, refused: Any) -> None:
    folder = tmp_path / "packed"
    assert stsbp("export", tmp_path / "run", "--to", "hub", "--packed", "--out", folder).exit_code == 0
    data, config = (folder / "model.packed").read_bytes(), (folder / "config.json").read_text()

    def tensor(**changes: Any) -> Callable[[dict[str, Any]], object]:
        return lambda values: next(iter(values["packed"].values())).update(changes)

    for damaged in (data[:-20], data + b"x", data[:40] + b"xx" + data[42:], b"", data[23:], pickle.dumps([1])):
        (folder / "model.packed").write_bytes(damaged)
        refused(stsbp("evaluate", f"hub:{folder}"), "the weights in model.packed are damaged")
    (folder / "model.packed").write_bytes(data)
    cases: list[tuple[Callable[[dict[str, Any]], object], str]] = [
        (tensor(exponent=8), "has the SHA-256"),
        (tensor(exponent=None), "do not unpack into"),
        (tensor(exponent=1000), "exponent"),
        (tensor(shape=[2**30, 2**30]), "model.packed"),
        (tensor(shape=[2**40]), "shape"),
        (tensor(shape=[]), "do not unpack into"),
        (lambda values: values.update(packed={}), "do not unpack into"),
        (lambda values: values.pop("packed"), "its field packed does not fit"),
        (lambda values: values.update(format=1), "its field packed does not fit"),
        (lambda values: values["test"].update(accuracy=7.0), "accuracy"),
    ]
    for change, reason in cases:
        (folder / "config.json").write_text(config)
        changed(folder, change)
        refused(stsbp("evaluate", f"hub:{folder}"), reason)
    (folder / "config.json").write_text(config)
    assert stsbp("evaluate", f"hub:{folder}").exit_code == 0


def test_forged_counts_of_samples_are_not_in_a_card(exported: Path, stsbp: Command, tmp_path: Path) -> None:
    changed(exported, lambda values: values["contents"].update({"number of the train samples": "`rm -rf`"}))
    assert stsbp("export", f"hub:{exported}", "--to", "hub", "--out", "again").exit_code == 0
    assert "rm -rf" not in (tmp_path / "again" / "README.md").read_text()


def test_exports_do_not_replace_other_packed_files(
    exported: Path, stsbp: Command, tmp_path: Path, refused: Any
) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "model.packed").write_text("precious")
    command = ("export", tmp_path / "run", "--to", "hub", "--packed", "--out", tmp_path / "own")
    refused(stsbp(*command), "model.packed", "is there already")
