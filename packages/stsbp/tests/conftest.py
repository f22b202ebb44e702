"""Small runs that the tests of the command line and of the loop share, and a server to download from."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from click.testing import CliRunner, Result
from stsbp.cli import cli
from stsbp.datasets import digits_events
from stsbp.datasets.digits import read_digits
from stsbp.errors import printable

TINY = (
    *("--net", "12", "--steps", "3", "--epochs", "3", "--batch-size", "20", "--limit", "50", "--holdout", "30"),
    *("--validation", "10", "--log-every", "2", "--lr", "0.01"),
)
"""A run of 6 updates (two of 20 samples an epoch) that takes a tenth of a second on the numpy backend."""

# The tests share the machine with others, so the time of an example says nothing about the code.
hypothesis.settings.register_profile("shared machine", deadline=None)
hypothesis.settings.load_profile("shared machine")

# A shell starts programs in the background with this signal ignored, and their children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

_TIMES = ("seconds", "samples_per_second", "processes", "slowest_rank", "exchange_share")


@pytest.fixture
def stsbp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    """The command line in this process, on the numpy backend, in an empty working folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: Any) -> Result:
        return CliRunner().invoke(cli, ["--backend", "numpy", *map(str, arguments)], prog_name="stsbp")

    return call


@pytest.fixture
def tiny() -> tuple[str, ...]:
    """The options of a tiny run."""
    return TINY


@pytest.fixture
def train_tiny(stsbp: Callable[..., Result]) -> Callable[..., Result]:
    """`stsbp train digits` with few samples; later options win over the tiny ones."""

    def call(out: Path, *arguments: Any) -> Result:
        return stsbp("train", "digits", *TINY, "--out", out, *arguments)

    return call


@pytest.fixture(scope="session")
def _trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    result = CliRunner().invoke(cli, ["--backend", "numpy", "train", "digits", *TINY, "--out", str(run)])
    assert result.exit_code == 0, result.output
    return run


@pytest.fixture
def tiny_run(_trained_once: Path, tmp_path: Path) -> Path:
    """A copy, in `run`, of one run of `train_tiny` that is over."""
    return Path(shutil.copytree(_trained_once, tmp_path / "run"))


@pytest.fixture
def few_recordings(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Number of recordings of `digits-events`, 200 or an indirect parameter: simulating all of them takes seconds."""
    images, labels = read_digits()
    count: int = getattr(request, "param", 200)
    monkeypatch.setattr(digits_events, "read_digits", lambda: (images[:count], labels[:count]))
    return count


@pytest.fixture
def process() -> Callable[..., subprocess.Popen[str]]:
    """The command line in a process of its own."""

    def start(*arguments: Any, cwd: Path | None = None) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "stsbp", *map(str, arguments)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd)

    return start


@pytest.fixture
def tensors() -> Callable[..., bytes]:
    """The tensor file that `last.json` or `best.json` names."""

    def read(run: Path, name: str = "last") -> bytes:
        file = json.loads((run / f"{name}.json").read_text())["file"]
        assert isinstance(file, str)
        return (run / file).read_bytes()

    return read


@pytest.fixture
def records() -> Callable[[Path], list[dict[str, Any]]]:
    """The lines of `metrics.jsonl` without times and how work was shared."""

    def read(run: Path) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if key not in _TIMES} for line in lines]

    return read


@pytest.fixture
def same_run(
    tensors: Callable[..., bytes], records: Callable[[Path], list[dict[str, Any]]]
) -> Callable[[Path, Path], None]:
    """Assert that two runs ended with the same bits and the same records, and left nothing behind."""

    def compare(run: Path, expected: Path) -> None:
        for name in ("last", "best"):
            assert tensors(run, name) == tensors(expected, name), name
        assert records(run) == records(expected)
        patterns = ("last-*.safetensors", "best-*.safetensors")
        assert [len(list(run.glob(pattern))) for pattern in patterns] == [1, 1]
        assert [path.name for path in run.iterdir() if path.name.endswith(".tmp")] == []

    return compare


@pytest.fixture
def refused() -> Callable[..., None]:
    """Assert that a command ended with an exit code and one short message that a terminal may show."""

    def check(result: Result, *words: str, code: int = 1) -> None:
        assert result.exit_code == code, result.output
        assert isinstance(result.exception, SystemExit), result.exception
        assert len(re.findall(r"\bError: ", result.stderr)) == 1
        assert len(result.stderr) < 5000
        assert printable(result.stderr, lines=True) == result.stderr
        for word in words:
            assert word in result.stderr

    return check


@pytest.fixture
def forge() -> Callable[..., None]:
    """Change `last.json` (or `best.json`) and its digest with it, as an edit with this program's own means would."""

    def change(run: Path, edit: Callable[[dict[str, Any]], object], name: str = "last") -> None:
        path = run / f"{name}.json"
        description = json.loads(path.read_text())
        del description["digest"]
        edit(description)
        digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
        path.write_text(json.dumps({**description, "digest": digest}))

    return change


@pytest.fixture
def forge_records(forge: Callable[..., None]) -> Callable[[Path, bytes], None]:
    """Write other records, and let the checkpoint say that they are its own."""

    def change(run: Path, data: bytes) -> None:
        (run / "metrics.jsonl").write_bytes(data)
        forge(run, lambda d: d.update(metrics_bytes=len(data), metrics_sha256=hashlib.sha256(data).hexdigest()))

    return change


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """A local server in the place of the published one: its address, and the folder it serves."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_QuietHandler, directory=str(folder))) as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", folder
        running.shutdown()
