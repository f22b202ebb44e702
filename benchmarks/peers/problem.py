"""What every peer is given: a network in plain words, its weights and one batch, so that no peer needs stsbp.

`python compare.py` writes it; a worker in the peer's own environment reads it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Problem:
    """A network and a batch.

    Attributes:
        layers: in order; `kind` is `conv` (`stride`, `padding`, `weight`), `linear` (`weight`), `recurrent` (`weight`,
            `recurrent`: of the neurons' own spikes of the step before) or `pool` (`size`).
        weights: float32, by the name that `weight` gives.
        inputs: uint8, frames `[T, B, C, H, W]` or `[T, B, N]`, or images `[B, C, H, W]` that are shown at each of T
            steps.
        labels: class numbers `[B]`.
        steps: T.
        tau_m, tau_s, threshold: of every layer.
        lr: of AdamW.
        setup: `device`, and the settings of stsbp's own run.
    """

    layers: list[dict[str, Any]]
    weights: dict[str, npt.NDArray[np.float32]]
    inputs: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    steps: int
    tau_m: float
    tau_s: float
    threshold: float
    lr: float
    setup: dict[str, Any]

    @property
    def direct(self) -> bool:
        """Whether one image serves all steps."""
        return self.inputs.ndim == 4

    @property
    def frames(self) -> npt.NDArray[np.uint8]:
        """Inputs of every step, `[T, B, C, H, W]` or `[T, B, N]`."""
        return self.every_step(self.inputs)

    def every_step(self, inputs: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The same of another batch."""
        return np.ascontiguousarray(np.repeat(inputs[None], self.steps, 0)) if self.direct else inputs

    @property
    def input_scale(self) -> float:
        """Factor of the inputs: images are multiples of 2^-8."""
        return 2.0**-8 if self.direct else 1.0

    def write(self, path: Path) -> None:
        """Write everything as one .npz file."""
        arrays = {f"weight/{name}": w for name, w in self.weights.items()}
        fields = {"layers": self.layers, "setup": self.setup}
        fields |= {name: getattr(self, name) for name in ("steps", "tau_m", "tau_s", "threshold", "lr")}
        np.savez(path, inputs=self.inputs, labels=self.labels, words=np.array(json.dumps(fields)), **arrays)  # type: ignore[arg-type]

    @classmethod
    def read(cls, path: Path) -> Problem:
        """Inverse of `write`."""
        with np.load(path, allow_pickle=False) as file:
            fields = json.loads(str(file["words"]))
            weights = {name.removeprefix("weight/"): file[name] for name in file.files if name.startswith("weight/")}
            return cls(weights=weights, inputs=file["inputs"], labels=file["labels"], **fields)
