"""Samples that are tested on and were trained on: digests of their content, and when nobody looks."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from stsbp.config import RunConfig
from stsbp.datasets.base import ArraySplit, FrameSplit
from stsbp.errors import StsbpError
from stsbp.training.overlap import contents, warn_of_borrowed_tests
from stsbp.training.progress import PlainReporter


def test_samples_of_the_first_run_are_found_in_the_form_of_the_new_one(
    stsbp: Callable[..., Result], tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    events: dict[str, Any] = {
        name: random.integers(0, n, 1200) for name, n in (("x", 5), ("y", 4), ("p", 2), ("t", 300_000))
    }
    np.savez(tmp_path / "own.npz", sample=np.arange(1200) % 40, labels=np.arange(40) % 2, **events)
    size = ("--net", 4, "--epochs", 1, "--limit", 20, "--holdout", 20)
    assert stsbp("train", "events:own.npz", *size, "--steps", 4, "--out", "first").exit_code == 0
    warnings = []
    for number, binning in enumerate((("--steps", 4), ("--steps", 5), ("--steps", 4, "--window-ms", 250))):
        new = stsbp(
            "train", "events:own.npz", *size, *binning, "--init-from", "first", "--split-seed", 1, "--out", number
        )
        assert new.exit_code == 0, new.output
        warnings += re.findall(r"warning: (\d+) of the 20 test samples have the same content", new.stderr)
    assert len(warnings) == 3
    assert len(set(warnings)) == 1


def test_every_sample_has_a_digest_of_its_content_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stsbp.training.overlap._BLOCK", 3)
    images = np.random.default_rng(0).integers(0, 256, (8, 2, 2, 1), np.uint8)
    images[6] = images[1]
    digests = list(contents(ArraySplit(images, np.zeros(8, np.int64)), "direct"))
    assert len(digests) == 8
    assert [digests.index(x) for x in digests] == [0, 1, 2, 3, 4, 5, 1, 7]
    frames = FrameSplit(images[:, None], np.zeros(8, np.int64), 1, binary=False)
    assert [digests.index(x) for x in contents(frames, "events")] == [0, 1, 2, 3, 4, 5, 1, 7]


@pytest.mark.parametrize(
    ("dataset", "tested", "looks"),
    [("digits", 5, True), ("digits", 0, False), ("patterns", 5, False), ("patterns", 0, False)],
)
def test_overlap_is_not_searched_without_test_samples_of_their_own(
    dataset: str, tested: int, looks: bool, tmp_path: Any
) -> None:
    """Who looks reads the run that the weights come from, and there is none here."""
    settings: dict[str, Any] = {"dataset": dataset, "init_from": str(tmp_path / "nothing")}
    data: Any = SimpleNamespace(test=range(tested))
    arguments: Any = (RunConfig(**settings), data, None, PlainReporter(None))
    if looks:
        with pytest.raises(StsbpError, match="there is no run folder"):
            warn_of_borrowed_tests(*arguments)
    else:
        warn_of_borrowed_tests(*arguments)
