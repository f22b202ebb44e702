"""Data sets that the library `datasets` of Hugging Face has saved or cached, written here by the library itself."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from stsbp.config import RunConfig, absolute
from stsbp.datasets import Dataset, load
from stsbp.datasets.base import content_of
from stsbp.datasets.hf_tables import splits_of
from stsbp.datasets.registry import info_of, steps_of
from stsbp.errors import DataError
from stsbp_spec.typing import AnyArray

# It looks for the network when it is imported, unless this says that there is none. The variable is read once, and
# tests of other files download from a server on this machine.
constants = pytest.importorskip("huggingface_hub.constants")
with pytest.MonkeyPatch.context() as patch:
    patch.setattr(constants, "HF_HUB_OFFLINE", True)
    patch.setenv("HF_HUB_OFFLINE", "1")
    hf = pytest.importorskip("datasets")
pa = pytest.importorskip("pyarrow")
pillow = pytest.importorskip("PIL.Image")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)
RASTERS = RNG.random((12, 9, 4)) < 0.3
TARGETS = RNG.random((12, 9, 2)) < 0.2
LABELS = [0, 1, 2] * 4
NAMES = hf.ClassLabel(names=["cat", "dog", "owl"])


def images(pixels: AnyArray = PIXELS, labels: list[int] = LABELS, **features: Any) -> Any:
    """A data set with PNG images."""
    columns = {"image": [pillow.fromarray(x.squeeze()) for x in pixels], "label": labels}
    return hf.Dataset.from_dict(columns, features=hf.Features({"image": hf.Image(), "label": NAMES, **features}))


def arrays(features: Mapping[str, Any], **columns: Any) -> Any:
    """A data set with these columns. Features that are missing follow from the values."""
    values = {name: list(x) for name, x in columns.items()}
    inferred = {"label": NAMES, "labels": NAMES}
    return hf.Dataset.from_dict(
        values, features=hf.Features({name: features.get(name) or inferred[name] for name in columns})
    )


def rasters(dtype: str = "bool", **columns: Any) -> Any:
    """A data set with spike rasters and classes."""
    return arrays(
        {"inputs": hf.Array2D((9, 4), dtype)}, **{"inputs": RASTERS.astype(dtype), "label": LABELS, **columns}
    )


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Dataset]:
    """Save a data set of the library and load it."""

    def read(data: Any, steps: int = 9, **options: Any) -> Dataset:
        if data is not None:
            data.save_to_disk(str(tmp_path / "data"))
        return load(f"hf:{tmp_path / 'data'}", steps=steps, cache_dir=tmp_path / "cache", **options)

    return read


def all_inputs(split: Any) -> AnyArray:
    return np.asarray(split.inputs(np.arange(len(split))))


@pytest.mark.parametrize("kind", ["Image", "rows", "channels-first", "img", "any-name", "grey"])
def test_images(kind: str, read: Callable[..., Dataset]) -> None:
    pixels = PIXELS[..., :1] if kind == "grey" else PIXELS
    if kind == "rows":
        data = arrays({"image": hf.Array3D((6, 5, 3), "uint8")}, image=pixels, label=LABELS)
    elif kind == "channels-first":
        data = arrays({"image": hf.Array3D((3, 6, 5), "uint8")}, image=np.moveaxis(pixels, -1, 1), label=LABELS)
    else:
        data = images(pixels)
    if kind in ("img", "any-name"):
        data = data.rename_columns({"image": "img" if kind == "img" else "photo", "label": "animal"})
    read_data = read(hf.DatasetDict(train=data.select(range(8)), test=data.select(range(8, 12))))
    assert (read_data.coding, read_data.input_shape) == ("direct", (len(pixels[0, 0, 0]), 6, 5))
    assert read_data.classes == ("cat", "dog", "owl")
    expected = np.moveaxis(pixels, -1, 1)
    assert np.array_equal(all_inputs(read_data.train), expected[:8])
    assert np.array_equal(all_inputs(read_data.test), expected[8:])
    assert read_data.test.labels.tolist() == LABELS[8:]
    # The second time, from the cache.
    assert content_of(read(None).train) == content_of(read_data.train)


def test_grey_arrays_have_two_axes(read: Callable[..., Dataset]) -> None:
    data = read(arrays({"image": hf.Array2D((6, 5), "uint8")}, image=PIXELS[..., 0], label=LABELS), holdout=3)
    assert data.input_shape == (1, 6, 5)
    assert (len(data.train), len(data.test)) == (9, 3)
    assert "3 of them held out as test samples" in data.notes[1]


@pytest.mark.parametrize("dtype", ["bool", "uint8", "float32", "int64"])
def test_rasters_with_classes(dtype: str, read: Callable[..., Dataset]) -> None:
    data = read(rasters(dtype), train_only=True)
    assert (data.coding, data.input_shape, data.classes) == ("events", (4,), ("cat", "dog", "owl"))
    assert np.array_equal(all_inputs(data.train), np.swapaxes(RASTERS, 0, 1))
    assert data.train.labels.tolist() == LABELS


def test_rasters_of_frames_with_lengths_and_numbers_as_classes(read: Callable[..., Dataset]) -> None:
    frames = RNG.random((12, 9, 2, 3, 4)) < 0.3
    lengths = [9, 8, 7] * 4
    data = read(
        arrays(
            {"inputs": hf.Array4D((9, 2, 3, 4), "uint8"), "label": hf.Value("int8"), "lengths": hf.Value("int32")},
            inputs=frames.astype(np.uint8),
            label=LABELS,
            lengths=lengths,
        ),
        train_only=True,
        own_lengths=True,
    )
    assert (data.input_shape, data.classes) == ((2, 3, 4), ("0", "1", "2"))
    assert np.array_equal(all_inputs(data.train), np.swapaxes(frames, 0, 1))
    assert data.train.lengths.tolist() == lengths  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", ["bool", "float32"])
def test_rasters_with_target_sequences(dtype: str, read: Callable[..., Dataset]) -> None:
    targets = TARGETS if dtype == "bool" else RNG.normal(size=(12, 9, 2)).astype(np.float32)
    features = {"inputs": hf.Array2D((9, 4), "uint8"), "targets": hf.Array2D((9, 2), dtype)}
    whole = arrays(features, inputs=RASTERS.astype(np.uint8), targets=targets)
    data = read(hf.DatasetDict(train=whole.select(range(8)), test=whole.select(range(8, 12))))
    assert (data.input_shape, data.classes, data.neurons) == ((4,), (), 2)
    assert data.real_targets == (dtype == "float32")
    got = data.test.targets(np.arange(4))  # type: ignore[attr-defined]
    assert np.array_equal(got, np.swapaxes(targets[8:], 0, 1))
    assert np.array_equal(all_inputs(data.train), np.swapaxes(RASTERS[:8], 0, 1))


def test_settings_depend_on_the_features(tmp_path: Path) -> None:
    images().save_to_disk(str(tmp_path / "images"))
    rasters().save_to_disk(str(tmp_path / "rasters"))
    assert info_of(f"hf:{tmp_path / 'images'}").coding == "direct"
    assert info_of(f"hf:{tmp_path / 'rasters'}").coding == "events"
    assert steps_of(f"hf:{tmp_path / 'rasters'}", "") == 9
    assert steps_of(f"hf:{tmp_path / 'images'}", "") is None
    # `load` says why.
    assert steps_of("hf:nowhere", "") is None
    assert info_of("hf:nowhere").name == "hf"


def test_a_run_on_a_saved_data_set(stsbp: Callable[..., Result], tmp_path: Path) -> None:
    rasters().save_to_disk(str(tmp_path / "spikes"))
    trained = stsbp("train", "hf:spikes", "--net", "5", "--epochs", 2, "--out", "run", "--batch-size", 4)
    assert trained.exit_code == 0, trained.stderr
    assert stsbp("evaluate", "run").exit_code == 0
    other = RASTERS.copy()
    other[3, 2, 1] ^= True
    rasters(inputs=other).save_to_disk(str(tmp_path / "moved"))
    changed = stsbp("evaluate", "run", "--data-dir", "moved")
    assert changed.exit_code == 1
    assert "inputs" in changed.stderr
    assert stsbp("train", "hf:spikes", "--steps", 8, "--net", "5").exit_code == 1


def test_splits_that_are_not_read_are_told_of(read: Callable[..., Dataset]) -> None:
    data = read(hf.DatasetDict(train=rasters(), validation=rasters(), extra=rasters()))
    assert data.notes[-1].endswith("the splits validation, extra; only train and test are read")
    assert len(data.train) + len(data.test) == 12


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: rasters().rename_column("inputs", "x"), r"has the columns x \(Array2D\), label \(ClassLabel\): "),
        (lambda: rasters().remove_columns("label"), r"has no column of classes or targets, only inputs \(Array2D\)"),
        (
            lambda: rasters(labels=LABELS),
            r"the columns label, labels could all be the one that stsbp calls label; leave out all but one",
        ),
        (
            lambda: arrays({"image": hf.Array2D((6, 5), "float32")}, image=PIXELS[..., 0] / 255, label=LABELS),
            r"column image must be images of uint8, got float32; convert pixels between 0 and 1 with",
        ),
        (
            lambda: arrays({"image": hf.Array3D((6, 5, 2), "uint8")}, image=PIXELS[..., :2], label=LABELS),
            r"must be images \[H, W\], or \[H, W, C\] or \[C, H, W\] with 1 or 3 channels C, got \[6, 5, 2\]",
        ),
        (
            lambda: arrays({"image": hf.Array3D((3, 5, 3), "uint8")}, image=PIXELS[:, :3], label=LABELS),
            r"got \[3, 5, 3\]; it is not clear which axis is that of the channels",
        ),
        (
            lambda: images().add_column("targets", [[1]] * 12),
            r"has images with targets; images need classes",
        ),
        (
            lambda: arrays({"inputs": hf.Array2D((9, 4), "uint8"), "label": hf.Value("string")},
                           inputs=RASTERS, label=["a", "b"] * 6),
            r"column label must be classes, a ClassLabel or integers, got string; .*class_encode_column\('label'\)",
        ),
        (
            lambda: arrays({"inputs": hf.List(hf.Value("uint8"))}, inputs=RASTERS[:, 0], label=LABELS),
            r"column inputs must be rasters, each \[T, N\] or \[T, C, H, W\], got \[4\]",
        ),
        (
            lambda: arrays({"inputs": hf.List(hf.Value("string"))}, inputs=[["a"]] * 12, label=LABELS),
            r"column inputs: expected numbers or bool, got values of the type string",
        ),
        (
            lambda: rasters("float32", inputs=RASTERS * np.float32(0.5)),
            r"column inputs must be spikes, 0 and 1, but sample 0 has 0.5 at \[",
        ),
        (
            lambda: rasters("uint8", inputs=RASTERS.astype(np.uint8) * 3),
            r"column inputs must be spikes, 0 and 1, but sample 0 has 3 at \[",
        ),
        (
            lambda: rasters(label=[0, 1, 2, -1] * 3),
            r"column label: sample 3 has the class -1, which stands for a missing one; leave such samples out",
        ),
        (lambda: rasters(label=[0, None, 2] * 4), r"column label: sample 1 has missing values \(null\)"),
        (
            lambda: rasters(label=LABELS).cast_column("label", hf.Value("int64")).map(
                lambda _, k: {"label": 5000 * k}, with_indices=True
            ),
            r"column label: classes must be 0 to 4095, but sample 1 has 5000",
        ),
        (
            lambda: arrays({"inputs": hf.List(hf.List(hf.Value("uint8")))},
                           inputs=[x[: 9 - k % 2] for k, x in enumerate(RASTERS.astype(int).tolist())], label=LABELS),
            r"column inputs: samples have different shapes: sample 1 has 8 entries in axis 0, but sample 0 has 9",
        ),
        (
            lambda: arrays({"inputs": hf.List(hf.List(hf.Value("uint8")))},
                           inputs=[[row[: 4 - (k == 5)] for row in x] for k, x in enumerate(RASTERS.tolist())],
                           label=LABELS),
            r"column inputs: samples have different shapes: sample 5 has 3 entries in axis 1, but sample 0 has 4",
        ),
        (
            lambda: arrays({"inputs": hf.Array2D((9, 4), "bool"), "targets": hf.Array2D((8, 2), "bool")},
                           inputs=RASTERS, targets=TARGETS[:, :8]),
            r"column targets: targets have 8 steps, but the inputs 9",
        ),
        (
            lambda: arrays({"inputs": hf.Array2D((9, 4), "bool"), "targets": hf.Array2D((9, 2), "float32")},
                           inputs=RASTERS, targets=np.where(TARGETS, np.nan, 0)),
            r"column targets must be finite numbers of float32, got nan at",
        ),
        (
            lambda: arrays({"inputs": hf.Array2D((9, 4), "bool"), "lengths": hf.Value("int64")},
                           inputs=RASTERS, label=LABELS, lengths=[9, 10, 3] * 4),
            r"column lengths must be 1 to the 9 steps, but sample 1 has 10",
        ),
        (lambda: hf.DatasetDict(test=rasters()), r"has the splits test, but no train"),
        (lambda: hf.DatasetDict(train=rasters(), test=rasters().select([])), r"split test has no (samples|files)"),
        (lambda: hf.DatasetDict(train=rasters().select([]), test=rasters()), r"split train has no (samples|files)"),
        (
            lambda: hf.DatasetDict(
                train=rasters(), test=rasters().cast_column("label", hf.ClassLabel(names=["owl", "dog", "cat"]))
            ),
            r"split test has other columns or classes than .*, split train",
        ),
        (
            lambda: hf.DatasetDict(train=images(), test=images(PIXELS[:, :5])),
            r"samples of .*, split test have the shape \[3, 5, 5\], those of .*, split train \[3, 6, 5\]",
        ),
    ],
)  # fmt: skip
def test_refused_data_sets(data: Callable[[], Any], message: str, read: Callable[..., Dataset], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(data())
    assert str(tmp_path / "data") in str(caught.value)


def test_images_of_different_sizes(read: Callable[..., Dataset]) -> None:
    sizes = images(PIXELS[:4], LABELS[:4])
    columns = {"image": [pillow.fromarray(x) for x in (PIXELS[4], PIXELS[5, :4])], "label": [1, 2]}
    data = hf.concatenate_datasets([sizes, hf.Dataset.from_dict(columns, features=sizes.features)])
    message = r"column image: sample 5 has the shape \[4, 5, 3\], but the first \[6, 5, 3\].*--image-size resizes them"
    with pytest.raises(DataError, match=message):
        read(data)
    assert read(None, image_size=8).input_shape == (3, 8, 8)
    skipped = read(None, skip_malformed=True, train_only=True)
    assert (len(skipped.train), len(skipped.skipped)) == (5, 1)
    assert "left out 1 malformed images" in skipped.notes[-1]


def test_images_that_are_only_paths_are_not_opened(read: Callable[..., Dataset], tmp_path: Path) -> None:
    pillow.fromarray(PIXELS[0]).save(tmp_path / "secret.png")
    table = pa.table(
        {
            "image": pa.array([{"bytes": None, "path": str(tmp_path / "secret.png")}] * 2,
                              pa.struct({"bytes": pa.binary(), "path": pa.string()})),
            "label": pa.array([0, 1]),
        }
    )  # fmt: skip
    read_error = pytest.raises(DataError, match=r"sample 0 is missing, or is only the path of an image")
    images().save_to_disk(str(tmp_path / "data"))
    rewrite(tmp_path / "data", table)
    with read_error:
        read(None)


def test_a_column_of_damaged_images(read: Callable[..., Dataset], tmp_path: Path) -> None:
    images().save_to_disk(str(tmp_path / "data"))
    buffer = io.BytesIO()
    pillow.fromarray(PIXELS[0]).save(buffer, "PNG")
    contents = [buffer.getvalue(), buffer.getvalue()[:-30]]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    column = pa.array([{"bytes": content, "path": None} for content in contents], kind)
    rewrite(tmp_path / "data", pa.table({"image": column, "label": pa.array([0, 1])}))
    with pytest.raises(DataError, match=r"column image, sample 1 cannot be read as an image"):
        read(None)


def rewrite(folder: Path, table: Any, **options: Any) -> Path:
    """Replace the only Arrow file of a saved data set."""
    (path,) = folder.glob("*.arrow")
    with pa.ipc.new_stream(str(path), table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return Path(path)


def test_every_damage_of_an_arrow_file_is_an_error_or_other_samples(
    read: Callable[..., Dataset], tmp_path: Path
) -> None:
    expected = content_of(read(rasters(), train_only=True).train)
    (path,) = (tmp_path / "data").glob("*.arrow")
    whole = path.read_bytes()
    refused = list[str]()
    places = [*range(0, 400, 3), *range(400, len(whole), 29)]
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            data = read(None, train_only=True)
        except DataError as error:
            refused.append(str(error))
        else:
            # The digest covers all bytes, so no older cache is used. A changed spike or label is another sample.
            assert len(data.train) == 12
    assert len(refused) > 40
    assert all(str(tmp_path) in message for message in refused)
    for end in (0, 7, 200, len(whole) // 2, len(whole) - 8, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match=r"arrow is damaged, or no Arrow file of the library datasets: "):
            read(None)
    path.write_bytes(whole)
    assert content_of(read(None, train_only=True).train) == expected


def test_a_first_message_of_no_known_kind_does_not_end_the_process(tmp_path: Path) -> None:
    rasters().save_to_disk(str(tmp_path / "data"))
    (path,) = (tmp_path / "data").glob("*.arrow")
    whole = bytearray(path.read_bytes())
    # A message is a flatbuffer. Field 1 of its table is its kind, and field 2 the place of its header, here wrong.
    # pyarrow does not check the header of a kind that it does not know.
    table = 8 + int.from_bytes(whole[8:12], "little")
    fields = table - int.from_bytes(whole[table : table + 4], "little", signed=True)
    kind, header = (table + int.from_bytes(whole[k : k + 2], "little") for k in (fields + 6, fields + 8))
    whole[kind] = 99
    whole[header : header + 4] = (5).to_bytes(4, "little")
    path.write_bytes(whole)
    code = f"from stsbp.datasets import load; load({f'hf:{path.parent}'!r}, steps=9, cache_dir={str(tmp_path)!r})"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "it begins with a message of the kind unknown" in ended.stderr


def test_bytes_after_the_table_of_an_arrow_file_are_refused(read: Callable[..., Dataset], tmp_path: Path) -> None:
    data = rasters()
    data.save_to_disk(str(tmp_path / "data"))
    path = rewrite(tmp_path / "data", data.data.table)
    content = path.read_bytes()
    path.write_bytes(content + content)  # a second table of the same samples
    with pytest.raises(DataError, match=rf"it goes on for {len(content):,} bytes after the end of its table"):
        read(None)


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_compressed_columns_are_refused(codec: str, read: Callable[..., Dataset], tmp_path: Path) -> None:
    data = rasters()
    data.save_to_disk(str(tmp_path / "data"))
    rewrite(tmp_path / "data", data.data.table, compression=codec)
    with pytest.raises(DataError, match="its columns are compressed"):
        read(None)


def test_dictionaries_are_refused(read: Callable[..., Dataset], tmp_path: Path) -> None:
    data = rasters()
    data.save_to_disk(str(tmp_path / "data"))
    table = data.data.table
    encoded = table.set_column(1, "label", pa.chunked_array([pa.array(LABELS).dictionary_encode()]))
    rewrite(tmp_path / "data", encoded)
    with pytest.raises(DataError, match="it has a message of the kind dictionary"):
        read(None)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("state.json", '{"_data_files": [{"filename": "../../secret.arrow"}]}', "is no file of its folder"),
        (
            "state.json",
            '{"_data_files": [{"filename": "gone.arrow"}]}',
            "gone.arrow is missing, which state.json names",
        ),
        ("state.json", '{"_data_files": 3}', r"state.json is damaged \(_data_files: input should be a valid list"),
        ("state.json", "{", r"state.json is damaged"),
        ("dataset_info.json", "{}", "does not describe its columns"),
        ("dataset_dict.json", '{"splits": ["../data"]}', "'../data' is no name of a split"),
    ],
)
def test_damaged_descriptions(file: str, text: str, message: str, read: Callable[..., Dataset], tmp_path: Path) -> None:
    rasters().save_to_disk(str(tmp_path / "data"))
    (tmp_path / "data" / file).write_text(text)
    with pytest.raises(DataError, match=message):
        read(None)


def test_the_order_of_the_files_is_that_of_the_samples(read: Callable[..., Dataset], tmp_path: Path) -> None:
    rasters(label=[0] * 6 + [1] * 6).save_to_disk(str(tmp_path / "data"), num_shards=2)
    file = tmp_path / "data" / "state.json"
    state = json.loads(file.read_text())
    first = read(None).train.labels
    state["_data_files"].reverse()
    file.write_text(json.dumps(state))
    assert read(None).train.labels.tolist() != first.tolist()
    state["_data_files"] *= 2
    file.write_text(json.dumps(state))
    with pytest.raises(DataError, match=r"state.json names .* twice"):
        read(None)


def test_folders_that_are_none_of_the_library(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is no data set of the library datasets: .*save_to_disk"):
        load(f"hf:{tmp_path}")
    rasters().to_parquet(str(tmp_path / "train.parquet"))
    with pytest.raises(DataError, match=r"load its parquet files with datasets.load_dataset"):
        load(f"hf:{tmp_path}")
    with pytest.raises(DataError, match=r"there is no folder .*nowhere. Give one that .*hf:OWNER/NAME@COMMIT"):
        load(f"hf:{tmp_path / 'nowhere'}")


@pytest.fixture
def in_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that `load_dataset("OWNER/MyRasters", revision=COMMIT)` makes in the library's cache."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    for name in ("train", "test"):
        rasters().to_parquet(str(tmp_path / f"{name}.parquet"))
    files = {name: str(tmp_path / f"{name}.parquet") for name in ("train", "test")}
    made = hf.packaged_modules.parquet.Parquet(
        cache_dir=str(tmp_path / "hf"), dataset_name="MyRasters", hash=COMMIT, data_files=files
    )
    # Only the files of a repository may have its name.
    made.repo_id = "OWNER/MyRasters"
    made._cache_dir = made._build_cache_dir()
    made.download_and_prepare()
    return Path(made.cache_dir)


def test_a_data_set_of_the_hub_is_read_from_the_cache(in_cache: Path, tmp_path: Path) -> None:
    assert in_cache.parts[-4] == "OWNER___my_rasters"
    assert in_cache.name == COMMIT
    name = f"hf:OWNER/MyRasters@{COMMIT}"
    by_name, by_folder = (load(x, steps=9, cache_dir=tmp_path / "cache") for x in (name, f"hf:{in_cache}"))
    assert content_of(by_name.train) == content_of(by_folder.train)
    assert np.array_equal(all_inputs(by_name.test), np.swapaxes(RASTERS, 0, 1))
    assert by_name.notes[0].startswith("12 samples of ")
    # The name is the same on every machine, so that it is no path.
    assert absolute(RunConfig.model_validate({"dataset": name})).dataset == name
    assert steps_of(name, "") == 9
    assert info_of(name).coding == "events"
    other = name[:-1] + "8"
    with pytest.raises(DataError, match=rf"it has the commits {COMMIT}. stsbp downloads no data sets; load it once"):
        load(other, steps=9)
    with pytest.raises(DataError, match=r"there is no folder .*OWNER___other"):
        load(f"hf:OWNER/other@{COMMIT}", steps=9)
    with pytest.raises(DataError, match=r"there is no folder .*OWNER/MyRasters"):
        load("hf:OWNER/MyRasters", steps=9)


def test_a_run_on_a_data_set_of_the_hub(in_cache: Path, stsbp: Callable[..., Result], tmp_path: Path) -> None:
    trained = stsbp("train", f"hf:OWNER/MyRasters@{COMMIT}", "--net", "5", "--epochs", 1, "--batch-size", 4)
    assert trained.exit_code == 0, trained.stderr
    (run,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(rf"hf-OWNER-MyRasters@{COMMIT}-[0-9-]+", run.name)
    assert stsbp("evaluate", f"runs/{run.name}").exit_code == 0


def test_a_missing_part_of_a_cached_data_set(in_cache: Path, tmp_path: Path) -> None:
    info = json.loads((in_cache / "dataset_info.json").read_text())
    info["splits"]["train"]["num_examples"] = 20
    (in_cache / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match=r"has 12 samples in 1 files, but 20 by its dataset_info.json"):
        load(f"hf:{in_cache}", steps=9, cache_dir=tmp_path / "cache")
    for path in in_cache.glob("*.arrow"):
        path.unlink()
    with pytest.raises(DataError, match="has no Arrow files of the splits"):
        splits_of(in_cache)


def test_neither_the_library_nor_pickles_are_imported(tmp_path: Path) -> None:
    rasters().save_to_disk(str(tmp_path / "data"))
    name, cache = f"hf:{tmp_path / 'data'}", str(tmp_path / "cache")
    code = (
        "import sys, pickle\n"
        "def refuse(*_, **__): raise AssertionError('unpickled')\n"
        "pickle.load = pickle.loads = pickle.Unpickler = refuse\n"
        "from stsbp.datasets import load\n"
        f"data = load({name!r}, steps=9, cache_dir={cache!r})\n"
        "print(len(data.train), sorted({'datasets', 'dill', 'multiprocess'} & {*sys.modules}))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "10 []"


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rasters().save_to_disk(str(tmp_path / "data"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r'need the library pyarrow .*: pip install "stsbp\[hf\]"'):
        load(f"hf:{tmp_path / 'data'}", steps=9)


def test_the_budget_covers_targets_and_images(
    read: Callable[..., Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stsbp.budget.TIMES_MEMORY", 0.1)
    monkeypatch.setattr("stsbp.budget.TIMES_DISK", 0.1)
    monkeypatch.setenv("STSBP_FILE_BUDGET", "1e-6")
    with pytest.raises(DataError, match=r"12 samples: reading it takes .* of memory, more than the"):
        read(rasters())
    monkeypatch.setattr("stsbp.budget.TIMES_MEMORY", 1000)
    images().save_to_disk(str(tmp_path / "pictures"))
    with pytest.raises(DataError, match=r"its decoded samples take .* on disk, more than the"):
        load(f"hf:{tmp_path / 'pictures'}", cache_dir=tmp_path / "cache")
