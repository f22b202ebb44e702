"""`stsbp.train` beside `stsbp train`: the same files and bits, stopped and continued across the two."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import stsbp as package
import threadpoolctl  # type: ignore[import-untyped]
from click.testing import Result
from stsbp.api.calls import with_keywords
from stsbp.api.progress import Progress
from stsbp.datasets import load
from stsbp.errors import CheckpointError, ConfigError, DataError, FileError, StsbpError
from stsbp.training import execute, loop
from stsbp_spec import LIF, NetworkSpec
from stsbp_spec.errors import NetworkError

SETTINGS: dict[str, Any] = {
    "net": "12",
    "steps": 3,
    "epochs": 3,
    "batch_size": 20,
    "limit": 50,
    "holdout": 30,
    "validation": 10,
    "log_every": 2,
    "lr": 0.01,
}
"""The settings of the fixture `tiny`."""
SameRun = Callable[[Path, Path], None]


def trained(out: Any, *data: Any, **settings: Any) -> package.Run:
    """The tiny run in Python, on the numpy backend."""
    return package.train(
        *(data or ("digits",)), out=out, **{"backend": "numpy", "progress": False, **SETTINGS, **settings}
    )


@pytest.fixture
def arrays() -> tuple[Any, ...]:
    """Images and classes of 60 training and 20 test samples."""
    digits = load("digits", steps=3)
    parts = ((digits.train, np.arange(60)), (digits.test, np.arange(20)))
    return tuple(x for split, numbers in parts for x in (split.inputs(numbers), split.labels[numbers]))


class Stop(Exception):
    """Raised by a function that receives the progress."""


def stopping(after: int, how: Callable[[], object]) -> Callable[[Progress], None]:
    """Calls `how` after an update."""
    updates: list[Progress] = []

    def progress(state: Progress) -> None:
        updates.extend([state] if state.activity == "training" else [])
        if len(updates) == after and state.activity == "training":
            how()

    return progress


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_python_and_the_command_line_end_with_the_same_bits(
    train_tiny: Callable[..., Result], same_run: SameRun, tmp_path: Path
) -> None:
    assert train_tiny(tmp_path / "command").exit_code == 0
    run = trained(tmp_path / "python")
    same_run(tmp_path / "python", tmp_path / "command")
    files = [(tmp_path / name / "config.toml").read_bytes() for name in ("python", "command")]
    assert files[0] == files[1]
    assert run.finished
    assert run.folder == tmp_path / "python"
    assert run.backend.name == "numpy"
    assert repr(run) == f"Run({str(tmp_path / 'python')!r}, digits, network 12-10, finished)"


def test_a_run_that_the_command_line_began_is_continued_in_python(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], same_run: SameRun, tmp_path: Path
) -> None:
    trained(tmp_path / "whole")
    assert train_tiny(tmp_path / "parts", "--stop-after", 1e-9).exit_code == 75
    run = package.train(resume=tmp_path / "parts", backend="numpy", progress=False)
    same_run(tmp_path / "parts", tmp_path / "whole")
    assert run.finished
    # And the other way round, here also under the name of the data set and the folder.
    unfinished = trained(tmp_path / "others", stop_after=1e-9)
    assert (unfinished.finished, unfinished.info["step"]) == (False, 1)
    assert "0 of 3 epochs" in repr(unfinished)
    assert stsbp("train", "--resume", tmp_path / "others").exit_code == 0
    same_run(tmp_path / "others", tmp_path / "whole")
    assert trained(tmp_path / "others", resume=True).info["sha256"] == run.info["sha256"]


def test_ctrl_c_saves_the_state_and_leaves_the_handlers_of_signals(same_run: SameRun, tmp_path: Path) -> None:
    trained(tmp_path / "whole")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    during: list[Any] = []

    def look_and_interrupt() -> None:
        during.extend(signal.getsignal(number) for number in handlers)
        interrupt()

    with pytest.raises(KeyboardInterrupt, match=r"stopped after update 3 and saved\. Continue with stsbp\.train\(resu"):
        trained(tmp_path / "run", progress=stopping(3, look_and_interrupt))
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    # Only Ctrl-C is this library's to handle.
    assert [handler is former for handler, former in zip(during, handlers.values(), strict=True)] == [False, True]
    assert package.load_run(tmp_path / "run", backend="numpy").info["step"] == 3
    assert trained(tmp_path / "run", resume=True).finished
    same_run(tmp_path / "run", tmp_path / "whole")


def test_an_error_of_the_function_of_the_progress_stops_and_saves(same_run: SameRun, tmp_path: Path) -> None:
    def fail() -> None:
        raise Stop("enough")

    with pytest.raises(Stop, match="enough"):
        trained(tmp_path / "run", progress=stopping(4, fail))
    assert package.load_run(tmp_path / "run", backend="numpy").info["step"] == 4
    trained(tmp_path / "whole")
    trained(tmp_path / "run", resume=True)
    same_run(tmp_path / "run", tmp_path / "whole")


def test_the_function_of_the_progress_receives_how_far_it_is(tmp_path: Path) -> None:
    states: list[Progress] = []
    trained(tmp_path / "run", progress=states.append)
    training = [state for state in states if state.activity == "training"]
    assert len(training) == 6
    assert [state.epoch for state in training] == [1, 1, 2, 2, 3, 3]
    assert {state.epochs for state in training} == {3}
    shares = [state.share for state in states if state.epoch is not None]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert set(training[-1].figures) == {"loss", "accuracy"}
    assert any(state.activity.startswith("test") for state in states)


def test_threads_train_at_the_same_time(same_run: SameRun, tmp_path: Path) -> None:
    trained(tmp_path / "whole")
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            trained(tmp_path / str(number))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    for number in range(2):
        same_run(tmp_path / str(number), tmp_path / "whole")


def _process_state() -> dict[str, Any]:
    return {
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
        "numpy": np.geterr(),
        "threads": [library["num_threads"] for library in threadpoolctl.threadpool_info()],
        "arguments": list(sys.argv),
    }


def test_a_call_leaves_the_process_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    used: list[list[int]] = []
    train = loop.train

    def watched(*arguments: Any) -> Any:
        used.append([library["num_threads"] for library in threadpoolctl.threadpool_info()])
        return train(*arguments)

    monkeypatch.setattr(execute, "train", watched)
    before = _process_state()
    run = trained(tmp_path / "run", threads=1)
    run.evaluate()
    run.report()
    with pytest.raises(StsbpError):
        trained(tmp_path / "run")
    assert _process_state() == before
    assert all(set(threads) <= {1} for threads in used)
    assert capsys.readouterr() == ("", "")


def test_libraries_that_the_call_loads_are_limited_too(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    code = """
import sys, threadpoolctl, stsbp
from stsbp.training import execute
first_state, train, used = execute.first_state, execute.train, []
def loading(*arguments):
    import scipy.linalg  # with a BLAS of its own
    return first_state(*arguments)
def watched(*arguments):
    used.extend(library["num_threads"] for library in threadpoolctl.threadpool_info())
    return train(*arguments)
assert "scipy.linalg" not in sys.modules
execute.first_state, execute.train = loading, watched
stsbp.train("digits", "4", out=sys.argv[1], limit=20, steps=2, epochs=1, threads=1, backend="numpy", progress=False)
print(set(used))
"""
    environment = {key: text for key, text in os.environ.items() if not key.endswith("_NUM_THREADS")}
    output = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")], env=environment, capture_output=True, text=True, check=True
    )
    assert output.stdout == "{1}\n"


def test_progress_is_shown_on_standard_error_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path / "run", progress=True)
    output, errors = capsys.readouterr()
    assert output == ""
    assert "epoch 3/3" in errors
    assert len(errors.splitlines()) < 10


def test_a_notebook_shows_one_line_that_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[str] = []

    def display(bundle: dict[str, str], *, raw: bool, display_id: bool) -> Any:
        assert raw
        assert display_id
        shown.append(bundle["text/plain"])
        return SimpleNamespace(update=lambda new, raw: shown.append(new["text/plain"]))

    shell = SimpleNamespace(kernel=object())
    notebook = SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    monkeypatch.setattr("stsbp.api.progress._SECONDS_BETWEEN", 0.0)
    trained(tmp_path / "run", progress=True)
    output, errors = capsys.readouterr()
    assert errors == ""
    assert "epoch 3/3  loss" in output
    assert any(line.startswith("[####") and "epoch 2/3" in line for line in shown)
    assert shown[-1].startswith("done in 0:0")
    # A terminal of IPython is no notebook.
    shell.kernel = None
    trained(tmp_path / "terminal", progress=True)
    assert "epoch 3/3" in capsys.readouterr().err


def test_arrays_are_data_and_only_the_same_arrays_continue(
    arrays: tuple[Any, ...], stsbp: Callable[..., Result], refused: Callable[..., None], tmp_path: Path
) -> None:
    settings = {"limit": 0, "holdout": 0, "validation": 0}
    whole = trained(tmp_path / "whole", arrays, **settings)
    assert whole.settings.dataset == "arrays"
    assert whole.evaluate()["samples"] == 20
    part = trained(tmp_path / "part", arrays, **settings, stop_after=1e-9)
    assert not part.finished
    refused(stsbp("train", "--resume", tmp_path / "part"), "are in no file", "stsbp.train(data, resume=RUN)")
    changed = (arrays[0].copy(), *arrays[1:])
    changed[0][7, 0, 0, 0] += 1
    with pytest.raises(CheckpointError, match="different: inputs of the train samples"):
        package.train(changed, resume=tmp_path / "part", backend="numpy", progress=False)
    with pytest.raises(DataError, match="are in no file"):
        package.train(resume=tmp_path / "part", backend="numpy", progress=False)
    again = package.train(arrays, resume=tmp_path / "part", backend="numpy", progress=False)
    assert again.info["sha256"] == whole.info["sha256"]
    loaded = package.load_run(tmp_path / "part", backend="numpy")
    assert loaded.report().read_text().count("Confusion matrix") == 0
    with pytest.raises(DataError, match="are in no file"):
        loaded.evaluate()
    held = package.load_run(tmp_path / "part", backend="numpy", data=arrays)
    assert held.evaluate()["accuracy"] == again.evaluate()["accuracy"]
    assert "Confusion matrix" in held.report(tmp_path / "page.html").read_text()


def test_a_network_is_a_text_or_a_spec(tmp_path: Path, same_run: SameRun) -> None:
    by_keyword = trained(tmp_path / "keyword")
    spec = by_keyword.network
    settings = {name: value for name, value in SETTINGS.items() if name != "net"}
    run = package.train("digits", spec, out=tmp_path / "spec", backend="numpy", progress=False, **settings)
    assert run.network.graph == spec.graph
    assert run.info["sha256"] == by_keyword.info["sha256"]
    text = package.train("digits", "12", out=tmp_path / "text", backend="numpy", progress=False, **settings)
    assert text.info["sha256"] == by_keyword.info["sha256"]
    other = NetworkSpec.parse("12", input_shape=(1, 8, 8), outputs=10, coding="direct", neuron=LIF(tau_m=3, tau_s=2))
    changed = package.train("digits", other, out=tmp_path / "other", backend="numpy", progress=False, **settings)
    assert changed.network.blocks[0].neuron == LIF(tau_m=3, tau_s=2)
    with pytest.raises(ConfigError, match="tau_m=: the network already contains this"):
        package.train("digits", other, out=tmp_path / "x", backend="numpy", tau_m=4.0)
    with pytest.raises(ConfigError, match="are the same setting"):
        trained(tmp_path / "x", "digits", "12")


def test_settings_of_another_run_or_a_file_are_a_base(tmp_path: Path) -> None:
    first = trained(tmp_path / "first", epochs=1)
    file = tmp_path / "first" / "config.toml"
    configs: tuple[Any, ...] = (first.settings, file, str(file), first.settings.model_dump())
    for number, config in enumerate(configs):
        run = package.train(config=config, lr=0.02, out=tmp_path / str(number), backend="numpy", progress=False)
        assert (run.settings.lr, run.settings.net, run.settings.epochs) == (0.02, "12", 1)
    command = run_command(tmp_path / "0")
    assert command == f"stsbp.train(lr=0.02, out={str(tmp_path / '0')!r})"


def run_command(run: Path) -> str:
    """How a run was made, as its report says."""
    text = package.load_run(run, backend="numpy").report(samples=False).read_text()
    return text.partition("Made by</p><pre>")[2].partition("</pre>")[0].replace("&#x27;", "'").replace("&#39;", "'")


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        ({"epoch": 3}, ConfigError, r"stsbp\.train: unknown setting 'epoch' \(did you mean epochs\?\)"),
        ({"lr": -1}, ConfigError, r"stsbp\.train: lr = -1: input should be greater than 0"),
        ({"lr": "fast"}, ConfigError, r"stsbp\.train: lr = \"fast\": input should be a valid number"),
        ({"data": "digitz"}, DataError, "unknown data set 'digitz' .did you mean digits"),
        ({"data": None}, ConfigError, r"no data set is named; give one, for example stsbp\.train\('digits'\)"),
        ({"resume": True, "out": None}, ConfigError, "resume=True continues the run in out"),
        ({"resume": True, "overwrite": True}, ConfigError, "resume= continues a run and overwrite= replaces it"),
        ({"resume": 3}, ConfigError, "resume is a path such as 'runs/digits', got 3"),
        ({"dataset": "digits"}, ConfigError, r"the data set is the first argument: stsbp\.train\('digits'"),
        ({"network": 3, "net": "12"}, ConfigError, "network and net= are the same setting"),
        ({"network": 3}, ConfigError, "network is a text such as '16C3-P2-64' or a NetworkSpec, got 3"),
        ({"net": "12C5-P"}, NetworkError, "unknown layer 'P'"),
        ({"preset": "nmnist-hamm"}, ConfigError, "unknown preset 'nmnist-hamm' .did you mean nmnist-hamming"),
        ({"config": 3}, ConfigError, "config is a file, the settings of a run or a dict, got 3"),
        ({"config": "none.toml"}, ConfigError, r"there is no configuration file none\.toml"),
        ({"backend": "nump"}, StsbpError, "no backend 'nump' is installed .did you mean numpy"),
        ({"progress": 1}, ConfigError, "progress is True, False or a function"),
        ({"stop_after": 0}, ConfigError, "stop_after is a number of minutes above 0, got 0"),
        ({"input_tau_s": 3.0}, ConfigError, r"input_tau_s= filters event frames, but digits has images; leave it out"),
        ({"test": False, "holdout": 30}, ConfigError, r"test = false \(test=False\) means that there is no test set"),
    ],
)
def test_errors_name_the_keywords_of_python(
    call: dict[str, Any], kind: type[StsbpError], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = {"data": "digits", "out": "run", "backend": "numpy", "progress": False, **call}
    with pytest.raises(kind, match=message):
        package.train(arguments.pop("data"), **arguments)
    assert not (tmp_path / "run").exists()


def test_messages_of_the_command_line_are_translated_but_commands_in_them_are_not() -> None:
    assert with_keywords("leave --own-lengths out, or --no-test") == "leave own_lengths= out, or test=False"
    assert with_keywords("--patience 2, --freeze 'conv2', that of --optimizer sgd") == (
        "patience=2, freeze='conv2', that of optimizer='sgd'"
    )
    assert (
        with_keywords("give --on 'a' --data-dir 'b c' --limit 3 or not")
        == "give on='a', data_dir='b c', limit=3 or not"
    )
    assert with_keywords("--precision fast keeps, --pool mean; --validation M") == (
        "precision='fast' keeps, pool='mean'; validation=M"
    )
    assert with_keywords("x=1 y=2 of --net") == "x=1 y=2 of net="
    assert with_keywords("leave --on out, --no-samples leaves") == "leave on= out, samples=False leaves"
    assert with_keywords("a-b--c /x--y") == "a-b--c /x--y"
    message = "give --out. Continue with: stsbp train --resume runs/a\nor --epochs"
    assert with_keywords(message) == "give out=. Continue with: stsbp train --resume runs/a\nor epochs="


def test_values_of_options_in_messages_are_in_quotes() -> None:
    """Without quotes, the keyword of Python is followed by a word: `on= fsdd`."""
    source = Path(package.__file__).parent
    numbers = {"config.patience", "steps", "shown(name)", "shown(typed_name)"}
    files = [file for file in source.rglob("*.py") if not {"cli", "experiment"} & {*file.relative_to(source).parts}]
    values = {
        (file.name, value)
        for file in files
        for value in re.findall(r"--[a-z][a-z-]* \{([^}]*)\}(?!=)", file.read_text())
        if value not in numbers and not value.endswith("!r")
    }
    assert len(files) > 50
    assert values == set()


def test_notes_of_the_progress_name_keywords(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path / "run")
    trained(tmp_path / "run", resume=True, progress=True)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "To train it longer, give a larger epochs=" in printed.err.replace("\n", " ")


def test_a_folder_that_is_taken_is_left_alone(tmp_path: Path) -> None:
    trained(tmp_path / "run")
    with pytest.raises(FileError, match="continue that run with resume=, replace it with overwrite=, or choose anoth"):
        trained(tmp_path / "run")
    assert trained(tmp_path / "run", overwrite=True, epochs=1).settings.epochs == 1
    with pytest.raises(ConfigError, match=r"only epochs= may grow.*\n  lr: 0\.01 in the run, 0\.5 asked"):
        trained(tmp_path / "run", resume=True, lr=0.5)


def test_errors_of_the_system_are_of_the_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "disk")

    monkeypatch.setattr("stsbp.api.train.execute", full)
    with pytest.raises(FileError, match="disk: No space left on device"):
        trained(tmp_path / "run")

    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("stsbp.api.train.execute", broken)
    with pytest.raises(ZeroDivisionError):
        trained(tmp_path / "run")


def test_processes_of_a_launcher_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1234"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"in one process, but .* has started 2; .* use stsbp train --processes"):
        trained(tmp_path / "run")


@contextlib.contextmanager
def _imported(code: str) -> Iterator[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    yield done.stdout


def test_the_package_is_imported_without_what_it_offers() -> None:
    code = (
        "import sys, stsbp\n"
        "assert 'numpy' not in sys.modules and 'stsbp_spec' not in sys.modules\n"
        "assert {'train', 'load_run', 'save_run', 'compare', 'Run'} <= set(dir(stsbp))\n"
        "print(stsbp.train.__module__, stsbp.Run.__module__)\n"
    )
    with _imported(code) as output:
        assert output == "stsbp.api.functions stsbp.api.run\n"
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        package.trian  # noqa: B018
