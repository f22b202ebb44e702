"""docs/write_a_data_set.md as a stranger would follow it, and entry points of `stsbp.datasets` that are broken."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from stsbp import load_run
from stsbp.datasets import DATASETS, load
from stsbp.datasets.base import GuardedSplit, content_of
from stsbp.datasets.registry import GROUP, info_of
from stsbp.errors import DataError
from stsbp_spec.models.encoders import PackedFrames

PAGE = Path(__file__).parents[3] / "docs" / "write_a_data_set.md"
TEXT = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
Call = Callable[..., Result]


def _block(kind: str) -> str:
    match = re.search(rf"^```{kind}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    assert match is not None
    return match[1]


def _install(folder: Path, name: str, points: dict[str, str]) -> None:
    """What installing a package leaves: here, its entry points."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()))


def _install_words(site: Path, text: str) -> None:
    """Install a package whose module has this text, and forget the module of another test."""
    (site / "words_of_others.py").write_text(text)
    _install(site, "words", _words())
    sys.modules.pop("words_of_others", None)


def _install_words_again(site: Path, text: str) -> None:
    """Replace the text of the installed module, and forget it."""
    (site / "words_of_others.py").write_text(text)
    sys.modules.pop("words_of_others", None)
    importlib.invalidate_caches()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that packages are installed in."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def _words() -> dict[str, str]:
    """A package with a data set of one good name and others that are none."""
    return {
        "good": "words_of_others:GOOD",
        "renamed": "words_of_others:GOOD",
        "number": "words_of_others:NUMBER",
        "gone": "words_of_others:MISSING",
    }


WORDS = """
from stsbp.datasets import Dataset, DatasetInfo, FrameSplit, Request, cut_test
import numpy as np

def load(request):
    frames = np.zeros((6, request.binning.steps, 3), np.uint8)
    train, test = cut_test(FrameSplit(FrameSplit.store(frames), np.arange(6) % 2, request.binning.steps), 2, request)
    classes = (request.options.get("first", "a"), "b")
    return Dataset("good", "events", (3,), classes, train, test)

GOOD = DatasetInfo(name="good", description="six silent samples", coding="events", load=load, needs_data_dir=False,
                   options={"first": "name of the first class"}, defaults={"steps": 7})
NUMBER = 3
"""


@pytest.mark.skipif(not TEXT, reason="the documentation is not beside the packages")
def test_a_strangers_data_set_is_listed_trained_and_evaluated(site: Path) -> None:
    (site / "clicks.py").write_text(_block("python"))
    project = tomllib.loads(_block("toml"))["project"]
    _install(site, project["name"], project["entry-points"][GROUP])
    outputs = []
    for line in _block("sh").splitlines():
        run = subprocess.run(
            [sys.executable, "-m", *shlex.split(line)], cwd=site, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr
        outputs.append(run.stdout + run.stderr)
    assert "clicks that reach one of two ears first" in outputs[0]
    assert 'label_pattern = "01"' in outputs[0]
    assert "600 simulated clicks, 120 of them held out as test samples" in outputs[1]
    accuracy = re.search(r"test accuracy ([\d.]+)%", outputs[1])
    assert accuracy is not None
    assert float(accuracy[1]) > 90
    assert json.loads((site / "runs/clicks/last.json").read_text())["inputs"]["classes"] == ["left", "right"]


COUNTS = WORDS.replace(
    "np.zeros((6, request.binning.steps, 3), np.uint8)",
    "np.random.default_rng(0).integers(0, 10, (6, request.binning.steps, 3))",
).replace("FrameSplit(FrameSplit.store(frames), np.arange(6) % 2, request.binning.steps)", "SPLIT")
COUNTS = COUNTS.replace(
    "SPLIT", "FrameSplit(FrameSplit.store(frames, binary=False), np.arange(6) % 2, request.binning.steps, binary=False)"
)


def test_counts_need_their_largest_value(site: Path, stsbp: Call, refused: Callable[..., None]) -> None:
    _install_words(site, COUNTS)
    message = "good: train has frames with counts up to 9, but input_max is 1; give the Dataset the largest count"
    refused(stsbp("train", "good", "--epochs", 1), message)


def test_a_data_set_of_counts_is_trained_and_used(site: Path, stsbp: Call) -> None:
    _install_words(site, COUNTS.replace("classes, train, test)", "classes, train, test, input_max=12)"))
    run = site / "run"
    settings = ("--net", 5, "--epochs", 1, "--precision", "reproducible")
    assert stsbp("train", "good", *settings, "--out", run).exit_code == 0
    assert json.loads((run / "last.json").read_text())["inputs"]["input_max"] == 12
    trained = load_run(run, backend="numpy")
    assert trained.network.input_max == 12
    assert stsbp("evaluate", run).exit_code == 0
    for noise in ("added=0.5", "jitter=3", "lost=0.5"):
        assert stsbp("curves", run, "--noise", noise).exit_code == 0
    frames = load("good", steps=7).train.inputs(np.array([0]))
    np.save(site / "frames.npy", frames[:, 0])
    predicted = json.loads(stsbp("predict", run, site / "frames.npy", "--json").stdout)
    assert predicted["class"] == trained.predict(frames).classes[0]
    lines = "".join(f"{t} {n}\n" * int(frames[t, 0, n]) for t in range(7) for n in range(3))
    (site / "events.txt").write_text(lines)
    streamed = stsbp("predict", run, "--stream", site / "events.txt", "--json").stdout.splitlines()
    assert json.loads(streamed[-1])["distances"] == predicted["distances"]
    for most in ("9", "255"):
        _install_words_again(site, COUNTS.replace("classes, train, test)", f"classes, train, test, input_max={most})"))
        resumed = stsbp("train", "--resume", run, "--epochs", 2)
        assert resumed.exit_code == 1
        assert "different: largest count of the inputs" in resumed.stderr
    (site / "many.txt").write_text("0 1\n" * 13 + "2 1\n")
    many = stsbp("predict", run, "--stream", site / "many.txt")
    assert many.exit_code == 1
    assert "many.txt, line 14: more than 12 events of one neuron in step 0, but the network reads counts" in many.stderr
    for form in ("c", "onnx", "nir"):
        assert stsbp("export", run, "--to", form, "--out", site / f"net.{form}").exit_code == 0


def test_names_are_known_without_an_import(site: Path) -> None:
    (site / "words_of_others.py").write_text("raise RuntimeError('imported')")
    _install(site, "words", _words())
    sys.modules.pop("words_of_others", None)
    assert {"digits", *_words()} <= set(DATASETS)
    assert "good" in DATASETS
    assert "words_of_others" not in sys.modules
    with pytest.raises(DataError, match=r"the data set 'good' of words cannot be imported: RuntimeError: imported"):
        info_of("good")


def test_options_follow_a_name(site: Path, stsbp: Call, tmp_path: Path) -> None:
    _install_words(site, WORDS)
    assert load("good").classes == ("a", "b")
    assert load("good:first=c").classes == ("c", "b")
    assert "steps = 7\n" in stsbp("train", "good:first=c", "--show-config").output
    for name, message in {
        "good:first": r"good has no option 'first'.*first=\.\.\. \(name of the first class\)",
        "good:frist=c": r"no option 'frist=c' \(did you mean first\?\)",
        "good:first=": "no option 'first='",
        "good:first=c:first=d": "the option first of good is given twice",
        "digits:size=8": "digits has no option 'size=8'; options after a colon: none",
    }.items():
        with pytest.raises(DataError, match=message):
            load(name)


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("    return Dataset(", "    Dataset(", "good: its loader must return a Dataset, got a NoneType"),
        ("return Dataset", "return ", "good: its loader must return a Dataset, got a tuple"),
        (
            "def load(request)",
            "def load()",
            "words_of_others.load, the loader of the data set 'good', fails: TypeError: load() takes 0 positional",
        ),
        (
            "    frames = np",
            "    np.load('nowhere.npy')\n    frames = np",
            "words_of_others.load, the loader of the data set 'good', fails: FileNotFoundError: [Errno 2] No such file "
            "or directory: 'nowhere.npy' (SITE/words_of_others.py:6)",
        ),
        (
            "    frames = np",
            "    1 / 0\n    frames = np",
            "fails: ZeroDivisionError: division by zero (SITE/words_of_oth",
        ),
        ("    frames = np", "    exit(4)\n    frames = np", "fails: it calls sys.exit(4) (SITE/words_of_others.py:6)"),
        (
            "NUMBER = 3",
            "import sys; sys.exit()",
            "the data set 'good' of words cannot be imported: it calls sys.exit(None) (SITE/words_of_others.py:13)",
        ),
        (
            'defaults={"steps": 7}',
            "steps=lambda path: 1 / 0",
            "words_of_others.<lambda>, the function steps of the data set 'good', fails: ZeroDivisionError",
        ),
        ("classes, train", "classes, Subset(train, [])", "good has no training samples"),
        (
            "np.arange(6) % 2",
            "[0, 1] * 3",
            "FrameSplit: labels must be a numpy array of integers [n], one for each of 6",
        ),
        ("(3,)", "3", "good: input_shape must be a tuple (N,) or (C, H, W) of integers, got 3"),
        ('"b")', '"a")', "good: classes must have different names, got 'a' twice"),
        ("load=load", "load=None", "good: load must be a function that receives a Request, got None"),
        ('defaults={"steps": 7}', 'defaults=["steps"]', "good: defaults must be a dict, got ['steps']"),
        ('defaults={"steps": 7}', "defaults={1: 2}", "good: the keys of defaults must be names, got 1"),
        (
            "    frames = np",
            "    raise BaseException('no')\n    frames = np",
            "fails: BaseException: no (SITE/words",
        ),
        (
            "classes, train, test",
            "classes, train, test, input_max=256",
            "good: input_max must be at most 255, got 256",
        ),
        (
            "np.zeros((6, request.binning.steps, 3), np.uint8)",
            "np.ma.zeros((6, request.binning.steps, 3), np.uint8)",
            "FrameSplit.store: frames must be a numpy array of integers, [n, T, N] or [n, T, C, H, W], got a masked",
        ),
        (
            "np.arange(6) % 2",
            "np.ma.arange(6) % 2",
            "FrameSplit: labels must be a numpy array of integers [n], one for each of 6 samples, got a masked array",
        ),
        (
            'options={"first": "name of the first class"}',
            'options=["first"]',
            "good: options must be a dict, got ['first",
        ),
    ],
)
def test_mistake_in_a_data_set_is_named(
    site: Path, stsbp: Call, refused: Callable[..., None], right: str, wrong: str, message: str
) -> None:
    assert right in WORDS
    _install_words(site, WORDS.replace("import Dataset,", "import Subset, Dataset,").replace(right, wrong))
    refused(stsbp("train", "good", "--data-dir", site, "--out", "run"), message.replace("SITE", str(site)))


_SPLIT = """
class Mine:
    labels = np.arange(6) % 2
    lengths = None

    def __len__(self):
        return 6

    def inputs(self, indices):
        return np.zeros((7, len(indices), 3), np.uint8)

    def stored(self, indices):
        return self.inputs(indices)

    def targets(self, indices):
        return np.zeros((7, len(indices), 2), np.uint8)
"""


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        (
            "return np.zeros((7, len(indices), 3), np.uint8)",
            "return indices[7]",
            "Mine.inputs of the data set 'good' fails: IndexE",
        ),
        (
            "return np.zeros((7, len(indices), 3), np.uint8)",
            "pass",
            "Mine.inputs .* must return a numpy array, got None",
        ),
        (
            "return self.inputs(indices)",
            "exit(3)",
            r"Mine\.stored .* fails: it calls sys\.exit\(3\) \(.*others\.py:\d+\)",
        ),
        ("return self.inputs(indices)", "return [[0]]", r"Mine\.stored .* must return a numpy array, got \[\[0\]\]"),
        (
            "lengths = None",
            "lengths = [7] * 6",
            r"good: train: 6 samples need as many lengths, .*, got \[7, 7, 7, 7, 7, 7\]",
        ),
        (
            "return np.zeros((7, len(indices), 2), np.uint8)",
            "return None",
            r"Mine\.targets .* must return a numpy array",
        ),
        ("def targets", "def other", "the labels of these samples are classes, not spike trains"),
        (
            "def stored",
            "def content(self):\n        1 / 0\n\n    def stored",
            r"Mine\.content .* fails: ZeroDivisionError",
        ),
    ],
)
def test_mistake_in_a_split_is_named(site: Path, right: str, wrong: str, message: str) -> None:
    assert right in _SPLIT
    start, end = WORDS.split("\ndef load", 1)
    text = f"{start}{_SPLIT.replace(right, wrong)}\ndef load{end}".replace("train, test)", "Mine(), Mine())")
    _install_words(site, text)
    with pytest.raises(DataError, match=message):
        _read_everything()


def _read_everything() -> None:
    split, some = load("good").train, np.arange(2)
    assert isinstance(split, GuardedSplit)
    split.inputs(some)
    split.stored(some)
    split.targets(some)
    content_of(split)


def test_split_of_another_package_is_what_it_was(site: Path) -> None:
    _install_words(site, WORDS)
    split = load("good").train
    assert isinstance(split, GuardedSplit)
    some = np.array([2, 0])
    assert np.array_equal(split.inputs(some), split.split.inputs(some))
    assert isinstance(split.stored(some), PackedFrames)
    assert content_of(split) == content_of(split.split)


def test_entry_points_that_are_no_data_sets(site: Path, stsbp: Call) -> None:
    _install_words(site, WORDS)
    for name, message in {
        "renamed": r"the entry point 'renamed' of words must name a DatasetInfo of that name.* is the data set 'good'",
        "number": "'number' of words must name a DatasetInfo.* is a int",
        "gone": "'gone' of words cannot be imported: AttributeError",
    }.items():
        with pytest.raises(DataError, match=message):
            info_of(name)
    # Who uses another data set is not told of broken ones.
    assert "apply only to recordings (digits-events" in stsbp("train", "good", "--bin-ms", "3").output
    listed = stsbp("datasets")
    assert listed.exit_code == 0, listed.output
    assert "six silent samples" in listed.output
    assert listed.output.count("cannot be read: ") == 3
    (site / "words_of_others.py").write_text("import sys\nsys.exit()\n")
    sys.modules.pop("words_of_others", None)
    assert stsbp("datasets").output.count("cannot be read: ") == 4
    assert [json.loads(line)["name"] for line in stsbp("datasets", "--json").output.splitlines()] == list(DATASETS)


def test_a_name_that_two_packages_have_is_neithers(site: Path) -> None:
    (site / "words_of_others.py").write_text(WORDS)
    _install(site, "words", {"good": "words_of_others:GOOD", "digits": "words_of_others:GOOD"})
    _install(site, "letters", {"good": "words_of_others:GOOD"})
    with pytest.raises(
        DataError, match=r"several packages have a data set 'good': (words, letters|letters, words); un"
    ):
        load("good")
    with pytest.raises(DataError, match="several packages have a data set 'digits': stsbp, words"):
        load("digits")


def test_one_data_set_is_shown_with_its_needs_and_settings(stsbp: Call) -> None:
    shown = stsbp("datasets", "nmnist").output
    assert "60,000 + 10,000 recordings" in shown
    assert "--download downloads them" in shown
    assert '= "12C5-P2-64C5-P2"' in shown
    assert "none needed" in stsbp("datasets", "patterns").output
    failed = stsbp("datasets", "nmnits")
    assert failed.exit_code == 1
    assert "did you mean nmnist?" in failed.output


def test_a_file_that_is_named_without_its_kind(stsbp: Call) -> None:
    failed = stsbp("train", "my.npz")
    assert failed.exit_code == 1
    assert "a file is named sequences:my.npz or events:my.npz" in failed.output
