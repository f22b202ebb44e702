"""What belongs together stays together: two exports into one folder, links among the runs of an experiment, and errors
of the system."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from stsbp.cli import _refused_by_system
from stsbp.cli.import_ import _import_messages
from stsbp.files import locked_folder
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.networks.spec import NetworkSpec

TINY = ("--limit", "40", "--epochs", "1", "--steps", "3")


def test_a_second_writer_waits_for_the_first(tmp_path: Path) -> None:
    folder, order, entered = tmp_path / "new" / "export", list[str](), threading.Event()

    def second() -> None:
        entered.wait()
        with locked_folder(folder):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with locked_folder(folder):
        entered.set()
        thread.join(0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_overwrite_does_not_follow_a_link_out_of_the_experiment(stsbp: Callable[..., Result], tmp_path: Path) -> None:
    assert stsbp("train", "digits", "--net", "4", *TINY, "--out", str(tmp_path / "precious")).exit_code == 0
    (experiment := tmp_path / "ex").mkdir()
    (experiment / "seed-0").symlink_to(tmp_path / "precious")
    config = (tmp_path / "precious" / "config.toml").read_bytes()
    command = ("experiment", "digits", "--seeds", "1", "--net", "8", *TINY, "--out", str(experiment))
    refused = stsbp(*command, "--overwrite")
    assert refused.exit_code == 1
    assert f"{experiment / 'seed-0'} is a link to {(tmp_path / 'precious').resolve()}, whose run" in refused.output
    assert (tmp_path / "precious" / "config.toml").read_bytes() == config


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOSPC, "cannot write the output: No space left on device"),
        (errno.EMFILE, "the system refused: Too many open files"),
    ],
)
def test_an_unexpected_error_of_the_system_is_not_always_one_of_the_output(number: int, sentence: str) -> None:
    import os

    assert _refused_by_system(OSError(number, os.strerror(number))).startswith(sentence)


def test_a_forged_header_of_an_array_has_a_sentence(stsbp: Callable[..., Result], tmp_path: Path) -> None:
    assert stsbp("train", "digits", "--net", "4", *TINY, "--out", str(tmp_path / "run")).exit_code == 0
    np.save(path := tmp_path / "x.npy", np.zeros((1, 1, 8, 8), np.uint8))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"(1, 1, 8, 8)", b"print('ab')"))
    refused = stsbp("predict", str(tmp_path / "run"), str(path))
    assert refused.exit_code == 1
    assert "is not a numpy array: its header is not the description of an array" in refused.output


def test_resume_of_a_folder_without_a_run_does_not_advise_resume(stsbp: Callable[..., Result], tmp_path: Path) -> None:
    (folder := tmp_path / "lo").mkdir()
    (folder / "last-1-d60a79fd3434.safetensors").write_bytes(b"x")
    refused = stsbp("train", "digits", "--net", "4", *TINY, "--out", str(folder), "--resume")
    assert refused.exit_code == 1
    assert "holds no complete run to continue; replace it with --overwrite, or choose another --out" in refused.output


def test_an_import_says_that_tiny_weights_are_rounded_to_zero(tmp_path: Path) -> None:
    network = NetworkSpec.parse("4-3", input_shape=(5,), outputs=3)
    weights = {name: np.full(w.shape, 1e-42, np.float32) for name, w in initial_weights(network, seed=0).items()}
    imported: Any = SimpleNamespace(notes=(), weights=weights)
    assert any("moves weights by up to 1 of the largest" in line for line in _import_messages(imported, network))


def test_every_command_refuses_a_removed_working_folder(tmp_path: Path) -> None:
    (folder := tmp_path / "removed").mkdir()
    code = "import os, sys; os.rmdir(os.getcwd()); from stsbp.cli import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", code, "train", "digits"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr == "Error: the working folder does not exist any more; change to another one\n"
