"""Settings: which source wins, what is refused and how, and that a run's own file reads back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stsbp.config import (
    FREE,
    RunConfig,
    SettingsSource,
    absolute,
    differences,
    named_preset,
    read_toml,
    resolve,
    to_toml,
)
from stsbp.datasets import DATASETS
from stsbp.errors import ConfigError
from stsbp.presets import PRESETS, defaults
from stsbp.training.initial import pinned
from stsbp_spec import LOSSES
from stsbp_spec.equations.expressions import Expr, Names
from stsbp_spec.models import surrogates
from stsbp_spec.models.encoders import SACCADE_US
from stsbp_spec.models.losses import stored as losses
from stsbp_spec.models.losses.base import Loss, LossStep
from stsbp_spec.models.neurons import NEURONS
from stsbp_spec.models.neurons import stored as neurons
from stsbp_spec.models.surrogates import SURROGATES
from stsbp_spec.networks.ops.psp import PSP

DIGITS = SettingsSource("command line", {"dataset": "digits"})


@dataclass(frozen=True)
class _Miss(Loss):
    name = "miss"
    parameters = ("scale",)

    def constants(self, psp: PSP, steps: int, batch: int) -> dict[str, float]:
        return {"scale": 1 / batch}

    def measure(self, p: Names, x: Names) -> Expr:
        return abs(x.o - x.target)

    def back(self, p: Names, s: Names, x: Names) -> LossStep:
        return LossStep({}, p.scale * (x.o - x.target))


def test_later_sources_win() -> None:
    file = SettingsSource("a.toml", {"epochs": 3, "lr": 0.5})
    flags = SettingsSource("command line", {"dataset": "digits", "lr": 0.25})
    config = resolve([file, flags])
    assert config.net == defaults("digits", "van-rossum")["net"]
    assert (config.epochs, config.lr) == (3, 0.25)
    assert config.seed == RunConfig.model_fields["seed"].default


@pytest.mark.parametrize(
    ("overrides", "removed"),
    [
        ({"loss": "my:Loss:weight=2"}, {"loss_model"}),
        ({"neuron": "lif"}, {"neuron_model"}),
        ({"surrogate": "my:Surrogate:a=2"}, {"surrogate_model", "neuron_model"}),
        *(({name: 2.0}, {"neuron_model"}) for name in ("tau_m", "tau_s", "tau_rise", "threshold")),
        ({"psp_gain": "unit"}, {"neuron_model"}),
        ({"init_from": "other"}, {"init_sha256"}),
        ({"seed": 3}, set()),
        ({"loss": "my:Loss", "loss_model": losses.as_text(_Miss())}, set()),
    ],
)
def test_values_computed_from_an_overridden_setting_are_removed(overrides: dict[str, Any], removed: set[str]) -> None:
    stored = {
        "loss_model": losses.as_text(_Miss()),
        "neuron_model": neurons.as_text(NEURONS["lif"]()),
        "surrogate_model": surrogates.as_text(SURROGATES["arctan"]()),
        "init_sha256": "0" * 64,
    }
    named = {"loss": "my:Loss", "neuron": "my:Neuron", "surrogate": "my:Surrogate", "init_from": "start"}
    run = SettingsSource("run/config.toml", {"dataset": "digits", **named, **stored})
    config = resolve([run, SettingsSource("command line", overrides)])
    assert {name for name in stored if not getattr(config, name)} == removed
    assert config.model_dump().items() >= overrides.items()


@pytest.mark.parametrize("setting", ["neuron", "surrogate", "loss"])
@pytest.mark.parametrize("typed", [{}, {"neuron": "lif", "surrogate": "arctan", "loss": "hamming"}])
def test_class_as_data_that_no_setting_names_is_refused(setting: str, typed: dict[str, str]) -> None:
    settings = SettingsSource("own.toml", {"dataset": "digits", f"{setting}_model": "x"}, is_file=True)
    message = f"own.toml: {setting}_model stores a class, but {setting} does not name one; leave {setting}_model out"
    with pytest.raises(ConfigError, match=message):
        resolve([settings, SettingsSource("command line", typed)])


def test_data_set_from_the_file_chooses_the_preset() -> None:
    assert resolve([SettingsSource("a.toml", {"dataset": "nmnist"})]).steps == defaults("nmnist", "van-rossum")["steps"]


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_preset_is_valid(dataset: str) -> None:
    config = resolve([SettingsSource("command line", {"dataset": dataset})])
    assert config.model_dump().items() >= defaults(dataset, "van-rossum").items()


def test_presets_and_data_sets_have_the_same_names() -> None:
    assert all(defaults(name, "van-rossum") for name in DATASETS)
    assert defaults("unheard-of", "hamming") == {}
    assert defaults("folder:/some/where", "hamming") == defaults("images", "hamming")


@pytest.mark.parametrize(
    ("settings", "window"),
    [
        ({}, 300_000),
        ({"window_ms": 90.5}, 90_500),
        ({"bin_ms": 3.0, "steps": 30}, 90_000),
        ({"saccades": "first"}, SACCADE_US),
        ({"saccades": "first", "window_ms": 60.0}, 60_000),
    ],
)
def test_window_of_a_recording(settings: dict[str, Any], window: int) -> None:
    config = resolve([SettingsSource("command line", {"dataset": "nmnist", **settings})])
    assert config.binning.window_us == window
    assert config.binning.first_saccade == (config.saccades == "first")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window_ms": 90.0, "bin_ms": 3.0}, "both say how long a step is"),
        ({"bin_ms": 1e-4}, "at least one microsecond a step"),
    ],
)
def test_impossible_window_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve([SettingsSource("command line", {"dataset": "nmnist", **settings})])


def test_later_settings_count_in_the_digest_only_while_they_are_on() -> None:
    config = resolve([SettingsSource("command line", {"dataset": "nmnist"})])
    assert config.model_copy(update={"stabilise": True}).digest() != config.digest()
    assert config.model_copy(update={"bin_ms": 3.0}).digest() != config.digest()


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_those_of_the_spec(loss: str) -> None:
    assert resolve([DIGITS, SettingsSource("command line", {"loss": loss})]).loss == loss


def test_unknown_key_names_file_key_and_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"a\.toml: unknown setting 'epoch' \(did you mean epochs\?\)\nknown settings: .*tau_m"
    ):
        resolve([SettingsSource("a.toml", {"epoch": 3}), DIGITS])


def test_known_settings_are_listed_once_however_many_are_unknown() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve([SettingsSource("a.toml", {"epoch": 3, "losss": "hamming"}), DIGITS])
    first, second, known_settings = str(caught.value).splitlines()
    assert first.endswith("unknown setting 'epoch' (did you mean epochs?)")
    assert second.endswith("unknown setting 'losss' (did you mean loss?)")
    assert known_settings.startswith("known settings: dataset, ")


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("epochs", 0, "greater than or equal to 1"),
        ("epochs", "3", "valid integer"),
        ("epochs", True, "valid integer"),
        ("epochs", 2.5, "valid integer"),
        ("lr", -1.0, "greater than 0"),
        ("lr", float("nan"), "finite number"),
        ("tau_m", 0.5, "greater than or equal to 1"),
        ("dropout", 1.0, "less than 1"),
        ("weight_bits", 13, "less than or equal to 12"),
        ("loss", "mae", "'spike-count', 'cross-entropy', 'cross-entropy-max' or 'mse'"),
        ("precision", "exact", "'fast' or 'reproducible'"),
        ("surrogate", "sigmoid", f"known: {', '.join(SURROGATES)}"),
        ("surrogate", "triangle:width=0", "must be a finite number above 0"),
        ("label_pattern", "02", "digits 0 and 1"),
        ("input_tau_s", 0.5, "at least 1 step"),
        ("seed", 2**32, "less than 4294967296"),
        ("download", "yes", "valid boolean"),
        ("tau_s", [1], "valid number"),
    ],
)
def test_bad_value_names_source_key_and_what_is_allowed(key: str, value: Any, allowed: str) -> None:
    with pytest.raises(ConfigError) as file_error:
        resolve([SettingsSource("a.toml", {key: value}), DIGITS])
    assert str(file_error.value).startswith(f"a.toml: {key} = ")
    assert allowed in str(file_error.value)
    with pytest.raises(ConfigError) as flag_error:
        resolve([DIGITS, SettingsSource("command line", {key: value})])
    assert str(flag_error.value).startswith(f"--{key.replace('_', '-')} {value}: ")


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        resolve([SettingsSource("a.toml", {"epochs": 0, "batch_size": 0, "nets": "5"}), DIGITS])
    *problems, known_settings = str(error.value).splitlines()
    assert [line.split(" = ")[0] for line in problems[:2]] == ["a.toml: epochs", "a.toml: batch_size"]
    assert [line.split(" (")[0] for line in problems[2:]] == ["a.toml: unknown setting 'nets'"]
    assert known_settings.startswith("known settings: dataset, net, ")


def test_patterns_that_do_not_differ() -> None:
    with pytest.raises(ConfigError, match="repeat to the same spike train"):
        resolve([DIGITS, SettingsSource("command line", {"label_pattern": "01", "undesired_pattern": "0101"})])
    with pytest.raises(ConfigError, match="do not differ within 2 steps"):
        resolve(
            [DIGITS, SettingsSource("command line", {"label_pattern": "001", "undesired_pattern": "0", "steps": 2})]
        )


def test_no_data_set() -> None:
    with pytest.raises(ConfigError, match="no data set is named"):
        resolve([SettingsSource("command line", {"epochs": 3})])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"epochs =\nlr = 1", "is not valid TOML: .*line 1"),
        (b"epochs = 3\nepochs = 4", "is not valid TOML"),
        (b"\xff\xfe", "is not a text file in UTF-8"),
    ],
)
def test_broken_file(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        read_toml(tmp_path / "a.toml")
    assert str(tmp_path / "a.toml") in str(error.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no configuration file"):
        read_toml(tmp_path / "a.toml")
    with pytest.raises(ConfigError, match="cannot read"):
        read_toml(tmp_path)


@given(
    data_dir=st.text(st.characters(codec="utf-8")),
    lr=st.floats(min_value=1e-300, max_value=1e300),
    seed=st.integers(0, 2**32 - 1),
    download=st.booleans(),
)
def test_toml_reads_back(
    tmp_path_factory: pytest.TempPathFactory, data_dir: str, lr: float, seed: int, download: bool
) -> None:
    path = tmp_path_factory.mktemp("config") / "config.toml"
    values = {"dataset": "digits", "data_dir": data_dir, "lr": lr, "seed": seed, "download": download}
    config = resolve([SettingsSource("command line", values)])
    path.write_text(to_toml(config), encoding="utf-8", newline="")
    assert resolve([read_toml(path)], with_preset=False) == config


def test_settings_that_no_file_can_hold_are_refused_before_a_run_begins() -> None:
    # An escaped quote takes two bytes.
    config = resolve([DIGITS]).model_copy(update={"net": '"' * 600_000})
    with pytest.raises(ConfigError, match=r"the settings take 1,20\d,\d{3} bytes, but .* 1,048,576; .* shorter: net"):
        pinned(config)


@pytest.mark.parametrize(
    ("setting", "value"), [("data_dir", "a\udcff"), ("test_on", "folder:a\udcff"), ("init_from", "a\udcff:best")]
)
def test_settings_that_are_not_utf_8_are_refused(setting: str, value: str) -> None:
    config = resolve([DIGITS, SettingsSource("command line", {setting: value})])
    with pytest.raises(ConfigError, match=rf"{setting} is not valid UTF-8: .*a\\xff.*; rename the file or folder"):
        to_toml(absolute(config))


def test_digest_changes_with_what_changes_the_result_only() -> None:
    config = resolve([DIGITS])
    other: dict[str, Any] = {"download": True, "skip_malformed": True, "data_dir": "/x", "threads": 1}
    other |= {
        "checkpoint_every": 1.0,
        "tensorboard": True,
        "track": "wandb",
        "memory": "low",
        "micro_batch": 7,
        "patience": 3,
    }
    assert set(other) == FREE
    assert config.model_copy(update=other).digest() == config.digest()
    for key, field in RunConfig.model_fields.items():
        if key not in FREE:
            value = getattr(config, key)
            changed = not value if isinstance(value, bool) else value + "1" if isinstance(value, str) else value + 1
            assert config.model_copy(update={key: changed}).digest() != config.digest(), (key, field)


def test_differences_name_both_values() -> None:
    config = resolve([DIGITS])
    overrides = {"epochs": config.epochs + 1, "seed": config.seed, "data_dir": "/elsewhere", "loss": "hamming"}
    assert differences(config, overrides) == [
        f"epochs: {config.epochs} in the run, {config.epochs + 1} asked",
        'loss: "van-rossum" in the run, "hamming" asked',
    ]


@pytest.mark.parametrize(
    ("dataset", "labels"), [("digits-events", ("1", "01", "01")), ("nmnist", ("1", "1", "01")), ("digits", "111")]
)
def test_the_loss_chooses_within_the_preset(dataset: str, labels: tuple[str, ...]) -> None:
    losses = ("hamming", "van-rossum", "spike-count")
    configs = [resolve([SettingsSource("flags", {"dataset": dataset, "loss": loss})]) for loss in losses]
    assert tuple(config.label_pattern for config in configs) == tuple(labels)


@pytest.mark.parametrize(
    ("name", "label"), [("nmnist-van-rossum", "1"), ("nmnist-hamming", "1"), ("nmnist-stbp", "01")]
)
def test_labels_of_the_experiments_on_nmnist(name: str, label: str) -> None:
    assert resolve([named_preset(name, None)]).label_pattern == label


@pytest.mark.parametrize("name", PRESETS)
def test_every_named_preset_is_valid_and_lies_over_that_of_its_data_set(name: str) -> None:
    preset = PRESETS[name]
    config = resolve([named_preset(name, None)]).model_dump()
    assert config.items() >= preset.settings.items()
    preset_of_data_set = defaults(preset.dataset, str(config["loss"]))
    assert (
        config.items()
        >= {key: value for key, value in preset_of_data_set.items() if key not in preset.settings}.items()
    )
    assert config["dataset"] == preset.dataset
    assert preset.published is None or 50 < preset.published.accuracy < 100


def test_named_preset_yields_to_file_and_flags() -> None:
    sources = [
        named_preset("nmnist-stbp", "digits-events"),
        SettingsSource("command line", {"dataset": "digits-events"}),
    ]
    config = resolve([*sources, SettingsSource("command line", {"epochs": 2})])
    assert (config.dataset, config.epochs, config.loss, config.tau_s) == ("digits-events", 2, "spike-count", 1.0)


def test_named_preset_that_does_not_exist_or_fit() -> None:
    with pytest.raises(ConfigError, match=r"unknown preset 'nmnist-stdp' \(did you mean nmnist-stbp\?\); known: "):
        named_preset("nmnist-stdp", None)
    with pytest.raises(ConfigError, match=r"nmnist-stbp is for nmnist, .*, not for cifar10"):
        named_preset("nmnist-stbp", "cifar10")


@pytest.mark.parametrize(
    ("name", "dataset"), [("cifar10-plif", "folder:/x"), ("shd-recurrent", "fsdd:without=theo"), ("cifar10-plif", None)]
)
def test_named_preset_fits_a_path_or_an_option_of_its_data_set(name: str, dataset: str | None) -> None:
    assert named_preset(name, dataset).values.items() >= PRESETS[name].settings.items()


@pytest.mark.parametrize(
    ("setting", "text", "variable"),
    [
        ("neuron", neurons.as_text(NEURONS["lif"]()), "p.km"),
        ("surrogate", surrogates.as_text(SURROGATES["rectangle"]()), "q.half"),
        ("loss", losses.as_text(_Miss()), "p.scale"),
    ],
)
def test_a_stored_variable_that_does_not_exist_is_told_with_the_file(
    tmp_path: Path, setting: str, text: str, variable: str
) -> None:
    assert f'"{variable}"' in text
    path = tmp_path / "own.toml"
    lost = text.replace(f'"{variable}"', f'"{variable[:2]}lost"')
    values: dict[str, Any] = {"dataset": "digits", setting: "gone:Model", f"{setting}_model": lost}
    path.write_text(to_toml(RunConfig.model_construct(**values)))
    with pytest.raises(
        ConfigError, match=rf"{path}: {setting}_model = .* is damaged: there is no '{variable[:2]}lost'"
    ):
        resolve([read_toml(path)])


def test_a_later_length_of_a_step_replaces_the_other_one() -> None:
    default = resolve([SettingsSource("command line", {"dataset": "fsdd"})])
    assert default.window_ms
    changed = resolve([SettingsSource("command line", {"dataset": "fsdd", "bin_ms": 10.0})])
    assert (changed.window_ms, changed.bin_ms) == (0.0, 10.0)
    sources = [
        SettingsSource("own.toml", {"dataset": "nmnist", "bin_ms": 3.0}),
        SettingsSource("command line", {"window_ms": 300.0}),
    ]
    assert (resolve(sources).window_ms, resolve(sources).bin_ms) == (300.0, 0.0)
    with pytest.raises(ConfigError, match="both say how long a step is"):
        resolve([SettingsSource("command line", {"dataset": "fsdd", "bin_ms": 10.0, "window_ms": 300.0})])
