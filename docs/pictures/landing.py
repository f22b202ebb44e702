"""The picture of the landing page and the README: a network learns letters drawn with spikes.

    python docs/pictures/landing.py        writes docs/pictures/landing.svg

The network is trained here, on every backend that is installed; the SHA-256 in the picture are of its weights. Grey and
two colours show on light pages as on dark ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from stsbp.datasets import SequenceSplit, load
from stsbp_spec import LIF, AdamW, Batch, NetworkSpec, VanRossum, initial_weights, installed_backends, open_backend
from stsbp_spec.models.metrics import f1, match_spikes
from stsbp_spec.typing import AnyArray, UInt8

STEPS = 50
SHOWN = (0, 20, 200)
"""Updates after which the outputs are drawn."""
GREY, BLUE, ORANGE = "#767c84", "#2f7fd6", "#e07b39"
WIDTH, STEP, ROW = 960, 2.6, 7
NAMES = {"numpy": "numpy", "torch": "PyTorch", "jax": "JAX", "cupy": "CuPy"}


def trained(name: str, batch: Batch, network: NetworkSpec) -> tuple[list[UInt8], str]:
    """Output spikes `[T, B, N]` after the updates of SHOWN, and the SHA-256 of all weights, on one backend."""
    backend = open_backend(name, "host" if name == "cupy" else None)
    trainer = backend.trainer(network, VanRossum(), AdamW(lr=5e-3), precision="reproducible")
    state = trainer.init(initial_weights(network, seed=0))
    outputs = []
    for update in range(SHOWN[-1] + 1):
        if update in SHOWN:
            outputs.append(trainer.predict(state, batch.inputs, STEPS).spikes)
        if update < SHOWN[-1]:
            state, _ = trainer.step(state, batch)
    weights = {key: x for key, x in trainer.export_state(state).items() if key.startswith("weight/")}
    return outputs, hashlib.sha256(b"".join(weights[key].tobytes() for key in sorted(weights))).hexdigest()


def raster(spikes: AnyArray, x: float, y: float, row: float, colour: str, width: float = 1.5) -> str:
    """Spikes `[T, N]` as strokes, the first neuron at the top."""
    strokes = "".join(
        f"M{x + STEP * (t + 0.5):.1f} {y + row * n + 0.1 * row:.1f}v{0.8 * row:.1f}" for t, n in np.argwhere(spikes)
    )
    return f'<path d="{strokes}" stroke="{colour}" stroke-width="{width}" fill="none"/>'


def target_bars(targets: AnyArray, x: float, y: float) -> str:
    """Target spikes `[T, N]` as pale bars behind the strokes."""
    bars = "".join(
        f"M{x + STEP * (t - 0.6):.1f} {y + ROW * n + 0.2:.1f}h{STEP * 2.2:.1f}v{ROW - 0.4:.1f}h-{STEP * 2.2:.1f}z"
        for t, n in np.argwhere(targets)
    )
    return f'<path d="{bars}" fill="{ORANGE}" fill-opacity="0.45"/>'


def text(words: str, x: float, y: float, size: int = 14, anchor: str = "start", weight: str = "400") -> str:
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}">{words}</text>'
    )


def drawing(inputs: UInt8, targets: UInt8, outputs: list[UInt8], digests: dict[str, str]) -> Iterator[str]:
    """The elements of the picture, from left to right and from top to bottom."""
    yield text("in: random spikes", 0, 16, weight="600")
    for k in range(2):
        yield raster(inputs[:, k], 0, 28 + 138 * k, 2, GREY, 1.2)
    yield text("2 of 4 rasters: 64 neurons, 50 steps", 0, 310, 12)
    yield text("network", 216, 128, anchor="middle", weight="600")
    yield f'<path d="M140 156h136m-12 -7l12 7l-12 7" stroke="{GREY}" stroke-width="2" fill="none"/>'
    yield text("200 spiking neurons,", 210, 184, 12, "middle")
    yield text("trained on the times", 210, 200, 12, "middle")
    yield text("of the output spikes", 210, 216, 12, "middle")
    x_output, gap = 400, STEPS * STEP + 8
    yield text("out: the letters that the labels draw with spikes", x_output, 16, weight="600")
    for row, (update, spikes) in enumerate(zip(SHOWN, outputs, strict=True)):
        y = 32 + 96 * row
        score = f1(*(float(np.sum(counts)) for counts in match_spikes(spikes, targets)))
        yield text(f"{update} updates", x_output - 12, y + 32, 13, "end")
        yield text(f"F1 {100 * score:.0f} %", x_output - 12, y + 50, 12, "end")
        for k in range(targets.shape[1]):
            yield target_bars(targets[:, k], x_output + gap * k, y)
            yield raster(spikes[:, k], x_output + gap * k, y, ROW, BLUE)
    yield text("pale: wanted, blue: given. Ten output neurons a letter", x_output, 310, 12)
    yield f'<path d="M0 326h{WIDTH}" stroke="{GREY}" stroke-opacity="0.4"/>'
    yield text("The same weights, bit for bit, on every backend:", 0, 350, weight="600")
    place = WIDTH / len(digests)
    for k, (name, digest) in enumerate(digests.items()):
        yield text(f"{NAMES[name]}: {digest[:16]}", place * k, 374, 13)


def main() -> None:
    """Train, draw, write."""
    split = load("patterns-image", steps=STEPS).test
    assert isinstance(split, SequenceSplit)
    samples = np.arange(4)
    inputs, targets = split.inputs(samples), split.targets(samples)
    network = NetworkSpec.parse("200", input_shape=(64,), outputs=10, neuron=LIF(tau_m=5, tau_s=2))
    results = {name: trained(name, Batch(inputs, targets), network) for name in NAMES if name in installed_backends()}
    digests = {name: digest for name, (_, digest) in results.items()}
    outputs, _ = next(iter(results.values()))
    if len(set(digests.values())) > 1:
        raise SystemExit(f"the backends do not agree: {digests}")
    box = f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} 384"'
    head = f'<svg {box} role="img" font-family="sans-serif" fill="{GREY}">'
    title = "<title>A spiking network learns to answer four input rasters with the letters S, T, B and P</title>"
    body = "\n".join(drawing(inputs, targets, outputs, digests))
    Path(__file__).with_suffix(".svg").write_text(f"{head}\n{title}\n{body}\n</svg>\n", encoding="utf-8")


if __name__ == "__main__":
    main()
