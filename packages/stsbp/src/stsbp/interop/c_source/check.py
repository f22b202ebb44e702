"""A C program that compares exported networks with the results of stsbp, for every layer, step and sample.

It is compiled together with the networks, for any compiler and target. It reads one file per network, `NAME.bin`, which
`recorded` writes. One line per layer says how many spikes and potentials differ, bit by bit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from string import Template
from typing import BinaryIO

import numpy as np
from stsbp_spec.engine.results import RunResult
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.typing import UInt8

from stsbp.interop.c_source.files import CSource

__all__ = ["Compared", "compared", "driver", "macros", "recorded"]


@dataclass(frozen=True)
class Compared:
    """A layer of a network, over all samples and steps.

    Attributes:
        network, layer: names of the network and the layer.
        values: number of neurons times steps times samples.
        spikes: number of spikes among them.
        spikes_differ, potentials_differ: numbers of values that differ from those of stsbp.
    """

    network: str
    layer: int
    values: int
    spikes: int
    spikes_differ: int
    potentials_differ: int


def macros(sources: Sequence[CSource]) -> list[str]:
    """Compiler options that make networks keep the values that the program compares."""
    return [f"-D{source.stem.upper()}_TRACE" for source in sources]


def recorded(file: BinaryIO, network: NetworkSpec, inputs: UInt8, run: RunResult) -> None:
    """Add samples, `[T, B, ...]` or `[B, ...]`, and the spikes and potentials of all layers for them."""
    layers = [run.layers[block.name] for block in network.blocks]
    steps, samples = layers[0].spikes.shape[:2]
    for b in range(samples):
        file.write(np.array([steps], np.int32).tobytes())
        sample = inputs[:, b] if network.coding == "events" else inputs[b]
        file.write(np.ascontiguousarray(sample).tobytes())
        for t in range(steps):
            for layer in layers:
                file.write(layer.spikes[t, b].tobytes())
                file.write(layer.potentials[t, b].tobytes())


def compared(output: str) -> Iterator[Compared]:
    """Read the output of the program.

    Raises:
        ValueError: a network reports that it was built without exact arithmetic, or its sequences differ from its
            steps.
    """
    for line in output.splitlines():
        report = json.loads(line)
        if "layer" in report:
            yield Compared(**report)
        elif not report["exact"] or report["sequence_differs"]:
            raise ValueError(line)


def driver(sources: Sequence[CSource]) -> str:
    """The text of the program. It reads the files from its working folder, because bare devices have no arguments."""
    parts = [_HEAD.substitute(headers="\n".join(f'#include "{source.stem}.h"' for source in sources))]
    for source in sources:
        events = "_reset(" in source.header
        words = {"stem": source.stem, "macro": source.stem.upper()}
        frame = {"begin": "reset(state)", "frames": "steps", "frame": f"input + t * {words['macro']}_INPUT_SIZE, "}
        image = {"begin": "begin(state, input)", "frames": "1u", "frame": ""}
        parts.append(_NETWORK.substitute(words, **(frame if events else image)))
    calls = "\n".join(f'    check_{source.stem}("{source.stem}.bin");' for source in sources)
    return "\n".join([*parts, f"int main(void)\n{{\n{calls}\n    return 0;\n}}\n"])


_HEAD = Template("""\
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
$headers

static void *memory(size_t bytes)
{
    void *found = calloc(bytes, 1);
    if (found == NULL) { perror("memory"); exit(1); }
    return found;
}

static void take(FILE *file, void *to, size_t bytes)
{
    if (fread(to, 1, bytes, file) != bytes) { fprintf(stderr, "the file ends too soon\\n"); exit(1); }
}
""")

_NETWORK = Template("""\
static void check_$stem(const char *path)
{
    FILE *file = fopen(path, "rb");
    int32_t head;
    if (file == NULL) { perror(path); exit(1); }
    ${stem}_state *state = memory(sizeof *state);
    uint8_t *out = memory(${macro}_OUTPUTS);
    float *u = memory(${macro}_OUTPUTS * sizeof *u);
    unsigned long values[${macro}_LAYERS] = {0}, spikes[${macro}_LAYERS] = {0}, differs = 0;
    unsigned long wrong[${macro}_LAYERS] = {0}, off[${macro}_LAYERS] = {0};
    while (fread(&head, sizeof head, 1, file) == 1) {
        const size_t steps = (size_t)head;
        uint8_t *input = memory($frames * ${macro}_INPUT_SIZE);
        uint8_t *outs = memory(2 * steps * ${macro}_OUTPUTS), *second = outs + steps * ${macro}_OUTPUTS;
        float *us = memory(2 * steps * ${macro}_OUTPUTS * sizeof *us), *seconds = us + steps * ${macro}_OUTPUTS;
        take(file, input, $frames * ${macro}_INPUT_SIZE);
        ${stem}_$begin;
        for (size_t t = 0; t < steps; t++) {
            ${stem}_step(state, ${frame}out, u);
            memcpy(outs + t * ${macro}_OUTPUTS, out, ${macro}_OUTPUTS);
            memcpy(us + t * ${macro}_OUTPUTS, u, ${macro}_OUTPUTS * sizeof *u);
            for (uint32_t layer = 0; layer < ${macro}_LAYERS; layer++) {
                const size_t size = ${stem}_layer_sizes[layer];
                uint8_t *made = memory(2 * size);
                float *membrane = memory(2 * size * sizeof *membrane);
                ${stem}_trace(state, layer, made, membrane);
                take(file, made + size, size);
                take(file, membrane + size, size * sizeof *membrane);
                for (size_t n = 0; n < size; n++) {
                    spikes[layer] += made[n];
                    wrong[layer] += (made[n] != made[size + n]) ? 1u : 0u;
                    off[layer] += (memcmp(membrane + n, membrane + size + n, sizeof *membrane) != 0) ? 1u : 0u;
                }
                values[layer] += size;
                free(made);
                free(membrane);
            }
        }
        memset(state, 0x5a, sizeof *state);
        ${stem}_run(state, input, (uint32_t)steps, second, seconds);
        differs += (memcmp(outs, second, steps * ${macro}_OUTPUTS) != 0) ? 1u : 0u;
        differs += (memcmp(us, seconds, steps * ${macro}_OUTPUTS * sizeof *us) != 0) ? 1u : 0u;
        ${stem}_run(state, input, (uint32_t)steps, NULL, NULL);
        free(input); free(outs); free(us);
    }
    for (uint32_t layer = 0; layer < ${macro}_LAYERS; layer++) {
        printf("{\\"network\\": \\"$stem\\", \\"layer\\": %u, \\"values\\": %lu, \\"spikes\\": %lu, ", (unsigned)layer,
               values[layer], spikes[layer]);
        printf("\\"spikes_differ\\": %lu, \\"potentials_differ\\": %lu}\\n", wrong[layer], off[layer]);
    }
    printf("{\\"network\\": \\"$stem\\", \\"exact\\": %d, \\"sequence_differs\\": %lu}\\n", ${stem}_check(), differs);
    fclose(file);
    free(state); free(out); free(u);
}
""")
