"""The campaign on processes: what the tests of stsbp leave out is done once, and a wrong end is complained of."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

# The campaigns are found on the path above.
from campaigns import processes  # noqa: E402
from campaigns.calls import Complaint  # noqa: E402
from campaigns.processes import FAULTS, Ended, Fault, Stage, check  # noqa: E402

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None or not sys.platform.startswith("linux"),
    reason="processes are connected by PyTorch, and found in /proc",
)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tmp_path_factory.mktemp("stage"))


LONG = (pytest.param(name, marks=pytest.mark.long) for name in ("full disk", "data", "sources", "contract"))


@pytest.mark.parametrize("name", ["connection", *LONG])
def test_a_fault_ends_all_and_the_run_goes_on(name: str, stage: Stage) -> None:
    assert stage.trial(name, random.Random(1)) == ""
    assert stage.struck[name] == 1


def test_other_bits_are_complained_of(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "expected", "0" * 64)
    assert "it ends in other bits" in stage.trial("port", random.Random(1))


def test_a_damaged_checkpoint_is_complained_of(stage: Stage) -> None:
    stage.run.mkdir(exist_ok=True)
    (stage.run / "last.json").write_text(json.dumps({"file": "gone", "sha256": ""}))
    with pytest.raises(Complaint, match="damaged"):
        stage.tensors()


@pytest.mark.parametrize(
    ("ended", "complaint"),
    [
        (Ended(0, "Error: rank 1 is lost\n", 1.0), "exit code 0"),
        (Ended(69, "", 1.0), "0 messages"),
        (Ended(69, "Error: rank 1 is lost\nError: rank 1 is lost\n", 1.0), "2 messages"),
        (Ended(69, "Error: it ends\n", 1.0), "does not name the cause"),
        (Ended(69, "Traceback (most recent call last):\nError: rank 1 is lost\n", 1.0), "traceback"),
    ],
)
def test_a_wrong_end_is_complained_of(ended: Ended, complaint: str) -> None:
    fault = Fault(lambda _stage, _rng: None, (69,), r"rank \d is lost")
    check(Ended(69, "Error: rank 1 is lost\n", 1.0), fault)
    with pytest.raises(Complaint, match=complaint):
        check(ended, fault)


def test_every_fault_has_its_exit_codes_and_a_message() -> None:
    assert {fault.codes for fault in FAULTS.values()} == {(processes.LOST,), (1,), (130,)}
    assert all(fault.says for fault in FAULTS.values())
