"""The facts by which runs are compared, from their records alone, for `stsbp compare` and `stsbp.compare`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stsbp.config import RunConfig
from stsbp.energy.stored import stored_energy
from stsbp.errors import CheckpointError
from stsbp.training import checkpoint
from stsbp.training.build import build_loss, decoders
from stsbp.training.metrics import read_records
from stsbp.training.run_folder import RunFolder

__all__ = ["MEASURED", "facts", "flat", "rows"]

_LABELS = ("label_pattern", "undesired_pattern", "steps")
_FILTER = ("tau_s", "tau_rise", "psp_gain")
MEASURED: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("precision", "recall", "f1", "hamming"), _LABELS),
    "van_rossum": (*_LABELS, *_FILTER),
    "loss": ("loss", "loss_model", *_LABELS, *_FILTER),
}
"""Settings that determine how a figure is measured."""


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
    result["energy"] = _energy(folder.path)
    classes = any("accuracy" in record for record in records)
    result["decoders"] = list(decoders(build_loss(config).of_potentials)) if classes else []
    return result


def _energy(folder: Path) -> dict[str, Any] | None:
    """The stored energy of a run, unless it is that of a checkpoint which is no longer there."""
    energy = stored_energy(folder)
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


def rows(run_facts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row of plain values for each run: its folder, the settings in which the runs differ, results and times.

    Args:
        run_facts: the `facts` of the runs.
    """
    settings = [fact["settings"] for fact in run_facts]
    differing = [
        key for key in RunConfig.model_fields if key == "dataset" or any(s[key] != settings[0][key] for s in settings)
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
