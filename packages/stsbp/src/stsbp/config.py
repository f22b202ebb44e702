"""The settings of a training run: their names, domains, defaults and help texts, in one place.

The command line has an option for every field. `--config FILE.toml` reads the same names. A run stores its settings in
its `config.toml`, which is such a file itself. Later sources override earlier ones: defaults, those of the data set,
named preset, file, options.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from stsbp_spec.equations.assembly import loss_equations, neuron_equations
from stsbp_spec.errors import SpecError
from stsbp_spec.models import surrogates
from stsbp_spec.models.encoders import SACCADE_US, EventBinning, LabelCode
from stsbp_spec.models.losses import LOSSES, OF_POTENTIALS, Loss, parse_loss
from stsbp_spec.models.losses import stored as losses
from stsbp_spec.models.neurons import NEURONS, NeuronModel, parse_neuron
from stsbp_spec.models.neurons import stored as neurons
from stsbp_spec.models.surrogates import SURROGATES, parse_surrogate
from stsbp_spec.models.user_classes import names_a_class
from stsbp_spec.networks.nodes import is_nodes
from stsbp_spec.validation import shown

from stsbp.datasets.registry import info_of, is_known, named_path, steps_of
from stsbp.errors import NO_WORKING_FOLDER, ConfigError, did_you_mean
from stsbp.files import MEGABYTE, read_regular
from stsbp.presets import PRESETS, defaults
from stsbp.rate_penalty import canonical
from stsbp.threads import MOST_THREADS

__all__ = [
    "FREE",
    "HUB",
    "MODEL",
    "OF_NEURONS",
    "OWN",
    "PATHS",
    "RECORDING_SETTINGS",
    "SECTIONS",
    "SEVERAL",
    "TRACKERS",
    "RunConfig",
    "SettingsSource",
    "absolute",
    "check_imports",
    "check_tracked_imports",
    "differences",
    "is_named",
    "is_stored",
    "named_preset",
    "network_text",
    "read_toml",
    "resolve",
    "split_start",
    "to_toml",
    "to_toml_value",
    "tracker_names",
]


class Own(NamedTuple):
    """A setting that names an object of the spec or a user-defined class. A run stores the class as data.

    Attributes:
        spec_names: names in the spec.
        parse: function that reads the setting, for names and classes.
        as_text, from_text: functions that make the stored text, and read it back.
    """

    setting: str
    spec_names: Mapping[str, Any]
    parse: Callable[[str], Any]
    as_text: Callable[[Any], str]
    from_text: Callable[[str], Any]

    @property
    def model(self) -> str:
        """The setting that contains the class as data."""
        return f"{self.setting}_model"

    def names_a_class(self, text: str) -> bool:
        """Whether the setting names a user-defined class."""
        return names_a_class(text, self.spec_names)


OWN: Mapping[str, Own] = MappingProxyType(
    {
        model_class.setting: model_class
        for model_class in (
            Own(
                "surrogate",
                SURROGATES,
                lambda text: parse_surrogate(text, foreign=True),
                surrogates.as_text,
                surrogates.StoredSurrogate,
            ),
            Own("neuron", NEURONS, lambda text: parse_neuron(text, {}), neurons.as_text, neurons.from_text),
            Own("loss", LOSSES | OF_POTENTIALS, parse_loss, losses.as_text, losses.from_text),
        )
    }
)
"""Settings that may name a user-defined class. Surrogates come first, because a neuron model needs its surrogate."""


OF_NEURONS = ("tau_m", "tau_s", "tau_rise", "psp_gain", "threshold")
"""Settings that are parameters of neurons."""

_FOLLOWING: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        **{setting: (model_class.model,) for setting, model_class in OWN.items()},
        "surrogate": ("surrogate_model", "neuron_model"),
        **dict.fromkeys(OF_NEURONS, ("neuron_model",)),
        "init_from": ("init_sha256",),
        # Both say how long a step is.
        "window_ms": ("bin_ms",),
        "bin_ms": ("window_ms",),
    }
)
"""Settings of earlier sources that a setting removes: what stsbp computed from it when a run began, and other ways to
say the same."""


class RunConfig(BaseModel):
    """Every setting of a run. Numbers that switch something off are 0."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    dataset: str = Field(min_length=1, description="Data set: see docs/data.md and docs/sequences.md.")
    net: str = Field(
        "256",
        description="Hidden layers, such as 12C5-P2-64C5-P2. stsbp adds the output layer. You can also give a file "
        "FILE.toml that lists all nodes of the network.",
    )
    padding: Literal["valid", "same"] = Field(
        "valid", description="Padding of convolutions for which --net gives no padding."
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Dropout rate after hidden layers for which --net gives no rate."
    )
    loss: str = Field(
        "van-rossum",
        description="Loss for output spikes: van-rossum, hamming or spike-count. Loss for a readout: cross-entropy or "
        "cross-entropy-max, or mse if targets are real numbers. Give your own class as module:Class.",
    )
    loss_model: str = Field("", description="Equations of your own loss. stsbp sets this option itself.")
    label_pattern: str = Field(
        "1", description="Pattern that the output neuron of the labelled class should repeat, for example 01."
    )
    undesired_pattern: str = Field("0", description="Pattern that all other output neurons should repeat.")
    steps: int = Field(
        25, ge=1, le=100_000, description="Time steps T of a sample. sequences:PATH has those of its file."
    )
    neuron: str = Field(
        "lif",
        description="Neuron model, for example lif, lif:reset=subtract or plif. Give your own class as module:Class.",
    )
    neuron_model: str = Field("", description="Equations of your own neuron. stsbp sets this option itself.")
    tau_m: float = Field(8.0, ge=1, le=1e9, description="Membrane time constant in steps.")
    tau_s: float = Field(
        4.0, ge=1, le=1e9, description="Synaptic time constant in steps; 1 disables the synaptic filter."
    )
    tau_rise: float = Field(
        0.0,
        ge=0,
        le=1e9,
        description="Rise time constant of the postsynaptic potential in steps. --tau-rise must be less than "
        "--tau-s. With 0, the postsynaptic potential rises at once.",
    )
    psp_gain: Literal["normalised", "unit"] = Field(
        "normalised", description="Scale of the postsynaptic potential: area 1 (normalised) or height 1 (unit)."
    )
    threshold: float = Field(1.0, gt=0, description="Threshold of the membrane potential.")
    surrogate: str = Field(
        "arctan",
        description="Surrogate derivative, for example arctan or triangle:width=0.5. Give your own class as "
        "module:Class.",
    )
    surrogate_model: str = Field(
        "", description="Equation of your own surrogate derivative. stsbp sets this option itself."
    )
    window_ms: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="Use this many milliseconds from the start of each recording. With 0, the length is --bin-ms times "
        "--steps. If --bin-ms is also 0, the length is 300 ms, or 105 ms with --saccades first.",
    )
    bin_ms: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="Duration of one step in milliseconds. With 0, a step lasts --window-ms divided by --steps.",
    )
    own_lengths: bool = Field(False, description="End each sample where its recording ends. Later steps are ignored.")
    saccades: Literal["all", "first"] = Field(
        "all", description="Use all saccades of each recording, or only the first."
    )
    stabilise: bool = Field(False, description="Remove the motion that saccades cause in a recording.")
    input_tau_s: float = Field(
        0.0,
        ge=0,
        le=1e9,
        description="Apply the synaptic filter to event frames, with this time constant in steps. 0 disables this.",
    )
    weight_bits: int = Field(
        12, ge=2, le=12, description="Round weights to a grid with this many bits, including the sign."
    )
    init_gain: float = Field(1.5, gt=0, description="Gain of the initial weights.")
    init_from: str = Field(
        "",
        description="Start from the weights of another run: RUN, RUN:last or RUN:best; or from those of hub:... or "
        "model:NAME. The optimiser state is not copied.",
    )
    init_sha256: str = Field(
        "",
        pattern="^([0-9a-f]{64})?$",
        description="SHA-256 of the weights file from the run given by --init-from. stsbp sets this option itself.",
    )
    init_rate: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Increase initial weights until each layer has at least this many spikes per neuron and step, on "
        "64 training samples. 0 disables this.",
    )
    epochs: int = Field(10, ge=1, le=10**9, description="Passes over the training samples.")
    batch_size: int = Field(
        50, ge=1, le=10**9, description="Samples in one update. The last update of an epoch can have fewer."
    )
    optimizer: Literal["adamw", "adam", "sgd"] = Field(
        "adamw",
        description="Optimiser. The default of --lr suits adamw and adam; sgd usually needs a larger learning rate.",
    )
    lr: float = Field(2e-3, gt=0, description="Peak learning rate.")
    delay_lr: float = Field(
        0.0, ge=0, description="Peak learning rate of learned delays, which are in steps; 0 means 100 times --lr."
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of --optimizer sgd.")
    schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="How the learning rate changes after the warm-up."
    )
    warmup: float = Field(
        0.0, ge=0, le=1e6, description="Length of the learning-rate warm-up in epochs, for example 0.5."
    )
    weight_decay: float = Field(
        0.0, ge=0, description="Weight decay: decoupled for adamw, added to the gradient for adam and sgd."
    )
    clip_norm: float = Field(0.0, ge=0, description="Largest allowed norm of the gradient; 0 disables clipping.")
    freeze: str = Field(
        "",
        description="Do not train this layer or parameter, for example conv1, conv1.bias or 'conv*'. You can give this "
        "option several times.",
    )
    rate_penalty: str = Field(
        "",
        description="Penalise firing rates above TARGET spikes per step: TARGET:WEIGHT for all hidden layers, "
        "LAYER=TARGET:WEIGHT for one layer or a pattern such as 'conv*'. The last one that fits a layer counts; weight "
        "0 means no penalty. You can give this option several times.",
    )
    precision: Literal["fast", "reproducible"] = Field(
        "fast",
        description="--precision reproducible gives bit-identical results on every backend, but is slower than "
        "--precision fast.",
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**32,
        description="Seed for the initial weights, the order of the samples, dropout and augmentation.",
    )
    split_seed: int = Field(
        0,
        ge=0,
        lt=2**32,
        description="Seed for the choice of test samples, validation samples, and the samples of --limit. Runs that "
        "differ only in --seed use the same samples.",
    )
    limit: int = Field(
        0,
        ge=0,
        le=10**9,
        description="Use this many training samples, including those of --validation, with as many of each class as "
        "possible. 0 uses all samples.",
    )
    holdout: int = Field(
        0,
        ge=0,
        le=10**9,
        description="Hold out this many training samples as the test set. 0 uses the data set's own test set, if it "
        "has one.",
    )
    test: bool = Field(
        True,
        description="Test the network. If the data set has no test set, some training samples are held out for the "
        "test.",
    )
    test_on: str = Field(
        "", description="Test on the test set of another data set, or on all its samples if it has no test set."
    )
    validation: int = Field(
        0,
        ge=0,
        le=10**9,
        description="Hold out this many training samples to choose the best checkpoint. 0 disables this.",
    )
    patience: int = Field(
        0,
        ge=0,
        le=10**9,
        description="End the run when the validation result has not improved for this many epochs. 0 disables this.",
    )
    image_size: int = Field(
        0,
        ge=0,
        le=16_384,
        description="Resize the images of folder:PATH to squares with sides of this many pixels. 0 disables resizing.",
    )
    test_every: int = Field(
        1,
        ge=0,
        le=10**9,
        description="Test every N epochs. 0 tests only at the end. The test set is never used to choose a checkpoint.",
    )
    augment_shift: int = Field(
        0,
        ge=0,
        le=1024,
        description="Shift each training sample at random, by up to this many pixels along both axes. The two axes of "
        "spike trains are time and neurons. Every epoch draws new random numbers. 0 disables this.",
    )
    augment_flip: bool = Field(False, description="Flip a random half of the training samples from left to right.")
    augment_rotate: float = Field(
        0.0,
        ge=0,
        lt=180,
        description="Rotate each training sample at random, by up to this many degrees. 0 disables this.",
    )
    augment_scale: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Change height and width of each training sample at random, by up to this fraction. 0 disables "
        "this.",
    )
    augment_shear: float = Field(
        0.0, ge=0, le=1, description="Shear each training sample at random, by up to this fraction. 0 disables this."
    )
    augment_elastic: float = Field(
        0.0,
        ge=0,
        le=1024,
        description="Distort each training sample smoothly at random, by up to this many pixels: random shifts of 4 x "
        "4 points, and interpolated ones between them. 0 disables this.",
    )
    augment_cutout: int = Field(
        0,
        ge=0,
        le=1024,
        description="Erase a square with a side of this many pixels, at a random place in each training sample. 0 "
        "disables this.",
    )
    log_every: int = Field(50, ge=1, le=10**9, description="Write a line of metrics every N updates.")
    data_dir: str = Field(
        "",
        description="Folder of the data set. Without this option, the environment variable STSBP_DATA names the "
        "folder.",
    )
    download: bool = Field(False, description="Download missing files of the data set.")
    skip_malformed: bool = Field(False, description="Skip malformed files with a warning instead of stopping.")
    threads: int = Field(
        0,
        ge=0,
        le=MOST_THREADS,
        description="Number of processor threads. 0 lets the numerical libraries choose. In fast precision, the last "
        "bits of the results depend on it.",
    )
    memory: Literal["full", "low"] = Field(
        "full",
        description="--memory low needs less memory than --memory full, but is slower, because it computes a batch in "
        "parts of up to 32 MiB. In reproducible precision, the results have the same bits.",
    )
    micro_batch: int = Field(
        0,
        ge=0,
        le=10**9,
        description="Compute this many samples of a batch at a time, to save memory. The whole batch still makes one "
        "update. 0 lets --memory decide.",
    )
    tensorboard: bool = Field(
        False, description="Also write TensorBoard files into the run's folder, as --track tensorboard does."
    )
    track: str = Field(
        "",
        description="Also show the metrics in another program: tensorboard, wandb, mlflow, or your own as "
        "module:function. You can give this option several times. none shows them in no other program.",
    )
    checkpoint_every: float = Field(30.0, ge=0, description="Seconds between checkpoints within an epoch.")

    @field_validator(*OWN)
    @classmethod
    def _check_name(cls, text: str, info: ValidationInfo) -> str:
        user_class = OWN[str(info.field_name)]
        # A class is imported when a run begins, not when its settings are read.
        if not user_class.names_a_class(text):
            user_class.parse(text)
        return text

    @field_validator(*(model_class.model for model_class in OWN.values()))
    @classmethod
    def _model(cls, text: str, info: ValidationInfo) -> str:
        if text:
            user_object = OWN[str(info.field_name).removesuffix("_model")].from_text(text)
            # A variable that does not exist is only noticed where the equations are put together.
            if isinstance(user_object, NeuronModel):
                neuron_equations(user_object.psp.filter(), user_object)
            elif isinstance(user_object, Loss):
                loss_equations(user_object)
            else:
                surrogates.equation(user_object)
        return text

    @field_validator("net")
    @classmethod
    def _network(cls, text: str) -> str:
        return network_text(text)

    @field_validator("freeze")
    @classmethod
    def _names(cls, text: str) -> str:
        names = [name.strip() for name in text.split(",")] if text.strip() else []
        if not all(names):
            raise ValueError("Input should be names of layers or parameters, separated by commas: 'conv1,conv2'")
        return ",".join(names)

    @field_validator("track")
    @classmethod
    def _trackers(cls, text: str) -> str:
        return ",".join(tracker_names(text))

    @field_validator("rate_penalty")
    @classmethod
    def _rate_penalty(cls, text: str) -> str:
        return canonical(text)

    @field_validator("label_pattern", "undesired_pattern")
    @classmethod
    def _pattern(cls, text: str) -> str:
        if not text or set(text) - {"0", "1"}:
            raise ValueError("Input should be a pattern of the digits 0 and 1 such as '01'")
        return text

    @field_validator("input_tau_s")
    @classmethod
    def _time_constant(cls, value: float) -> float:
        if 0 < value < 1:
            raise ValueError("Input should be 0 (unfiltered) or a time constant of at least 1 step")
        return value

    @property
    def binning(self) -> EventBinning:
        """How recordings become frames.

        Raises:
            ConfigError: the window is given in two ways.
            SpecError: a step is shorter than a microsecond.
        """
        if self.window_ms and self.bin_ms:
            raise ConfigError("window_ms and bin_ms both say how long a step is; set one of them to 0")
        ms = self.bin_ms * self.steps or self.window_ms
        default = SACCADE_US if self.saccades == "first" else EventBinning.window_us
        return EventBinning(
            steps=self.steps,
            window_us=round(1000 * ms) if ms else default,
            first_saccade=self.saccades == "first",
            stabilise=self.stabilise,
        )

    @property
    def label_code(self) -> LabelCode:
        """The patterns of the label sequences."""
        return LabelCode(self.label_pattern, self.undesired_pattern)

    def digest(self) -> str:
        """SHA-256 of all settings that change the result."""
        values = {
            key: value
            for key, value in self.model_dump().items()
            if key not in FREE and (key not in _LATER or value != RunConfig.model_fields[key].default)
        }
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def absolute(config: RunConfig) -> RunConfig:
    """The settings that a new run stores: paths are absolute, so they do not depend on the working folder.

    Raises:
        ConfigError: a path begins with `~` and the name of an unknown user.
    """
    return config.model_copy(update={key: _absolute(key, getattr(config, key)) for key in PATHS})


HUB, MODEL = "hub:", "model:"
"""How names of networks begin that are no runs (`stsbp.hub.references`)."""


def is_named(text: str) -> bool:
    """Whether a text names a network of the Hub or of a package of models, not the folder of a run."""
    return text.startswith((HUB, MODEL))


def _absolute(key: str, value: str) -> str:
    if key == "init_from" and is_named(value):
        folder = value.removeprefix(HUB)
        return HUB + _absolute("data_dir", folder) if value.startswith(HUB) and os.path.isdir(folder) else value
    if key == "init_from" and value:
        path, name = split_start(value)
        return f"{_absolute('data_dir', str(path))}:{name}"
    named = named_path(value)
    if not value or (key != "data_dir" and named is None):
        return value
    prefix, path = named if named is not None and key != "data_dir" else ("", Path(value))
    try:
        absolute_path = prefix + os.path.abspath(path.expanduser())
    except RuntimeError as error:
        raise ConfigError(f"cannot find {path}: {error}") from error
    except FileNotFoundError as error:
        # Only the working folder itself can be missing here: the path need not exist.
        raise ConfigError(f"cannot find {path}: {NO_WORKING_FOLDER}") from error
    # A relative path can be stored even if the name of the working folder is not valid UTF-8 and cannot.
    return absolute_path if _is_unicode(absolute_path) else value


def split_start(text: str) -> tuple[Path, Literal["last", "best"]]:
    """The run and the checkpoint in `init_from`: `RUN`, `RUN:last` or `RUN:best`. A named network has one checkpoint.

    A folder that has such a name is itself the run.
    """
    if os.path.isdir(text) or is_named(text):
        return Path(text), "last"
    if text.endswith(":best"):
        return Path(text.removesuffix(":best")), "best"
    return Path(text.removesuffix(":last")), "last"


SEVERAL: Mapping[str, str] = MappingProxyType(
    {"freeze": "NAME", "rate_penalty": "[LAYER=]TARGET:WEIGHT", "track": "NAME"}
)
"""Settings that may have several parts, joined by commas, with the form of a part."""

PATHS = ("dataset", "test_on", "data_dir", "init_from")
"""Settings that are paths, or that may contain one."""

SECTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "Network": (
            *("net", "padding", "dropout", "neuron", "neuron_model"),
            *("tau_m", "tau_s", "tau_rise", "psp_gain", "threshold", "surrogate", "surrogate_model"),
            *("window_ms", "bin_ms", "own_lengths", "saccades", "stabilise", "input_tau_s"),
            *("weight_bits", "init_gain", "init_rate", "init_from", "init_sha256"),
        ),
        "Label sequences and loss": ("loss", "loss_model", "label_pattern", "undesired_pattern", "steps"),
        "Training": (
            *("epochs", "batch_size", "lr", "delay_lr", "patience", "optimizer", "momentum", "schedule", "warmup"),
            *("weight_decay", "clip_norm", "freeze", "rate_penalty", "precision", "seed"),
        ),
        "Data": (
            *("data_dir", "download", "skip_malformed", "image_size"),
            *("limit", "holdout", "test", "test_on", "validation", "split_seed"),
        ),
        "Augmentation": (
            *("augment_shift", "augment_flip", "augment_rotate", "augment_scale", "augment_shear"),
            *("augment_elastic", "augment_cutout"),
        ),
        "How it runs": (
            *(
                "test_every",
                "log_every",
                "checkpoint_every",
                "memory",
                "micro_batch",
                "tensorboard",
                "track",
                "threads",
            ),
        ),
    }
)
"""All settings except the data set, in the sections and the order of `stsbp train --help`."""

_ALIASES = {"learning_rate": "lr", "learning-rate": "lr", "optimiser": "optimizer"}
"""Names of settings elsewhere, which a message replaces."""

FREE = frozenset(
    {
        *("data_dir", "download", "skip_malformed", "threads", "memory", "micro_batch", "tensorboard", "track"),
        *("checkpoint_every", "patience"),
    }
)
"""Settings for where and how a run is computed, and when it ends. A resumed run may change them. They do not change the
results, except `threads`, `memory` and `micro_batch`. These affect the last bits in `fast` precision, whose sums are
added thread by thread and part by part. `patience` only decides which epoch is the last one."""

RECORDING_SETTINGS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"recordings": ("window_ms", "bin_ms", "own_lengths"), "saccades": ("saccades", "stabilise")}
)
"""Settings for data sets that are recordings, and for recordings with saccades, according to their `DatasetInfo`."""

_LATER = frozenset(
    {
        *("augment_rotate", "augment_scale", "augment_shear", "augment_elastic", "augment_cutout", "test_on"),
        *("init_rate", "init_from", "init_sha256", "test", "neuron", "neuron_model", "tau_rise", "psp_gain"),
        *("loss_model", "surrogate_model", "optimizer", "momentum", "freeze", "rate_penalty", "delay_lr"),
        *(name for names in RECORDING_SETTINGS.values() for name in names),
    }
)
"""Settings that were added after the first runs. They only count if they are not off, so that older runs can
continue."""


TRACKERS = ("tensorboard", "wandb", "mlflow")
"""Programs that `track` may name."""
_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def tracker_names(text: str) -> tuple[str, ...]:
    """The trackers that the setting `track` names, each once.

    Raises:
        ValueError: a part is neither one of `TRACKERS` nor `module:function`.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(","))) if text.strip() not in ("", "none") else ()
    for name in names:
        if name not in TRACKERS and not _FUNCTION.fullmatch(name):
            raise ValueError(
                f"Input should be {', '.join(TRACKERS)}, none, or a function as module:function; several are separated "
                f"by commas{did_you_mean(name, TRACKERS)}"
            )
    return names


class SettingsSource(NamedTuple):
    """Settings, and where they come from: the name of a file, `preset NAME` or `command line`."""

    name: str
    values: Mapping[str, Any]
    is_file: bool = False


_CONTROL = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_LARGEST_TOML = MEGABYTE
_MOST_DOTS = 64
_MOST_PROBLEMS = 5
_MOST_BRACKETS = 100
_STRING_OR_COMMENT = re.compile(
    r'''"""(?:[^"\\]|\\.|"(?!""))*"{0,5}|'''
    r"""'''(?:[^']|'(?!''))*'{0,5}|"""
    r""""(?:[^"\\\n]|\\.)*"?|'[^'\n]*'?|#[^\n]*""",
    re.DOTALL,
)
"""Texts and comments of TOML. A text that does not end is an error, so it may extend to the end of the file here."""


def _read_text(path: Path | str, description: str) -> str:
    try:
        # Some editors put a byte order mark before the text.
        return read_regular(Path(path), _LARGEST_TOML).decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"there is no {description} {path}") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a text file in UTF-8: {error}") from error


def read_toml(path: Path) -> SettingsSource:
    """Settings of a TOML file.

    Raises:
        ConfigError: it cannot be read, is too large, or is not TOML. The message names the line.
    """
    text = _read_text(path, "configuration file")
    # Refuse texts for which tomllib needs too much time, memory or depth. Settings are never nested.
    # Python's splitlines() knows ends of lines that TOML does not have.
    stripped_lines = _STRING_OR_COMMENT.sub(lambda removed: "\n" * removed[0].count("\n"), text).split("\n")
    for number, line in enumerate(stripped_lines, 1):
        if line.count(".") > _MOST_DOTS:
            raise ConfigError(
                f"{path} is not a file of settings: line {number} has a key of more than {_MOST_DOTS} parts"
            )
    if sum(line.count("[") + line.count("{") for line in stripped_lines) > _MOST_BRACKETS:
        raise ConfigError(f"{path} is not a file of settings: it has more than {_MOST_BRACKETS} lists and tables")
    try:
        return SettingsSource(str(path), tomllib.loads(text), is_file=True)
    except (ValueError, RecursionError) as error:
        # For an integer of more than 4,300 digits, Python raises another error, with advice for programmers.
        reason = "a number is too long" if "integer string conversion" in str(error) else str(error)
        raise ConfigError(f"{path} is not valid TOML: {reason}") from error


def network_text(net: str) -> str:
    """The text of a network. If `net` names a file of nodes, `FILE.toml`, the text is that of the file.

    Raises:
        ConfigError: the file cannot be read, or is not a file of nodes.
    """
    # The text of a file of nodes may end in a comment that ends in these characters.
    if is_nodes(net) or not net.endswith(".toml"):
        return net
    text = _read_text(net, "file of a network")
    if not is_nodes(text):
        raise ConfigError(f"{net} is not a file of nodes; such a file begins with [[node]] (docs/networks.md)")
    return text


def named_preset(name: str, dataset: str | None) -> SettingsSource:
    """The settings of a named preset. If `dataset` is None, they include its own data set.

    Raises:
        ConfigError: there is no such preset, or it is for other inputs than those of `dataset`.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}{did_you_mean(name, PRESETS)}; known: {', '.join(PRESETS)}")
    preset = PRESETS[name]
    if dataset is not None and info_of(dataset).name not in (preset.dataset, *preset.similar):
        fitting = ", ".join((preset.dataset, *preset.similar))
        raise ConfigError(f"the preset {name} is for {fitting}, not for {dataset}")
    return SettingsSource(f"preset {name}", {"dataset": preset.dataset, **preset.settings})


def resolve(sources: Sequence[SettingsSource], *, with_preset: bool = True) -> RunConfig:
    """Merge settings with the default settings of the data set that they name. Later sources override earlier ones.

    A later source also removes what an earlier one, such as the settings of another run, computed from the old value:
    for example, a new `loss` removes `loss_model`.

    Raises:
        ConfigError: a key is unknown, or a value is outside its domain. The message names the source, the key and the
            allowed values.
    """
    if not any("dataset" in source.values for source in sources):
        raise ConfigError("no data set is named; give one, for example: stsbp train digits")
    if with_preset:
        dataset, loss = (
            next((s.values[key] for s in reversed(sources) if key in s.values), RunConfig.model_fields[key].default)
            for key in ("dataset", "loss")
        )
        lowest = SettingsSource(f"default settings of {dataset}", defaults(str(dataset), str(loss)))
        if not any("steps" in source.values for source in sources) and is_known(str(dataset)):
            data_dir = next((str(s.values["data_dir"]) for s in reversed(sources) if "data_dir" in s.values), "")
            steps = steps_of(str(dataset), data_dir)
            lowest = lowest if steps is None else SettingsSource(lowest.name, {**lowest.values, "steps": steps})
        sources = [lowest, *sources]
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for source in sources:
        for key in source.values:
            for dependent in _FOLLOWING.get(key, ()):
                merged.pop(dependent, None)
        for key, value in source.values.items():
            merged[key], origin[key] = value, source.name
        # A later source may remove the class, so it would never be read.
        for setting, user_class in OWN.items():
            class_name = merged.get(setting, RunConfig.model_fields[setting].default)
            if (
                source.values.get(user_class.model)
                and isinstance(class_name, str)
                and not user_class.names_a_class(class_name)
            ):
                raise ConfigError(
                    f"{source.name}: {user_class.model} stores a class, but {setting} does not name one; leave "
                    f"{user_class.model} out"
                )
    try:
        config = RunConfig(**merged)
    except ValidationError as error:
        problems = error.errors()[:_MOST_PROBLEMS]
        explanations = [_explain(problem, origin) for problem in problems]
        if any(problem["type"] == "extra_forbidden" for problem in problems):
            explanations.append(f"known settings: {', '.join(RunConfig.model_fields)}")
        raise ConfigError("\n".join(explanations)) from None
    try:
        config.label_code.sequences(2, config.steps)
    except ValueError as error:
        raise ConfigError(f"label_pattern, undesired_pattern: {error}") from None
    try:
        _ = config.binning
    except SpecError as error:
        raise ConfigError(f"window_ms, bin_ms: {error}") from None
    return config


def check_imports(config: RunConfig, sources: Sequence[SettingsSource]) -> None:
    """Refuse a class that only a file of settings names, because its module would be imported, and would run.

    A class whose equations the settings contain (`neuron_model`) is not imported.

    Args:
        config: the settings that `sources` give.
        sources: where they come from.

    Raises:
        ConfigError: a file names the class of a setting. The message names the file and the module.
    """
    for setting, user_class in OWN.items():
        class_name = getattr(config, setting)
        source = next((source for source in reversed(sources) if setting in source.values), None)
        if (
            source is None
            or not source.is_file
            or not user_class.names_a_class(class_name)
            or getattr(config, user_class.model)
        ):
            continue
        flag, module = f"--{setting}", shown(class_name.strip().partition(":")[0])
        raise ConfigError(
            f"{source.name}: {setting} = {to_toml_value(class_name)} names a class of the module {module}. "
            "stsbp does not import modules that only a file of settings names, because an import runs the code of the "
            f"module. If you trust {module}, name the class in the option {flag}, or add --allow-imports"
        )


def check_tracked_imports(config: RunConfig, sources: Sequence[SettingsSource]) -> None:
    """Refuse a tracker of the user that only a file of settings names, because its module would be imported.

    Args:
        config: the settings of a run.
        sources: settings that were given for this start. Those that the run has stored are not among them.

    Raises:
        ConfigError: no option names it. The message says how to allow it.
    """
    functions = [name for name in tracker_names(config.track) if name not in TRACKERS]
    source = next((source for source in reversed(sources) if "track" in source.values), None)
    if functions and (source is None or source.is_file):
        raise ConfigError(
            f"{'the run' if source is None else source.name}: track names the function {shown(functions[0])}. stsbp "
            "does not import modules that only a file of settings names, because an import runs the code of the "
            f"module. If you trust it, give --track {config.track!r}, or add --allow-imports. To go on without "
            "trackers, give --track none"
        )


def _explain(problem: Any, origin: Mapping[str, str]) -> str:
    key = str(problem["loc"][0])
    source_name, input_value = origin.get(key, "settings"), problem["input"]
    flag = "--" + key.replace("_", "-")
    if problem["type"] == "extra_forbidden":
        hint = did_you_mean(_ALIASES.get(key, key).replace("-", "_"), RunConfig.model_fields)
        return f"{source_name}: unknown setting {key!r}{hint}"
    cause = problem.get("ctx", {}).get("error")
    requirement = str(cause) if cause is not None else str(problem["msg"])
    requirement = requirement[:1].lower() + requirement[1:].replace("Input should", "input should")
    if problem["type"] == "literal_error" and isinstance(input_value, str):
        requirement += did_you_mean(input_value, get_args(RunConfig.model_fields[key].annotation))
    # Show an empty text in a visible form.
    try:
        value_text = to_toml_value(input_value)
    except (ValueError, RecursionError):
        # An integer with too many digits.
        value_text = shown(input_value)
    if source_name == "command line":
        return f"{flag} {input_value if str(input_value).strip() else repr(input_value)}: {requirement}"
    return f"{source_name}: {key} = {value_text}: {requirement}"


def differences(config: RunConfig, changes: Mapping[str, Any]) -> list[str]:
    """The changes that `changes` would make to a run's result, as texts: `lr: 0.002 in the run, 0.01 asked`."""
    run_values = config.model_dump()
    return [
        f"{key}: {to_toml_value(run_values[key])} in the run, {to_toml_value(value)} asked"
        for key, value in changes.items()
        if key not in FREE and run_values[key] != value and not _is_same_path(key, run_values[key], value)
    ]


def _is_same_path(key: str, run_path: Any, other_path: Any) -> bool:
    """Older runs stored paths as they were typed."""
    return key in PATHS and isinstance(other_path, str) and _absolute(key, run_path) == _absolute(key, other_path)


def to_toml(config: RunConfig) -> str:
    """All settings as TOML, from which `read_toml` makes an equal configuration.

    Raises:
        ConfigError: `read_toml` would refuse the text, because it is too large or not valid UTF-8.
    """
    text = _as_toml(config.model_dump())
    if (size := len(text.encode(errors="surrogatepass"))) > _LARGEST_TOML:
        raise ConfigError(
            f"the settings take {size:,} bytes, but their file has at most {_LARGEST_TOML:,}; make the longest of "
            f"them shorter: {max(RunConfig.model_fields, key=lambda key: len(str(getattr(config, key))))}"
        )
    for key, value in config:
        if not _is_unicode(str(value)):
            raise ConfigError(
                f"the settings of a run are stored in UTF-8, but {key} is not valid UTF-8: {value}; rename the file or "
                "folder, or give the path of a link to it"
            )
    return text


def _is_unicode(text: str) -> bool:
    """Whether a text is valid Unicode. Python reads a name that is not valid UTF-8 as text with surrogates."""
    return re.search("[\ud800-\udfff]", text) is None


def is_stored(path: Path) -> bool:
    """Whether a file is as a run stores its settings. A file that a person wrote or changed has other lines."""
    try:
        values, text = read_toml(path).values, _read_text(path, "configuration file")
        first = RunConfig.model_fields.keys() - _LATER - FREE
        return first <= values.keys() and text == _as_toml(values)
    except (ConfigError, ValueError):
        return False


def _as_toml(values: Mapping[str, Any]) -> str:
    return "".join(f"{key} = {to_toml_value(value)}\n" for key, value in values.items())


def to_toml_value(value: Any) -> str:
    """A setting in TOML syntax."""
    if isinstance(value, str):
        # TOML basic strings have the escapes of JSON. JSON does not escape DEL and other control characters.
        text = json.dumps(value, ensure_ascii=False)
        return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    return json.dumps(value, default=str)
