"""Which data a command means: settings of recordings, the run's own data, arrays whose header fits."""

from __future__ import annotations

import io
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stsbp.cli.predict import _array
from stsbp.config import RunConfig
from stsbp.datasets import DATASETS
from stsbp.errors import ConfigError, DataError
from stsbp.training.build import load_dataset, load_test_set
from stsbp.training.overlap import _is_own


def _config(**settings: Any) -> RunConfig:
    return RunConfig(**{"dataset": "digits", **settings})


@pytest.mark.parametrize("dataset", ["digits", "images", "folder:somewhere", "sequences:somewhere.npz"])
@pytest.mark.parametrize(
    ("settings", "named"),
    [({"window_ms": 5.0}, "window_ms"), ({"saccades": "first", "stabilise": True}, "saccades, stabilise")],
)
def test_settings_of_recordings_are_refused_for_other_data(dataset: str, settings: dict[str, Any], named: str) -> None:
    recordings = ", ".join(name for name, info in DATASETS.items() if info.recordings)
    with pytest.raises(ConfigError) as caught:
        load_dataset(_config(dataset=dataset, **settings))
    assert str(caught.value) == f"{named} apply only to recordings ({recordings}), not to {dataset}"


@pytest.mark.parametrize("settings", [{"dataset": "digits"}, {"dataset": "cifar10", "test_on": "mnist"}])
def test_image_size_is_refused_for_data_that_are_not_resized(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_dataset(_config(**settings, image_size=8))
    named = " or ".join(settings.values())
    assert str(caught.value) == f"image_size applies only to images in files (images, hf), not to {named}"


def test_image_size_is_for_the_other_data_set_too() -> None:
    with pytest.raises(DataError, match="nowhere"):
        load_dataset(_config(dataset="digits", test_on="folder:nowhere", image_size=8))
    # Only the folder is resized: the images of digits are not, and need not be.
    with pytest.raises(DataError, match="nowhere"):
        load_dataset(_config(dataset="folder:nowhere", test_on="digits", image_size=8))
    assert load_test_set(_config(dataset="folder:nowhere", test_on="digits", image_size=8), "digits").input_shape == (
        1,
        8,
        8,
    )


@pytest.mark.parametrize(
    ("dataset", "data_dir_of_run", "on", "data_dir", "same"),
    [
        ("nmnist", "/a", "nmnist", None, True),
        ("nmnist", "/a", "nmnist", "/a", True),
        ("nmnist", "/a", "nmnist", "/b", False),
        ("nmnist", "/a", "nmnist-sim", "/a", False),
        ("digits", "", "digits", "/b", True),
        ("folder:/x", "", "folder:/x", "/b", True),
        ("folder:/x", "", "folder:/y", None, False),
    ],
)
def test_data_are_the_runs_own_where_they_lie_in_the_same_place(
    dataset: str, data_dir_of_run: str, on: str, data_dir: str | None, same: bool
) -> None:
    assert DATASETS["nmnist"].needs_data_dir
    assert not DATASETS["digits"].needs_data_dir
    assert _is_own(_config(dataset=dataset, data_dir=data_dir_of_run), on, data_dir) is same


@pytest.mark.parametrize(
    ("shape", "fits"),
    [("(6,)", True), ("(2, 3)", True), ("()", False), ("(7,)", False), ("(-1,)", False), ("(-1, 6)", False),
     ("(-2, -3)", False), ("(0, 5)", False),
     ("(1, 1, 1, 1, 1, 1, 1, 6)", True), ("(1, 1, 1, 1, 1, 1, 1, 1, 6)", False)],
)  # fmt: skip
def test_the_header_of_an_array_fits_the_bytes_after_it(shape: str, fits: bool) -> None:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    content = io.BytesIO()
    content.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(range(6)))
    if fits:
        assert _array(content.getvalue(), Path("a.npy")).ravel().tolist() == list(range(6))
        assert np.load(io.BytesIO(content.getvalue())).shape == _array(content.getvalue(), Path("a.npy")).shape
    else:
        with pytest.raises(DataError, match="its header does not fit the 6 bytes that follow it"):
            _array(content.getvalue(), Path("a.npy"))


def test_documented_holdouts_are_those_of_the_loaders() -> None:
    documented = {
        name: info.default_holdout for name, info in DATASETS.items() if isinstance(info.default_holdout, int)
    }
    held = {name: vars(import_module(DATASETS[name].module)) for name in documented}
    loaded = {name: names["DEFAULT_HOLDOUT"] for name, names in held.items() if "DEFAULT_HOLDOUT" in names}
    assert loaded == {name: documented[name] for name in loaded}
    assert {"nmnist", "nmnist-sim"} <= set(loaded)
