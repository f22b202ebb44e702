"""`--track`: TensorBoard, Weights & Biases, MLflow and trackers of the user get every record once, and nothing else.

Each file is read back by the library that wrote it, and every number is compared with `metrics.jsonl`.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stsbp as stsbp_api
from click.testing import Result
from stsbp.config import RunConfig, tracker_names
from stsbp.errors import ConfigError
from stsbp.training.tracking import TrackedRun, scalars, tracked_settings

Train = Callable[..., Result]
Numbers = dict[tuple[str, int], float]
"""Values by tag and number of updates."""


def expected_numbers(run: Path) -> Numbers:
    """Every number that a tracker is told, from `metrics.jsonl`."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    numbers = {(tag, line["step"]): value for line in lines for tag, value in scalars(line)}
    assert sum(len(list(scalars(line))) for line in lines) == len(numbers) > 10
    return numbers


def once(pairs: list[tuple[tuple[str, int], float]]) -> Numbers:
    """The pairs as a dict. No key comes twice."""
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def tensorboard_numbers(run: Path) -> Numbers:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    shown = reader.EventAccumulator(str(run), size_guidance={"tensors": 0})
    shown.Reload()
    tensors = pytest.importorskip("tensorboard.util.tensor_util")
    tags = shown.Tags()["tensors"]
    events = [(tag, event) for tag in tags for event in shown.Tensors(tag)]
    return once([((tag, e.step), float(tensors.make_ndarray(e.tensor_proto))) for tag, e in events])


def wandb_messages(data: bytes) -> Iterator[bytes]:
    """The messages of a `.wandb` file: a log of LevelDB, after a header of 7 bytes, in blocks of 32 KiB.

    A part of a message has a checksum of 4 bytes, its length and its kind: whole, first, in between or last.
    """
    assert data[:4] == b":W&B"
    place, message = 7, b""
    while place < len(data):
        if (rest := 32768 - place % 32768) < 7:
            place += rest
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        message = data[place + 7 : place + 7 + length] if kind in (1, 2) else message + data[place + 7 :][:length]
        if kind in (1, 4):
            yield message
        place += 7 + length


def wandb_rows(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    """Configuration, rows and names of an offline run, as wandb's own protocol reads them."""
    wandb_pb2 = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    (file,) = folder.glob("*.wandb")
    config: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    about: dict[str, Any] = {}
    for message in wandb_messages(file.read_bytes()):
        record = wandb_pb2.Record.FromString(message)
        if record.HasField("run"):
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            about |= {"id": record.run.run_id, "name": record.run.display_name, "host": record.run.host}
        if record.HasField("history"):
            items = record.history.item
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return config, rows, about


def wandb_numbers(folder: Path) -> Numbers:
    _, rows, _ = wandb_rows(folder)
    assert [row["_step"] for row in rows] == list(range(len(rows)))
    return once(
        [
            ((key, row["update"]), value)
            for row in rows
            for key, value in row.items()
            if key != "update" and not key.startswith("_")
        ]
    )


def mlflow_run(place: str) -> tuple[Any, Any]:
    """MLflow's client, and the only run of the experiment."""
    client = pytest.importorskip("mlflow").MlflowClient(place)
    (run,) = client.search_runs([client.get_experiment_by_name("stsbp").experiment_id])
    return client, run


def mlflow_numbers(place: str) -> Numbers:
    client, run = mlflow_run(place)
    history = [(tag, m) for tag in run.data.metrics for m in client.get_metric_history(run.info.run_id, tag)]
    return once([((tag, metric.step), metric.value) for tag, metric in history])


@pytest.fixture(autouse=True)
def no_other_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the environment names a server."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def mlflow_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    place = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place)
    return place


def test_tensorboard_of_track_has_every_number(train_tiny: Train, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    assert train_tiny(tmp_path / "run", "--track", "tensorboard").exit_code == 0
    expected = {key: float(np.float32(value)) for key, value in expected_numbers(tmp_path / "run").items()}
    assert tensorboard_numbers(tmp_path / "run") == expected


def test_wandb_has_every_number_once_and_no_machine(train_tiny: Train, stsbp: Train, tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    run, hooks = tmp_path / "run", (sys.exit, sys.excepthook)
    assert train_tiny(run, "--track", "wandb", "--log-every", 1, "--stop-after", 1e-9).exit_code == 75
    assert (sys.exit, sys.excepthook) == hooks
    resumed = stsbp("train", "--resume", run)
    assert resumed.exit_code == 0
    assert "warning" not in resumed.stderr
    # The service of wandb writes the files, and may still do so when a run has ended.
    wandb.teardown()
    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    config, _, about = wandb_rows(folders[-1])
    # The newest folder has the whole run, under the id of the first one.
    assert wandb_numbers(folders[-1]) == expected_numbers(run)
    identity = json.loads((run / "tracking.json").read_text())["identity"]
    assert [wandb_rows(folder)[2]["id"] for folder in folders] == [identity, identity]
    assert 0 < len(wandb_rows(folders[0])[1]) < len(wandb_rows(folders[1])[1])
    assert about == {"id": identity, "name": "run", "host": ""}
    del config["_wandb"]
    assert config == tracked_settings(stsbp_api.load_run(run).settings)
    for folder in folders:
        nothing_of_the_machine(folder)
        names = {path.name for path in folder.rglob("*") if path.is_file()}
        assert names <= {f"run-{identity}.wandb", "debug.log", "debug-internal.log", "debug-core.log"}


def nothing_of_the_machine(folder: Path) -> None:
    """No file of wandb that `wandb sync` sends has the machine, the user, the command or a path."""
    words = [os.getcwd(), str(Path.home()), sys.executable, sys.argv[0], "--stop-after"]
    # Shorter names also occur in random identities.
    words += [name for name in (socket.gethostname(), getpass.getuser()) if len(name) > 4]
    for file in [*folder.glob("*.wandb"), *(folder / "files").rglob("*")]:
        data = file.read_bytes()
        assert [word for word in words if word.encode() in data] == []


def test_mlflow_has_every_number_once_and_no_machine(
    train_tiny: Train, stsbp: Train, tmp_path: Path, mlflow_place: str
) -> None:
    pytest.importorskip("mlflow")
    run = tmp_path / "run"
    assert train_tiny(run, "--track", "mlflow", "--stop-after", 1e-9).exit_code == 75
    assert mlflow_run(mlflow_place)[1].info.status == "KILLED"
    first = mlflow_run(mlflow_place)[1].info.run_id
    # A start without the tracker leaves a gap, which the next one fills.
    assert stsbp("train", "--resume", run, "--track", "none", "--stop-after", 1e-9).exit_code == 75
    assert len(mlflow_numbers(mlflow_place)) < len(expected_numbers(run))
    assert stsbp("train", "--resume", run, "--epochs", 4).exit_code == 0
    assert mlflow_numbers(mlflow_place) == expected_numbers(run)
    _, shown = mlflow_run(mlflow_place)
    assert (shown.info.run_id, shown.info.status, shown.info.run_name) == (first, "FINISHED", "run")
    identity = json.loads((run / "tracking.json").read_text())["identity"]
    # Parameters of MLflow cannot be changed.
    assert shown.data.tags == {"stsbp.run": identity, "mlflow.runName": "run", "stsbp.epochs": "4"}
    settings = tracked_settings(stsbp_api.load_run(run).settings)
    assert shown.data.params == {key: str(value) for key, value in {**settings, "epochs": 3}.items()}
    assert shown.info.user_id in ("", "unknown")


def test_lines_after_the_last_checkpoint_come_once(
    train_tiny: Train, stsbp: Train, tmp_path: Path, mlflow_place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed has told MLflow lines that the resumed run writes again."""
    pytest.importorskip("mlflow")
    from stsbp.training import loop

    run, save = tmp_path / "run", loop._TrainingLoop.save

    def killed(self: Any) -> None:
        if self.step >= 4:
            raise KeyboardInterrupt
        save(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop._TrainingLoop, "save", killed)
        assert train_tiny(run, "--track", "mlflow").exit_code != 0
    assert ("train/loss", 4) in mlflow_numbers(mlflow_place)
    assert stsbp("train", "--resume", run).exit_code == 0
    numbers, expected = mlflow_numbers(mlflow_place), expected_numbers(run)
    times = re.compile(r".*/(seconds|samples_per_second)")
    assert numbers.keys() == expected.keys()
    assert {k: x for k, x in numbers.items() if not times.fullmatch(k[0])} == {
        k: x for k, x in expected.items() if not times.fullmatch(k[0])
    }


OWN = """
import json
class Lines:
    def __init__(self, run):
        self.file = open("own.jsonl", "a")
        print(json.dumps({"identity": run.identity, "name": run.name, "settings": run.settings}), file=self.file)
        for record in run.records:
            self.write(record)
    def write(self, record):
        print(json.dumps(record), file=self.file)
    def close(self, *, finished):
        print(json.dumps({"finished": finished}), file=self.file)
        self.file.close()
def lines(run):
    return Lines(run)
def nothing(run):
    return None
def ends(run):
    raise SystemExit(3)
class Failing(Lines):
    def write(self, record):
        raise OSError("the server is \\x1b[31mgone")
NUMBER = 1
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[dict[str, Any]]]:
    """A module `own_trackers` in the working folder. Returns what its tracker wrote."""
    (tmp_path / "own_trackers.py").write_text(OWN)
    monkeypatch.delitem(sys.modules, "own_trackers", raising=False)
    return lambda: [json.loads(line) for line in (tmp_path / "own.jsonl").read_text().splitlines()]


def test_own_function_gets_settings_and_records(
    train_tiny: Train, stsbp: Train, tmp_path: Path, own: Callable[[], list[dict[str, Any]]], refused: Any
) -> None:
    run = tmp_path / "run"
    assert train_tiny(run, "--track", "own_trackers:lines", "--stop-after", 1e-9).exit_code == 75
    # A run folder may come from others, so its functions are imported only if they are named again.
    refused(stsbp("train", "--resume", run), "--track 'own_trackers:lines'", "--allow-imports", "--track none")
    assert stsbp("train", "--resume", run, "--allow-imports", "--stop-after", 1e-9).exit_code == 75
    assert stsbp("train", "--resume", run, "--track", "own_trackers:lines").exit_code == 0
    told = own()
    begins = [index for index, line in enumerate(told) if "identity" in line]
    assert len(begins) == 3
    assert len({told[index]["identity"] for index in begins}) == 1
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert told[begins[-1] + 1 :] == [*lines, {"finished": True}]
    assert told[begins[1] - 1] == {"finished": False}
    assert str(tmp_path) not in json.dumps(told)
    assert told[0]["settings"] == tracked_settings(stsbp_api.load_run(run).settings)


def test_file_of_settings_does_not_import_a_tracker(
    stsbp: Train, tmp_path: Path, own: object, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.toml").write_text('dataset = "digits"\ntrack = "own_trackers:lines"\n')
    refused(stsbp("train", "--config", "a.toml"), "a.toml: track names the function 'own_trackers:lines'")
    assert "own_trackers" not in sys.modules


def test_functions_and_names_in_python(train_tiny: Train, tmp_path: Path, own: Callable[[], list[Any]]) -> None:
    del train_tiny
    records: list[Mapping[str, Any]] = []
    runs: list[TrackedRun] = []

    class Collector:
        def write(self, record: Mapping[str, Any]) -> None:
            records.append(record)

        def close(self, *, finished: bool) -> None:
            records.append({"finished": finished})

    def collect(run: TrackedRun) -> Collector:
        runs.append(run)
        return Collector()

    x, y = np.zeros((20, 6), np.uint8), np.arange(20) % 2
    settings: dict[str, Any] = {"epochs": 2, "steps": 3, "progress": False, "backend": "numpy"}
    folder = tmp_path / "a"
    run = stsbp_api.train((x, y), "4", out=folder, track=[collect, "own_trackers:lines"], **settings)
    assert [r["kind"] for r in records[:-1]] == [r["kind"] for r in run.metrics]
    assert records[-1] == {"finished": True}
    assert [line for line in own() if "kind" in line] == [json.loads(json.dumps(r)) for r in records[:-1]]
    assert runs[0].name == "a"
    assert run.settings.track == "own_trackers:lines"
    with pytest.raises(ConfigError, match="track is names of trackers, or functions that open one, got 3"):
        stsbp_api.train((x, y), "4", out=tmp_path / "b", track=[3], **settings)  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Failing", "OSError: the server is \\x1b[31mgone"),
        ("nothing", "it gave None, which has no methods write and close"),
        ("ends", "it calls sys.exit(3)"),
    ],
)
def test_tracker_that_fails_warns_once(
    train_tiny: Train, tmp_path: Path, own: object, name: str, reason: str, same_run: Any
) -> None:
    tracked = train_tiny(tmp_path / "run", "--track", f"own_trackers:{name}")
    assert tracked.exit_code == 0
    assert tracked.stderr.count("warning: the tracker") == 1
    assert f"the tracker 'own_trackers:{name}' fails" in tracked.stderr
    assert reason in tracked.stderr
    assert train_tiny(tmp_path / "plain").exit_code == 0
    same_run(tmp_path / "run", tmp_path / "plain")


@pytest.mark.parametrize("library", ["wandb", "mlflow"])
def test_store_that_cannot_be_written_warns_once(
    train_tiny: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    pytest.importorskip(library)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nosuchscheme://a")
    if library == "wandb":
        import wandb

        monkeypatch.setattr(wandb, "init", lambda **_: (_ for _ in ()).throw(wandb.errors.CommError("no service")))
    tracked = train_tiny(tmp_path / "run", "--track", library)
    assert tracked.exit_code == 0
    assert tracked.stderr.count(f"warning: the tracker '{library}' fails") == 1


@pytest.mark.parametrize(
    ("library", "module"), [("wandb", "wandb"), ("mlflow", "mlflow"), ("tensorboard", "tensorboard.compat.proto")]
)
def test_missing_library_is_named_and_nothing_is_begun(
    train_tiny: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    failed = train_tiny(tmp_path / "run", "--track", library)
    assert failed.exit_code == 1
    assert f"--track {library} needs the library {library}" in failed.stderr
    assert f'pip install "stsbp[{library}]"' in failed.stderr
    assert not (tmp_path / "run").exists()


def test_unknown_function_is_named_and_nothing_is_begun(
    train_tiny: Train, tmp_path: Path, own: object, refused: Any
) -> None:
    for name, reason in (
        ("own_trackers:line", "the module has no 'line' (did you mean lines?)"),
        ("own_trackers:NUMBER", "is not a function that returns a tracker"),
        ("no_such_module:f", "cannot be imported: ModuleNotFoundError"),
        ("wandbb", "did you mean wandb?"),
    ):
        refused(train_tiny(tmp_path / "run", "--track", name), reason)
    assert not (tmp_path / "run").exists()


def test_names_of_trackers() -> None:
    assert tracker_names("wandb, a.b:c,wandb") == ("wandb", "a.b:c")
    assert tracker_names("none") == tracker_names(" ") == ()
    assert RunConfig.model_validate({"dataset": "digits", "track": "none"}).track == ""
    for text in ("none,wandb", "a:b:c", "a.:b", ":b", "wandb,"):
        with pytest.raises(ValueError, match="Input should be tensorboard, wandb, mlflow, none, or a function"):
            tracker_names(text)


def test_settings_for_trackers_have_no_paths() -> None:
    values: dict[str, Any] = {"dataset": "events:/home/me/secret/a.npz", "data_dir": "/home/me/data"}
    values |= {"test_on": "folder:/home/me/b", "init_from": "/home/me/runs/first:best", "track": "wandb", "threads": 3}
    config = RunConfig.model_validate(values)
    settings = tracked_settings(config)
    assert "/" not in json.dumps(settings)
    assert settings["dataset"] == "events:a.npz"
    assert settings["test_on"] == "folder:b"
    assert settings["init_from"] == "first:best"
    assert {"data_dir", "threads", "track", "tensorboard"} & settings.keys() == set()
    assert settings["patience"] == 0


def test_overwritten_run_has_another_identity(train_tiny: Train, tmp_path: Path, own: object) -> None:
    run = tmp_path / "run"

    def identity() -> str:
        text: str = json.loads((run / "tracking.json").read_text())["identity"]
        return text

    assert train_tiny(run, "--track", "own_trackers:lines").exit_code == 0
    first = identity()
    assert train_tiny(run, "--track", "own_trackers:lines", "--overwrite").exit_code == 0
    assert identity() != first
    assert train_tiny(run, "--overwrite").exit_code == 0
    assert not (run / "tracking.json").exists()


def test_damaged_identity_is_told(train_tiny: Train, stsbp: Train, tmp_path: Path, own: object) -> None:
    run = tmp_path / "run"
    track = ("--track", "own_trackers:lines")
    assert train_tiny(run, *track, "--epochs", 1).exit_code == 0
    file = run / "tracking.json"
    first = file.read_text()
    file.write_text('{"ident')
    resumed = stsbp("train", "--resume", run, "--epochs", 2, *track)
    assert resumed.exit_code == 0, resumed.output
    assert f"{file} is damaged" in resumed.stderr
    assert json.loads(file.read_text()) != json.loads(first)


def test_only_rank_0_tracks(tmp_path: Path, own: Callable[[], list[dict[str, Any]]]) -> None:
    options = ("--net", "12", "--steps", "3", "--epochs", "1", "--batch-size", "20", "--limit", "40", "--holdout", "20")
    command = [sys.executable, "-m", "stsbp", "--backend", "numpy", "train", "digits", *options, "--log-every", "1"]
    done = subprocess.run(
        [*command, "--processes", "2", "--out", "run", "--track", "own_trackers:lines"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [line for line in own() if "identity" in line] == own()[:1]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert own()[1:] == [*lines, {"finished": True}]


def test_help_imports_no_tracker() -> None:
    code = "import sys, stsbp.__main__, stsbp.cli.train; print([m for m in sys.modules if m in {'wandb', 'mlflow', 'huggingface_hub', 'tensorboard'}])"  # noqa: E501
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
