"""Named presets: listed, shown, trained by one command, refused where they do not fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from stsbp.presets import PRESETS, defaults
from stsbp_spec.models.losses import LOSSES


def test_settings_are_those_of_the_documented_results() -> None:
    """Accuracies in the documentation belong to these settings: whoever changes one measures again."""
    sets = (
        "digits",
        "cifar10",
        "images",
        "digits-events",
        "nmnist",
        "patterns",
        "patterns-image",
        "motor",
        "mackey-glass",
        "sequences",
        "mnist",
        "fashion-mnist",
    )
    settings_of_sets = {f"{name} {loss}": dict(defaults(name, loss)) for name in sets for loss in LOSSES}
    published = {name: preset for name, preset in PRESETS.items() if preset.published is not None}
    named = {name: [preset.dataset, dict(preset.settings)] for name, preset in published.items()}
    digest = hashlib.sha256(json.dumps([settings_of_sets, named], sort_keys=True).encode()).hexdigest()
    assert digest == "c9a3610f93974ba56c7b2d501f8f81eff5a251ca66ebcb07961323146161251c"


def test_list_names_source_and_published_figure(stsbp: Callable[..., Result]) -> None:
    listed = stsbp("presets").output
    assert all(name in listed for name in PRESETS)
    assert "98.61 %" in listed
    assert [json.loads(line)["name"] for line in stsbp("presets", "--json").output.splitlines()] == list(PRESETS)


def test_one_preset_is_shown_with_conditions_and_settings(stsbp: Callable[..., Result]) -> None:
    shown = stsbp("presets", "nmnist-van-rossum").output
    assert "98.61 % (60,000 + 10,000 recordings, T = 25, 100 epochs)" in shown
    assert '= "12C5-P2-64C5-P2"' in shown
    failed = stsbp("presets", "nmnist")
    assert failed.exit_code == 1
    assert "unknown preset 'nmnist'" in failed.output


@pytest.mark.parametrize("name", PRESETS)
def test_train_takes_a_preset_and_its_data_set(stsbp: Callable[..., Result], name: str) -> None:
    shown = stsbp("train", "--preset", name, "--epochs", 7, "--show-config")
    assert shown.exit_code == 0, shown.output
    assert f'dataset = "{PRESETS[name].dataset}"' in shown.output
    assert "epochs = 7" in shown.output
    assert f'net = "{PRESETS[name].settings["net"]}"' in shown.output


def test_a_file_of_settings_wins_over_a_preset_and_a_flag_over_both(
    stsbp: Callable[..., Result], tmp_path: Path
) -> None:
    (tmp_path / "own.toml").write_text("epochs = 7\nsteps = 9\n")
    shown = stsbp(
        "train", "--preset", "nmnist-hamming", "--config", tmp_path / "own.toml", "--steps", 8, "--show-config"
    )
    assert shown.exit_code == 0, shown.output
    assert {"epochs = 7", "steps = 8"} <= set(shown.output.splitlines())


def test_preset_on_another_data_set(stsbp: Callable[..., Result]) -> None:
    assert (
        'dataset = "digits-events"'
        in stsbp("train", "digits-events", "--preset", "nmnist-hamming", "--show-config").output
    )
    failed = stsbp("train", "digits", "--preset", "nmnist-hamming")
    assert failed.exit_code == 1
    assert "the preset nmnist-hamming is for nmnist, nmnist-sim, digits-events, not for digits" in failed.output
