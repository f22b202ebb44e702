"""What the storage of a study says about its sweep: the trials, the best of them, and how to train these again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any

from stsbp.config import RunConfig
from stsbp.sweeps.objectives import Objective
from stsbp.sweeps.show import TrialRow, best_rows, columns, csv_text, html_page, print_table, train_words
from stsbp.sweeps.study import Study, StudyIdentity, quiet

__all__ = ["SweepView"]


@dataclass(frozen=True)
class SweepView:
    """The trials of a study at a moment.

    Attributes:
        name: name of the study.
        identity: what the study is.
        rows: all trials.
    """

    name: str
    identity: StudyIdentity
    rows: Sequence[TrialRow]

    @classmethod
    def of(cls, study: Study) -> SweepView:
        """The trials that a study has now."""
        with quiet():
            return cls(study.name, study.identity, tuple(study.rows()))

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """The objectives."""
        return self.identity.objectives

    @cached_property
    def best(self) -> list[TrialRow]:
        """The finished trials that no other one beats, best first."""
        return best_rows(self.rows, self.objectives)

    @property
    def columns(self) -> list[dict[str, Any]]:
        """A row of plain values for each trial."""
        return columns(self.rows, self.objectives)

    def count(self, state: str) -> int:
        """Number of trials in a state."""
        return sum(row.state == state for row in self.rows)

    @property
    def counts(self) -> str:
        """How many trials are in each state, as text."""
        states = dict.fromkeys(row.state for row in self.rows)
        return ", ".join(f"{self.count(state)} {state}" for state in states) or "none has begun"

    def config(self, row: TrialRow) -> RunConfig:
        """The settings of a trial."""
        return self.identity.config({name: value for name, value in row.params.items() if value is not None})

    def command(self, row: TrialRow, program: str = "stsbp") -> str:
        """The command that trains a trial again, and tests the network. `program` is the word for this program."""
        return shlex.join(
            [program, *row.options, *train_words(self.config(row), f"runs/{self.name}-trial-{row.number}")]
        )

    def print_table(self, file: IO[str]) -> None:
        """Print the trials as a table."""
        print_table(self.rows, tuple(self.identity.variations), self.objectives, file)

    def csv(self) -> str:
        """The trials as CSV."""
        return csv_text(self.rows, self.objectives)

    def html(self) -> str:
        """The sweep as one HTML file."""
        identity = self.identity
        varied = ", ".join(f"{name} ({_described(x.record)})" for name, x in identity.variations.items())
        pruner = "" if identity.pruner == "none" else f", pruner {identity.pruner}"
        explanation = (
            f"{identity.settings.dataset}; varied: {varied}; sampler {identity.sampler}{pruner}. All values are those "
            "of validation samples, at the best epoch of each run."
        )
        commands = {row.number: self.command(row) for row in self.best}
        return html_page(self.name, self.rows, tuple(identity.variations), self.objectives, explanation, commands)


def _described(record: dict[str, Any]) -> str:
    """A variation in words."""
    if "values" in record:
        return ", ".join(map(str, record["values"]))
    words = [f"{record['low']:g} to {record['high']:g}"]
    words += ["logarithmic"] if record["log"] else []
    words += [f"in steps of {record['step']:g}"] if record["step"] is not None else []
    words += ["whole numbers"] if record["whole"] and record["step"] is None else []
    return " ".join(words)
