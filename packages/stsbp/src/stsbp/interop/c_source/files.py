"""The header and the source file of a network, and how they are written into a folder."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stsbp_spec.networks.graph import Input, Neurons

import stsbp
from stsbp.errors import FileError
from stsbp.files import OutputKind, atomic_writer, locked_folder, writing
from stsbp.interop.c_source.arrays import axis_sizes
from stsbp.interop.c_source.module import ComparedLayer, Module
from stsbp.interop.c_source.texts import braced, comment, function, identifier, indented, loops, string
from stsbp.interop.program import About, NetworkProgram

__all__ = ["KIND", "CSource", "source", "write"]

_MARK = "/* Written by stsbp export --to c"
KIND = OutputKind("C source of stsbp export", re.compile(re.escape(_MARK).encode()))
"""The kind of file that an export may replace."""


@dataclass(frozen=True)
class CSource:
    """A network in C.

    Attributes:
        stem: beginning of the names of files and functions.
        header, source: contents of the files.
        flash: size of the constant tables in bytes.
        ram: size of the state in bytes.
        layers: populations in order.
    """

    stem: str
    header: str
    source: str
    flash: int
    ram: int
    layers: tuple[ComparedLayer, ...]


def source(program: NetworkProgram, about: About) -> CSource:
    """The files of a network.

    Raises:
        ConfigError: a node cannot be written in C. The message names it and gives the reason.
    """
    stem = identifier(about.name)
    module = Module(program, stem, f"{stem.upper()}_TRACE")
    writer = _CWriter(program, about, stem, module)
    header, body = writer.header(), writer.body()
    digest = hashlib.sha256("\n".join([*header, *body]).encode()).hexdigest()[:8]
    number, export = f"0x{digest}UL", f"{writer.macro}_EXPORT"
    header[header.index(_EXPORT)] = f"#define {export} {number}"
    mismatch_error = f'#error "{stem}.h and {stem}.c are of two exports; take both from one"'
    body[body.index(_EXPORT)] = "\n".join([f"#if {export} != {number}", mismatch_error, "#endif"])
    texts = ["\n".join([*rows, ""]) for rows in (header, body)]
    return CSource(stem, texts[0], texts[1], module.flash, module.ram, tuple(module.layers))


_EXPORT = "<export>"
"""The placeholder for a line in both files that links them: a number that is computed from both."""


def write(program: NetworkProgram, about: About, folder: Path) -> list[str]:
    """Write `NAME.h` and `NAME.c` into `folder`, both or neither. Returns the messages to print.

    If the process is killed between the two, the files belong to two exports, and do not compile together.

    Raises:
        ConfigError: a node cannot be written in C.
        FileError: the system refused, or an existing file is of another kind.
    """
    c_source = source(program, about)
    paths = [folder / f"{c_source.stem}.{ending}" for ending in ("c", "h")]
    if folder.exists() and not folder.is_dir():
        raise FileError(f"{folder} is a file, but C source consists of two files; give a folder")
    targets = [KIND.target_path(path) for path in paths]
    # Two exports into one folder at once would otherwise leave the .c of one and the .h of the other.
    with locked_folder(folder), atomic_writer(targets[0]) as first, atomic_writer(targets[1]) as second:
        for target, file, text in zip(targets, (first, second), (c_source.source, c_source.header), strict=True):
            file.write(text.encode("ascii"))
            # Both files are on the disk before one of them replaces an old one.
            with writing(target):
                file.flush()
                os.fsync(file.fileno())
    return [
        f"{paths[0]}",
        f"{paths[1]}",
        f"tables {c_source.flash:,} bytes (flash), state {c_source.ram:,} bytes (RAM)",
        f"compile with: cc -std=c99 -O3 -ffp-contract=off -c {c_source.stem}.c",
    ]


class _CWriter:
    """The lines of both files."""

    def __init__(self, program: NetworkProgram, about: About, stem: str, module: Module) -> None:
        self._program, self._about, self._stem, self._module = program, about, stem, module
        self.macro = stem.upper()
        self._input = next(node.op for node in program.nodes if isinstance(node.op, Input))
        self._events = program.network.coding == "events"

    def header(self) -> list[str]:
        """The header, with `_EXPORT` in it."""
        guard = f"{self.macro}_H"
        return [
            *self._about_lines(),
            "",
            *(f"#ifndef {guard}", f"#define {guard}", ""),
            *("#include <stdint.h>", ""),
            *("#ifdef __cplusplus", 'extern "C" {', "#endif", ""),
            *self._numbers(),
            *("", _EXPORT, ""),
            *self._state(),
            "",
            *self._declarations(),
            "",
            *("#ifdef __cplusplus", "}", "#endif", ""),
            "#endif",
        ]

    def body(self) -> list[str]:
        """The source, with `_EXPORT` in it."""
        module = self._module
        functions = [*module.helpers, *module.functions, *self._public()]
        return [
            *self._about_lines(),
            "",
            f'#include "{self._stem}.h"',
            "",
            *(f"#include <{name}.h>" for name in ("float", "math", "stdbool", "stddef", "string")),
            "",
            _EXPORT,
            *_ARITHMETIC,
            "",
            *self._size(),
            "",
            *module.tables,
            *(line for rows in functions for line in [*rows, ""]),
            *self._tracing(),
        ]

    def _about_lines(self) -> list[str]:
        network, about = self._program.network, self._about
        rows = [
            f"{_MARK}, stsbp {stsbp.__version__}. Changes are lost with the next export.",
            "",
            f"The network {comment(str(network))} of the run {comment(about.name)}, weights of the checkpoint",
            f"{comment(about.checkpoint)} (SHA-256). Spikes and potentials are those of stsbp, to the bit.",
            "",
            f"Tables: {self._module.flash:,} bytes (flash). State: {self._module.ram:,} bytes (RAM).",
            "Populations:",
            *(f"  {text}" for text in self._populations()),
        ]
        return [rows[0], *(f" * {row}".rstrip() for row in rows[1:]), " */"]

    def _populations(self) -> Iterator[str]:
        for number, (layer, population) in enumerate(
            zip(self._module.layers, self._program.populations.values(), strict=True)
        ):
            op = population.bound_node.node.op
            assert isinstance(op, Neurons)
            shape = " x ".join(map(str, layer.array.shape))
            settings = ", ".join(f"{key}={value}" for key, value in list(op.model.written().items())[1:])
            model = comment(f"{op.model.name}({settings})")
            yield f"{number}: {comment(layer.name)}, {shape} neurons, {model}"

    def _numbers(self) -> list[str]:
        about, shape = self._about, self._input.shape
        channels, rows, columns = axis_sizes(shape)
        numbers: dict[str, object] = {"CHECKPOINT": string(about.checkpoint), "STEPS": about.steps}
        numbers["INPUT_SIZE"] = channels * rows * columns
        if len(shape) == 3:
            numbers |= {"INPUT_CHANNELS": channels, "INPUT_ROWS": rows, "INPUT_COLUMNS": columns}
        numbers["INPUT_MAX"] = self._input.largest if self._events else 255
        numbers |= {"OUTPUTS": self._program.network.outputs, "LAYERS": len(self._module.layers)}
        numbers |= {"FLASH_BYTES": self._module.flash, "RAM_BYTES": self._module.ram}
        definitions = [
            f"#define {self.macro}_{name} {value}{'u' if isinstance(value, int) else ''}"
            for name, value in numbers.items()
        ]
        if about.classes:
            names = [f"    {string(name)}, \\" for name in about.classes]
            definitions += [f"#define {self.macro}_CLASS_NAMES {{ \\", *names, "}"]
        return definitions

    def _state(self) -> list[str]:
        module = self._module
        fields = [member.text for member in module.state]
        if module.traced:
            fields += [f"#if defined({self._trace})", *(member.text for member in module.traced), "#endif"]
        head = "/* All that changes. Its fields are no part of the interface. */"
        return [head, *braced("typedef struct", fields)[:-1], f"}} {self._stem}_state;"]

    @property
    def _trace(self) -> str:
        return f"{self.macro}_TRACE"

    def _declarations(self) -> list[str]:
        macro, stem = self.macro, self._stem
        shape = "[C][H][W]" if len(self._input.shape) == 3 else "[N]"
        if self._events:
            largest = self._input.largest
            begin = ["/* Before the first step of a sample. */", f"{self._heads['reset']};"]
            step = f"frame: {macro}_INPUT_SIZE bytes, {shape}, 0 to {largest}; more counts as {largest}."
            run_inputs = f"frames: [steps]{shape}."
        else:
            begin = [
                f"/* Before the first step of a sample. image: {macro}_INPUT_SIZE bytes, {shape}; needed no longer. */",
                f"{self._heads['begin']};",
            ]
            step, run_inputs = f"The image is that of {stem}_begin.", f"image: as for {stem}_begin."
        return [
            *begin,
            "",
            "/* The next step of a sample.",
            f" * {step}",
            f" * spikes, potentials: {macro}_OUTPUTS of them are written, each where it is not NULL. */",
            f"{self._heads['step']};",
            "",
            "/* A whole sample, from its first step on.",
            f" * {run_inputs}",
            f" * spikes, potentials: [steps][{macro}_OUTPUTS], each written where it is not NULL. */",
            f"{self._heads['run']};",
            "",
            "/* 1: this build computes as stsbp does; 0: it fuses or rounds otherwise, see docs/deploy.md. */",
            f"{self._heads['check']};",
            "",
            f"#if defined({self._trace})",
            "/* Numbers of neurons of the populations. */",
            f"extern const uint32_t {stem}_layer_sizes[{macro}_LAYERS];",
            "",
            "/* Spikes and potentials of a population after a step, [C][H][W] or [N]. */",
            f"{self._heads['trace']};",
            "#endif",
        ]

    @property
    def _heads(self) -> dict[str, str]:
        stem = self._stem
        state, outputs = f"{stem}_state *state", "uint8_t *spikes, float *potentials"
        frame, input_name = ("const uint8_t *frame, ", "frames") if self._events else ("", "image")
        return {
            "reset": f"void {stem}_reset({state})",
            "begin": f"void {stem}_begin({state}, const uint8_t *image)",
            "step": f"void {stem}_step({state}, {frame}{outputs})",
            "run": f"void {stem}_run({state}, const uint8_t *{input_name}, uint32_t steps, {outputs})",
            "check": f"int {stem}_check(void)",
            "trace": f"void {stem}_trace(const {state}, uint32_t layer, {outputs})",
        }

    def _size(self) -> list[str]:
        holds = f"typedef char {self._stem}_size[(sizeof({self._stem}_state) <= {self.macro}_RAM_BYTES) ? 1 : -1];"
        return [f"#if !defined({self._trace})", holds, "#endif"]

    def _public(self) -> Iterator[list[str]]:
        stem, macro, module = self._stem, self.macro, self._module
        zeros = "(void)memset(state, 0, sizeof(*state));"
        if self._events:
            yield function(self._heads["reset"], [zeros])
        else:
            yield function(self._heads["begin"], [zeros, *module.begin])
        last = module.layers[-1]
        # A zero of either sign becomes +0.
        number = f"potentials[n] = state->{last.potentials.name}[n] + 0.0f;"
        output_statements = [
            *braced("if (spikes != NULL)", [f"(void)memcpy(spikes, state->{last.spikes.name}, {macro}_OUTPUTS);"]),
            *braced("if (potentials != NULL)", loops([("n", last.array.size)], [number])),
        ]
        yield function(self._heads["step"], [*module.step, *output_statements])
        pointers = [
            f"uint8_t *to = (spikes == NULL) ? NULL : &spikes[(size_t)t * {macro}_OUTPUTS];",
            f"float *u = (potentials == NULL) ? NULL : &potentials[(size_t)t * {macro}_OUTPUTS];",
        ]
        first = f"{stem}_reset(state);" if self._events else f"{stem}_begin(state, image);"
        frame = f"&frames[(size_t)t * {macro}_INPUT_SIZE], " if self._events else ""
        loop = braced("for (uint32_t t = 0u; t < steps; t++)", [*pointers, f"{stem}_step(state, {frame}to, u);"])
        yield function(self._heads["run"], [first, *loop])
        yield function(self._heads["check"], _CHECK)

    def _tracing(self) -> list[str]:
        layers = self._module.layers
        sizes = ", ".join(f"{layer.array.size}u" for layer in layers)
        case_lines = list[str]()
        for number, layer in enumerate(layers):
            position = _channels_first(layer)
            copy = [f"spikes[{position}] = state->{layer.spikes.name}[{layer.array.index()}];"]
            copy += [f"potentials[{position}] = state->{layer.potentials.name}[{layer.array.index()}] + 0.0f;"]
            case_lines += [f"case {number}u:", *indented([*loops(layer.array.axes, copy), "break;"])]
        case_lines += ["default:", "    break;"]
        return [
            f"#if defined({self._trace})",
            f"const uint32_t {self._stem}_layer_sizes[{self.macro}_LAYERS] = {{{sizes}}};",
            "",
            *function(self._heads["trace"], braced("switch (layer)", case_lines)),
            "#endif",
        ]


def _channels_first(layer: ComparedLayer) -> str:
    """The position of channel `c`, row `y`, column `x` in channels-first order."""
    _, rows, columns = axis_sizes(layer.array.shape)
    return "c" if len(layer.array.shape) == 1 else f"(c * {rows * columns}) + (y * {columns}) + x"


_ARITHMETIC = """\

#if (FLT_RADIX != 2) || (FLT_MANT_DIG != 24) || (FLT_MAX_EXP != 128)
#error "float is not IEEE 754's binary32"
#endif
/* 0: a float is computed as one. 16 and 32, of newer standards, say so of narrower types too. */
#if !defined(FLT_EVAL_METHOD) || ((FLT_EVAL_METHOD != 0) && (FLT_EVAL_METHOD != 16) && (FLT_EVAL_METHOD != 32))
#error "floats are computed in a wider type; on x86 use -mfpmath=sse -msse2"
#endif
#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__)
#error "do not compile this with -ffast-math or a part of it: spikes would differ"
#endif
#if defined(__NO_SIGNED_ZEROS__) || (defined(__FINITE_MATH_ONLY__) && (__FINITE_MATH_ONLY__ != 0))
#error "do not compile this with -ffast-math or a part of it: spikes would differ"
#endif

/* No fused multiply-add. GCC does not know the pragma of the standard; its own are options for the rest of this file.
 * The second has no effect on numbers, and lets loops with conditions become vector code. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize ("fp-contract=off", "no-trapping-math")
#else
#pragma STDC FP_CONTRACT OFF
#endif""".splitlines()

_CHECK = """\
volatile float number = 0x1.000002p+0f;
const float a = number;
const float square = 0x1.000004p+0f;
number = 0x1p-24f;
const float half = number;
number = 1.0f;
const float one = number;
/* Fused, the square keeps what it loses when it is rounded. Halves are rounded to even, and more than a half up. */
const bool fused = ((a * a) - square) != 0.0f;
const bool rounded = ((one + half) == 1.0f) && ((one + (half * 1.5f)) == a) && ((a + half) == square);
return (rounded && !fused) ? 1 : 0;""".splitlines()
