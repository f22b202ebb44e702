"""What a backend is, on one page.

A backend implements the operations of pairs.py for arrays of its own library and inherits everything else: the walk
through a network (plan.py, passes.py), `value_and_grad`, `run` and the trainer (trainer.py).
"""

from __future__ import annotations

from abc import abstractmethod

from stsbp_spec.collective import Collective, Rendezvous
from stsbp_spec.losses.base import Loss
from stsbp_spec.network import NetworkSpec
from stsbp_spec.optim.adamw import AdamW
from stsbp_spec.pairs import Pairs
from stsbp_spec.results import Batch, Device, LayerRun, NeuronResiduals, RunResult, ValueAndGrad
from stsbp_spec.stream import Stream
from stsbp_spec.trainer import Trainer, run, value_and_grad
from stsbp_spec.typing import Array, Float32, Memory, Precision, UInt8

__all__ = ["AbstractBackend", "Batch", "Device", "LayerRun", "NeuronResiduals", "RunResult", "ValueAndGrad"]


class AbstractBackend(Pairs[Array]):
    """Base class of backends. Its public methods take and return numpy arrays."""

    def __init__(self, device: str | None = None) -> None:
        """Open `device` (None: the backend's default).

        Raises:
            BackendError: the device is unknown or cannot be used; the message says why and what would.
        """
        self.device = self.open(device)

    @classmethod
    def connect(cls, rendezvous: Rendezvous, device: str | None) -> None:
        """Connect several processes. It is called in each process before `device` is opened; `Pairs.join` is called
        after that.

        It is for libraries that must know their processes before they look for devices.

        Raises:
            BackendError: the processes did not find each other.
        """

    # What is there.
    @classmethod
    @abstractmethod
    def devices(cls) -> tuple[Device, ...]:
        """All devices of this backend, including those that cannot be used here."""

    @abstractmethod
    def open(self, device: str | None) -> str:
        """Prepare a device and return its name. Raises `BackendError` if that is not possible."""

    @classmethod
    def compile_ahead(cls) -> tuple[int, int]:
        """Compile what the first training would compile and later ones load.

        Returns how many kernels were compiled, and how many there are; of a backend that keeps none: 0 and 0.
        """
        return 0, 0

    # What follows from the pairs; a backend may override these with something faster.
    def value_and_grad(
        self,
        network: NetworkSpec,
        loss: Loss,
        weights: dict[str, Float32],
        batch: Batch,
        *,
        precision: Precision = "fast",
        dropout: tuple[int, int] | None = None,
    ) -> ValueAndGrad:
        """Compute the loss, output spikes and gradients of a batch, as numpy arrays.

        Args:
            network: the network.
            loss: the loss.
            weights: master weights by layer name, float32, shapes `network.weight_shapes`.
            batch: inputs and targets.
            precision: of the backward pass.
            dropout: `(seed, step)` of the masks; None: evaluation, no dropout.

        Raises:
            ShapeError: an array has the wrong shape or dtype.
            SpecError: an unknown loss or precision, or a seed or step of dropout outside `[0, 2**32)`.
            NumericError: a weight or a gradient is not finite; names the layer.
        """
        return value_and_grad(self, network, loss, weights, batch, precision, dropout)

    def run(self, network: NetworkSpec, weights: dict[str, Float32], inputs: UInt8, steps: int) -> RunResult:
        """Run a network without dropout and return every layer's spikes and membrane potentials, as numpy arrays."""
        return run(self, network, weights, inputs, steps)

    def stream(self, network: NetworkSpec, weights: dict[str, Float32], samples: int = 1) -> Stream[Array]:
        """Run a network step by step, for inputs that arrive one after the other: see `Stream`."""
        return Stream(self, network, weights, samples)

    def trainer(
        self,
        network: NetworkSpec,
        loss: Loss,
        optimizer: AdamW,
        *,
        precision: Precision = "fast",
        seed: int = 0,
        memory: Memory = "full",
        micro_batch: int | None = None,
        collective: Collective[Array] | None = None,
    ) -> Trainer[Array]:
        """Make a trainer with the methods `init`, `step`, `predict`, `export_state` and `import_state`."""
        return Trainer(self, network, loss, optimizer, precision, seed, memory, micro_batch, collective)
