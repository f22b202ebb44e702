"""A search for networks that exceed the bound of `fast` gradients.

    python -m stsbp_conformance.search --cases 1000 --backend torch [--device D] [--first SEED] [--normalised|--graphs]

It draws small networks, many of them with properties that make rounding errors large: peaked surrogates, potentials at
the threshold or on an edge, constant weights and inputs, and errors that are equal or cancel each other. It prints the
largest distance as a fraction of its bound for both kinds of potentials, and as a fraction of the older bound
`4 u sqrt(n) max |float64|`. It exits with an error if a bound is exceeded. A seed gives the same network everywhere.
`--normalised` adds batch normalisation after all hidden weights, with running statistics or, for every second seed,
with those of the batch.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import fields
from typing import Any

import numpy as np
from stsbp_spec.engine.backend import AbstractBackend
from stsbp_spec.errors import NumericError, SpecError
from stsbp_spec.models.losses import LOSSES
from stsbp_spec.models.neurons import LIF
from stsbp_spec.models.surrogates import SURROGATES, parse_surrogate
from stsbp_spec.networks.ops import PSP
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.registry import load_backend
from stsbp_spec.typing import AnyArray

from stsbp_conformance import reference
from stsbp_conformance.adversarial import AdversarialCase
from stsbp_conformance.cases import NetworkCase
from stsbp_conformance.check import largest_ratio
from stsbp_conformance.oracles.roundoff import Near, Potentials, U
from stsbp_conformance.tiers import gradients

__all__ = ["drawn_case", "former_ratio", "ratios"]

_OVERFLOW = 1e30
"""The bound only holds if float32 does not overflow. Networks whose gradients reach this value are left out."""


_GRAPHS = {
    "3C3p1-P2-6": "3C3R3p1-P2-6R",
    "4C2s2-5": "4C2R1s2-[4C1b]+-5R{reset=subtract}",
    "P2-3C3-P2-4": "P2-3C3{delay=1}-[3C1|3C3R1p1]+-P2-4{recurrent=one-to-one}",
    "3C2-D0.25-4C2p1-5": "3C2R3b-D0.25-4C2p1-5R{delay=2,neuron=alif}",
    "6": "6R",
    "12-8": "12R-8R{neuron=if,tau_s=7,tau_rise=2}",
    "7-7-7-7": "7-[7R{delay=1}|7-7]+-7R{neuron=alif,reset=subtract}-7{recurrent=one-to-one}",
}
"""Values that are drawn instead with `graphs`."""


def drawn_case(seed: int, *, normalised: bool = False, graphs: bool = False) -> tuple[AdversarialCase, str | None]:
    """The network of a seed, and the loss whose error is used (None: output errors of the case).

    `normalised`: with batch normalisation; `graphs`: with recurrence, branches and delays.
    """
    rng = np.random.default_rng(seed)

    def one_of(*choices: Any) -> Any:
        return choices[int(rng.integers(len(choices)))]

    name = str(one_of(*SURROGATES))
    parameter = 2.0 ** float(one_of(-2, -1, 0, 1, float(rng.uniform(-4, 3))))
    neuron = LIF(
        tau_m=float(one_of(1, 2, 3, 5 / 3, 8, float(2 ** rng.uniform(0, 8)))),
        tau_s=float(one_of(1, 2, 3, 5 / 3, float(2 ** rng.uniform(0, 6)))),
        threshold=float(one_of(1, 0.5, 0.3, float(2 ** rng.uniform(-4, 3)))),
        surrogate=parse_surrogate(f"{name}:{fields(SURROGATES[name])[0].name}={parameter!r}"),
    )
    images = bool(rng.integers(2))
    direct = images and bool(rng.integers(3) == 0)
    notation = str(
        one_of("3C3p1-P2-6", "4C2s2-5", "P2-3C3-P2-4", "3C2-D0.25-4C2p1-5")
        if images
        else one_of("6", "12-8", "7-7-7-7")
    )
    if normalised:
        notation = "-".join(token if token[0] in "PD" else f"{token}bn" for token in notation.split("-"))
    network = NetworkSpec.parse(
        _GRAPHS[notation] if graphs else notation,
        input_shape=(int(rng.integers(1, 4)), 9, 8) if images else (int(rng.integers(1, 12)),),
        outputs=int(rng.integers(1, 5)),
        coding="direct" if direct else "events",
        neuron=neuron,
        weight_bits=int(rng.integers(2, 13)),
        input_psp=None if direct or rng.integers(2) else PSP(3),
    )
    constant = rng.integers(4) == 0
    batch = int(one_of(1, 2, 2, 4, 16))
    case = AdversarialCase(
        f"seed {seed}",
        network,
        steps=int(one_of(1, 2, 5, 12, 40)),
        batch=batch,
        gain=float(2 ** rng.uniform(-1, 4)),
        density=float(rng.uniform(0.05, 1)),
        seed=seed % 2**31 + 1,
        weight=float(rng.uniform(-0.2, 1)) if constant else None,
        grid=None if constant else one_of(None, 1, 4),
        input=one_of(None, None, 1),
        errors=one_of("drawn", "drawn", "equal", "opposite" if batch % 2 == 0 else "equal"),
    )
    loss = one_of(None, None, None, *LOSSES)
    return case, None if loss is None else str(loss)


def former_ratio(case: NetworkCase, name: str, distance: AnyArray, near: Near) -> float:
    """The largest distance as a fraction of `4 u sqrt(n) max |float64|`, which was used earlier but is not a bound.

    `n`: number of summands of the weight's gradient and of all input gradients above it.
    """
    blocks = case.network.blocks
    (block,) = (b for b in blocks if b.name == name.partition(".")[0])
    n = case.batch * (1 if block.static else case.steps) * block.synapse.summands(block.synapse_shape)[1]
    n += sum(b.synapse.summands(b.synapse_shape)[2] for b in blocks[block.index + 1 :])
    largest = float(np.max(np.abs(near.value)))
    return float(np.max(distance)) / (4 * U * math.sqrt(n) * largest) if largest > 0 else 0.0


def ratios(
    backend: AbstractBackend,
    case: NetworkCase,
    loss: str | None,
    potentials: Potentials,
    dropout: tuple[int, int] | None = None,
) -> tuple[float, float, float] | None:
    """The largest distance as a fraction of its bound, as a multiple of its spread, and as a fraction of the older
    bound.

    None: the gradients may overflow.
    """
    near = gradients.near_gradients(case, loss, potentials, dropout)
    if not all(np.abs(x.value).max() < _OVERFLOW for x in near.values()):
        return None
    try:
        got = gradients.computed(backend, case, loss, dropout)
    except NumericError:
        return None
    largest, layers = (0.0, 0.0, 0.0), {block.name for block in case.network.blocks}
    for name, expected in near.items():
        distance = np.abs(got[name].astype(np.float64) - expected.value)
        case_ratios = (
            largest_ratio(distance, expected.bound)[0],
            largest_ratio(distance, expected.spread)[0],
            former_ratio(case, name, distance, expected) if name in layers else 0.0,
        )
        largest = tuple(map(max, largest, case_ratios))  # type: ignore[assignment]
    return largest


def main() -> None:
    """Search, and print what was found."""
    parser = argparse.ArgumentParser(
        prog="python -m stsbp_conformance.search", description="Search for networks that break the bound."
    )
    parser.add_argument("--cases", type=int, default=1000, help="networks to draw (default 1000)")
    parser.add_argument("--first", type=int, default=0, help="seed of the first one (default 0)")
    parser.add_argument("--backend", default="numpy", help="which backend computes the gradients (default numpy)")
    parser.add_argument("--device", help="of the backend")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--normalised", action="store_true", help="with batch normalisation")
    kind.add_argument("--graphs", action="store_true", help="with recurrence, branches and delays")
    options = parser.parse_args()
    backend = load_backend(options.backend)(options.device)
    kinds: tuple[Potentials, ...] = ("float32", "float64")
    largest: dict[str, tuple[float, int]] = {}
    left_out = 0
    for seed in range(options.first, options.first + options.cases):
        for cached in (reference.run, reference.data, gradients.float64_gradients, gradients.near_gradients):
            cached.cache_clear()
        try:
            case, loss = drawn_case(seed, normalised=options.normalised, graphs=options.graphs)
        except SpecError:
            left_out += 1
            continue
        for potentials in kinds:
            dropout = (seed, 0) if options.normalised and seed % 2 else None
            case_ratios = ratios(backend, case, loss, potentials, dropout)
            if case_ratios is None:
                left_out += 1
                break
            for kind_of_bound, ratio in zip(("bound", "spread", "former bound"), case_ratios, strict=True):
                key = f"{potentials} potentials, {kind_of_bound}"
                if key not in largest or not ratio <= largest[key][0]:
                    largest[key] = ratio, seed
    print(f"{options.cases} networks on {backend.name} ({backend.device}), {left_out} left out")
    for key, (ratio, seed) in largest.items():
        print(f"{key}: {ratio:.4g} (seed {seed})")
    if not all(ratio <= 1 for key, (ratio, _) in largest.items() if key.endswith(", bound")):
        raise SystemExit("a bound was left")


if __name__ == "__main__":
    main()
