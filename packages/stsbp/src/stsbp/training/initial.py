"""The initial weights of a run: those of the spec, optionally scaled layer by layer until every layer fires.

Spikes become fewer from layer to layer, especially with few steps, and a silent layer learns little. With `init_rate`,
layers that fire less than this rate get larger weights, from the first layer to the last. The factors are measured on
the data, as in layer-sequential unit-variance initialisation (Mishkin and Matas 2016), with the spike rate in place of
the variance. Layers that fire more often are not changed.

Spike rates are counts, which are equal on every backend, and the factors are short dyadic fractions. The scaled weights
therefore have the same bits on every backend.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from stsbp_spec.contract.random import Stream, permutation
from stsbp_spec.errors import NumericError
from stsbp_spec.models.encoders.packed import Inputs
from stsbp_spec.models.user_classes import calling
from stsbp_spec.networks.initial_weights import initial_weights
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import Float32, Int64, Shape

from stsbp.config import OWN, RunConfig, is_named, split_start, to_toml
from stsbp.datasets import Split
from stsbp.errors import CheckpointError, ConfigError
from stsbp.hub.references import read_network
from stsbp.training import checkpoint
from stsbp.training.build import Task, build_neuron
from stsbp.training.checkpoint import Checkpoint
from stsbp.training.run_folder import RunFolder
from stsbp.training.trainable import check_trainable

__all__ = ["GAINS", "borrowed_weights", "first_weights", "pinned", "scaled_to_rate"]

GAINS = tuple(2.0**octave * (1 + quarter / 4) for octave in range(6) for quarter in range(4))
"""Possible factors of the weights of a layer: 1 to 56, four per octave."""
_SAMPLES = 64


def first_weights(task: Task, train: Split) -> dict[str, Float32]:
    """Master weights of every layer before the first update of a run, `[out, ...]` float32."""
    config = task.config
    if config.init_from:
        return borrowed_weights(task.network, config)
    weights = initial_weights(task.network, config.seed, config.init_gain)
    if not config.init_rate:
        return weights
    sample_indices = permutation(config.seed, Stream.SHUFFLE, len(train))[:_SAMPLES]
    batch, _ = task.batch(train, sample_indices)
    return scaled_to_rate(task, weights, batch.inputs, config.init_rate, batch.lengths)


def pinned(config: RunConfig) -> RunConfig:
    """The settings together with the objects that they refer to: SHA-256 of the weights of `init_from`, classes as
    data.

    The run can then only begin with these weights. It no longer needs the modules of neuron, surrogate and loss.

    Raises:
        SpecError: a module cannot be imported, or a class cannot be stored.
        ConfigError: settings contradict each other, or are too long to be stored.
        CheckpointError: there is no such run, or its checkpoint is damaged or does not have the given SHA-256.
    """
    for setting, user_class in OWN.items():
        named, model = getattr(config, setting), getattr(config, user_class.model)
        if user_class.names_a_class(named) and not model:
            with calling(f"{setting} = {named} cannot be stored as data"):
                user_object = build_neuron(config) if setting == "neuron" else user_class.parse(named)
                config = config.model_copy(update={user_class.model: user_class.as_text(user_object)})
    if config.init_from:
        config = config.model_copy(update={"init_sha256": _start(config).info["sha256"]})
    elif config.init_sha256:
        raise ConfigError(
            "init_sha256 is given for the weights of init_from, but init_from names no run; leave init_sha256 out"
        )
    to_toml(config)
    return config


def _start(config: RunConfig) -> Checkpoint:
    if is_named(config.init_from):
        network = read_network(config.init_from)
        saved = Checkpoint({f"weight/{name}": x for name, x in network.weights.items()}, network.info)
    else:
        path, name = split_start(config.init_from)
        RunFolder(path).read_config()
        saved = checkpoint.load(path, name)
    if config.init_sha256 not in ("", saved.info["sha256"]):
        raise CheckpointError(
            f"the weights of {config.init_from} are not the expected ones: their SHA-256 is "
            f"{saved.info['sha256']}, not {config.init_sha256}"
        )
    return saved


def borrowed_weights(network: NetworkSpec, config: RunConfig) -> dict[str, Float32]:
    """The weights of the run or network in `init_from`, layer by layer.

    Raises:
        CheckpointError: they cannot be read, their layers have other names or shapes than those of `network`, or a
            value is one with which no training begins.
    """
    saved = _start(config)
    prefix = "weight/"
    shapes = {f"{prefix}{name}": parameter.shape for name, parameter in network.parameters.items()}
    shapes |= {f"{prefix}{name}": x.shape for name, x in network.statistics.items()}
    borrowed_shapes = {name: x.shape for name, x in saved.tensors.items() if name.startswith(prefix)}
    problems = [
        f"  {name.removeprefix(prefix)}: {_shape(borrowed_shapes.get(name))} there, {_shape(shapes.get(name))} here"
        for name in dict.fromkeys((*shapes, *borrowed_shapes))
        if shapes.get(name) != borrowed_shapes.get(name)
    ]
    if problems:
        raise CheckpointError(
            f"the weights of {config.init_from} do not fit the network {network}; layers that differ:\n"
            + "\n".join(problems)
        )
    weights = {name.removeprefix(prefix): np.array(saved.tensors[name], np.float32) for name in shapes}
    try:
        check_trainable(network, weights)
    except NumericError as error:
        raise CheckpointError(f"a run cannot start with the weights of {config.init_from}: {error}") from error
    return weights


def _shape(shape: Shape | None) -> str:
    return "no such layer" if shape is None else str(list(shape))


def scaled_to_rate(
    task: Task, weights: dict[str, Float32], inputs: Inputs, rate: float, lengths: Int64 | None = None
) -> dict[str, Float32]:
    """Scale each layer by the smallest of `GAINS` with which it fires at `rate`, or by the largest if there is none.

    All weights that a population reads have the same factor. Recurrent weights are not scaled.

    Args:
        task: the network, and the backend that computes it.
        weights: master weights; they are not changed.
        inputs: some samples, used without dropout.
        rate: spikes per neuron and step.
        lengths: number of steps of each sample, `[B]`; None: all steps.
    """
    scaled, graph, blocks = dict(weights), task.network.graph, task.network.blocks

    def scale(names: Collection[str], gain: float) -> None:
        scaled.update({name: weights[name] * np.float32(gain) for name in names})

    scaled_parameters: set[str] = set()
    for block in blocks[:-1] if task.network.has_readout else blocks:
        recurrent = graph.recurrent.get(block.population, ())
        parameters_read = {
            projection.parameter
            for projection in graph.projections_to(block.population)
            if projection.name not in recurrent
        }
        # Weights that an earlier layer shares keep its factor.
        parameters = parameters_read - scaled_parameters
        scaled_parameters |= parameters
        low, high = 0, len(GAINS) - 1 if parameters else 0
        while low < high:
            middle = (low + high) // 2
            scale(parameters, GAINS[middle])
            state = task.trainer.init(scaled)
            fired = task.trainer.predict(state, inputs, task.config.steps, lengths=lengths).rates[block.name]
            low, high = (low, middle) if fired >= rate else (middle + 1, high)
        scale(parameters, GAINS[low])
    return scaled
