"""The base class of backends.

A backend implements the operations of operations.py for arrays of its own library. It inherits everything else: the
walk through a network (plan.py, passes.py), `value_and_grad`, `run` and the trainer (trainer.py).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping
from types import MappingProxyType

from stsbp_spec.distributed.collective import Collective, Rendezvous
from stsbp_spec.engine.operations import Operations
from stsbp_spec.engine.results import Batch, Device, LayerRun, NeuronResiduals, RunResult, ValueAndGrad
from stsbp_spec.engine.stream import Stream
from stsbp_spec.engine.trainer import Trainer, run, value_and_grad
from stsbp_spec.errors import BackendError
from stsbp_spec.models.losses.base import Loss
from stsbp_spec.models.optim.base import Optimizer
from stsbp_spec.models.rate_penalty import RatePenalty
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import Array, Float32, Memory, Precision, UInt8
from stsbp_spec.validation import shown

__all__ = ["AbstractBackend", "Batch", "Device", "LayerRun", "NeuronResiduals", "RunResult", "ValueAndGrad"]


class AbstractBackend(Operations[Array]):
    """Base class of backends. Its public methods take and return numpy arrays."""

    def __init__(self, device: str | None = None) -> None:
        """Open `device` (None: the backend's default).

        Raises:
            BackendError: the device is unknown or cannot be used. The message gives the reason and a remedy.
        """
        if not (device is None or isinstance(device, str)):
            raise BackendError(f"a device has a name such as 'cpu', got {shown(device)}; None is the default")
        self.device = self.open(device)

    @classmethod
    def connect(cls, rendezvous: Rendezvous, device: str | None) -> None:
        """Connect several processes. It is called in each process before `device` is opened, and `Operations.join`
        after that.

        Some libraries must know their processes before they look for devices. This method is for them.

        Raises:
            BackendError: the processes did not find each other.
        """

    # Devices.
    @classmethod
    @abstractmethod
    def devices(cls) -> tuple[Device, ...]:
        """All devices of this backend, including those that cannot be used here."""

    @abstractmethod
    def open(self, device: str | None) -> str:
        """Prepare a device and return its name. Raises `BackendError` if that is not possible."""

    @classmethod
    def compile_ahead(cls) -> tuple[int, int]:
        """Compile in advance the kernels that the first training run would compile.

        Returns the number of kernels that were compiled, and the number of all kernels. Both are 0 for a backend that
        does not store compiled kernels.
        """
        return 0, 0

    # Derived from the operations above. A backend may override these methods with faster ones.
    def value_and_grad(
        self,
        network: NetworkSpec,
        loss: Loss,
        weights: dict[str, Float32],
        batch: Batch,
        *,
        precision: Precision = "fast",
        dropout: tuple[int, int] | None = None,
        rate_penalty: Mapping[str, RatePenalty] = MappingProxyType({}),
    ) -> ValueAndGrad:
        """Compute the loss, output spikes and gradients of a batch, as numpy arrays.

        Args:
            network: the network.
            loss: the loss.
            weights: master weights by layer name, float32, shapes `network.weight_shapes`.
            batch: inputs and targets.
            precision: precision of the backward pass.
            dropout: `(seed, step)` of the dropout masks; None: evaluation without dropout.
            rate_penalty: penalties on the firing rates of layers, by layer name.

        Raises:
            ShapeError: an array has the wrong shape or dtype.
            SpecError: the loss or the precision is unknown, or the seed or step of dropout is outside `[0, 2**32)`.
            NumericError: a weight or a gradient is not finite. The message names the layer.
        """
        return value_and_grad(self, network, loss, weights, batch, precision, dropout, rate_penalty)

    def run(self, network: NetworkSpec, weights: dict[str, Float32], inputs: UInt8, steps: int) -> RunResult:
        """Run a network without dropout. Returns the spikes and membrane potentials of all layers, as numpy arrays."""
        return run(self, network, weights, inputs, steps)

    def stream(self, network: NetworkSpec, weights: dict[str, Float32], samples: int = 1) -> Stream[Array]:
        """Run a network step by step, for inputs that arrive over time. See `Stream`."""
        return Stream(self, network, weights, samples)

    def trainer(
        self,
        network: NetworkSpec,
        loss: Loss,
        optimizer: Optimizer,
        *,
        precision: Precision = "fast",
        seed: int = 0,
        memory: Memory = "full",
        micro_batch: int | None = None,
        collective: Collective[Array] | None = None,
        frozen: Collection[str] = (),
        rate_penalty: Mapping[str, RatePenalty] = MappingProxyType({}),
    ) -> Trainer[Array]:
        """Make a trainer with the methods `init`, `step`, `predict`, `export_state` and `import_state`.

        Arguments: see `Trainer`.
        """
        return Trainer(
            self, network, loss, optimizer, precision, seed, memory, micro_batch, collective, frozen, rate_penalty
        )
