"""The search for wrong convolutions: a sample of it, and whether it sees the faults that it was written for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

torch = pytest.importorskip("torch")

# The campaigns are found on the path above, and import torch.
from click.testing import CliRunner  # noqa: E402
from stsbp_torch.ops import conv2d  # noqa: E402

from campaigns import convolutions  # noqa: E402


def test_search_finds_no_wrong_convolution() -> None:
    tally = convolutions.search(range(150))
    assert tally.results["torch forward"] == 150
    assert tally.results["torch forward of bytes"] > 0 or not torch.cpu._is_vnni_supported()
    assert not tally.faults, tally.faults


def test_search_finds_weights_whose_strides_torch_only_takes_for_channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """This fault is oneDNN's; a version of torch without it makes this test and `channels_last` superfluous."""
    monkeypatch.setattr(conv2d, "channels_last", lambda x: x.contiguous(memory_format=torch.channels_last))
    tally = convolutions.search(range(60))
    assert any(fault.startswith("torch forward:") for fault in tally.faults)


def test_command_names_the_cases_of_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    backward = conv2d._backward_float64
    monkeypatch.setattr(
        conv2d, "_backward_float64", lambda conv, x, w, dz, *arguments: backward(conv, x, w, -dz, *arguments)
    )
    result = CliRunner().invoke(convolutions.command, ["--cases", "12"])
    assert result.exit_code == 1
    assert "torch backward, reproducible: seed" in result.output
    assert "12 cases from seed 0" in result.output
