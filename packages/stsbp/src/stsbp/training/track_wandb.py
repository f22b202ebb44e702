"""The records of a run in Weights & Biases, for `--track wandb`.

Weights & Biases numbers the rows of its history. The number of a row is here that of the line in `metrics.jsonl`.
Offline, every start writes all lines so far into a new folder, under the same id, so the newest folder is complete.
Online, lines whose row the server already has are left out.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from stsbp.errors import ConfigError
from stsbp.training.tracking import TrackedRun, point_of, scalars

__all__ = ["open_wandb", "require_wandb"]

PROJECT = "stsbp"
"""The project, unless the environment variable WANDB_PROJECT names another one."""


def require_wandb() -> Any:
    """Import wandb.

    Raises:
        ConfigError: wandb is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(f'--track wandb needs the library wandb ({error}): pip install "stsbp[wandb]"') from error
    # A folder `wandb`, which offline runs make, is a namespace package if the library is not installed.
    if not hasattr(wandb, "init"):
        raise ConfigError('--track wandb needs the library wandb: pip install "stsbp[wandb]"')
    return wandb


def open_wandb(run: TrackedRun) -> _WandbTracker:
    """Begin or continue a run of Weights & Biases. It is offline unless WANDB_MODE says otherwise.

    Raises:
        ConfigError: wandb is not installed.
    """
    return _WandbTracker(require_wandb(), run)


class _WandbTracker:
    def __init__(self, wandb: Any, run: TrackedRun) -> None:
        # Each of these would store something about the machine or the program beside settings and records.
        settings = wandb.Settings(
            mode=os.environ.get("WANDB_MODE") or "offline",
            console="off",
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            host="",
            program="",
            root_dir=os.environ.get("WANDB_DIR") or ".",
            save_code=False,
            silent=True,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        # wandb replaces both, to learn how the program ends. `close` tells it, so they are put back.
        hooks = sys.exit, sys.excepthook
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=run.identity,
            name=run.name,
            config=dict(run.settings),
            # Only the number of epochs and the patience can change.
            allow_val_change=True,
            resume=None if settings.mode == "offline" else "allow",
            reinit="create_new",
            settings=settings,
        )
        sys.exit, sys.excepthook = hooks
        self._first_row: int = self._run.step
        self._row = 0
        self._run.define_metric("update", hidden=True)
        self._run.define_metric("*", step_metric="update")
        for record in run.records:
            self.write(record)

    def write(self, record: Mapping[str, Any]) -> None:
        if self._row >= self._first_row:
            self._run.log({"update": point_of(record), **dict(scalars(record))}, step=self._row)
        self._row += 1

    def close(self, *, finished: bool) -> None:
        self._run.summary["finished"] = finished
        self._run.finish()
