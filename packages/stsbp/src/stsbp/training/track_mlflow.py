"""The records of a run in MLflow, for `--track mlflow`.

The run is found again by a tag with the identity of the stsbp run. Numbers that MLflow already has are not written
again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from stsbp.errors import ConfigError
from stsbp.training.tracking import TrackedRun, point_of, scalars

__all__ = ["open_mlflow", "require_mlflow"]

EXPERIMENT = "stsbp"
"""The experiment, unless the environment variable MLFLOW_EXPERIMENT_NAME names another one."""
IDENTITY_TAG = "stsbp.run"
"""The tag with `TrackedRun.identity`."""
_MOST_METRICS = 1000
_MOST_PARAMETERS = 100
"""Largest numbers that one request to MLflow may have."""
_LONGEST_PARAMETER = 6000


class _MlflowParts(NamedTuple):
    """The used parts of mlflow."""

    client: Any
    metric: Any
    parameter: Any


def require_mlflow() -> _MlflowParts:
    """Import the used parts of mlflow.

    Raises:
        ConfigError: mlflow is not installed.
    """
    try:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param
    except ImportError as error:
        raise ConfigError(f'--track mlflow needs the library mlflow ({error}): pip install "stsbp[mlflow]"') from error
    return _MlflowParts(MlflowClient, Metric, Param)


def open_mlflow(run: TrackedRun) -> _MlflowTracker:
    """Begin or continue a run of MLflow, in the store that MLFLOW_TRACKING_URI names.

    Raises:
        ConfigError: mlflow is not installed.
    """
    return _MlflowTracker(require_mlflow(), run)


class _MlflowTracker:
    def __init__(self, library: _MlflowParts, run: TrackedRun) -> None:
        self._library = library
        # The functions of the module mlflow would also store user, program, command and commit. The client does not.
        self._client = client = library.client()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        experiment = client.get_experiment_by_name(name)
        experiment_id = client.create_experiment(name) if experiment is None else experiment.experiment_id
        earlier = client.search_runs([experiment_id], f"tags.`{IDENTITY_TAG}` = '{run.identity}'", max_results=1)
        if earlier:
            self._id = earlier[0].info.run_id
            client.update_run(self._id, status="RUNNING")
            known = earlier[0].data.params
            tags = list(earlier[0].data.metrics)
            logged = {(tag, metric.step) for tag in tags for metric in client.get_metric_history(self._id, tag)}
        else:
            self._id = client.create_run(
                experiment_id, tags={IDENTITY_TAG: run.identity}, run_name=run.name
            ).info.run_id
            known, logged = {}, set()
        texts = {key: str(value)[:_LONGEST_PARAMETER] for key, value in run.settings.items()}
        new = [library.parameter(key, text) for key, text in texts.items() if key not in known]
        for first in range(0, len(new), _MOST_PARAMETERS):
            client.log_batch(self._id, params=new[first : first + _MOST_PARAMETERS])
        for key, text in texts.items():
            # MLflow refuses another value of a parameter. A resumed run may have more epochs or another patience.
            if known.get(key, text) != text:
                client.set_tag(self._id, f"stsbp.{key}", text)
        missing = [metric for record in run.records for metric in self._metrics(record)]
        missing = [metric for metric in missing if (metric.key, metric.step) not in logged]
        for first in range(0, len(missing), _MOST_METRICS):
            client.log_batch(self._id, metrics=missing[first : first + _MOST_METRICS])
        self._logged = logged

    def _metrics(self, record: Mapping[str, Any]) -> list[Any]:
        milliseconds = time.time_ns() // 1_000_000
        point = point_of(record)
        return [self._library.metric(tag, value, milliseconds, point) for tag, value in scalars(record)]

    def write(self, record: Mapping[str, Any]) -> None:
        # A process that was killed may have written lines after the last checkpoint, which come again.
        metrics = [metric for metric in self._metrics(record) if (metric.key, metric.step) not in self._logged]
        for first in range(0, len(metrics), _MOST_METRICS):
            self._client.log_batch(self._id, metrics=metrics[first : first + _MOST_METRICS])

    def close(self, *, finished: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")
