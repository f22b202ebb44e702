"""SHA-256 of results, which must not change when the code that computes them changes. They are equal on all backends.

    python -m stsbp_conformance.hashes numpy torch=cpu torch=cpu:eager cpu jax cupy=host        checks the stored file
    python -m stsbp_conformance.hashes numpy torch=cpu torch=cpu:eager cpu jax cupy=host --write FILE

The suite compares a backend with the current numpy reference. These hashes (`hashes.json`) compare all of them,
including the reference, with the results at the time when the hashes were written. For networks, they cover spikes,
membrane potentials, losses, gradients in `reproducible` precision, and weights and moments after 20 updates. For single
pairs, they cover the stored cases of tier 5 (`tiers/elementwise.py`): neurons, synaptic filter, the errors of losses
and rate penalties, and the updates of optimisers. Inputs are drawn from the spec's generator without `log` or `cos`,
whose last bits differ between machines.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import stsbp_spec
from stsbp_spec.contract.grid import CONTRACT_VERSION, unsigned_zeros
from stsbp_spec.engine.backend import AbstractBackend
from stsbp_spec.errors import StsbpError
from stsbp_spec.models.losses import LOSSES
from stsbp_spec.models.neurons import LIF, PLIF
from stsbp_spec.models.optim import SGD, Adam, AdamW, Optimizer
from stsbp_spec.models.rate_penalty import RatePenalty
from stsbp_spec.models.surrogates import FastSigmoid, Triangle
from stsbp_spec.networks.ops import PSP
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.registry import installed_backends, load_backend
from stsbp_spec.typing import AnyArray, Memory
from stsbp_spec.validation import listed, shown

from stsbp_conformance import reference
from stsbp_conformance.cases import NetworkCase
from stsbp_conformance.tiers import elementwise
from stsbp_conformance.tiers.elementwise import PairCase
from stsbp_conformance.tiers.trainer import open_usable

__all__ = [
    "CASES",
    "STORED",
    "Case",
    "Hashes",
    "HashesDiffer",
    "Stored",
    "compare",
    "compute",
    "main",
    "read",
    "write",
]

STORED = Path(__file__).with_name("hashes.json")
"""The stored hashes."""

Hashes = dict[str, str]
"""SHA-256 (for a loss: the number itself in hexadecimal) by the name of the result: `potentials/conv1`,
`adamw.m/linear2`."""

_FORMAT = 1
_LARGEST_FILE = 2**24
_UPDATES = 20
_SHOWN = 12


class HashesDiffer(StsbpError):
    """A result does not have the expected hash. The message names case, result, layer and backend."""


@dataclass(frozen=True)
class Case:
    """A computation whose results are hashed.

    Attributes:
        id: unique name, for messages and the file.
        compute: computes the hashes of its results on an opened backend.
        quick: whether it belongs to the few cases for backends that compile every network anew.
    """

    id: str
    compute: Callable[[AbstractBackend], Hashes]
    quick: bool


def digest(x: AnyArray) -> str:
    """SHA-256 of an array: dtype, shape and bytes, little-endian in C order."""
    canonical = np.ascontiguousarray(x, dtype=x.dtype.newbyteorder("<"))
    return hashlib.sha256(f"{canonical.dtype.str}{list(x.shape)}".encode() + canonical.tobytes()).hexdigest()


def _pair(case: PairCase) -> Case:
    """A case of tier 5, in whose results zeros of either sign are equal."""

    def compute(backend: AbstractBackend) -> Hashes:
        return {
            name: digest(x if x.dtype == np.uint8 else unsigned_zeros(x.astype(np.float32, casting="no")))
            for name, x in case.compute(backend).items()
        }

    return Case(case.id, compute, case.quick)


def _text_digest(values: Iterable[object]) -> str:
    return hashlib.sha256("\n".join(map(str, values)).encode()).hexdigest()


# Networks.
_OPTIMIZER = AdamW(lr=5e-3, warmup_steps=5, weight_decay=0.05, clip_norm=0.5)
_DROPPED = (3, 5)
"""Seed and step of the dropout masks."""


def _network(case: NetworkCase, loss: str, *, memory: Memory = "full", quick: bool = False) -> Case:
    def compute(backend: AbstractBackend) -> Hashes:
        weights, batch, hashes = case.weights(), case.data(), {}
        result = backend.run(case.network, weights, batch.inputs, case.steps)
        for name, layer in result.layers.items():
            hashes[f"spikes/{name}"] = digest(layer.spikes)
            hashes[f"potentials/{name}"] = digest(layer.potentials)
        for kind, dropout in (("gradient", None), ("gradient with dropout", _DROPPED)):
            pulled = reference.gradients_on(backend, case, loss, "reproducible", dropout)
            hashes[f"loss of the {kind}"] = float(pulled.loss).hex()
            hashes |= {f"rate penalty of the {kind}/{name}": x.hex() for name, x in pulled.penalties.items()}
            hashes |= {f"{kind}/{name}": digest(g) for name, g in pulled.gradients.items()}
        trainer = reference.trainer_on(backend, case, loss, _OPTIMIZER, memory=memory)
        state, results = reference.train(trainer, case, _UPDATES)
        hashes["losses of the updates"] = _text_digest(float(r.loss).hex() for r in results)
        hashes["gradient norms of the updates"] = _text_digest(float(r.gradient_norm).hex() for r in results)
        hashes["zeroed errors of the updates"] = _text_digest(
            (name, *counts) for r in results for name, counts in sorted(r.zeroed.items())
        )
        return hashes | {f"{name} after {_UPDATES} updates": digest(x) for name, x in state.items() if name != "step"}

    return Case(case.id, compute, quick)


def _training(case: NetworkCase, optimizer: Optimizer, frozen: tuple[str, ...] = ()) -> Case:
    """Updates of an optimiser other than `_OPTIMIZER`, or of some parameters only."""

    def compute(backend: AbstractBackend) -> Hashes:
        trainer = reference.trainer_on(backend, case, "van-rossum", optimizer, frozen=frozen)
        state, results = reference.train(trainer, case, _UPDATES)
        hashes = {
            "losses of the updates": _text_digest(float(r.loss).hex() for r in results),
            "gradient norms of the updates": _text_digest(float(r.gradient_norm).hex() for r in results),
        }
        return hashes | {f"{name} after {_UPDATES} updates": digest(x) for name, x in state.items() if name != "step"}

    return Case(case.id, compute, quick=True)


_NEURONS = (
    *(
        LIF(tau_m, tau_s, threshold, surrogate)
        for surrogate, (tau_m, tau_s, threshold) in zip(
            elementwise.EXACT, ((5 / 3, 3.0, 0.5), (8.0, 5 / 3, 0.4), (3.0, 5.0, 0.7), (5.0, 4.0, 0.3)), strict=True
        )
    ),
    *(LIF(5.0, 3.0, 0.5, surrogate) for surrogate in elementwise.LATER),
)
_NETWORKS: dict[str, tuple[str, dict[str, Any], int, float]] = {
    "event frames, convolutions, P2": ("6C5-P2-12C3d0.2-P2", {"input_shape": (2, 18, 18)}, 10, 2.5),
    "images, direct coding, padding, dropout": (
        "6C3-8C3s2d0.2-P2-20d0.5",
        {"input_shape": (3, 16, 16), "coding": "direct", "padding": "same"},
        6,
        3.0,
    ),
    "linear layers": ("40-30d0.2", {"input_shape": (24,)}, 12, 3.0),
}
"""Notation, options, steps and gain of the initial weights. Each is combined with every neuron of `_NEURONS`."""


_CONCATENATED = "\n".join(
    f'[[node]]\nname = "{name}"\n{fields}\nfrom = {sources}'
    for name, fields, sources in (
        ("conv1", 'weights = "3C3p1"', '"input"'),
        ("fine", 'neurons = ""', '"conv1"'),
        ("means", 'layer = "P2"', '"fine"'),
        ("conv2", 'weights = "4C2s2"', '"input"'),
        ("coarse", 'neurons = "tau_m=3"', '"conv2"'),
        ("maps", "concat = true", '["coarse", {node = "means", delay = 2}, "coarse"]'),
        ("drop", 'layer = "D0.2"', '"maps"'),
        ("conv3", 'weights = "5C2b"', '"drop"'),
        ("above", 'neurons = ""', '"conv3"'),
        ("linear4", 'weights = "6"', '"above"'),
        ("six", 'neurons = ""', '"linear4"'),
        ("flat", 'layer = "F"', '"coarse"'),
        ("vector", "concat = true", '["six", "flat"]'),
        ("linear5", 'weights = "4"', '"vector"'),
        ("output", 'neurons = ""', '"linear5"'),
    )
)
"""Spikes, late means and the same spikes again, along the channels; and the neurons of two populations."""


def _network_cases() -> Iterable[Case]:
    losses = list(LOSSES)
    for row, (name, (notation, options, steps, gain)) in enumerate(_NETWORKS.items()):
        for column, neuron in enumerate(_NEURONS):
            network = NetworkSpec.parse(notation, outputs=5, neuron=neuron, **options)
            loss = losses[(row + column) % len(losses)]
            identifier = f"{name}; {neuron.surrogate}, {loss}"
            case = NetworkCase(identifier, network, steps, 3, gain=gain, density=0.2, seed=100 + 10 * row + column)
            yield _network(case, loss)
            if row == 1 and column == 0:
                lean = NetworkCase(f"{identifier}; little memory", network, steps, 3, gain=gain, seed=case.seed)
                yield _network(lean, loss, memory="low")
    small = NetworkSpec.parse(
        "4C3p1d0.2-P2", input_shape=(2, 6, 6), outputs=4, neuron=LIF(5, 5 / 3, 0.4, FastSigmoid(3.0))
    )
    yield _network(NetworkCase("small network", small, 8, 3, gain=2.5, density=0.2, seed=128), "van-rossum", quick=True)
    sparse = NetworkSpec.parse(
        "8C3p1{threshold=0.7}-32C3p1d0.1-P2-16C3-P2",
        input_shape=(2, 14, 14),
        outputs=5,
        neuron=LIF(3, 5 / 3, 0.2, Triangle(0.3)),
    )
    yield _network(NetworkCase("sparse event frames", sparse, 10, 3, gain=1.5, density=0.02, seed=129), "van-rossum")
    counts = NetworkSpec.parse(
        "P2-6C3{tau_m=1,tau_s=1}-12",
        input_shape=(2, 8, 8),
        outputs=6,
        input_psp=PSP(3),
        input_max=90,
        weight_bits=6,
        neuron=LIF(5, 1, 0.7, elementwise.EXACT[1]),
    )
    yield _network(NetworkCase("event counts after an input filter", counts, 9, 3, seed=130), "hamming")
    hits = NetworkSpec.parse("30-30", input_shape=(30,), outputs=10, weight_bits=4, neuron=LIF(2, 1, 1.0))
    case = NetworkCase("potentials equal to the threshold", hits, 12, 4, gain=3.0, density=0.2, seed=131)
    yield _network(case, "van-rossum")
    learned = NetworkSpec.parse(
        "4C3p1{per=channel}d0.2-P2-9{reset=subtract}",
        input_shape=(2, 6, 6),
        outputs=4,
        neuron=PLIF(5, 5 / 3, 0.4, FastSigmoid(3.0)),
    )
    case = NetworkCase("neurons that learn", learned, 8, 3, gain=2.5, density=0.2, seed=132)
    yield _network(case, "van-rossum", quick=True)
    adam = Adam(lr=5e-3, warmup_steps=5, weight_decay=0.05, clip_norm=0.5)
    sgd = SGD(lr=0.01, warmup_steps=5, weight_decay=0.05, clip_norm=0.5)
    yield _training(replace(case, id="updates of Adam", seed=136), adam)
    yield _training(replace(case, id="updates of SGD", seed=140), sgd)
    some = ("conv1", "linear2.decay")
    yield _training(replace(case, id="updates with frozen parameters", seed=138), _OPTIMIZER, some)
    normalised = NetworkSpec.parse(
        "4C3p1bn-P2-D0.2-9bn{factor=0.4,momentum=0.3}",
        input_shape=(2, 6, 6),
        outputs=4,
        neuron=LIF(5, 5 / 3, 0.4, FastSigmoid(3.0)),
    )
    case = NetworkCase("batch normalisation", normalised, 8, 3, gain=2.5, density=0.2, seed=133)
    yield _network(case, "van-rossum")
    recurrent = NetworkSpec.parse(
        "3C3R3p1-[3C1{delay=2}]+-D0.2-P2-7Rb{neuron=plif,reset=subtract}-6{recurrent=one-to-one,tau_s=3}",
        input_shape=(2, 6, 6),
        outputs=4,
        neuron=LIF(5, 5 / 3, 0.4, FastSigmoid(3.0)),
    )
    case = NetworkCase("recurrence, branches, delays", recurrent, 8, 3, gain=3.0, density=0.3, seed=134)
    yield _network(case, "van-rossum")
    concatenated = NetworkSpec.parse(_CONCATENATED, input_shape=(2, 6, 6), neuron=LIF(5, 5 / 3, 0.4, FastSigmoid(3.0)))
    case = NetworkCase("concatenations", concatenated, 8, 3, gain=3.0, density=0.3, seed=135)
    yield _network(case, "van-rossum")
    penalties = tuple((block.name, RatePenalty(0.1, 20.0)) for block in small.blocks)
    case = NetworkCase("penalised small network", small, 8, 3, gain=2.5, density=0.2, seed=141)
    yield _network(replace(case, rate_penalty=penalties), "van-rossum", quick=True)
    penalties = tuple((block.name, RatePenalty(0.05, 5.0)) for block in concatenated.blocks[:-1])
    case = NetworkCase("penalised concatenations", concatenated, 8, 3, gain=3.0, density=0.3, seed=142)
    yield _network(replace(case, rate_penalty=penalties, lengths=(8, 3, 6)), "hamming", memory="low")
    yield from _readout_cases()
    yield from _learned_delays()


def _learned_delays() -> Iterable[Case]:
    neuron = LIF(5, 5 / 3, 0.4, FastSigmoid(3.0))
    late = NetworkSpec.parse("4C3p1d0.2-T4-P2-T3-9{reset=subtract}", input_shape=(2, 6, 6), outputs=4, neuron=neuron)
    case = NetworkCase("learned delays", late, 8, 3, gain=3.0, density=0.3, seed=145)
    yield _network(case, "van-rossum", quick=True)
    sgd = SGD(lr=0.01, delay_lr=4.0, warmup_steps=5, weight_decay=0.05, clip_norm=0.5)
    yield _training(replace(case, id="updates of SGD with learned delays", seed=146), sgd)
    recurrent = NetworkSpec.parse(
        "T6-9R-[T2-9{neuron=plif,delay=2}]+-D0.2-T12-4{neuron=readout,tau_s=5,tau_rise=3}",
        input_shape=(12,),
        neuron=neuron,
    )
    case = NetworkCase("learned delays, a recurrence, a readout", recurrent, 10, 3, gain=3.0, density=0.3, seed=147)
    yield _network(replace(case, lengths=(10, 3, 7)), "mse", memory="low")


def _readout_cases() -> Iterable[Case]:
    """Networks whose outputs are the potentials of a readout, with real targets."""
    neuron = LIF(5, 5 / 3, 0.4, FastSigmoid(3.0))
    linear = NetworkSpec.parse("20d0.2-4{neuron=readout}", input_shape=(12,), neuron=neuron)
    case = NetworkCase("a readout after LIF neurons", linear, 9, 3, gain=3.0, density=0.3, seed=141)
    yield _network(case, "mse", quick=True)
    convolutions = NetworkSpec.parse(
        "4C3p1d0.2-P2-6C3b-3b{neuron=readout,tau_m=3}", input_shape=(2, 8, 8), neuron=neuron
    )
    case = NetworkCase("a readout after convolutions, samples with lengths", convolutions, 8, 4, gain=3.0, density=0.3)
    yield _network(replace(case, seed=142, lengths=(8, 1, 5, 3)), "mse", memory="low")
    recurrent = NetworkSpec.parse(
        "9R-[9{neuron=plif,delay=2}]+-D0.2-4{neuron=readout,tau_s=5,tau_rise=3}", input_shape=(12,), neuron=neuron
    )
    yield _network(
        NetworkCase("a readout after a recurrence", recurrent, 10, 3, gain=3.0, density=0.3, seed=143), "mse"
    )
    images = NetworkSpec.parse("5C3s2-8-3{neuron=readout}", input_shape=(3, 9, 8), coding="direct", neuron=neuron)
    yield _network(NetworkCase("a readout, direct coding", images, 7, 2, gain=3.0, seed=144), "mse")


CASES = (*(_pair(case) for case in elementwise.CASES if case.stored), *_network_cases())
"""All cases."""


def compute(backend: AbstractBackend, cases: Iterable[Case] = CASES) -> dict[str, Hashes]:
    """Hashes by case."""
    return {case.id: case.compute(backend) for case in cases}


@dataclass(frozen=True)
class Stored:
    """The hashes in a file.

    Attributes:
        stsbp: version of the packages that computed them.
        contract: `CONTRACT_VERSION` at that time.
        backends: backends on which they were equal when they were written.
        cases: hashes by case.
    """

    stsbp: str
    contract: int
    backends: tuple[str, ...]
    cases: dict[str, Hashes]


def compare(name: str, computed: Mapping[str, Hashes], expected: Mapping[str, Hashes], whose: str) -> None:
    """Check that every hash of `computed`, from the backend `name`, is as expected. `whose` describes the latter.

    Raises:
        HashesDiffer: names case, result, layer and backend.
    """
    different = []
    for case, hashes in computed.items():
        if case not in expected:
            different.append(f"{case}: {whose} has no such case")
            continue
        # In the order of computation, because the first difference causes the later ones.
        for kind in dict.fromkeys((*hashes, *expected[case])):
            got_hash, expected_hash = (_short(x.get(kind)) for x in (hashes, expected[case]))
            if hashes.get(kind) != expected[case].get(kind):
                different.append(f"{case}: {kind}: {name} has {got_hash}, {whose} has {expected_hash}")
    if different:
        total = sum(len(hashes) for hashes in computed.values())
        more = [f"... and {len(different) - _SHOWN} more"] if len(different) > _SHOWN else []
        raise HashesDiffer(
            "\n".join([f"{name}: {len(different)} of {total} hashes differ", *different[:_SHOWN], *more])
        )


def _short(value: str | None) -> str:
    return "none" if value is None else value if value.lstrip("-").startswith("0x") else value[:12]


def read(path: Path = STORED) -> Stored:
    """Read stored hashes.

    Raises:
        HashesDiffer: the file is missing, damaged, or of another format.
    """
    try:
        with open(path, "rb") as file:
            data = json.loads(file.read(_LARGEST_FILE))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not JSON"
        raise HashesDiffer(f"{path}: the stored hashes cannot be read: {reason}") from None
    head = data if isinstance(data, dict) else {}
    if head.get("format") != _FORMAT:
        raise HashesDiffer(f"{path}: expected hashes of format {_FORMAT}, got {shown(head.get('format'))}")
    stsbp, contract, backends, cases = (head.get(key) for key in ("stsbp", "contract", "backends", "cases"))
    if (
        not isinstance(stsbp, str)
        or type(contract) is not int
        or not (isinstance(backends, list) and all(isinstance(name, str) for name in backends))
        or not (isinstance(cases, dict) and all(_are_hashes(hashes) for hashes in cases.values()))
    ):
        raise HashesDiffer(f"{path}: expected stsbp, contract, backends and cases, each of its own form; write it anew")
    return Stored(stsbp, contract, tuple(backends), cases)


def _are_hashes(x: object) -> bool:
    return isinstance(x, dict) and all(isinstance(value, str) for value in x.values())


def write(path: Path, computed: Mapping[str, Mapping[str, Hashes]]) -> None:
    """Write the hashes on which backends agree, completely or not at all.

    Args:
        path: path of the file.
        computed: hashes by backend, from at least two backends.

    Raises:
        HashesDiffer: there is only one backend, two backends disagree, or the file cannot be written.
    """
    _check_several(computed)
    (first, agreed), *others = computed.items()
    for name, hashes in others:
        compare(name, hashes, agreed, first)
        compare(first, agreed, hashes, name)
    head = {
        "format": _FORMAT,
        "stsbp": stsbp_spec.__version__,
        "contract": CONTRACT_VERSION,
        "backends": list(computed),
    }
    text = json.dumps({**head, "cases": agreed}, indent=1) + "\n"
    scratch = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        try:
            scratch.write_text(text, encoding="utf-8")
            os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        raise HashesDiffer(f"{path}: cannot be written: {error.strerror}") from None


def _check_several(names: Collection[str]) -> None:
    if len(names) < 2:
        raise HashesDiffer(
            "hashes are written where two backends or more agree on them, or two devices of one backend; name more "
            f"than one (got {listed(names)})"
        )


def _replaced(path: Path, names: Collection[str]) -> dict[str, Hashes]:
    """The cases of a file that is to be written anew on the backends `names`; none if it is missing or damaged.

    Raises:
        HashesDiffer: a backend of the file is not among them. Its results would not be checked any more.
    """
    try:
        stored = read(path)
    except HashesDiffer:
        return {}
    if missing := [name for name in stored.backends if name not in names]:
        raise HashesDiffer(
            f"{path} was also written on {listed(missing)}; name every backend on which the hashes must be equal: "
            f"{' '.join(dict.fromkeys((*stored.backends, *names)))}. To leave a backend out, remove the file first"
        )
    return stored.cases


def _changes(computed: Mapping[str, Hashes], earlier: Mapping[str, Hashes]) -> str:
    """What a new file has that the earlier one has not, as a line."""
    changed = sum(case in earlier and hashes != earlier[case] for case, hashes in computed.items())
    added, removed = (len(set(first) - set(second)) for first, second in ((computed, earlier), (earlier, computed)))
    return f"{added} cases added, {changed} changed, {removed} removed, {len(computed) - added - changed} as before"


def _open(argument: str) -> AbstractBackend:
    name, _, device = argument.partition("=")
    return load_backend(name)(device or None)


def _checked(
    opened: Mapping[str, AbstractBackend], path: Path, cases: Sequence[Case], tell: Callable[[str], None]
) -> int:
    stored = read(path)
    if stored.contract != CONTRACT_VERSION:
        tell(
            f"{path.name} was written under version {stored.contract} of the contract, this is version "
            f"{CONTRACT_VERSION}: hashes may differ where the contract was meant to change, and nowhere else"
        )
    failed = 0
    if len(cases) == len(CASES) and (missing := set(stored.cases) - {case.id for case in cases}):
        tell(f"{path.name} has cases that are not computed any more: {listed(sorted(missing))}")
        failed = 1
    for argument, backend in opened.items():
        computed = _timed(argument, backend, cases, tell)
        try:
            compare(argument, computed, stored.cases, path.name)
        except HashesDiffer as error:
            tell(str(error))
            failed = 1
    return failed


def _timed(
    argument: str, backend: AbstractBackend, cases: Sequence[Case], tell: Callable[[str], None]
) -> dict[str, Hashes]:
    began = time.perf_counter()
    computed = compute(backend, cases)
    count, seconds = sum(map(len, computed.values())), time.perf_counter() - began
    tell(f"{argument}: {len(computed)} cases, {count} hashes, {seconds:.1f} s on {backend.device}")
    return computed


def main(arguments: list[str] | None = None) -> int:
    """Check the stored hashes, or write them. The exit code is 0 if all are equal."""
    parser = argparse.ArgumentParser(
        prog="python -m stsbp_conformance.hashes",
        description="Compare SHA-256 of spikes, potentials, gradients and trained weights with the stored ones.",
    )
    parser.add_argument("backends", nargs="*", metavar="BACKEND[=DEVICE]", help="default: every installed backend")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", metavar="FILE", type=Path, default=STORED, help="default: the package's own file")
    mode.add_argument("--write", metavar="FILE", type=Path, help="write what all backends agree on")
    parser.add_argument("--quick", action="store_true", help="a few small cases, for a backend that compiles for long")
    options = parser.parse_args(arguments)
    if options.quick and options.write:
        parser.error("--write stores every case; leave --quick out")
    cases = [case for case in CASES if case.quick or not options.quick]

    def tell(line: str) -> None:
        print(line, flush=True)

    try:
        opened = {argument: _open(argument) for argument in options.backends}
        if not opened:
            opened = {name: open_usable(load_backend(name)) for name in installed_backends()}
        if options.write is None:
            return _checked(opened, options.check, cases, tell)
        # The same backend and device may have been given under two names.
        distinct = {(backend.name, backend.device): argument for argument, backend in opened.items()}
        _check_several(distinct.values())
        earlier = _replaced(options.write, opened)
        computed = {argument: _timed(argument, opened[argument], cases, tell) for argument in distinct.values()}
        write(options.write, computed)
        tell(f"{options.write}: {_changes(next(iter(computed.values())), earlier)}")
    except StsbpError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
