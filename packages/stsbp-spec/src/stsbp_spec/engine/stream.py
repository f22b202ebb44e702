"""A network that runs step by step on any backend. It keeps its states, so results equal one pass over all steps."""

from __future__ import annotations

from functools import partial
from typing import Generic

import numpy as np

from stsbp_spec.contract.grid import unsigned_zeros
from stsbp_spec.engine.checks import check_inputs, check_weights, inputs_as_bytes
from stsbp_spec.engine.operations import Operations, weights_on_grid
from stsbp_spec.engine.programs import resumed
from stsbp_spec.engine.results import LayerRun
from stsbp_spec.errors import ShapeError, SpecError
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import AnyArray, Array, Float32, UInt8
from stsbp_spec.validation import integer, shown

__all__ = ["Stream"]


class Stream(Generic[Array]):
    """A network in evaluation mode that runs step by step and keeps its state.

    Its memory does not grow with the number of steps.

    Args:
        backend: the backend that computes.
        network: the network.
        weights: master weights by layer name, as `AbstractBackend.run` takes them.
        samples: `B`, the number of inputs that are computed at once.

    Attributes:
        steps: number of steps since the beginning, or since `reset`.

    Raises:
        ShapeError: an array of weights has the wrong shape or type.
        SpecError: there are no samples.
        NumericError: a weight is not finite. The message names the layer.
    """

    def __init__(
        self, backend: Operations[Array], network: NetworkSpec, weights: dict[str, Float32], samples: int = 1
    ) -> None:
        check_weights(network, weights)
        if (number := integer(samples)) is None or number < 1:
            raise SpecError(f"a stream has at least 1 sample, got {shown(samples)}")
        self._backend, self._network, self._samples = backend, network, number
        native = {name: backend.asarray(w.copy()) for name, w in weights.items()}
        self._go_on = partial(backend.compiled(resumed, network, 1), weights_on_grid(backend, network.graph, native)[0])
        self.reset()

    def reset(self) -> None:
        """Start again. All neurons are at rest, delays are empty, and there is no image."""
        self.steps = 0
        self._kept_states: dict[str, tuple[Array, ...]] = {}
        self._layer_states: list[tuple[Array, Array]] = []
        self._image: Array | None = None

    @np.errstate(over="ignore", invalid="ignore")
    def step(self, inputs: UInt8 | None = None) -> AnyArray:
        """Compute one step. If this raises an error, the state has not changed.

        Args:
            inputs: the input of this step, uint8 `[B, C, H, W]` or `[B, N]`: an event frame, or with direct coding an
                image. None: no events, or the previous image again.

        Returns:
            Output spikes, uint8 `[B, N]`. For a network that ends with a readout, its potentials, float32.

        Raises:
            ShapeError: the inputs do not fit the network, or there has not been an image yet.
        """
        x = self._encoded(inputs)
        layer_states, next_states = self._go_on(x, self._kept_states)
        spikes, potentials = layer_states[-1]
        # Computations on the device may fail only when their result is read.
        output = self._potentials(potentials) if self._network.has_readout else self._spikes(spikes)
        self._layer_states, self._kept_states = layer_states, next_states
        self._image = x if self._network.coding == "direct" else None
        self.steps += 1
        return output

    @property
    def layers(self) -> dict[str, LayerRun]:
        """Spikes and potentials of every layer at the last step, `[B, ...]` by name; empty before the first step."""
        return {
            block.name: LayerRun(self._spikes(spikes), self._potentials(potentials))
            for block, (spikes, potentials) in zip(self._network.blocks, self._layer_states, strict=False)
        }

    def _encoded(self, inputs: UInt8 | None) -> Array:
        network, shape = self._network, (self._samples, *self._network.input_shape)
        if inputs is None and network.coding == "direct":
            if self._image is None:
                raise ShapeError(f"the first step of a network that reads images needs an image, uint8 {shape}")
            return self._image
        frame = np.zeros(shape, np.uint8) if inputs is None else inputs
        if not isinstance(frame, np.ndarray) or frame.shape != shape:
            kind = frame.shape if isinstance(frame, np.ndarray) else type(frame).__name__
            raise ShapeError(f"a step of this stream takes uint8 [B, ...] = {shape}, got {kind}")
        frame = inputs_as_bytes(network, frame)
        frames = frame[np.newaxis] if network.coding == "events" else frame
        check_inputs(network, frames, 1)
        return self._backend.encode(frames, network.coding)

    def _spikes(self, x: Array) -> UInt8:
        spikes: UInt8 = self._backend.numpy(x)[0].astype(np.uint8)
        return spikes

    def _potentials(self, x: Array) -> Float32:
        return unsigned_zeros(self._backend.numpy(x)[0])
