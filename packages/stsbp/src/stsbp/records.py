"""The JSON files that stsbp writes and reads back. There is one record class for each, and one way to read them.

A file may be damaged or forged. Types are therefore strict, numbers must be finite and within bounds, and the nesting
of lists is limited. Keys that a record does not name are ignored, so that files of other versions can be read. Fields
added after the first version have defaults.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

__all__ = [
    "PACKED_EXPONENTS",
    "Best",
    "Cache",
    "CheckpointRecord",
    "Description",
    "Figures",
    "HubRecord",
    "InputsRecord",
    "Manifest",
    "PackedTensor",
    "ProgressRecord",
    "Record",
    "Recorded",
    "Seed",
    "SpikeMeasuresRecord",
    "Start",
    "SumsRecord",
    "SweepMark",
    "TrackingRecord",
    "TrialFigures",
    "TrialMark",
    "digest_of",
    "metrics_line",
    "parse",
    "read",
    "reason",
    "seeds",
    "starts",
]

DEEPEST = 16
"""Largest depth of nested lists and objects. Those that stsbp writes are at most 6 deep."""
_LONGEST_INTEGER = 20

Count = Annotated[int, Field(ge=0, le=2**53)]
Size = Annotated[int, Field(ge=1, lt=10**9)]
Place = Annotated[int, Field(ge=0, le=10**15)]
"""A number of updates or epochs. Half a step beside it is still exact in a float."""
Number = Annotated[float, Field(ge=-1e100, le=1e100)]
"""Its square is finite."""
Amount = Annotated[float, Field(ge=0, le=1e100)]
Share = Annotated[float, Field(ge=0, le=1)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Record(BaseModel):
    """A record of values with the right types, finite and within bounds."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class Description(Record):
    """The description of their tensors in `last.json` and `best.json`."""

    file: str
    sha256: Digest
    tensors: dict[str, Any]
    step: Place


class SumsRecord(Record):
    """Running sums: the fields of `stsbp.training.metrics.Sums`."""

    model_config = ConfigDict(extra="forbid")

    batches: Count
    samples: Count
    loss: float
    correct: Count
    correct_by_count: Count
    gradient_norm: Amount
    largest_gradient_norm: Amount
    seconds: Amount
    rates: dict[str, Amount]
    sequence: dict[str, Amount]
    errors: dict[str, Count] = Field(default_factory=dict)
    zeroed: dict[str, Count] = Field(default_factory=dict)
    penalties: dict[str, Amount] = Field(default_factory=dict)
    padded: Amount = 0.0
    squared_error: Amount | None = None

    @model_validator(mode="after")
    def _fits(self) -> SumsRecord:
        if self.padded > self.samples:
            raise ValueError("there is more padding than samples")
        if self.zeroed.keys() != self.errors.keys() or any(n > self.errors[name] for name, n in self.zeroed.items()):
            raise ValueError("the zeroed errors are not a part of the errors")
        return self


class Best(Record):
    """Which epoch was the best so far. Older files lack the loss."""

    step: Place
    epoch: Place
    by: str
    value: Number
    loss: Number | None = None


class Recorded(Record):
    """Position of a run, and its records so far: the first bytes of `metrics.jsonl`. Older files lack the digest."""

    step: Place
    epoch: Place
    metrics_bytes: Count
    metrics_sha256: Digest | None = None


class ProgressRecord(Recorded):
    """Further contents of `last.json`, from which a run can continue: position, sums, and the best epoch so far."""

    config: str
    data: str
    contents: dict[str, str] = Field(default_factory=dict)
    batch: Place
    sums: SumsRecord
    window: SumsRecord
    best: Best | None
    epochs: Place | None = None
    contract: Count = 1
    threads: Count | None = None
    processes: Count = 1


class InputsRecord(Record):
    """Properties of the data that a network needs: the fields of `stsbp.training.build.Inputs`."""

    shape: Annotated[list[Size], Field(min_length=1, max_length=3)]
    coding: Literal["direct", "events"]
    classes: list[str]
    neurons: Annotated[int, Field(ge=0, lt=10**9)] = 0
    input_max: Annotated[int, Field(ge=1, le=255)] = 1
    real_targets: bool = False

    @model_validator(mode="after")
    def _fits(self) -> InputsRecord:
        if math.prod(self.shape) >= 2**31:
            raise ValueError(f"an input of shape {self.shape} has too many numbers")
        if (len(self.classes) == 0) != (self.neurons > 0):
            raise ValueError("there must be classes, or else neurons of a target sequence")
        if self.real_targets and not self.neurons:
            raise ValueError("there are real-valued targets, but no neurons of a target sequence")
        return self


class CheckpointRecord(Record):
    """Further contents of a checkpoint, with which its network can be used and trained."""

    config: str
    data: str
    contents: dict[str, str] = Field(default_factory=dict)
    step: Place
    epoch: Place
    inputs: InputsRecord
    batch: Count = 0
    samples: Count | None = None
    contract: Count = 1


class _Grid(Record):
    headroom: Number
    bits: Count | None = None
    exponent: int | None = None


Steps = Annotated[int, Field(ge=-(10**9), le=10**9)]
_Shares = Annotated[list[Share], Field(min_length=1)]
_Quartiles = Annotated[list[Steps], Field(min_length=2, max_length=2)]


class _TimingError(Record):
    """Signed timing errors in steps. Without matches, there is no median and there are no quartiles."""

    tolerance: Count
    pairs: Count
    median: Steps | None
    quartiles: _Quartiles | None
    errors: Annotated[list[Steps], Field(min_length=1)]
    histogram: list[Count]

    @model_validator(mode="after")
    def _fits(self) -> _TimingError:
        if len(self.errors) != len(self.histogram):
            raise ValueError("there is not one count an error")
        if (self.median is None) != (self.quartiles is None):
            raise ValueError("there is only one of median and quartiles")
        return self


class _Latency(Record):
    """Steps until the first right spike. Without such spikes, there is no median and there are no quartiles."""

    of: str
    tolerance: Count | None
    median: Steps | None
    quartiles: _Quartiles | None
    missing: Count

    @model_validator(mode="after")
    def _fits(self) -> _Latency:
        if (self.median is None) != (self.quartiles is None):
            raise ValueError("there is only one of median and quartiles")
        return self


class _VictorPurpura(Record):
    cost: Amount
    mean: Amount


class _VanRossum(Record):
    tau: Amount
    mean: Amount


class _SpikeMeasures(Record):
    """Measures of spike times with their parameters."""

    samples: Count
    tolerances: Annotated[list[Count], Field(min_length=1)]
    precision: _Shares
    recall: _Shares
    f1: _Shares
    timing_error: _TimingError
    victor_purpura: _VictorPurpura
    van_rossum: _VanRossum
    hamming: Amount
    latency: _Latency

    @model_validator(mode="after")
    def _fits_tolerances(self) -> _SpikeMeasures:
        if any(len(shares) != len(self.tolerances) for shares in (self.precision, self.recall, self.f1)):
            raise ValueError("there is not one share a tolerance")
        return self


class _Chance(_SpikeMeasures):
    """The same measures for the targets of other samples."""

    seed: Annotated[int, Field(ge=0, lt=2**32)]
    shuffles: Count
    accuracy: Share | None = None
    accuracy_spike_count: Share | None = None


class SpikeMeasuresRecord(_SpikeMeasures):
    """Measures of spike times (`stsbp.training.timing.SpikeTiming`), and their chance level."""

    chance: _Chance | None

    @model_validator(mode="after")
    def _fits_chance(self) -> SpikeMeasuresRecord:
        if self.chance is not None and self.chance.tolerances != self.tolerances:
            raise ValueError("its chance level has other tolerances")
        return self


class _RegressionErrors(Record):
    """Errors of real-valued outputs, or of a simple prediction. R2 is missing if the targets do not vary."""

    mse: Amount | None
    r2: Number | None
    smape: Amount | None


class _RegressionByNeuron(Record):
    """The same for each output."""

    mse: list[Amount | None]
    r2: list[Number | None]
    smape: list[Amount | None]


class RegressionRecord(_RegressionErrors):
    """Errors of real-valued outputs (`stsbp.measures.regression.RegressionTotals`) beside those of simple
    predictions."""

    by_neuron: _RegressionByNeuron
    baselines: dict[str, _RegressionErrors]


class Figures(Record):
    """Loss, spike rates, and the quality of the outputs: accuracies, measures of spike times, or both.

    Older files lack the tolerance of F1, which was 1 step, and the measures.
    """

    loss: Number
    rates: dict[str, Number]
    samples: Count
    accuracy: Share | None = None
    accuracy_spike_count: Share | None = None
    precision: Share | None = None
    recall: Share | None = None
    f1: Share | None = None
    van_rossum: Number | None = None
    hamming: Number | None = None
    tolerance: Count | None = None
    measures: SpikeMeasuresRecord | None = None
    mse: Amount | None = None
    regression: RegressionRecord | None = None
    grids: dict[str, _Grid] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _how_good(self) -> Figures:
        of_classes = ("accuracy", "accuracy_spike_count")
        of_spikes = ("precision", "recall", "f1", "van_rossum", "hamming")
        present = [names for names in (of_classes, of_spikes, ("mse",)) if self.model_fields_set.intersection(names)]
        if not present or any(getattr(self, name) is None for names in present for name in names):
            raise ValueError("it has neither all accuracies nor all figures of spike times nor a mean squared error")
        return self


class _TrainingLine(Figures):
    step: Place
    epoch: Place
    gradient_norm: Number
    largest_gradient_norm: Number
    seconds: Number
    learning_rate: Number
    samples_per_second: Number | None = None
    zeroed: dict[str, Share] = Field(default_factory=dict)
    rate_penalty: dict[str, Amount] = Field(default_factory=dict)


class _StepLine(_TrainingLine):
    kind: Literal["step"]
    grids: Annotated[dict[str, _Grid], Field(min_length=1)]


class _EpochLine(_TrainingLine):
    kind: Literal["epoch"]


class _EvaluationLine(Figures):
    kind: Literal["evaluation"]
    split: str
    step: Place
    epoch: Place
    seconds: Number


class _HistoryLine(Record):
    """Numbers from the loop of another program that trained the network before it became a run."""

    kind: Literal["history"]
    number: Place
    step: Place
    epoch: Place
    history: Annotated[dict[str, Number], Field(min_length=1)]


_LINE: TypeAdapter[_StepLine | _EpochLine | _EvaluationLine | _HistoryLine] = TypeAdapter(
    Annotated[_StepLine | _EpochLine | _EvaluationLine | _HistoryLine, Field(discriminator="kind")]
)


class Start(Record):
    """A start of a run, an entry of `environment.json`."""

    versions: dict[str, str]
    time: str | None = None
    step: Place | None = None
    stsbp: str | None = None
    contract: Count | None = None
    backend: str | None = None
    device: str | None = None
    device_description: str | None = None
    python: str | None = None
    platform: str | None = None
    processors: Count | None = None
    command: Annotated[list[str], Field(min_length=1)] | None = None


PACKED_EXPONENTS = range(-112, 127)
"""Exponents of packed integers. Every unit is a normal float32 number, and so is 2^15 of the largest."""


class PackedTensor(Record):
    """A tensor in a packed file of weights (`stsbp.hub.packing`)."""

    shape: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=8)]
    exponent: Annotated[int, Field(ge=PACKED_EXPONENTS[0], le=PACKED_EXPONENTS[-1])] | None


class HubRecord(Record):
    """`config.json` in a folder for the Hub (`stsbp.hub.network`)."""

    sha256: Digest
    contract: Count
    step: Place
    epoch: Place
    samples: Count | None
    contents: dict[str, str]
    inputs: InputsRecord
    settings: dict[str, Any]
    test: Figures | None = None
    """The last test of these weights. None: they were not tested, or an earlier version wrote the folder."""
    packed: dict[str, PackedTensor] | None = None
    """The tensors of a packed file, in the order of its bytes."""

    @property
    def tested(self) -> dict[str, Any] | None:
        """The figures of the last test, without those that the folder does not have."""
        return None if self.test is None else self.test.model_dump(exclude_unset=True)


class TrackingRecord(Record):
    """`tracking.json`: by what trackers find a run again."""

    identity: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]


class Seed(Record):
    """The results of a seed, an entry of `experiment.json`."""

    seed: int
    run: str
    checkpoint: Digest
    epoch: Place
    test: Figures
    last: Figures
    best_tested: Figures | None
    validation: Figures | None
    seconds_per_epoch: Amount
    operations: dict[str, Amount]
    digest: Digest


class TrialMark(Record):
    """Whose trial a run is, `study.json` in its folder."""

    format: Literal[1]
    study: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    trial: Count


class SweepMark(Record):
    """The study that the runs in the folder of a sweep belong to, and the name of its worker there: `sweep.json`."""

    format: Literal[1]
    study: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    name: str
    worker: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]


class TrialFigures(Record):
    """The figures of a trial, an attribute in the storage of its study."""

    figures: dict[str, Number]


class Cache(Record):
    """The description at the end of a cache of decoded samples."""

    key: dict[str, Any]
    shape: Annotated[list[Count], Field(min_length=1, max_length=8)]
    sha256: Digest
    labels: list[Annotated[int, Field(ge=-(2**63), lt=2**63)]]
    skipped: list[Annotated[list[str], Field(min_length=2, max_length=2)]]
    lengths: list[Count] | None = None
    events: Annotated[list[Count], Field(min_length=2, max_length=2)] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Cache:
        if self.shape[0] != len(self.labels):
            raise ValueError("there is not one label a sample")
        if self.lengths is not None and self.shape[0] != len(self.lengths):
            raise ValueError("there is not one length a sample")
        return self


class Manifest(Record):
    """Digests of data files by name. Each is preceded by the size, modification time and change time of the file."""

    format: int
    files: dict[str, Annotated[list[int | str], Field(min_length=4, max_length=4)]]
    sha256: Digest


R = TypeVar("R", bound=Record)


def parse(text: bytes) -> Any:
    """The JSON values of a file.

    Raises:
        ValueError: it is not JSON in UTF-8, has numbers that are not finite, or has more than `DEEPEST` levels.
    """
    try:
        value = json.loads(text.decode(), parse_constant=_number, parse_float=_number, parse_int=_integer)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    # With few brackets, the nesting cannot be too deep.
    if text.count(b"[") + text.count(b"{") > DEEPEST and _deeper_than(value, DEEPEST):
        raise ValueError("it is nested too deeply")
    return value


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"it has the number {text[:_LONGEST_INTEGER]}, which is not finite")
    return number


def _integer(text: str) -> int:
    if len(text) > _LONGEST_INTEGER:
        raise ValueError(f"it has an integer of {len(text)} digits")
    return int(text)


def _deeper_than(value: object, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper_than(part, levels - 1) for part in inner)


def read(record_type: type[R], value: Any) -> R:
    """A record from JSON values.

    Raises:
        ValueError: the values do not fit the record; `reason` gives the reason.
    """
    return record_type.model_validate(value)


def digest_of(values: Mapping[str, Any]) -> str:
    """SHA-256 of JSON values, which a file stores beside them so that damage and edits are noticed."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def reason(error: OSError | ValueError) -> str:
    """A short reason for the error: `best.epoch: input should be a valid integer`."""
    if not isinstance(error, ValidationError):
        return str(error)
    problem = error.errors(include_url=False, include_input=False)[0]
    message = problem["msg"].removeprefix("Value error, ")
    location = ".".join(map(str, problem["loc"]))
    return f"{location}: {message[:1].lower()}{message[1:]}" if location else message


def metrics_line(line: bytes) -> dict[str, Any]:
    """A line of `metrics.jsonl`, with all fields of its kind.

    Raises:
        ValueError: it is damaged.
    """
    value: dict[str, Any] = parse(line)
    _LINE.validate_python(value)
    return value


def starts(text: bytes) -> list[dict[str, Any]]:
    """All starts in `environment.json`, oldest first, without damaged ones. Empty if the text is not JSON."""
    return _undamaged(Start, text, "starts")


def seeds(text: bytes, version: int) -> list[dict[str, Any]]:
    """The results of all seeds in an `experiment.json` of this version, without damaged ones."""
    return _undamaged(Seed, text, "seeds", version)


def _undamaged(record_type: type[Record], text: bytes, key: str, version: int | None = None) -> list[dict[str, Any]]:
    """The entries of the list `key` that are valid records. Empty if there is no list, or for another version."""
    try:
        content = parse(text)
        entries = content[key] if version in (None, content.get("format")) else []
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
    return [value for value in entries if _is(record_type, value)] if isinstance(entries, list) else []


def _is(record_type: type[Record], value: Any) -> bool:
    try:
        read(record_type, value)
    except ValueError:
        return False
    return True
