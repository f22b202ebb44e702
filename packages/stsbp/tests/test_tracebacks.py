"""What no user would type and what a damaged or hostile file may hold: one short message, never a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from stsbp.config import read_toml, to_toml_value
from stsbp.errors import ConfigError, StsbpError, legible, printable
from stsbp.interrupts import handled_by
from stsbp.training import checkpoint

Stsbp = Callable[..., Result]


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, errors="replace"
    )


def test_a_message_shows_its_beginning_and_its_end() -> None:
    error = StsbpError(f"unknown name {'x' * 10**6}; choose another")
    assert len(str(error)) < 2000
    assert str(error).startswith("unknown name xxx")
    assert str(error).endswith("xxx; choose another")
    lines = str(StsbpError("\n".join(map(str, range(10**5))))).split("\n")
    assert (lines[0], lines[-1], len(lines)) == ("0", "99999", 41)
    assert "99,960 lines left out" in str(lines)


def test_control_characters_become_escapes() -> None:
    assert printable("a\x1b[31m\x07\n\x7f\x9b\u202e\u2066\udcff\ud800é漢") == (
        r"a\x1b[31m\x07\x0a\x7f\x9b\u202e\u2066\xff\ud800é漢"
    )
    assert printable("a\n\x1b", lines=True) == "a\n\\x1b"
    assert legible("a\r\nb\x1b") == "a\\x0d\nb\\x1b"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"epochs = {'9' * 4301}", "a number is too long"),
        (f"epochs = 0x{'f' * 100_000}", "epochs"),
        (f"lr = {'9' * 4000}", "lr"),
        (f"net = {'[' * 500}{']' * 500}", "more than 100 lists and tables"),
        (f"net = {'{a=' * 500}1{'}' * 500}", "more than 100 lists and tables"),
        (f"net = {'[' * 90}{']' * 90}", "net"),
        (f"{'a.' * 100_000}b = 1", "a key of more than 64 parts"),
        (f"a = {{{'a.' * 100_000}b = 1}}", "a key of more than 64 parts"),
        (f"[{'a.' * 100_000}b]", "a key of more than 64 parts"),
        ('"a\u2028b"' + ".c" * 500 + " = 1", "a key of more than 64 parts"),
        ('a = {b = """\n\' """, ' + "c." * 500 + "c = 1}", "line 2 has a key of more than 64 parts"),
        ("a = {b = '''\n\" ''''', " + "c." * 500 + "c = 1}", "line 2 has a key of more than 64 parts"),
        ("#" * (2**20 + 1), "more than the 1,048,576"),
        ('\\"' * 400_000, "is not valid TOML"),
        ("net = '" + "\\u001b" * 10, "is not valid TOML"),
        ('net = "\\u001b[31m\\u009b"', "unknown layer"),
        (f"{'k' * 500_000} = 1", "unknown setting"),
        ("\n".join(f"k{n} = 1" for n in range(50_000)), "unknown setting"),
        ("epochs = 1979-05-27T07:32:00Z", "epochs"),
        ("lr = nan", "lr"),
        ("\x00", "is not valid TOML"),
    ],
    ids=lambda value: str(value)[:20].replace("\n", " "),
)
def test_settings_in_hostile_toml(
    stsbp: Stsbp, tmp_path: Path, content: str, message: str, refused: Callable[..., None]
) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(content)
    refused(stsbp("train", "digits", "--config", path), message)


def test_dots_in_texts_and_comments_are_no_keys(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(
        f"# {'.' * 100}\ndata_dir = \"{'../' * 100}\"  # {'[' * 200}\nnet = '{'.' * 100}'\n"
        f'neuron_model = """"\n{"." * 100}\\""""\n'
    )
    assert read_toml(path).values["data_dir"] == "../" * 100


def test_settings_are_written_without_control_characters(tmp_path: Path) -> None:
    text = 'a\x1b\x7f\x9b\u202e"\\\t\n'
    written = to_toml_value(text)
    assert printable(written) == written
    (tmp_path / "x.toml").write_text(f"net = {written}")
    assert read_toml(tmp_path / "x.toml").values == {"net": text}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_settings_from_a_pipe_or_a_device(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "a pipe"), (Path("/dev/zero"), "a device"), (tmp_path, "a folder")):
        with pytest.raises(ConfigError, match=f"it is {kind}, not a regular file"):
            read_toml(path)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("evaluate", "run", "--threads", str(10**23)), 2),
        (("report", "run", "--threads", str(10**23)), 2),
        (("benchmark", "--threads", str(10**23)), 2),
        (("evaluate", "run", "--threads", "1e23"), 2),
        (("evaluate", "run", "--batch-size", str(10**30)), 2),
        (("evaluate", "run", "--tolerance", str(10**30)), 2),
        (("benchmark", "--scale", "nan"), 2),
        (("benchmark", "--rounds", str(10**30)), 2),
        (("train", "digits", "--stop-after", "nan"), 2),
        (("train", "digits", "--stop-after", "inf"), 2),
        (("experiment", "digits", "--seeds", str(10**30)), 2),
        (("networks", "12", "--input-shape", "9" * 5000), 1),
        (("networks", "12", "--input-shape", "x".join("9" * 5000)), 1),
        (("networks", "12", "--outputs", str(10**30)), 2),
        (("networks", "12", "--weight-bits", str(10**30)), 1),
        (("networks", "12", "--dropout", "nan"), 1),
        (("networks", "\x1b[31m" + "X" * 10**5), 1),
        (("train", "digits\x1b[31m" + "s" * 10**6), 1),
        (("train", "digits", "--net", "\x1b]0;title\x07"), 1),
        (("train", "digits", "--surrogate", "\x1b" * 10**5), 1),
        (("train", "digits", "--loss", "\x1b" * 10**5), 2),
        (("train", "digits", "--epochs", "9" * 5000), 2),
        (("train", "digits", "--" + "\x1b" * 10**5), 2),
        (("\x1b[31m" * 1000,), 2),
        (("--\x9b31m",), 2),
        (("evaluate", "run\x1b[31m"), 1),
        (("train", "folder:\x1b[31m"), 1),
        (("train", "folder:\udcff"), 1),
        (("predict", "run\udcff", "x\udcff.npy"), 1),
        (("report", "/"), 1),
    ],
    ids=lambda value: str(value)[:50].encode("ascii", "backslashreplace").decode() if value else None,
)
def test_options_that_no_one_means(
    stsbp: Stsbp, arguments: tuple[str, ...], code: int, refused: Callable[..., None]
) -> None:
    result = stsbp(*arguments)
    assert result.exit_code == code, result.output
    refused(result, code=code)


INTERRUPTED = """
import os, signal, sys, atexit
# A shell starts what runs in the background with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
def twice(*_, **__):
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[2]:
            sys.meta_path.remove(self)
            try:
                twice()
            except KeyboardInterrupt as error:
                raise (ImportError("initialization failed") if sys.argv[1] == "library" else error)
moment = sys.argv[1]
if moment in ("import", "library"):
    sys.meta_path.insert(0, Finder())
from stsbp.__main__ import main
if moment == "exit":
    atexit.register(twice)
if moment == "destructor":
    import stsbp.cli
    class Last:
        def __del__(self):
            twice()
    def run(**_):
        Last()
        raise SystemExit(0)
    stsbp.cli.cli.main = run
if moment == "begin":
    import stsbp.cli
    stsbp.cli.install = twice
if moment in ("handler", "closing"):
    import click, stsbp.cli
    click.UsageError.show = twice
    sys.argv[1:] = ["no-such-command"]
else:
    sys.argv[1:] = sys.argv[3:]
try:
    main()
finally:
    if moment == "closing":
        twice()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(
    "moment",
    ["import click", "import numpy", "library numpy", "begin -", "exit -", "handler -", "closing -", "destructor -"],
)
def test_two_interrupts_at_once_leave_without_a_traceback(moment: str, tmp_path: Path) -> None:
    done = python(INTERRUPTED, *moment.split(), "--backend", "numpy", "networks", "12")
    assert done.returncode == 130, done.stderr
    assert done.stderr.strip() in ("", "Interrupted."), done.stderr


def test_too_little_memory_is_one_message(
    stsbp: Stsbp, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., None]
) -> None:
    def parse(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("stsbp_spec.networks.spec.NetworkSpec.parse", parse)
    refused(stsbp("networks", "12"), "there is not enough memory")


@pytest.mark.parametrize("library", ["torch", "jax.numpy"])
def test_too_little_memory_of_a_library_is_one_message(
    library: str, stsbp: Stsbp, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., None]
) -> None:
    arrays = pytest.importorskip(library)

    def parse(*_: Any, **__: Any) -> None:
        # More than the address space, so that no setting of the system grants it.
        arrays.zeros((2**25, 2**25), dtype=arrays.float32)

    monkeypatch.setattr("stsbp_spec.networks.spec.NetworkSpec.parse", parse)
    refused(stsbp("networks", "12"), "there is not enough memory")


SAVING = """
import os, signal, sys
from stsbp.files import OpenFolder
from stsbp.__main__ import main
write = OpenFolder.write
def interrupted(self, name, data):
    write(self, name, data)
    if name == "last.json":
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
OpenFolder.write = interrupted
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_two_interrupts_at_once_while_saving_lose_nothing(
    train_tiny: Stsbp, stsbp: Stsbp, tiny: tuple[str, ...], tmp_path: Path, same_run: Callable[[Path, Path], None]
) -> None:
    run = tmp_path / "run"
    done = python(SAVING, "--backend", "numpy", "train", "digits", *tiny, "--out", str(run))
    assert done.returncode == 130, done.stderr
    assert "SIGINT: stopped after update 0 and saved" in done.stderr
    assert "Traceback" not in done.stderr
    assert stsbp("train", "--resume", run).exit_code == 0
    assert train_tiny(tmp_path / "whole").exit_code == 0
    same_run(run, tmp_path / "whole")


COMPILING = """
import hashlib, os, signal, sys, threading, time
import stsbp.interrupts
from stsbp.__main__ import main
from stsbp_spec.engine.trainer import Trainer
where, number, times, *sys.argv[1:] = sys.argv[1:]
signal.signal(signal.SIGINT, signal.default_int_handler)
stsbp.interrupts.PATIENCE, stsbp.interrupts.GRACE = 0.1, 0.5
import stsbp.training.loop
stsbp.training.loop.PATIENCE = 0.1
def send():
    for _ in range(int(times)):
        time.sleep(0.3)
        os.kill(os.getpid(), int(number))
def compile(*_):
    threading.Thread(target=send, daemon=True).start()
    if where == "python":
        while True:
            time.sleep(0.01)
    # C code that returns after an hour, and lets other threads run, as LLVM does.
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
if where == "second update":
    step = Trainer.step
    def compile_later(self, *given, first=compile):
        done.append(0)
        return step(self, *given) if len(done) == 1 else first()
    done = []
    Trainer.step = compile_later
else:
    Trainer.step = compile
main()
"""


@pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("place", "times", "message"),
    [
        ("python", 1, "stopped after update 0 and saved. Continue with"),
        ("C", 1, "Interrupted."),
        ("second update", 2, "Interrupted."),
    ],
)
def test_signals_end_a_compilation(
    place: str, times: int, message: str, number: signal.Signals, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = ("--backend", "numpy", "train", "digits", *tiny, "--out", str(run))
    done = python(COMPILING, place, str(int(number)), str(times), *arguments)
    assert done.returncode == 128 + number, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    # Every file is complete.
    assert checkpoint.load(run, "last").info["step"] == 0


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("module", ["stsbp.__main__", "stsbp.cli"])
def test_interrupt_while_its_handler_is_installed_leaves_without_a_traceback(module: str) -> None:
    code = f"import os, signal\nfrom {module} import main\nfrom stsbp.interrupts import Watchdog\n"
    code += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    done = python(code + "Watchdog.start = lambda self: os.kill(os.getpid(), signal.SIGINT)\nmain()", "--help")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Interrupted.\n")


def test_interrupts_that_were_ignored_stay_ignored() -> None:
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); from stsbp.interrupts import install\n"
    done = python(code + "install(); print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)")
    assert done.stdout == "True\n", done.stderr


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
def test_training_continues_through_signals_that_were_ignored() -> None:
    def handlers() -> list[Any]:
        return [signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)]

    earlier_handlers = handlers()
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with handled_by(print):
            assert handlers() == [signal.SIG_IGN, signal.SIG_IGN, print]
        assert handlers() == [signal.SIG_IGN, signal.SIG_IGN, earlier_handlers[2]]
    finally:
        signal.signal(signal.SIGHUP, earlier_handlers[0])
        signal.signal(signal.SIGINT, earlier_handlers[1])


NAMES: list[Any] = ["a\x1b[31mred", "b\udcff", "c\u202eevil", "d\u9b31", "e\x9b\x07"]


@pytest.fixture
def named_run(stsbp: Stsbp, tmp_path: Path) -> Path:
    """A run on images whose classes have hostile names."""
    pillow = pytest.importorskip("PIL.Image")
    for number, name in enumerate(NAMES):
        folder = tmp_path / "data" / name
        try:
            folder.mkdir(parents=True)
        except (OSError, UnicodeError):
            pytest.skip("the file system has no such names")
        for k in range(3):
            pillow.new("L", (4, 4), 40 * number + k).save(folder / f"{k}.png")
    settings = ("--net", "8", "--steps", "2", "--epochs", "1", "--batch-size", "10")
    result = stsbp("train", "images", "--data-dir", tmp_path / "data", *settings, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    return tmp_path / "run"


def test_names_of_classes_reach_neither_terminal_nor_page(named_run: Path, stsbp: Stsbp, tmp_path: Path) -> None:
    image = tmp_path / "data" / NAMES[0] / "0.png"
    commands: tuple[tuple[Any, ...], ...] = (
        ("evaluate", named_run),
        ("evaluate", named_run, "--json"),
        ("predict", named_run, image, "--draw", tmp_path / "drawn.html"),
        ("predict", named_run, image, "--json"),
        ("report", named_run),
        ("compare", named_run),
    )
    for command in commands:
        result = stsbp(*command)
        assert result.exit_code == 0, (command, result.output, result.exception)
        assert printable(result.output, lines=True) == result.output, command
    for page in ("run.html", "drawn.html"):
        text = (tmp_path / page).read_text(encoding="utf-8")
        assert printable(text, lines=True) == text
        assert r"a\x1b[31mred" in text


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii:strict"}, {"PYTHONIOENCODING": "utf-8:strict"}, {"LC_ALL": "C"}],
    ids=lambda value: "-".join(*value.items()),
)
def test_names_of_classes_on_a_strict_terminal(named_run: Path, environment: dict[str, str], tmp_path: Path) -> None:
    for command in (
        ["evaluate", str(named_run)],
        ["predict", str(named_run), str(tmp_path / "data" / "d\u9b31" / "0.png")],
    ):
        done = python("from stsbp.__main__ import main; main()", "--backend", "numpy", *command, **environment)
        assert done.returncode == 0, done.stderr
        assert r"b\xff" in done.stdout
