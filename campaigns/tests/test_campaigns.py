"""The campaigns themselves: valid inputs are accepted, and a fault that is planted is found."""

from __future__ import annotations

import errno
import io
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stsbp.datasets.nmnist import read_recording
from stsbp.errors import DataError
from stsbp_spec.models.neurons import ALIF
from stsbp_spec.models.neurons.stored import as_text

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

# The campaigns are found on the path above.
from campaigns import kinds, small_files  # noqa: E402
from campaigns.calls import Called, Complaint, check_output  # noqa: E402
from campaigns.cases import Case, run_command  # noqa: E402
from campaigns.crash import Blow, Disk  # noqa: E402
from campaigns.fuzz import run_watched  # noqa: E402
from campaigns.kinds import KINDS, Arrays, Events, Images, Models, Notation, Toml  # noqa: E402
from campaigns.worlds import World, picture, rasters, recording  # noqa: E402


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("campaign") / "world")


VALID = {
    "events": Case("events", recording(1), {"steps": 3, "window_us": 300_000}),
    "notation": Case(
        "notation", b"12C3-P2-30{tau_m=5}", {"input_shape": [2, 34, 34], "outputs": 10, "coding": "events"}
    ),
    "models": Case("models", as_text(ALIF()).encode(), {"what": "neuron"}),
    "toml": Case("toml", b'dataset = "digits"\nsteps = 5\n'),
    "arrays": Case("arrays", rasters(1), {"coding": "sequences"}),
    "images": Case("images", picture(1), {"channels": None, "size": None}),
    "archives": Case("archives", rasters(1), {"form": "sequences", "steps": 4, "own_lengths": False}),
    "media": Case("media", picture(1), {"what": "picture", "size": None}),
    "operations": Case("operations", as_text(ALIF()).encode(), {"what": "neuron", "compiled": False}),
    "published": Case("published", bytes([3, *[9] * 3072]) * 2, {"form": "cifar10"}),
    "places": Case("places", how={"file": "run/last.json", "special": "", "skip": False}),
}


@pytest.mark.parametrize("kind", VALID)
def test_a_valid_input_is_accepted(kind: str, world: World) -> None:
    assert run_watched(KINDS[kind], VALID[kind], world) == (True, None)


@pytest.mark.parametrize("kind", KINDS)
def test_made_cases_are_the_same_again_and_survive_their_file(kind: str, world: World) -> None:
    for number in range(20):
        case = KINDS[kind].make(random.Random(number), world)
        assert case == KINDS[kind].make(random.Random(number), world)
        assert Case.from_json(case.to_json()) == case


@pytest.mark.parametrize("kind", KINDS)
def test_some_inputs_are_accepted_and_some_refused(kind: str, world: World) -> None:
    cases = [KINDS[kind].make(random.Random(f"few {number}"), world) for number in range(40)]
    answers = {run_watched(KINDS[kind], case, world)[0] for case in cases if len(case.content) < 20_000}
    # Nearly every name of a network can be exported.
    assert answers == {True, False} or (answers == {True} and kind == "exports")


def wrong_column(content: bytes, path: Path) -> Any:
    x, y, p, t = read_recording(content, path)
    return x + 1, y, p, t


def raising(error: BaseException) -> Callable[..., Any]:
    def reader(*_arguments: object, **_named: object) -> Any:
        raise error

    return reader


def warning(*_arguments: object, **_named: object) -> Any:
    np.float64(1) / np.float64(0)
    return np.zeros((1, 6, 6), dtype=np.uint8)


@pytest.mark.parametrize(
    ("kind", "reader", "planted", "named"),
    [
        (Events(), "read_recording", raising(KeyError("x")), "KeyError at "),
        (Events(), "read_recording", wrong_column, "events are not those of the file"),
        (Images(), "read_image", lambda *_, **__: np.zeros((2, 6, 6), dtype=np.uint8), "a picture uint8 (2, 6, 6)"),
        (Images(), "read_image", warning, "a warning reached the user: RuntimeWarning"),
        (Toml(), "resolve", raising(Complaint("so")), "so"),
        (Arrays(), "read_sequences", raising(MemoryError()), "MemoryError at "),
        (Models(), "neuron_equations", raising(RecursionError()), "RecursionError at "),
        (Models(), "flushes_of", warning, "a warning reached the user: RuntimeWarning"),
        (Notation(), "NetworkSpec", raising(RecursionError()), "AttributeError at "),
    ],
)
def test_a_planted_fault_of_a_reader_is_found(
    kind: Any, reader: str, planted: Any, named: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kinds, reader, planted)
    accepted, fault = run_watched(kind, VALID[kind.name], world)
    assert not accepted
    assert fault is not None
    assert fault.name.startswith(named)


@pytest.mark.parametrize(
    ("called", "named"),
    [
        (Called(1, "", "Error: no\n"), None),
        (Called(1, "", ""), "exit code 1 with 0 errors"),
        (Called(0, "", "Error: no\n"), "exit code 0 with 1 errors"),
        (Called(3, "", "Error: no\n"), "exit code 3"),
        (Called(1, "", "Error: " + "a" * 5000), "a message on standard error of more"),
        (Called(0, "\x1b[31mred", ""), "standard output has a control character"),
        (Called(1, "", "Error: \x9b\n"), "standard error has a control character"),
        (Called(1, "", "Error: no\nTraceback (most recent call last):\n"), "a traceback was printed"),
    ],
)
def test_what_a_user_should_not_see(called: Called, named: str | None) -> None:
    if named is None:
        check_output(called)
    else:
        with pytest.raises(Complaint, match=named):
            check_output(called)


def test_an_input_that_is_accepted_although_it_must_be_refused_is_found(world: World) -> None:
    case = Case("media", picture(1), {"what": "picture", "size": None, "refuse": "it is so"})
    _, fault = run_watched(KINDS["media"], case, world)
    assert fault is not None
    assert fault.name == "an input was accepted although it is so"


@pytest.mark.skipif("spoken" not in KINDS, reason="recordings of SHD need the library tonic")
@pytest.mark.parametrize("damage", [False, True])
def test_recordings_that_are_read_wrongly_are_found(
    damage: bool, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case("spoken", small_files.plain_shd(), {"steps": 4, "own_lengths": False, "skip": False})
    if damage:
        monkeypatch.setattr(small_files, "_flat_frames", lambda *_: np.zeros((4, 700), np.uint8))
    _, fault = run_watched(KINDS["spoken"], case, world)
    assert (fault and fault.name) == ("recordings are not those of the file" if damage else None)


def test_what_a_refused_command_has_changed_is_found(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from stsbp.cli import compare

    def table(*_: object, **_options: object) -> str:
        Path("notes.txt").write_text("yours")
        raise DataError("no")

    monkeypatch.setattr(compare, "_table", table)
    arguments = ("--backend", "numpy", "compare", "runs/pictures")
    case = Case("options", arguments=arguments, how={"kept": ["work/notes.txt"]}, may_change=("work/notes.txt",))
    with pytest.raises(Complaint, match="a command that ended with an error changed a file"):
        run_command(case, world)


IMPORTS = """
from campaigns import fuzz
import stsbp.training.plan
def faults():
    tallies, _ = fuzz.fuzz(["imports"], cases=12, seconds=60, seed=1, jobs=1, out=folder)
    return sorted(tallies["imports"].faults)
print(faults())
stsbp.training.plan.check_imports = lambda *_: None
print(faults())
def swallowing(config, sources):
    try:
        import evil
    except Exception:
        pass
stsbp.training.plan.check_imports = swallowing
print(faults())
"""


def test_a_module_that_a_file_has_imported_is_found(tmp_path: Path) -> None:
    done = script(IMPORTS, tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    fault_names = "['a module was imported that a case names']"
    assert lines == ["[]", fault_names, fault_names], done.stderr


COMPARE = Case("options", arguments=("--backend", "numpy", "compare", "runs/pictures"))


def test_a_command_leaves_the_world_as_it_was(world: World) -> None:
    assert run_command(COMPARE, world)
    assert world.differences() == {}


def test_a_thread_that_a_command_leaves_is_found_and_one_from_before_is_not_taken_for_its_own(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stsbp.cli import compare

    def table(*_: object, **_options: object) -> str:
        threading.Thread(target=end.wait, name="planted", daemon=True).start()
        return ""

    end = threading.Event()
    earlier = threading.Thread(target=end.wait, daemon=True)
    earlier.start()
    try:
        assert run_command(COMPARE, world)
        monkeypatch.setattr(compare, "_table", table)
        with pytest.raises(Complaint, match="a thread was left: planted"):
            run_command(COMPARE, world)
    finally:
        end.set()


@pytest.mark.parametrize(
    ("act", "named"),
    [
        (lambda: Path("notes.txt").unlink(), "a file was lost"),
        (lambda: Path("notes.txt").write_text("yours"), "a file was changed"),
        (lambda: Path("runs/pictures/extra").touch(), "a file was new"),
        (lambda: Path(".page.html.abc.tmp").touch(), "a temporary file was left"),
        (lambda: print("\x1b[31m"), "standard output has a control character"),
    ],
)
def test_a_planted_fault_of_a_command_is_found(
    act: Callable[[], object], named: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stsbp.cli import compare

    def table(*_: object, **_options: object) -> str:
        act()
        return ""

    monkeypatch.setattr(compare, "_table", table)
    with pytest.raises(Complaint, match=named):
        run_command(COMPARE, world)
    assert world.differences() == {}


def script(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python that forks in a process of its own: this one may have threads."""
    head = f"import sys; from pathlib import Path; folder = Path({str(folder)!r})\n"
    return subprocess.run([sys.executable, "-c", head + text], cwd=ROOT, capture_output=True, text=True, timeout=120)


FUZZ = """
import os, signal, time
from campaigns import fuzz, kinds
from campaigns.worlds import World
# Recordings need no trained runs beside them, which a world makes for commands.
fuzz.World = lambda root: World(root, with_runs=False)
ACTS = ({acts})
# Only what is to hang is held to a second, since other work may hold the machine up.
fuzz.HANG = {hang}
def planted(content, path):
    if (act := sum(content) % 15) < len(ACTS):
        ACTS[act]()
    return real(content, path)
real, kinds.read_recording = kinds.read_recording, planted
tallies, saved = fuzz.fuzz(["events"], cases=60, seconds=60, seed=1, jobs=2, out=folder)
names = {{path.with_suffix(".txt").read_text().splitlines()[0] for path in saved}}
assert tallies["events"].cases == 60, tallies
print(*sorted(names), sep="\\n")
"""


@pytest.mark.parametrize(
    ("acts", "hang", "expected"),
    [
        (
            "lambda: os.kill(os.getpid(), signal.SIGSEGV), lambda: time.sleep(60)",
            1.0,
            ["hangs for 1 s", "the process died"],
        ),
        (
            "lambda: bytes(8 << 30), lambda: open('/tmp/stsbp-outside', 'w'), lambda: os.write(2, b'libpng warning')",
            30.0,
            [
                "MemoryError at ",
                "a write outside of the case's folders",
                "something was written past Python's streams",
            ],
        ),
    ],
    ids=["the worker ends", "the worker goes on"],
)
def test_what_a_worker_does_not_survive_is_found(acts: str, hang: float, expected: list[str], tmp_path: Path) -> None:
    done = script(FUZZ.format(acts=acts, hang=hang), tmp_path)
    assert done.returncode == 0, done.stderr
    # What takes all memory may be found as that too, before Python refuses it.
    lines = done.stdout.splitlines()
    assert all(any(line.startswith(name) for line in lines) for name in expected), done.stdout


CRASH = """
from campaigns import crash
{plant}
trials = crash.crash(["{scenario}"], kills={kills}, seed=1, seconds=100)["{scenario}"]
assert trials.kills >= {kills} // 2, trials
assert trials.in_writes > 0 and trials.failures > 0, trials
print(*trials.shown, sep="\\n")
print(sorted(trials.faults))
"""
NOT_ATOMIC = """
from stsbp.files import OpenFolder
OpenFolder.write = lambda folder, name, data: (folder.path / name).write_bytes(data)
"""
FORGETS = """
from stsbp.training import loop
loop.Sums.from_json = classmethod(lambda cls, values: cls(**{**values, "loss": 0.0}))
"""


def test_a_run_survives_a_few_kills(tmp_path: Path) -> None:
    done = script(CRASH.format(plant="", scenario="train", kills=6), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "\n[]\n"


@pytest.mark.parametrize(
    ("plant", "named"), [(NOT_ATOMIC, "it does not go on"), (FORGETS, "in the end, other: work/runs/new/")]
)
def test_a_planted_loss_is_found(plant: str, named: str, tmp_path: Path) -> None:
    done = script(CRASH.format(plant=plant, scenario="train", kills=18), tmp_path)
    assert done.returncode == 0, done.stderr
    assert named in done.stdout


@pytest.fixture
def restored() -> Iterator[None]:
    """`Disk` replaces functions for good."""
    import builtins

    functions = {name: getattr(os, name) for name in (*Disk.NAMES, "open") if hasattr(os, name)}
    opened, plain = builtins.open, io.FileIO
    yield
    for name, function in functions.items():
        setattr(os, name, function)
    builtins.open = io.open = opened
    for module in (io, *sys.modules.values()):
        if "FileIO" in vars(module):
            module.FileIO = plain  # type: ignore[attr-defined]


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize(
    ("at", "share", "held"), [(1, None, None), (2, None, b""), (2, 0.5, b"01234"), (3, None, b"0123456789")]
)
def test_an_operation_fails_where_it_should(at: int, share: float | None, held: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "file"
    disk = Disk(tmp_path, Blow("ENOSPC", at, share))
    disk.install()

    def write() -> None:
        path.write_bytes(b"0123456789")
        os.replace(path, tmp_path / "other")

    with pytest.raises(OSError) as error:
        write()
    assert error.value.errno == errno.ENOSPC
    assert (path.read_bytes() if path.exists() else None) == held
    assert disk.writes in ([], [2])
