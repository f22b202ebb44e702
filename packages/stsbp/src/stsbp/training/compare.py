"""The facts by which runs are compared, from their records alone, for `stsbp compare` and `stsbp.compare`."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stsbp.config import RunConfig
from stsbp.energy.stored import stored_energy
from stsbp.errors import CheckpointError, ConfigError, did_you_mean, printable
from stsbp.training import checkpoint
from stsbp.training.build import build_loss, decoders
from stsbp.training.metrics import read_records
from stsbp.training.run_folder import RunFolder

__all__ = [
    "MEASURED",
    "NOT_COMPARABLE",
    "SHORT",
    "are_comparable",
    "facts",
    "flat",
    "have_other_samples",
    "rows",
    "rows_csv",
    "sample_settings",
    "sorted_facts",
]

NOT_COMPARABLE = "* not comparable: of other samples, another loss, other label sequences or another synaptic filter"
"""What the mark `*` beside a figure of several runs means."""

_LABELS = ("label_pattern", "undesired_pattern", "steps")
_FILTER = ("tau_s", "tau_rise", "psp_gain")
MEASURED: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("precision", "recall", "f1", "hamming"), _LABELS),
    "van_rossum": (*_LABELS, *_FILTER),
    "loss": ("loss", "loss_model", *_LABELS, *_FILTER),
}
"""Settings that determine how a figure is measured."""
_SAMPLES = ("dataset", "holdout", "split_seed", "image_size", "skip_malformed")
"""Settings that determine the samples of all splits. Test samples also depend on `test_on`, and the others on `limit`
and `validation`, which only choose among the samples that are not held out for the test."""
_ENCODING = ("steps", "window_ms", "bin_ms", "own_lengths", "saccades", "stabilise", "input_tau_s")
"""Settings with which the same samples are other inputs. Accuracies of such runs can be compared."""
_NAMES = {"training": "train"}
"""Names of splits in checkpoints, where they differ from those of figures."""

SHORT = ("accuracy", "f1", "mse", "loss")
"""Figures of each split in a short comparison, as far as the runs have them. Runs of classes have no F1 there."""


def facts(run: Path, warn: Callable[[str], object]) -> dict[str, Any]:
    """The facts about a run: `run`, `settings`, `contents`, `epochs`, `seconds`, `training`, `validation`, `test`,
    `backend`, `energy`.

    `contents` are the digests of the data in the last checkpoint. It is empty if that has none, or is damaged.

    `energy` is what `stsbp evaluate --energy` stored for the last or the best checkpoint; None: nothing.

    `decoders` are the names of `accuracy` and `accuracy_spike_count`. It is empty if the run has no classes.

    `warn` receives warnings about damaged records.

    Raises:
        CheckpointError: the path is not a run, or its files cannot be read.
    """
    folder = RunFolder(run)
    config = folder.read_config()
    records, starts = read_records(folder.path, config, warn), folder.starts()
    epochs = [r for r in records if r["kind"] == "epoch"]
    result: dict[str, Any] = {
        "run": str(run),
        "settings": config.model_dump(),
        "contents": _contents(folder.path),
        "epochs": epochs[-1]["epoch"] if epochs else 0,
        "seconds": round(sum(r["seconds"] for r in epochs), 1),
        "backend": f"{starts[-1].get('backend')} on {starts[-1].get('device')}" if starts else None,
        "training": epochs[-1] if epochs else None,
    }
    for split in ("validation", "test"):
        rows = [r for r in records if r["kind"] == "evaluation" and r.get("split") == split]
        result[split] = rows[-1] if rows else None
    result["energy"] = _energy(folder.path, warn)
    classes = any("accuracy" in record for record in records)
    result["decoders"] = list(decoders(build_loss(config).of_potentials)) if classes else []
    return result


def _energy(folder: Path, warn: Callable[[str], object]) -> dict[str, Any] | None:
    """The stored energy of a run, unless it is that of a checkpoint which is no longer there."""
    energy = stored_energy(folder, warn)
    if energy is None:
        return None
    digests = set[str]()
    for name in ("last", "best"):
        with contextlib.suppress(CheckpointError):
            digests.add(str(checkpoint.described(folder, name).get("sha256")))
    return energy if energy["sha256"] in digests else None


def _contents(folder: Path) -> dict[str, str]:
    """The digests of the data in the last checkpoint (`stsbp.training.build.Data.contents`)."""
    try:
        contents = checkpoint.described(folder, "last").get("contents", {})
    except CheckpointError:
        # Reading the records has already told it.
        return {}
    return {str(name): str(digest) for name, digest in contents.items()} if isinstance(contents, dict) else {}


def sample_settings(split: str) -> tuple[str, ...]:
    """Settings that determine the samples of a split."""
    return (*_SAMPLES, *(("test_on",) if split == "test" else ("limit", "validation")))


def are_comparable(run_facts: Sequence[dict[str, Any]], split: str, measure: str) -> bool:
    """Whether a result of these runs was measured on the same samples and in the same way.

    Args:
        run_facts: of each run `settings`, `contents`, and the record of the split with `samples`, as `facts` has them.
        split: `training` or `train`, `validation` or `test`.
        measure: name of the figure.
    """
    keys = (*sample_settings(split), *MEASURED.get(measure, ()))
    conditions = {(fact[split]["samples"], *(fact["settings"][key] for key in keys)) for fact in run_facts}
    return len(conditions) <= 1 and not have_other_samples(run_facts, split)


def have_other_samples(run_facts: Sequence[dict[str, Any]], split: str) -> bool:
    """Whether the samples of a split differ between two runs, by the digests in `contents`.

    Inputs and targets are compared only between runs that encode samples in the same way.
    """
    samples = f"of the {_NAMES.get(split, split)} samples"
    digests: dict[tuple[Any, ...], set[str]] = {}
    for fact in run_facts:
        encoding = tuple(fact["settings"][key] for key in _ENCODING)
        for name, settings_values in (("labels", ()), ("inputs", encoding), ("targets", encoding)):
            if (digest := fact["contents"].get(f"{name} {samples}")) is not None:
                digests.setdefault((name, *settings_values), set()).add(digest)
    return any(len(different) > 1 for different in digests.values())


def sorted_facts(run_facts: Sequence[dict[str, Any]], key: str | None, *, reverse: bool) -> list[dict[str, Any]]:
    """The facts in the order of a column of `rows`, smallest first. Runs without a value come last.

    Args:
        run_facts: the `facts` of the runs.
        key: name of the column; None: the order is kept.
        reverse: whether the largest comes first.

    Raises:
        ConfigError: there is no such column, or its values have no order. The message lists the columns.
    """
    if key is None:
        if reverse:
            raise ConfigError("--reverse is the order of --sort; give --sort KEY, too")
        return list(run_facts)
    table = rows(run_facts, with_settings=True)
    known = list(dict.fromkeys(name for row in table for name in row))
    known = [name for name in known if any(isinstance(row.get(name), (int, float, str)) for row in table)]
    if key not in known:
        listed = dict.fromkeys(name for row in rows(run_facts) for name in row if name in known)
        listed_names = [name for name in listed if ".measures." not in name]
        raise ConfigError(
            f"--sort {key!r}: there is no such column{did_you_mean(key, known)}; known: {', '.join(listed_names)}, "
            "every setting, and the measures of spike times in --csv"
        )
    values = [row.get(key) for row in table]
    kinds = {str if isinstance(value, str) else float for value in values if value is not None}
    if len(kinds) > 1:
        raise ConfigError(f"--sort {key!r}: some of its values are numbers and others are texts, which have no order")
    with_value = [index for index, value in enumerate(values) if value is not None]
    order = sorted(with_value, key=lambda index: values[index], reverse=reverse)  # type: ignore[arg-type, return-value]
    return [run_facts[i] for i in (*order, *(i for i, value in enumerate(values) if value is None))]


def rows_csv(table: Sequence[Mapping[str, Any]], names: Sequence[str] | None = None) -> str:
    """Rows as CSV, with a column for every name that some row has. Lists are JSON.

    `names` are the columns in their order; None: in the order in which the rows first have them.
    """
    text = io.StringIO()
    names = names or list(dict.fromkeys(name for row in table for name in row))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for row in table:
        writer.writerow({name: _csv_cell(value) for name, value in row.items()})
    return text.getvalue()


def _csv_cell(value: Any) -> Any:
    if isinstance(value, (list, dict)):
        return json.dumps(value)
    return printable(value) if isinstance(value, str) else value


def rows(
    run_facts: Sequence[Mapping[str, Any]], *, short: bool = False, with_settings: bool = False
) -> list[dict[str, Any]]:
    """A row of plain values for each run: its folder, the settings in which the runs differ, results and times.

    Args:
        run_facts: the `facts` of the runs.
        short: whether only the figures of `SHORT`, the energy and the time are in a row, besides the settings.
        with_settings: whether all settings are in a row.
    """
    settings = [fact["settings"] for fact in run_facts]
    differing = [
        key
        for key in RunConfig.model_fields
        if key == "dataset" or with_settings or any(s[key] != settings[0][key] for s in settings)
    ]
    if short:
        return [
            {
                "run": fact["run"],
                **{key: fact["settings"][key] for key in differing},
                "epochs_done": fact["epochs"],
                **{
                    f"{split}.{key}": (fact[split] or {})[key]
                    for split in ("training", "validation", "test")
                    for key in _short_figures(fact[split] or {})
                },
                **({} if fact["energy"] is None else {"energy.pj": fact["energy"]["pj"]["total"]}),
                "seconds": fact["seconds"],
            }
            for fact in run_facts
        ]
    return [
        {
            "run": fact["run"],
            **{key: fact["settings"][key] for key in differing},
            "epochs_done": fact["epochs"],
            **{
                f"{split}.{key}": value
                for split in ("training", "validation", "test")
                for key, value in flat(fact[split] or {}).items()
                if key not in ("kind", "split")
            },
            **_energy_columns(fact["energy"]),
            "seconds": fact["seconds"],
            "backend": fact["backend"],
        }
        for fact in run_facts
    ]


def _short_figures(record: Mapping[str, Any]) -> list[str]:
    """The figures of a record that a short comparison has."""
    return [key for key in SHORT if key in record and not (key == "f1" and "accuracy" in record)]


def _energy_columns(energy: Mapping[str, Any] | None) -> dict[str, Any]:
    if energy is None:
        return {}
    described = {name: energy[name] for name in ("split", "samples", "table", "table_sha256")}
    return {f"energy.{name}": value for name, value in {**described, "pj": energy["pj"]["total"]}.items()}


def flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A record without nested mappings: the value at `rates`, `conv1` has the name `rates.conv1`."""
    values: dict[str, Any] = {}
    for key, value in record.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return values
