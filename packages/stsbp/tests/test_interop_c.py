"""`stsbp export --to c`: compiled networks against the reference, every layer, step and sample, bit for bit."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from click.testing import Result
from small_networks import SMALL, Case, case, drawn
from stsbp import load_run
from stsbp.errors import ConfigError, FileError
from stsbp.interop.c_source import CSource, source, write
from stsbp.interop.c_source.check import Compared, compared, driver, macros, recorded
from stsbp.interop.c_source.steps import batchnorm
from stsbp.interop.c_source.texts import C_LANGUAGE, identifier, string
from stsbp.interop.program import About, program
from stsbp_spec import NetworkSpec, open_backend
from stsbp_spec.equations.expressions import Expr, Names, exp, named, snap, spike, sqrt, where
from stsbp_spec.models.neurons import IF, LIF
from stsbp_spec.models.neurons.base import NeuronModel, Step
from stsbp_spec.networks.ops import PSP
from stsbp_spec.typing import UInt8

GCC = shutil.which("gcc") or ""
WARNED = ("-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-pedantic", "-Werror")
PAGE = Path(__file__).parents[3] / "docs" / "deploy.md"
LIKE_THIS = About("net", "0" * 64, 9, ("one", "two"))

pytestmark = pytest.mark.skipif(not GCC, reason="there is no gcc")


@dataclass(frozen=True)
class Odd(NeuronModel):
    """Names that are words of C or of the frame, a state that nothing reads, a potential that is not the spike's."""

    name: ClassVar[str] = "odd"
    states: ClassVar[tuple[str, ...]] = ("spikes", "long", "unread")

    threshold: float = 0.4

    def constants(self) -> dict[str, float]:
        return {"double": 0.7, "n": self.threshold, "state": -0.3, "unused": 1.0}

    def step(self, p: Names, s: Names, i: Expr) -> Step:
        u = named("u", snap(p.double * s.spikes + i))
        o = spike(sqrt(abs(u)), p.n)
        drawn = where(u < -abs(p.state), u, -u / (abs(s.long) + 3))
        return Step(named("free", u - drawn), o, {"spikes": where(o, 0, u), "long": drawn, "unread": u * u})


@dataclass(frozen=True)
class Inexact(NeuronModel):
    """A neuron that takes an exponential."""

    name: ClassVar[str] = "inexact"
    states: ClassVar[tuple[str, ...]] = ("m",)

    def constants(self) -> dict[str, float]:
        return {"vth": self.threshold}

    def step(self, p: Names, s: Names, i: Expr) -> Step:
        u = named("u", snap(s.m * exp(i)))
        return Step(u, spike(u, p.vth), {"m": u})


def node(name: str, *rows: str) -> str:
    return "\n".join(["[[node]]", f'name = "{name}"', *rows, ""])


SEVERAL = "".join(
    [
        node("late", 'weights = "6b"', 'from = [{node = "input", delay = 1}]'),
        node("a", 'weights = "6bn"', 'from = "input"'),
        node("one", 'neurons = ""', 'from = ["a", "late"]'),
        node("later", 'weights = "6b"', 'weights_of = "late"', 'from = [{node = "input", delay = 1}]'),
        node("two", 'neurons = "neuron=alif"', 'from = ["later", {node = "a", delay = 2}]'),
        node("drop", 'layer = "D0"', 'from = [{node = "one", delay = 1}]'),
        node("flat", 'layer = "F"', 'from = "drop"'),
        node("both", "add = true", 'from = [{node = "flat", delay = 2}, "two", "one"]'),
        node("third", 'weights = "4"', 'from = "both"'),
        node("out", 'neurons = ""', 'from = ["third"]'),
    ]
)
DELAYED = "".join(
    [
        node("late", 'layer = "T9"', 'from = [{node = "input", delay = 2}]'),
        node("a", 'weights = "6"', 'from = [{node = "late", delay = 3}]'),
        node("one", 'neurons = ""', 'from = "a"'),
        node("far", 'layer = "T4"', 'from = "one"'),
        node("farther", 'layer = "T5"', 'from = "far"'),
        node("both", "add = true", 'from = ["far", "farther", "one"]'),
        node("more", 'layer = "T3"', 'from = "both"'),
        node("out", 'weights = "4"', 'from = "more"'),
        node("output", 'neurons = ""', 'from = "out"'),
    ]
)
IMAGE_TWICE = "".join(
    [
        node("int", 'layer = "F"', 'from = "input"'),
        node("a", 'weights = "6bn"', 'from = "int"'),
        node("b", 'weights = "6"', 'from = "input"'),
        node("one", 'neurons = ""', 'from = ["a", "b"]'),
        node("two", 'neurons = "tau_s=1"', 'from = ["b"]'),
        node("last", 'weights = "4"', 'from = "one"'),
        node("again", 'weights = "4"', 'weights_of = "last"', 'from = "two"'),
        node("out", 'neurons = "neuron=if"', 'from = ["last", "again"]'),
    ]
)


def network(net: str, shape: tuple[int, ...] = (12,), **more: Any) -> NetworkSpec:
    settings: dict[str, Any] = {"outputs": 4, "neuron": LIF(3.0, 5 / 3), **more}
    return NetworkSpec.parse(net, input_shape=shape, **settings)


def without_delays(drawn_case: Case) -> Case:
    """A network whose learned delays are less than half a step."""
    weights = {key: np.minimum(x, 0.5) if key.endswith(".steps") else x for key, x in drawn_case.weights.items()}
    run = open_backend("numpy").run(drawn_case.network, weights, drawn_case.inputs, len(drawn_case.inputs))
    return replace(drawn_case, weights=weights, run=run)


def silent_from(net: str, step: int, steps: int, neuron: NeuronModel) -> Case:
    """A network whose input falls silent, so that states fade below the floor."""
    drawn_case = drawn(network(net, neuron=neuron), 3, steps, 1)
    drawn_case.inputs[step:] = 0
    return replace(
        drawn_case, run=open_backend("numpy").run(drawn_case.network, drawn_case.weights, drawn_case.inputs, steps)
    )


ALONE = {
    "one neuron": lambda: drawn(network("1", (1,), outputs=1), 3, 1, 1),
    "no hidden layer": lambda: drawn(network("4", outputs=4), 3, 20, 1),
    "counts": lambda: drawn(network("10", input_max=255), 5),
    "few counts": lambda: drawn(network("4C3p1-P2-10", (2, 8, 8), input_max=3), 6),
    "pooled counts": lambda: drawn(network("P2-M2-4C1-G", (2, 8, 8), input_max=200), 6),
    "input filter": lambda: drawn(network("4C3-P2-10", (2, 8, 8), input_psp=PSP(3.0, 1.5)), 6),
    "input and branch": lambda: drawn(network("[2C3p1|P1]+-P2-6", (2, 6, 6), input_psp=PSP(5 / 3)), 6),
    "several": lambda: drawn(network(SEVERAL), 3, 12),
    "image twice": lambda: drawn(network(IMAGE_TWICE, (2, 3, 3), coding="direct"), 8),
    "pooled image": lambda: drawn(network("P2-4C3p1-M2-F-8", (3, 8, 8), coding="direct"), 2),
    "largest pooling of an image": lambda: drawn(network("P32-8", (2, 32, 32), coding="direct"), 2),
    "flat image": lambda: drawn(network("F-8-6", (1, 5, 3), coding="direct"), 2),
    "one dimension": lambda: drawn(network("4C1x5p0x2-P1x2-6C1x3s1x2-U1x2-F-D0.3-8", (2, 1, 20)), 2),
    "depthwise": lambda: drawn(network("8C3p1-8C3x1p1x0{groups=8}-4C3s2x1p1{dilation=1x2,groups=2}", (2, 7, 9)), 2),
    "means and largest": lambda: drawn(network("4C3p1-[P2|M2|P2-U1]+-6C3", (2, 8, 8)), 2),
    "recurrent and delayed": lambda: drawn(network("10R-8R{delay=2}-6{delay=1,recurrent=one-to-one}"), 2),
    "recurrence of a row": lambda: drawn(network("4C3R1x3p1", (2, 6, 6)), 2),
    "normalised vector": lambda: drawn(network("10bn-8bn"), 3),
    "learned by channel": lambda: drawn(network("4C3p1b{neuron=plif,per=channel}-P2-6", (2, 6, 6)), 2),
    "few bits": lambda: drawn(network("10", weight_bits=4), 3),
    "odd names": lambda: drawn(network("10-8", neuron=Odd()), 3),
    "long": lambda: drawn(network("10-8{delay=7}", neuron=LIF(20.0, 9.0)), 3, 60, 1),
    "counts delayed by channel": lambda: drawn(network("T7-4C3p1-P2-T300-10", (2, 8, 8), input_max=3), 6, 330, 1),
    "learned and fixed delays": lambda: drawn(network(DELAYED), 6, 24),
    "delays of 0": lambda: without_delays(drawn(network("10-T3-8"), 3)),
    "silence": lambda: silent_from("10-8", 4, 60, LIF(1.25, 1.2)),
    "at the threshold": lambda: drawn(network("10-8", neuron=IF(tau_s=1.0, threshold=2.0), weight_bits=2), 3),
}
"""What C source alone has to get right: what lies in memory how, and what is kept from step to step."""


@cache
def special_case(name: str) -> Case:
    return ALONE[name]()


def case_named(name: str) -> Case:
    return case(name) if name in SMALL else special_case(name)


def exported(name: str) -> CSource:
    exported_case = case_named(name)
    return source(program(exported_case.network, exported_case.weights), replace(LIKE_THIS, name=name, steps=9))


@dataclass
class Built:
    """All networks in a folder, and the program that compares them."""

    folder: Path
    names: list[str]
    sources: list[CSource] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in self.names:
            built_case, c_source = case_named(name), exported(name)
            self.sources.append(c_source)
            (self.folder / f"{c_source.stem}.h").write_text(c_source.header)
            (self.folder / f"{c_source.stem}.c").write_text(c_source.source)
            with (self.folder / f"{c_source.stem}.bin").open("wb") as file:
                recorded(file, built_case.network, built_case.inputs, built_case.run)
        assert len({c_source.stem for c_source in self.sources}) == len(self.sources)
        (self.folder / "main.c").write_text(driver(self.sources))

    def run(self, *options: str, compiler: str = GCC, program: str = "all") -> str:
        """What the program prints, compiled with some options."""
        files = [f"{c_source.stem}.c" for c_source in self.sources]
        command = [compiler, *options, *macros(self.sources), *files, "main.c", "-o", program, "-lm"]
        subprocess.run(command, cwd=self.folder, check=True)
        return subprocess.run([f"./{program}"], cwd=self.folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(tmp_path_factory.mktemp("c"), [*SMALL, *ALONE])


@pytest.fixture
def few(tmp_path: Path) -> Built:
    return Built(tmp_path, ["full", "second order", "normalised", "odd names"])


def has_fused_multiply_add() -> bool:
    info = Path("/proc/cpuinfo")
    return info.is_file() and bool(re.search(r"^flags.*\bfma\b", info.read_text(), re.MULTILINE))


FMA = pytest.mark.skipif(not has_fused_multiply_add(), reason="this processor has no fused multiply-add of x86")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            ("-O0", "-std=c99", *WARNED, "-fsanitize=undefined,address", "-fno-sanitize-recover=all"), id="sanitised"
        ),
        pytest.param(("-O3", "-std=gnu11", *WARNED, "-march=native"), id="fast", marks=pytest.mark.long),
    ],
)
def test_every_network_computes_what_the_reference_does(built: Built, options: tuple[str, ...]) -> None:
    layers_compared = list(compared(built.run(*options)))
    assert {layer.network for layer in layers_compared} == {layer.stem for layer in built.sources}
    assert [layer for layer in layers_compared if layer.spikes_differ or layer.potentials_differ] == []
    layers = [layer for name in built.names for layer in case_named(name).run.layers.values()]
    assert [layer.values for layer in layers_compared] == [layer.spikes.size for layer in layers]
    assert [layer.spikes for layer in layers_compared] == [layer.spikes.sum() for layer in layers]


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"snap": "({0})"}, "silence"),
        ({"spike": "{0} > {1}"}, "at the threshold"),
        ({"sub": "{1} - {0}"}, "normalised"),
        ({"where": "({0} ? {2} : {1})"}, "full"),
    ],
)
def test_a_wrongly_printed_equation_is_noticed(
    wrong: dict[str, str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not any(layer.potentials_differ for layer in compared(Built(tmp_path, [name]).run()))
    spoilt = replace(C_LANGUAGE, operations={**C_LANGUAGE.operations, **wrong})
    monkeypatch.setattr("stsbp.interop.c_source.steps.C_LANGUAGE", spoilt)
    monkeypatch.setattr("stsbp.interop.c_source.module.BATCHNORM", batchnorm(spoilt))
    layers_compared = list(compared(Built(tmp_path, [name]).run()))
    assert any(layer.potentials_differ for layer in layers_compared)


@FMA
def test_gcc_fuses_nothing_with_the_pragma_and_fusion_without_it_is_noticed(few: Built) -> None:
    options = ("-O3", "-std=gnu11", "-mfma", "-ffp-contract=fast")
    assert not any(layer.potentials_differ for layer in compared(few.run(*options)))
    for c_source in few.sources:
        path = few.folder / f"{c_source.stem}.c"
        assert c_source.source.count('"fp-contract=off", ') == 1
        path.write_text(c_source.source.replace('"fp-contract=off", ', ""))
    printed = few.run(*options)
    assert printed.count('"exact": 0') == len(few.sources)
    layers = [Compared(**record) for record in map(json.loads, printed.splitlines()) if "layer" in record]
    assert any(layer.potentials_differ for layer in layers)
    with pytest.raises(ValueError, match='"exact": 0'):
        list(compared(printed))


@FMA
@pytest.mark.skipif(shutil.which("clang") is None, reason="there is no clang")
def test_clang_fuses_nothing_by_default_and_fusion_is_noticed(few: Built) -> None:
    assert not any(layer.potentials_differ for layer in compared(few.run("-O3", "-mfma", *WARNED, compiler="clang")))
    assert '"exact": 1' not in few.run("-O3", "-mfma", "-ffp-contract=fast", compiler="clang")


@pytest.mark.parametrize("option", ["-ffast-math", "-fassociative-math", "-mfpmath=387"])
def test_options_that_change_numbers_do_not_compile(few: Built, option: str) -> None:
    if option.startswith("-m") and platform.machine() != "x86_64":
        pytest.skip("an option of x86")
    more = ["-fno-signed-zeros", "-fno-trapping-math"] if option == "-fassociative-math" else []
    command = [GCC, "-std=c99", option, *more, "-c", "full.c", "-o", "full.o"]
    ran = subprocess.run(command, cwd=few.folder, capture_output=True, text=True)
    assert ran.returncode
    assert "#error" in ran.stderr


def test_header_and_source_of_two_exports_do_not_compile(few: Built) -> None:
    other = exported_as("full", "full", checkpoint="1" * 64)
    (few.folder / "full.h").write_text(other.header)
    ran = subprocess.run([GCC, "-c", "full.c"], cwd=few.folder, capture_output=True, text=True)
    assert "full.h and full.c are of two exports" in ran.stderr


def test_tables_and_state_have_the_printed_sizes(built: Built) -> None:
    chosen = [
        c_source
        for c_source in built.sources
        if c_source.stem in ("residual", "nodes", "image_twice", "few_bits", "plif", "learned_delays")
    ]
    subprocess.run(
        [GCC, "-std=c99", "-c", *(f"{c_source.stem}.c" for c_source in chosen)], cwd=built.folder, check=True
    )
    for c_source in chosen:
        command = ["nm", "-S", "--defined-only", f"{c_source.stem}.o"]
        printed = subprocess.run(command, cwd=built.folder, check=True, capture_output=True, text=True).stdout
        tables = [line.split()[1] for line in printed.splitlines() if line.split()[2] == "r"]
        assert sum(int(size, 16) for size in tables) == c_source.flash
        assert f"_FLASH_BYTES {c_source.flash}u" in c_source.header
    lines = [f'#include "{c_source.stem}.h"' for c_source in built.sources]
    checks = [
        f"typedef char s{i}[(sizeof({c_source.stem}_state) == {c_source.ram}) ? 1 : -1];"
        for i, c_source in enumerate(built.sources)
    ]
    text = "\n".join([*lines, *checks, ""])
    subprocess.run([GCC, "-fsyntax-only", "-x", "c", "-"], cwd=built.folder, input=text, text=True, check=True)


def test_learned_delays_keep_a_bit_for_each_spike_on_its_way() -> None:
    delays_case = case_named("learned delays of maps")
    for name in ("delay2", "delay3"):
        delays, header = np.rint(delays_case.weights[f"{name}.steps"]), exported("learned delays of maps").header
        area = {"delay2": 8 * 8, "delay3": 3 * 3}[name]
        assert 0 < delays.sum() < len(delays) * delays.max()
        assert f"uint8_t {name}_past[{-(-int(delays.sum()) * area // 8)}];" in header
        assert f"uint8_t {name}_at[{len(delays)}];" in header
    # Counts of events take a byte.
    counts = case_named("counts delayed by channel")
    delays = np.rint(counts.weights["delay1.steps"])
    header = exported("counts delayed by channel").header
    assert f"uint8_t delay1_past[{int(delays.sum()) * 8 * 8}];" in header
    assert "uint16_t delay2_at[4];" in header
    assert not re.search(r"delay\w*_past", exported("delays of 0").header)


def test_the_longest_delays_fit_their_types() -> None:
    delays_case = drawn(network("10-T65536-8"), 3)
    delays_case.weights["delay2.steps"][:2] = 65536, 40000
    c_source = source(program(delays_case.network, delays_case.weights), LIKE_THIS)
    assert re.search(r"static const int32_t delay2_steps\[10\] = \{\s*65536, 40000,", c_source.source)
    assert "uint16_t delay2_at[10];" in c_source.header


def test_unread_currents_and_shared_tables_take_no_memory() -> None:
    # An input that is not filtered keeps no current, and every other one does.
    assert "float neurons1_m[10]" in exported("full").header
    assert "neurons1_i" not in exported("full").header
    assert "float neurons2_i[4]" in exported("full").header
    assert "float neurons1_a[144]" in exported("input filter").header
    assert "unread" not in exported("odd names").header
    # A table serves all who have the same numbers.
    assert exported("image twice").source.count("static const int16_t last_weights") == 1
    assert "static const int8_t linear1_weights[120]" in exported("few bits").source


class Library:
    """A network as a shared library."""

    def __init__(self, folder: Path, name: str) -> None:
        c_source = exported(name)
        (folder / f"{c_source.stem}.h").write_text(c_source.header)
        (folder / f"{c_source.stem}.c").write_text(c_source.source)
        command = [GCC, "-std=c99", "-O1", "-shared", "-fPIC", f"{c_source.stem}.c", "-o", f"{c_source.stem}.so", "-lm"]
        subprocess.run(command, cwd=folder, check=True)
        self._run_all = getattr(ctypes.CDLL(str(folder / f"{c_source.stem}.so")), f"{c_source.stem}_run")
        self._state, self._outputs = np.empty(c_source.ram // 4, np.float32), case_named(name).network.outputs

    def run(self, frames: UInt8, steps: int) -> UInt8:
        spikes, frames = np.empty((steps, self._outputs), np.uint8), np.ascontiguousarray(frames)
        pointers = [ctypes.c_void_p(x.ctypes.data) for x in (self._state, frames, spikes)]
        self._run_all(pointers[0], pointers[1], ctypes.c_uint32(steps), pointers[2], None)
        return spikes


def test_bytes_that_are_too_large_count_as_the_largest(tmp_path: Path) -> None:
    full, few = case_named("full"), case_named("few counts")
    last = list(full.run.layers.values())[-1].spikes
    assert np.array_equal(Library(tmp_path, "full").run(full.inputs[:, 1] * np.uint8(77), 9), last[:, 1])
    beyond = np.where(few.inputs == 3, np.uint8(200), few.inputs)
    assert (beyond != few.inputs).any()
    last = list(few.run.layers.values())[-1].spikes
    assert np.array_equal(Library(tmp_path, "few counts").run(beyond[:, 0], 9), last[:, 0])


def exported_as(network_name: str, name: str, **more: Any) -> CSource:
    exported_case = case_named(network_name)
    return source(program(exported_case.network, exported_case.weights), replace(LIKE_THIS, name=name, **more))


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("digits", "digits"),
        ("Run 1", "run_1"),
        ("nmnist-20261126-120000-again", "nmnist_20261126_1200"),
        ("1st", "net_1st"),
        ("", "net"),
        ("Übung", "bung"),
        ("日本", "net"),
        ("a*/b", "a_b"),
        ("s", "s"),
        ("string", "net_string"),
        ("math", "net_math"),
        ("Float", "net_float"),
        ("features", "net_features"),
        ("endian", "net_endian"),
        ("avx2intrin", "net_avx2intrin"),
        ("aux", "net_aux"),
        ("e1", "e1"),
        ("__x__", "x"),
        ("int", "int"),
    ],
)
def test_names_of_runs_become_names_in_c(name: str, stem: str) -> None:
    c_source = exported_as("no hidden layer", name)
    assert c_source.stem == identifier(name) == stem
    assert f"void {stem}_step(" in c_source.header
    assert len(f"{stem}_layer_sizes") <= 32


def test_no_header_that_the_library_includes_has_the_name_of_an_export() -> None:
    """With `-I.`, an exported `features.h` would be read in place of the library's."""
    standard = ("assert", "ctype", "errno", "float", "inttypes", "limits", "locale", "math", "signal", "stdarg", "time")
    headers = (*standard, "stdbool", "stddef", "stdint", "stdio", "stdlib", "string", "pthread", "unistd")
    text = "".join(f"#include <{name}.h>\n" for name in headers)
    command = [GCC, "-M", "-x", "c", "-"]
    printed = subprocess.run(command, input=text, text=True, check=True, capture_output=True).stdout
    paths = [Path(name) for name in printed.split() if name.endswith(".h")]
    # Others are included by their folder, as in <bits/types.h>.
    included = {path.stem for path in paths if path.parent.name == "include"}
    assert {"features", "stdio"} <= included
    assert [name for name in included if identifier(name) == name] == []


def test_text_of_others_cannot_leave_its_place(tmp_path: Path) -> None:
    wild = 'a*/ int x; /* "\\\n??/ %d \x1b é'
    hostile = exported_as("full", wild, checkpoint=f'{"0" * 63}"', classes=(wild, "", "??/", "\ud800"))
    (tmp_path / f"{hostile.stem}.h").write_text(hostile.header)
    (tmp_path / f"{hostile.stem}.c").write_text(hostile.source)
    text = f"""
#include <stdio.h>
#include "{hostile.stem}.h"
#include "{hostile.stem}.h"
int main(void) {{ const char *const all[] = {hostile.stem.upper()}_CLASS_NAMES; fputs(all[0], stdout); return 0; }}
"""
    command = [GCC, *WARNED, "-std=c99", f"{hostile.stem}.c", "-x", "c", "-", "-o", "shown", "-lm"]
    subprocess.run(command, cwd=tmp_path, input=text, text=True, check=True)
    shown = subprocess.run(["./shown"], cwd=tmp_path, check=True, capture_output=True).stdout
    assert shown.decode() == wild
    assert string("a?") == '"a\\?"'


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
def test_the_header_serves_c_plus_plus(tmp_path: Path) -> None:
    c_source = exported("image")
    (tmp_path / "image.h").write_text(c_source.header)
    (tmp_path / "image.c").write_text(c_source.source)
    text = '#include "image.h"\nint main() { image_state s; image_begin(&s, nullptr); return image_check(); }\n'
    (tmp_path / "main.cpp").write_text(text)
    subprocess.run([GCC, "-std=c99", "-c", "image.c"], cwd=tmp_path, check=True)
    subprocess.run(["g++", *WARNED, "main.cpp", "image.o", "-o", "linked"], cwd=tmp_path, check=True)


def test_a_step_with_an_exponential_is_refused_by_name() -> None:
    drawn_case = drawn(network("6-5{tau_s=2}", neuron=Inexact()), 3)
    with pytest.raises(ConfigError, match=r"neurons1: the neuron's step has exp"):
        source(program(drawn_case.network, drawn_case.weights), LIKE_THIS)


def test_layers_too_large_for_an_index_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stsbp.interop.c_source.module._LARGEST", 100)
    with pytest.raises(ConfigError, match=r"linear1: 120 numbers are too many"):
        exported("full")


def test_both_files_are_written_or_none(tmp_path: Path) -> None:
    full_case = case_named("full")
    arguments = program(full_case.network, full_case.weights), LIKE_THIS
    out = tmp_path / "there" / "new"
    assert write(*arguments, out)[:2] == [str(out / "net.c"), str(out / "net.h")]
    assert sorted(path.name for path in out.iterdir()) == ["net.c", "net.h"]
    earlier_source = (out / "net.c").read_bytes()
    write(arguments[0], replace(LIKE_THIS, checkpoint="1" * 64), out)
    assert (out / "net.c").read_bytes() != earlier_source
    (out / "net.h").write_text("/* mine */")
    earlier_source = (out / "net.c").read_bytes()
    with pytest.raises(FileError, match=r"net\.h is there already and is not C source of stsbp export"):
        write(*arguments, out)
    assert (out / "net.c").read_bytes() == earlier_source
    assert sorted(path.name for path in out.iterdir()) == ["net.c", "net.h"]
    with pytest.raises(FileError, match=r"net\.c is a file, but C source consists of two files"):
        write(*arguments, out / "net.c")


def test_a_full_disk_leaves_the_earlier_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full_case = case_named("full")
    arguments = program(full_case.network, full_case.weights), LIKE_THIS
    write(*arguments, tmp_path)
    earlier_files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    real = os.fsync
    syncs_left = [1]

    def full(descriptor: int) -> None:
        if not syncs_left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        syncs_left[0] -= 1
        real(descriptor)

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(FileError, match="the disk is full"):
        write(arguments[0], replace(LIKE_THIS, checkpoint="1" * 64), tmp_path)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == earlier_files


def test_the_command_writes_what_the_page_shows_and_it_reads_digits(
    stsbp: Callable[..., Result], train_tiny: Callable[..., Result], refused: Callable[..., None], tmp_path: Path
) -> None:
    train_tiny(tmp_path / "digits", "--net", "4C3p1-P2-16", "--steps", 8, "--epochs", 12, "--lr", 0.02)
    printed = stsbp("export", "digits", "--to", "c", "--out", "firmware")
    assert printed.exit_code == 0, printed.output
    header = (tmp_path / "firmware" / "digits.h").read_text()
    flash, ram = (int(re.findall(rf"DIGITS_{name}_BYTES (\d+)u", header)[0]) for name in ("FLASH", "RAM"))
    assert f"tables {flash:,} bytes (flash), state {ram:,} bytes (RAM)" in printed.output
    text = re.findall(r"^```c\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)[0]
    (tmp_path / "firmware" / "main.c").write_text(text)
    command = [GCC, "-std=c99", *WARNED, "-O2", "digits.c", "main.c", "-o", "reads"]
    subprocess.run(command, cwd=tmp_path / "firmware", check=True)
    trained = load_run(tmp_path / "digits", backend="numpy")
    images = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (6, 1, 8, 8))
    prediction = trained.predict(images)
    for image, number in zip(images, prediction.counted, strict=True):
        ran = subprocess.run([tmp_path / "firmware" / "reads"], input=image.tobytes(), capture_output=True, check=True)
        assert ran.stdout.decode().strip() == prediction.names[number]
    assert len(set(prediction.counted.tolist())) > 1
    (tmp_path / "firmware" / "digits.c").write_text("mine")
    refused(stsbp("export", "digits", "--to", "c", "--out", "firmware"), "digits.c", "is not C source of stsbp export")
    refused(stsbp("export", "digits", "--to", "c", "--out", "firmware/main.c"), "is a file")
