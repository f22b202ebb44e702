"""Files that others may have put there: pipes, devices, giants, forgeries; and files that no command may replace."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import signal
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from stsbp import records
from stsbp.cli.predict import read_inputs
from stsbp.config import to_toml_value
from stsbp.datasets import load, mnist
from stsbp.datasets.archives import extract_files
from stsbp.datasets.image_folder import read_image
from stsbp.errors import CheckpointError, DataError, FileError
from stsbp.files import OutputKind, open_regular, read_regular
from stsbp.report.page import PAGE, page
from stsbp.report.samples import Samples
from stsbp.training.build import Inputs
from stsbp.training.metrics import read_records
from stsbp.training.run_folder import RunFolder
from stsbp_spec.models.encoders import EventBinning
from stsbp_spec.models.neurons import LIF
from stsbp_spec.models.neurons import stored as neurons

Stsbp = Callable[..., Result]

needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    """A test that waits for a pipe ends with an error."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def give_up(*_: object) -> None:
        raise TimeoutError("waited for a file")

    earlier_handler = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, earlier_handler)


@pytest.fixture
def run(tiny_run: Path) -> Path:
    """A run that is over."""
    return tiny_run


@pytest.mark.parametrize(
    ("setting", "value"),
    [("loss", "lurking:Thing"), ("neuron", "lurking:Thing"), ("surrogate", "lurking:Thing:beta=2")],
)
def test_a_run_cannot_name_a_module_to_import(
    run: Path, stsbp: Stsbp, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: str, value: str
) -> None:
    touched = tmp_path / "touched"
    (tmp_path / "lurking.py").write_text(f"open({str(touched)!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = run / "config.toml"
    lines = [line for line in path.read_text().splitlines() if not line.startswith(f"{setting} =")]
    path.write_text("\n".join([f'{setting} = "{value}"', *lines]))
    for command in ("evaluate", "report", "train"):
        arguments = ["--resume", str(run)] if command == "train" else [str(run)]
        result = stsbp(command, *arguments)
        assert result.exit_code == 1
        assert f"{setting} names the class {value}, but {setting}_model does not store it" in result.output
    assert not touched.exists()


@pytest.fixture
def lurking(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file that the module `lurking` of the working folder writes when it is imported."""
    touched = tmp_path / "touched"
    (tmp_path / "lurking.py").write_text(f"open({str(touched)!r}, 'w').close()")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "lurking", raising=False)
    return touched


SETTINGS_OF_A_CLASS = [("loss", "lurking:Thing"), ("neuron", " lurking:Thing"), ("surrogate", "lurking:Thing:beta=2")]


@pytest.mark.parametrize(("setting", "value"), SETTINGS_OF_A_CLASS)
@pytest.mark.parametrize("more", [(), ("--show-config",)])
def test_train_imports_no_module_that_only_a_file_names(
    stsbp: Stsbp, lurking: Path, tmp_path: Path, setting: str, value: str, more: tuple[str, ...]
) -> None:
    (tmp_path / "own.toml").write_text(f'dataset = "digits"\n{setting} = "{value}"\n')
    result = stsbp("train", "--config", "own.toml", *more)
    assert result.exit_code == 1
    assert f"own.toml: {setting} = \"{value}\" names a class of the module 'lurking'" in result.output
    assert f"name the class in the option --{setting}, or add --allow-imports" in result.output
    assert not lurking.exists()
    # Allowed, it is imported, and has no such class.
    for allowed in ((f"--{setting}", value), ("--allow-imports",)):
        assert "the module has no 'Thing'" in stsbp("train", "--config", "own.toml", *more, *allowed).output
    assert lurking.exists()


@pytest.mark.parametrize(("setting", "value"), [setting for setting in SETTINGS_OF_A_CLASS if setting[0] != "neuron"])
def test_import_imports_no_module_that_only_a_file_names(
    stsbp: Stsbp, lurking: Path, tmp_path: Path, run: Path, setting: str, value: str
) -> None:
    pytest.importorskip("h5py")
    assert stsbp("export", run, "--to", "nir", "--out", "run.nir", "--dt", "1e-3").exit_code == 0
    (tmp_path / "own.toml").write_text(f'dataset = "digits"\n{setting} = "{value}"\n')
    arguments = ("import", "run.nir", "--out", "theirs", "--config", "own.toml", "--dt", "1e-3")
    result = stsbp(*arguments)
    assert result.exit_code == 1
    assert f"own.toml: {setting} = \"{value}\" names a class of the module 'lurking'" in result.output
    assert not lurking.exists()
    assert "the module has no 'Thing'" in stsbp(*arguments, "--allow-imports").output


def test_train_takes_the_class_that_a_file_stores_without_an_import(
    stsbp: Stsbp, lurking: Path, tmp_path: Path
) -> None:
    model = to_toml_value(neurons.as_text(LIF()))
    (tmp_path / "own.toml").write_text(f'dataset = "digits"\nneuron = "lurking:Thing"\nneuron_model = {model}\n')
    assert stsbp("train", "--config", "own.toml", "--show-config").exit_code == 0
    # Another time constant of the neurons removes the stored class, which would then be imported again.
    result = stsbp("train", "--config", "own.toml", "--tau-m", 5, "--show-config")
    assert result.exit_code == 1
    assert 'own.toml: neuron = "lurking:Thing" names a class' in result.output
    assert not lurking.exists()


def test_train_refuses_a_model_that_takes_long_to_compile(stsbp: Stsbp, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    data = json.loads(neurons.as_text(LIF()))
    # The derived backward pass of the state has about five operations for each of the step.
    data |= {"carried": [], "roots": {name: at for name, at in data["roots"].items() if name[0] != "d"}}
    data["roots"].pop("current")
    (u, state) = (data["roots"][name] for name in ("u", "s.m"))
    data["nodes"].append(["mul", None, data["nodes"][state][2], u])
    for _ in range(300):
        data["nodes"].append(["mul", None, len(data["nodes"]) - 1, u])
    data["roots"]["s.m"] = len(data["nodes"]) - 1
    model = to_toml_value(json.dumps(data))
    (tmp_path / "own.toml").write_text(f'dataset = "digits"\nneuron = "mine:Own"\nneuron_model = {model}\n')
    result = stsbp("train", "--config", "own.toml", "--out", "run", "--stop-after", "0.001")
    assert result.exit_code == 1
    assert re.search(r"lif_backward has \d,\d{3} operations in one step, more than the 1,000", result.output)
    assert not (tmp_path / "run").exists()


@needs_pipes
class TestRegularFiles:
    def test_reads_files_and_links_to_them(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"content")
        (tmp_path / "link").symlink_to("file")
        assert read_regular(tmp_path / "file", 7) == read_regular(tmp_path / "link", 7) == b"content"

    def test_refuses_what_is_larger(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"content")
        with pytest.raises(OSError, match="7 bytes, more than the 6"):
            read_regular(tmp_path / "file", 6)

    def test_takes_no_memory_for_what_is_not_there(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"content")
        assert read_regular(tmp_path / "file", 2**62) == b"content"

    @pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
    def test_refuses_other_kinds(self, tmp_path: Path, kind: str) -> None:
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "folder").mkdir()
        (tmp_path / "device").symlink_to("/dev/zero")
        with pytest.raises(OSError, match=f"it is a {kind}, not a regular file"):
            open_regular(tmp_path / kind, 100)

    def test_pipe_that_takes_the_place_of_a_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path, original = tmp_path / "file", os.open
        path.write_bytes(b"content")

        def replaced(name: Any, flags: int) -> int:
            path.unlink()
            os.mkfifo(path)
            return original(name, flags)

        monkeypatch.setattr(os, "open", replaced)
        with pytest.raises(OSError, match="it is a pipe"):
            open_regular(path, 100)

    def test_names_that_no_file_has(self) -> None:
        with pytest.raises(OSError, match="null"):
            open_regular(Path("a\0b"), 100)


def test_a_file_is_opened_with_the_flags_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed in processes that are begun, bytes as they are (on Windows), and without waiting."""
    (tmp_path / "a").write_bytes(b"\r\n\x1a")
    flags_used, opened = list[int](), os.open

    def noted(path: str, flags: int) -> int:
        flags_used.append(flags)
        return opened(path, flags)

    monkeypatch.setattr("stsbp.files.os.open", noted)
    with open_regular(tmp_path / "a", 100) as file:
        assert file.read() == b"\r\n\x1a"
    flag_values = [getattr(os, name, 0) for name in ("O_CLOEXEC", "O_BINARY", "O_NONBLOCK")]
    assert flags_used == [os.O_RDONLY | flag_values[0] | flag_values[1] | flag_values[2]]


@needs_pipes
class TestData:
    """Each reader of data refuses a pipe in the place of a file, without waiting for it."""

    def refuses(self, name: str, folder: Path, tmp_path: Path, **more: Any) -> None:
        with pytest.raises(DataError, match="it is a pipe, not a regular file"):
            load(name, data_dir=folder, cache_dir=tmp_path / "cache", **more)

    def test_recordings(self, tmp_path: Path) -> None:
        pytest.importorskip("tonic")
        folder = tmp_path / "data" / "Train" / "0"
        folder.mkdir(parents=True)
        os.mkfifo(folder / "00001.bin")
        self.refuses("nmnist", tmp_path / "data", tmp_path)

    def test_large_recording(self, tmp_path: Path) -> None:
        folder = tmp_path / "data" / "Train" / "0"
        folder.mkdir(parents=True)
        with open(folder / "00001.bin", "wb") as file:
            file.truncate(2**40)
        with pytest.raises(DataError, match="more than the 16,777,216"):
            load("nmnist", data_dir=tmp_path / "data", cache_dir=tmp_path / "cache")

    def test_images(self, tmp_path: Path) -> None:
        pytest.importorskip("PIL")
        for name in ("a", "b"):
            (tmp_path / "data" / name).mkdir(parents=True)
            os.mkfifo(tmp_path / "data" / name / "x.png")
        self.refuses("images", tmp_path / "data", tmp_path)

    def test_sequences(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "x.npz")
        self.refuses("sequences", tmp_path / "x.npz", tmp_path)

    def test_packed_sequences_that_are_larger_than_memory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("STSBP_FILE_BUDGET", "0.001")
        path = tmp_path / "bomb.npz"
        np.savez_compressed(path, inputs=np.zeros((10, 100, 1000), np.uint8), targets=np.zeros((10, 100, 1), np.uint8))
        assert path.stat().st_size < 10**5
        with pytest.raises(DataError, match=r"more than the 1.02 MiB allowed for [\d,]+ bytes of files.*--file-budget"):
            load("sequences", data_dir=path, steps=100)

    def test_shape_of_truth_values(self, tmp_path: Path, run: Path, stsbp: Stsbp, refused: Callable[..., None]) -> None:
        header = "{'descr': '|u1', 'fortran_order': False, 'shape': (True,), }".ljust(117) + "\n"
        content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + b"\0"
        (tmp_path / "x.npy").write_bytes(content)
        refused(stsbp("predict", run, "x.npy"), "x.npy is not a numpy array: its shape is (True,)")
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
            file.writestr("inputs.npy", content)
            file.writestr("targets.npy", content)
        refused(stsbp("train", f"sequences:{tmp_path / 'x.npz'}"), "x.npz")

    def test_shape_beyond_a_float(self, tmp_path: Path) -> None:
        header = "{'descr': '|u1', 'fortran_order': False, 'shape': (9223372036854775808, True, 0), }".ljust(117) + "\n"
        content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + b"\0"
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
            file.writestr("inputs.npy", content)
        with warnings.catch_warnings(record=True) as warned, pytest.raises(DataError, match=r"x\.npz"):
            load("sequences", data_dir=tmp_path / "x.npz")
        assert warned == []

    @pytest.mark.parametrize("packed", [True, False])
    def test_digits(self, tmp_path: Path, packed: bool) -> None:
        for name in mnist._names("train"):
            (tmp_path / f"{name}{'.gz' if packed else ''}").write_bytes(b"")
        paths = mnist.find(tmp_path, "train")
        assert paths is not None
        paths[0].unlink()
        os.mkfifo(paths[0])
        with pytest.raises(DataError, match="it is a pipe, not a regular file"):
            mnist._content(paths[0])

    def test_packed_digits_that_are_too_many(self, tmp_path: Path) -> None:
        path = tmp_path / "train-images-idx3-ubyte.gz"
        with gzip.open(path, "wb", compresslevel=1) as file:
            file.write(bytes(mnist._LARGEST + 10**6))
        assert len(mnist._content(path)) == mnist._LARGEST + 1

    def test_batches(self, tmp_path: Path) -> None:
        (tmp_path / "data_batch_1.bin").write_bytes(bytes(3073))
        with open(tmp_path / "data_batch_2.bin", "wb") as file:
            file.truncate(2**40)
        with pytest.raises(DataError, match="such a file may have"):
            load("cifar10", data_dir=tmp_path, cache_dir=tmp_path / "cache")

    def test_archive(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "x.tar")
        with pytest.raises(DataError, match="it is a pipe, not a regular file"):
            extract_files(tmp_path / "x.tar", tmp_path, ["a"], largest=10)

    @pytest.mark.parametrize("name", ["x.npy", "x.bin", "x.png"])
    def test_files_to_predict(self, tmp_path: Path, name: str) -> None:
        os.mkfifo(tmp_path / name)
        (tmp_path / f"link{name}").symlink_to("/dev/zero")
        inputs = Inputs((2, 34, 34), "events", ("a", "b"))
        for path, kind in ((tmp_path / name, "pipe"), (tmp_path / f"link{name}", "device")):
            with pytest.raises(DataError, match=f"it is a {kind}, not a regular file"):
                read_inputs([path], inputs, EventBinning(), "nmnist")

    @pytest.mark.parametrize("name", ["config.toml", "last.json", "metrics.jsonl", "environment.json"])
    def test_files_of_a_run(self, run: Path, stsbp: Stsbp, name: str) -> None:
        (run / name).unlink()
        os.mkfifo(run / name)
        commands = (("evaluate", run), ("compare", run), ("train", "--resume", run), ("report", run))
        for command in commands:
            result = stsbp(*command)
            assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
            assert result.exit_code in (0, 1)

    def test_metrics_that_cannot_be_read_are_not_taken_for_none(self, run: Path) -> None:
        (run / "metrics.jsonl").unlink()
        config = RunFolder(run).read_config()
        assert read_records(run, config) == []
        os.mkfifo(run / "metrics.jsonl")
        with pytest.raises(CheckpointError, match=r"cannot read .*metrics\.jsonl: it is a pipe, not a regular file"):
            read_records(run, config)


@pytest.mark.filterwarnings("error")
class TestImages:
    def bytes(self, image: Any, **options: Any) -> bytes:
        import io

        file = io.BytesIO()
        image.save(file, **options)
        return file.getvalue()

    def test_too_many_pixels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pillow = pytest.importorskip("PIL.Image")
        content = self.bytes(pillow.new("1", (10_000, 10_000)), format="PNG")
        # Pillow warns of these, and refuses twice as many.
        assert pillow.MAX_IMAGE_PIXELS < 10**8 < 2 * pillow.MAX_IMAGE_PIXELS
        with pytest.raises(DataError, match="10000 x 10000 pixels"):
            read_image(content, Path("x.png"), channels=None, size=None)

    def test_profile_that_makes_pillow_stumble(self) -> None:
        pillow = pytest.importorskip("PIL.Image")
        content = self.bytes(pillow.new("L", (4, 4)), format="PNG")
        end = content.index(b"IEND") - 4
        forged = content[:end] + bytes(4) + b"iCCP" + zlib.crc32(b"iCCP").to_bytes(4, "big") + content[end:]
        with pytest.raises(DataError, match="cannot be read as an image"):
            read_image(forged, Path("x.png"), channels=None, size=None)

    def test_damaged_metadata_are_no_concern_of_the_pixels(self) -> None:
        pillow = pytest.importorskip("PIL.Image")
        image = pillow.new("L", (4, 4), 7)
        transparent = pillow.new("P", (4, 4), 1)
        for content in (
            self.bytes(image, format="JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff"),
            self.bytes(transparent, format="PNG", transparency=bytes([0, 128, 255])),
        ):
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                assert read_image(content, Path("x"), channels=None, size=None).shape[1:] == (4, 4)
            assert warned == []


WHOLE: dict[str, Any] = {"shape": [1, 8, 8], "coding": "direct", "classes": list("0123456789")}
FORGED: list[Any] = [
    None,
    3,
    [],
    {},
    {**WHOLE, "shape": 3},
    {**WHOLE, "shape": []},
    {**WHOLE, "shape": ["1", 8, 8]},
    {**WHOLE, "shape": [1, 8, 8, 8]},
    {**WHOLE, "shape": [1, 8, -8]},
    {**WHOLE, "shape": [1, 8, True]},
    {**WHOLE, "shape": [1, 8, 8.0]},
    {**WHOLE, "shape": [10**8, 10**8, 1]},
    {**WHOLE, "shape": [1, 8, 10**40]},
    {**WHOLE, "shape": {"0": 1}},
    {**WHOLE, "coding": "spoken"},
    {**WHOLE, "coding": ["direct"]},
    {**WHOLE, "classes": []},
    {**WHOLE, "classes": 10},
    {**WHOLE, "classes": "0123456789"},
    {**WHOLE, "classes": [0] * 10},
    {**WHOLE, "classes": ["a"] * 200_000},
    {**WHOLE, "classes": [[["a"]]] * 10},
    {**WHOLE, "neurons": -1},
    {**WHOLE, "neurons": 10},
    {**WHOLE, "classes": [], "neurons": 10**30},
    {**WHOLE, "classes": [], "neurons": 10**8},
]


class TestRecords:
    def test_forged_inputs(
        self, run: Path, stsbp: Stsbp, refused: Callable[..., None], forge: Callable[..., None]
    ) -> None:
        np.save(run.parent / "x.npy", np.zeros((8, 8), np.uint8))
        for inputs in FORGED:
            forge(run, lambda description, inputs=inputs: description.update(inputs=inputs))
            for command in (("evaluate", run), ("predict", run, "x.npy"), ("report", run, "--no-samples")):
                result = stsbp(*command)
                assert isinstance(result.exception, SystemExit), (inputs, result.exception)
                refused(result, "last.json is damaged: inputs" if inputs == {} else str(run))
        forge(run, lambda description: description.update(inputs=WHOLE))
        assert stsbp("predict", run, "x.npy").exit_code == 0

    @pytest.mark.parametrize("name", ["config", "data", "epoch", "inputs"])
    def test_description_of_a_network_that_lacks_a_part(
        self, run: Path, stsbp: Stsbp, name: str, refused: Callable[..., None], forge: Callable[..., None]
    ) -> None:
        forge(run, lambda description: description.update({name: None}))
        for command in (("evaluate", run), ("report", run, "--no-samples")):
            refused(stsbp(*command), str(run))

    @pytest.mark.parametrize(
        "content",
        [
            '{"starts": [{"versions": {}, "command": %s}]}' % ("[" * 900 + "]" * 900),
            '{"starts": [{"versions": {"a": %s}}]}' % ('{"a": ' * 500 + "1" + "}" * 500),
            "[" * 100_000,
            '{"starts": [{"versions": {"a": 1}}, {"versions": {}, "command": []}, 3, null]}',
            '{"starts": [{"versions": {}, "command": "stsbp"}, {"versions": {}, "step": "x"}]}',
            '{"starts": [{"versions": {}, "processors": 1e999}]}',
            '{"starts": [{"versions": {}, "step": %s}]}' % ("9" * 4000),
            '{"starts": {"a": 1}}',
            "\udcff",
        ],
        ids=lambda value: value[:40].encode("ascii", "replace").decode(),
    )
    def test_damaged_environment(self, run: Path, stsbp: Stsbp, content: str) -> None:
        (run / "environment.json").write_bytes(content.encode(errors="surrogateescape"))
        for command in (("report", run, "--no-samples"), ("compare", run), ("compare", run, "--json")):
            result = stsbp(*command)
            assert result.exit_code == 0, (command, result.output, result.exception)
        assert RunFolder(run).starts() == []

    def test_keys_of_other_versions_are_kept(self, run: Path, stsbp: Stsbp) -> None:
        path = run / "environment.json"
        old = {"versions": {"numpy": "2.0"}, "of_another_version": [1, {"a": None}]}
        path.write_text(json.dumps({"starts": [old, {"versions": 3}]}))
        assert stsbp("train", "--resume", run).exit_code == 0
        starts = json.loads(path.read_text())["starts"]
        assert starts[0] == old
        assert [sorted(start)[0] for start in starts] == ["of_another_version", "backend"]

    def test_damaged_lines_are_reported_once(
        self, run: Path, stsbp: Stsbp, forge_records: Callable[[Path, bytes], None]
    ) -> None:
        lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        deep = b'{"kind": "epoch", "x": ' + b"[" * 500 + b"]" * 500 + b"}\n"
        huge = lines[1].replace(b'"loss": ', b'"loss": 1e999, "was": ')
        forge_records(run, b"".join([lines[0], b"{\n", deep, huge, b"\xff\n", b"\n", *lines[1:], lines[-1][:-9]]))
        messages: list[str] = []
        read = read_records(run, RunFolder(run).read_config(), messages.append)
        assert read == [json.loads(line) for line in lines]
        assert len(messages) == 1
        assert "damaged lines are left out: 5, the first line 2" in messages[0]
        for command in (("compare", run), ("report", run, "--no-samples")):
            result = stsbp(*command)
            assert result.exit_code == 0
            assert result.stderr.count("damaged lines are left out") == 1

    @pytest.mark.parametrize(
        "text", [b"1e999", b"NaN", b"-Infinity", b"9" * 21, b"9" * 5000, b"[" * 17 + b"]" * 17, b"\xff"]
    )
    def test_numbers_and_lists_beyond_measure(self, text: bytes) -> None:
        with pytest.raises(ValueError, match=r"finite|digits|deeply|utf-8"):
            records.parse(b'{"a": ' + text + b"}")

    def test_what_is_within_measure(self) -> None:
        text = (
            b'{"a": '
            + b"[" * 15
            + b"]" * 15
            + b', "b": ['
            + b"[]," * 50
            + b'[]], "c": 1e308, "d": -9223372036854775808}'
        )
        assert records.parse(text)["d"] == -(2**63)

    @pytest.mark.parametrize("change", [{"labels": []}, {"shape": []}, {"shape": [-1, 4]}, {"skipped": [["a"]]}])
    def test_cache_that_contradicts_itself(self, change: dict[str, Any]) -> None:
        record = {"key": {}, "shape": [2, 4], "sha256": "0" * 64, "labels": [0, 1], "skipped": [["a", "b"]]}
        records.read(records.Cache, record)
        with pytest.raises(ValueError, match="Cache"):
            records.read(records.Cache, {**record, **change})


class TestOutputs:
    @pytest.fixture
    def precious(self, run: Path) -> list[Path]:
        """Files that no report may replace."""
        folder = run.parent
        (folder / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        (folder / "other.html").write_text("<!doctype html>\n<html><head></head></html>")
        (folder / "link.html").symlink_to("photo.png")
        # The lock is empty, and precious all the same.
        return [*run.iterdir(), *folder.glob("*.png"), *folder.glob("*.html")]

    def test_nothing_but_a_page_is_replaced_by_one(
        self, run: Path, stsbp: Stsbp, precious: list[Path], refused: Callable[..., None]
    ) -> None:
        np.save(run.parent / "x.npy", np.zeros((8, 8), np.uint8))
        contents = {path: path.read_bytes() for path in precious}
        assert any(path.suffix == ".safetensors" for path in precious)
        for path in precious:
            refused(stsbp("report", run, "--no-samples", "--out", path), str(path), "is not replaced")
            refused(stsbp("predict", run, "x.npy", "--draw", path), str(path), "is not replaced")
        assert {path: path.read_bytes() for path in precious} == contents

    @needs_pipes
    def test_folders_pipes_and_devices(self, run: Path, stsbp: Stsbp, refused: Callable[..., None]) -> None:
        os.mkfifo(run.parent / "pipe.html")
        for path, kind in ((run, "a folder"), (run.parent / "pipe.html", "a pipe"), (Path("/dev/null"), "a device")):
            refused(stsbp("report", run, "--no-samples", "--out", path), f"cannot write {path}: it is {kind}")

    def test_pages_are_replaced(self, run: Path, stsbp: Stsbp) -> None:
        out = run.parent / "x.html"
        section = Samples("of another run", [], None, labelled=False, of_classes=False)
        other = page("samples.html", title="a page", samples=section)
        assert PAGE.begins.match(other.encode())
        old = other.replace('<meta name="generator" content="stsbp">', "")
        assert old != other
        for content in ("", other, old):
            out.write_text(content)
            assert stsbp("report", run, "--no-samples", "--out", out).exit_code == 0
            assert "stsbp run run" in out.read_text()

    def test_links_in_a_circle(self, run: Path, stsbp: Stsbp, refused: Callable[..., None]) -> None:
        loop = run.parent / "loop"
        loop.symlink_to("loop")
        for command in (
            ("predict", run, loop, "--draw", "x.html"),
            ("predict", run, "x.npy", "--draw", loop),
            ("report", run, "--out", loop),
            ("compare", loop),
            ("evaluate", loop),
            ("train", "images", "--data-dir", loop),
            ("train", "digits", "--out", loop),
        ):
            refused(stsbp(*command), "loop")

    def test_link_stays_a_link(self, run: Path, stsbp: Stsbp) -> None:
        folder = run.parent / "served"
        folder.mkdir()
        out = run.parent / "x.html"
        out.symlink_to(folder / "real.html")
        for _ in range(2):
            assert stsbp("report", run, "--no-samples", "--out", out).exit_code == 0
            assert out.is_symlink()
            assert "stsbp run run" in (folder / "real.html").read_text()

    def test_what_came_meanwhile_is_not_replaced(self, tmp_path: Path) -> None:
        path = tmp_path / "x.html"
        assert PAGE.target_path(path) == path.resolve()
        path.write_text("precious")
        with pytest.raises(FileError, match="is not replaced"):
            PAGE.write(path, b"<!doctype html>")
        assert path.read_text() == "precious"

    def test_reports_of_benchmarks(self, tmp_path: Path, run: Path, stsbp: Stsbp, refused: Callable[..., None]) -> None:
        from stsbp.benchmarks.result import JSON, Report
        from stsbp.plots import PLOT

        Report({"backend": "numpy"}, []).write(tmp_path / "x.json")
        Report({"backend": "torch"}, []).write(tmp_path / "x.json")
        assert json.loads((tmp_path / "x.json").read_text())["machine"] == {"backend": "torch"}
        kinds: tuple[tuple[OutputKind, str], ...] = ((JSON, "--json"), (PLOT, "--plot"))
        for kind, option in kinds:
            with pytest.raises(FileError, match="is not replaced"):
                kind.target_path(run / "last.json")
            if option == "--json" or find_spec("matplotlib") is not None:
                refused(stsbp("benchmark", "kernels", option, run / "last.json"), "is not replaced")


@pytest.mark.parametrize(
    ("errors", "zeroed", "fits"),
    [
        ({"a": 3}, {"a": 3}, True),
        ({"a": 3}, {"a": 4}, False),
        ({"a": 3}, {}, False),
        ({}, {"a": 0}, False),
    ],
)
def test_zeroed_errors_are_a_part_of_the_errors(errors: dict[str, int], zeroed: dict[str, int], fits: bool) -> None:
    numbers = dict.fromkeys(
        (
            "batches",
            "samples",
            "loss",
            "correct",
            "correct_by_count",
            "gradient_norm",
            "largest_gradient_norm",
            "seconds",
        ),
        1,
    )
    sums = {**numbers, "rates": {}, "sequence": {}, "errors": errors, "zeroed": zeroed}
    with contextlib.nullcontext() if fits else pytest.raises(ValueError, match="are not a part of the errors"):
        records.SumsRecord.model_validate(sums)
