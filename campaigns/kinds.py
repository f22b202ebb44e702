"""The kinds of input: recordings, notation, models, TOML, arrays, images, checkpoints and records, command lines.

Most cases are a valid input with some damage, some are valid, some come from a grammar. Where a digest guards a file it
is computed again after the damage, so that what lies after the check is reached as well.
"""

from __future__ import annotations

import builtins
import dataclasses
import gzip
import hashlib
import io
import json
import os
import random
import shutil
import struct
import subprocess
import wave
import zipfile
import zlib
from functools import cache
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np
from stsbp.cli import COMMANDS, cli
from stsbp.cli.predict import read_inputs
from stsbp.config import RunConfig, read_toml, resolve, to_toml
from stsbp.datasets import DATASETS, mnist
from stsbp.datasets.events import read_recordings
from stsbp.datasets.fsdd import read_recording as read_sound
from stsbp.datasets.image_folder import read_image
from stsbp.datasets.nmnist import read_recording
from stsbp.datasets.npz import read_arrays
from stsbp.datasets.sequences import read_sequences
from stsbp.presets import PRESETS
from stsbp.training.build import Inputs
from stsbp.training.checkpoint import load, progress_of
from stsbp.training.metrics import read_records
from stsbp.training.run_folder import RunFolder
from stsbp.training.trained import load_trained
from stsbp_spec.engine.backend import AbstractBackend
from stsbp_spec.equations.assembly import loss_equations, neuron_equations
from stsbp_spec.equations.expressions import CONDITIONS, OPERATIONS, Expr, Names, Recurrence
from stsbp_spec.equations.printers import LANGUAGES, definition, function
from stsbp_spec.equations.ranges import flushes_of
from stsbp_spec.models import surrogates
from stsbp_spec.models.encoders import EventBinning
from stsbp_spec.models.losses import LOSSES, Loss
from stsbp_spec.models.losses import stored as losses
from stsbp_spec.models.losses.base import LossStep
from stsbp_spec.models.neurons import LIF, NEURONS, parameters
from stsbp_spec.models.neurons import stored as neurons
from stsbp_spec.models.surrogates import SURROGATES, Rectangle, StoredSurrogate, Surrogate, derivative, equation
from stsbp_spec.networks.ops import PSP
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.registry import installed_backends, open_backend

from campaigns import mutate
from campaigns.calls import Complaint
from campaigns.cases import Case, Kind
from campaigns.data_files import DATA_FILES
from campaigns.graphs import Graphs
from campaigns.hub_files import HUB_FILES
from campaigns.mutate import NUMBERS, TEXTS, mutated_bytes, mutated_json, mutated_text, number_text
from campaigns.small_files import SMALL_FILES
from campaigns.worlds import PICTURES, RASTERS, RECORDINGS, World, recording

__all__ = ["GROUPS", "KINDS"]

_NUMPY = ("--backend", "numpy")
_OUT = Path("input")
"""The name of what is read directly, for messages."""


def _integer(rng: random.Random, *usual: int) -> int:
    """One of the usual values, or now and then one at the edge of a domain."""
    return rng.choice(usual) if rng.random() < 0.97 else rng.choice([x for x in NUMBERS if isinstance(x, int)])


class Events(Kind):
    """Recordings in the format of N-MNIST, and how they are binned."""

    name, weight, modules = "events", 0.36, ("tonic.datasets",)

    def make(self, rng: random.Random, world: World) -> Case:
        data = self.recording(rng)
        if rng.random() < 0.6:
            data = mutated_bytes(rng, data, recording(rng.randrange(8)))
            if rng.random() < 0.7:
                data = data[: len(data) // 5 * 5]
        if rng.random() < 0.005:
            return Case(
                self.name,
                arguments=(*_NUMPY, "predict", "runs/recordings", "new.bin"),
                files={"work/new.bin": data},
            )
        options = {
            "steps": _integer(rng, 1, 2, 3, 25),
            "window_us": _integer(rng, 300_000, 1000, 25, 99_999),
            "first_saccade": rng.random() < 0.3,
            "stabilise": rng.random() < 0.3,
            "polarities": _integer(rng, 1, 2),
            "height": 34 if rng.random() < 0.97 else rng.choice((17, 1)),
            "width": 34,
        }
        return Case(self.name, data, options)

    @staticmethod
    def recording(rng: random.Random) -> bytes:
        """Events in order of time, most of them on the sensor."""
        count = rng.choice((0, 1, 2, 5, 10, 20, 20, 60)) if rng.random() < 0.995 else 60_000
        far = rng.choice((1000, 100_000, 300_000, 0x7FFFFF))
        times = sorted(rng.randrange(far) for _ in range(count)) if count < 1000 else range(count)
        if rng.random() < 0.05:
            times = [0x7FFFFF] * count
        rows = []
        for t in times:
            x, y, p = rng.randrange(34), rng.randrange(34), rng.randrange(2)
            if rng.random() < 0.002:
                x, y = rng.choice(((34, 3), (255, 0), (0, 239), (1, 240), (33, 241)))
            rows.append(bytes((x, y, p << 7 | t >> 16, t >> 8 & 255, t & 255)))
        return b"".join(rows)

    def read(self, case: Case, world: World) -> None:
        binning = EventBinning(**case.how)
        x, y, p, t = read_recording(case.content, _OUT)
        raw = np.frombuffer(case.content, dtype=np.uint8).reshape(-1, 5).astype(np.int64)
        clock = raw[:, 1] == 240
        time = ((raw[:, 2] & 127) << 16 | raw[:, 3] << 8 | raw[:, 4]) + 8192 * np.cumsum(clock)
        for column, expected in ((x, raw[:, 0]), (y, raw[:, 1]), (p, raw[:, 2] >> 7), (t, time)):
            if not np.array_equal(column, expected[~clock]):
                raise Complaint("events are not those of the file")
        if binning.steps > 1000:
            return
        frames = binning.frames(x, y, p, t)
        if frames.shape != (binning.steps, *binning.shape) or frames.dtype != np.uint8:
            raise Complaint(f"frames {frames.dtype} {frames.shape}")
        if binning.binary and frames.max(initial=0) > 1:
            raise Complaint("binary frames are not binary")


_ENDS = ("\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e")
"""Ends of lines for Python, which are none for TOML."""


class Notation(Kind):
    """The notation of networks, and shapes of inputs."""

    name, weight = "notation", 0.31
    words = ("-", "C3", "P2", "D0.5", "p1", "s2", "d0.2", "{tau_m=5}", "{", "}", ",", "=", "bits=4", "16", "surrogate=")

    def make(self, rng: random.Random, world: World) -> Case:
        text = self.network(rng)
        if rng.random() < 0.5:
            text = mutated_text(rng, text, self.words)
        if rng.random() < 0.002:
            text = "-".join([text[:100] or "3"] * rng.choice((100, 3000, 50_000)))
        elif rng.random() < 0.002:
            part = f'{".c" * 90}."{rng.choice(_ENDS)}"'
            text = f'[[node]]\nname = "x"\na{part * rng.choice((1, 2, 500, 4000))} = 1\n'
        shape = [_integer(rng, 2, 3, 28, 34) for _ in range(rng.choice((1, 3, 3, 3, 3, 3, 3, 3, 0, 2, 4)))]
        options = {
            "input_shape": shape,
            "outputs": _integer(rng, 1, 2, 10),
            "coding": rng.choice(("events", "direct")) if rng.random() < 0.98 else rng.choice(TEXTS),
            "padding": rng.choice(("valid", "same")) if rng.random() < 0.98 else rng.choice(TEXTS),
            "weight_bits": _integer(rng, 12, 12, 2, 4),
            "dropout": rng.choice((0.0, 0.0, 0.2)) if rng.random() < 0.97 else rng.choice(NUMBERS[-10:]),
        }
        if rng.random() < 0.03:
            typed = "x".join(map(str, shape)) if rng.random() < 0.8 else mutated_text(rng, "2x34x34")
            words = (
                text,
                f"--input-shape={typed}",
                f"--outputs={options['outputs']}",
                f"--dropout={options['dropout']}",
            )
            return Case(self.name, arguments=(*_NUMPY, "networks", "--", *_plain(words[:1]), *_plain(words[1:])))
        return Case(self.name, text.encode("utf-8", "surrogatepass"), options)

    @classmethod
    def network(cls, rng: random.Random) -> str:
        """Layers, most often in an order that is possible: convolutions, then full connections."""
        convolutions, full = rng.choice((0, 1, 1, 2)), rng.choice((0, 0, 1, 2))
        layers = [cls.layer(rng, convolution=True) for _ in range(convolutions)]
        layers += [cls.layer(rng, convolution=False) for _ in range(full)]
        if rng.random() < 0.1:
            rng.shuffle(layers)
        return "-".join(layers)

    @staticmethod
    def layer(rng: random.Random, *, convolution: bool | None = None) -> str:
        """One layer, most often a possible one."""
        convolution = rng.random() < 0.5 if convolution is None else convolution
        number = rng.choice((1, 2, 3, 5, 8, 12, 64)) if rng.random() < 0.99 else rng.randrange(10**9)
        odd = rng.random() < 0.05
        if rng.random() < 0.1:
            return f"D{rng.choice(('1', '1.0', '00', '1e1') if odd else ('0.2', '0', '.5', '0.999'))}"
        if convolution and rng.random() < 0.2:
            return f"P{rng.choice((3, 0, 64) if odd else (1, 2, 2, 4))}"
        text = str(number)
        if convolution:
            kernel = rng.choice((1, 3, 3, 5, 7)) if not odd else rng.choice((0, 2, 4, 99))
            text += f"C{kernel}"
            text += f"p{rng.randrange(max(1, kernel))}" if rng.random() < 0.3 else ""
            text += f"s{rng.randrange(1, 4)}" if rng.random() < 0.3 else ""
        if rng.random() < 0.1:
            text += f"d{rng.choice(('0.1', '0.5', '.9'))}"
        if rng.random() < 0.2:
            model = rng.choice(sorted(NEURONS)) if rng.random() < 0.4 else "lif"
            choices = (
                (*parameters(NEURONS[model]), "bits") if rng.random() < 0.95 else ("beta", "nosuch", "text", "neuron")
            )
            keys = rng.sample(choices, rng.randrange(1, 4))
            values = {"bits": str(_integer(rng, 4, 12)), "surrogate": _surrogate(rng)}
            pairs = [f"{key}={values.get(key) or _parameter(rng, key)}" for key in keys]
            pairs += [f"neuron={model}"] if model != "lif" or rng.random() < 0.1 else []
            rng.shuffle(pairs)
            text += "{" + ",".join(pairs) + "}"
        return text

    def read(self, case: Case, world: World) -> None:
        options = {**case.how, "input_shape": tuple(case.how["input_shape"])}
        network = NetworkSpec.parse(case.content.decode("utf-8", "surrogatepass"), **options)
        if len(case.content) > 5000:
            return
        reparsed = NetworkSpec.parse(
            network.notation, input_shape=network.input_shape, outputs=None, coding=network.coding
        )
        if reparsed != network:
            raise Complaint(f"the canonical notation gives another network\n{network.notation}")
        network.table()


_CONSTANTS = (0.0, -0.0, 1.0, -1.5, 2.0**-149, 2.0**-126, 2.0**127, 2.0**60)
_DEEP = (("neg",), ("mul",), ("add",), ("div",), ("snap", "sub"))
"""Operations that are put within each other."""


class Models(Kind):
    """Neuron models, surrogates and losses as text, which a run keeps of classes of the user's own."""

    name, weight = "models", 0.06

    def make(self, rng: random.Random, world: World) -> Case:
        kind = rng.choice(sorted(_OWN))
        data = json.loads(rng.choice(_own_texts()[kind]))
        if rng.random() < 0.5:
            self.grow(rng, data)
        if rng.random() < 0.5:
            data = mutated_json(rng, data)
        content = mutate.json_bytes(rng, data)
        if rng.random() < 0.1:
            content = mutated_bytes(rng, content)
        if rng.random() < 0.02:
            text = content.decode("utf-8", "replace")
            lines = [f'dataset = "folder:../data/pictures"\n{kind} = "gone:Model"\n{kind}_model = {_toml(text)}\n']
            arguments = (*_NUMPY, "train", "--config", "own.toml", *PICTURES[1:], "--epochs", "1", "--out", "runs/new")
            return Case(
                self.name,
                arguments=(*arguments, "--stop-after", "0.002"),
                files={"work/own.toml": "".join(lines).encode("utf-8", "surrogatepass")},
                may_make=("work/runs/new",),
            )
        return Case(self.name, content, {"what": kind})

    @staticmethod
    def grow(rng: random.Random, data: dict[str, Any]) -> None:
        """More operations: of any kind, or one within the other a thousand times; a result is the last of them."""
        nodes = data["nodes"]
        deep = rng.random() < 0.02
        kinds = rng.choice(_DEEP) if deep else (*OPERATIONS, "constant")
        for _ in range(rng.choice((300, 1000)) if deep else rng.choice((1, 2, 5, 20))):
            op = rng.choice(kinds)
            numbers = [place for place, node in enumerate(nodes) if node[0] not in CONDITIONS]
            conditions = [place for place, node in enumerate(nodes) if node[0] in CONDITIONS]
            if op == "constant":
                nodes.append(["constant", rng.choice(_CONSTANTS).hex()])
                continue
            if op == "where" and not conditions:
                continue
            args = [numbers[-1] if deep and place == 0 else rng.choice(numbers) for place in range(OPERATIONS[op])]
            if op == "where":
                args[0] = rng.choice(conditions)
            name = f"n{len(nodes)}" if rng.random() < 0.2 else None
            nodes.append([op, name, *args])
        root = rng.choice(sorted(data["roots"]))
        right = [place for place, node in enumerate(nodes) if (node[0] in CONDITIONS) == (root == "spike")]
        data["roots"][root] = right[-1]

    def read(self, case: Case, world: World) -> None:
        kind = case.how["what"]
        model = _OWN[kind](case.content.decode("utf-8", "replace"))
        str(model)
        recurrences = self.equations(model)
        for recurrence in recurrences:
            for name, language in LANGUAGES.items():
                text = definition(recurrence, language)
                if name not in ("c", "cuda"):
                    compile(text, name, "exec")
            shown = function(recurrence, LANGUAGES["numpy"])
            if len(shown) > 2_000_000:
                raise Complaint(f"a step is printed as {len(shown)} characters")
        flushes_of(model)
        backend, rng = _backend(), np.random.default_rng(1)
        z = rng.normal(0.3, 1.0, (3, 2, 4)).astype(np.float32)
        s = (z > 0).astype(np.uint8)
        if isinstance(model, Loss):
            backend.loss_error(model, PSP(3), s, s[:, ::-1])
            model.mean(s, s[:, ::-1].copy(), PSP(3))
        elif isinstance(model, Surrogate):
            derivative(model, z)
        else:
            learned = {
                name: np.full(4 if x.per == "channel" else 1, x.initial, np.float32)
                for name, x in model.learned().items()
            }
            _, residuals = backend.neuron_forward(model, PSP(3).filter(), z, 3, learned)
            backend.neuron_backward(model, PSP(3).filter(), residuals, z)
            network = NetworkSpec.parse("4", input_shape=(3,), outputs=2, neuron=model)
            if NetworkSpec.parse(network.notation, input_shape=(3,), outputs=2, neuron=model) != network:
                raise Complaint(f"the canonical notation gives another network\n{network.notation}")

    @staticmethod
    def equations(model: Any) -> list[Recurrence]:
        """What it prints."""
        if isinstance(model, Surrogate):
            return [equation(model)]
        if isinstance(model, Loss):
            passes = loss_equations(model)
            return [x for x in (passes.forward, passes.backward) if x is not None]
        both = neuron_equations(PSP(3).filter(), model)
        return [both.forward, both.backward]


@dataclasses.dataclass(frozen=True)
class _Missed(Loss):
    """A loss of the user's own: what a spike that is missing costs, and one that comes too early."""

    name = "missed"
    parameters = ("k", "scale", "extra")
    states = ("r",)
    back_states = ("e",)
    weight: float = 3.0

    def constants(self, psp: PSP, steps: int, batch: int) -> dict[str, float]:
        return {"k": 1 - 1 / psp.tau_s, "scale": 1 / (batch * steps), "extra": self.weight - 1}

    def ahead(self, p: Names, s: Names, x: Names) -> LossStep:
        r = p.k * s.r + (x.o - x.target)
        return LossStep({"r": r}, r)

    def measure(self, p: Names, x: Names) -> Expr:
        return abs(x.r) + p.extra * (x.target * (1 - x.o)) + abs(x.count - x.target_count)

    def back(self, p: Names, s: Names, x: Names) -> LossStep:
        e = p.k * s.e + x.r
        return LossStep({"e": e}, p.scale * (e + p.extra * (x.o - x.target)))


_OWN: dict[str, Any] = {"neuron": neurons.from_text, "surrogate": StoredSurrogate, "loss": losses.from_text}


@cache
def _own_texts() -> dict[str, list[str]]:
    kinds = [kind() for kind in NEURONS.values()] + [LIF(reset="subtract"), LIF(surrogate=Rectangle(0.5))]
    return {
        "neuron": [neurons.as_text(kind) for kind in kinds],
        "surrogate": [surrogates.as_text(kind()) for kind in SURROGATES.values()],
        "loss": [losses.as_text(_Missed())],
    }


class Toml(Kind):
    """Files of settings."""

    name, weight = "toml", 0.1
    words = (
        *(
            "\n",
            " = ",
            "[",
            "]",
            "[[",
            "]]",
            "[a.b]\n",
            "{",
            "}",
            '"""',
            "'''",
            "#",
            "inf",
            "nan",
            "1979-05-27T07:32:00Z",
        ),
        *("a.b.c = 1\n", "\r\n", "\ufeff", "0b1", "1_0", "true", "[x]\ny = 1\n", "\\u0000", "dataset = 3\n"),
        *_ENDS,
    )

    def make(self, rng: random.Random, world: World) -> Case:
        lines = [f"dataset = {_toml(rng.choice((*DATASETS, 'folder:x')))}"]
        for key in rng.sample(sorted(RunConfig.model_fields), rng.randrange(8)):
            lines.append(f"{key} = {self.value(rng, key)}")
        rng.shuffle(lines)
        text = "\n".join(lines) + "\n"
        if rng.random() < 0.5:
            text = mutated_text(rng, text, self.words)
        if rng.random() < 0.01:
            depth = rng.choice((50, 500, 5000, 100_000, 400_000))
            key, quotes = ".".join("a" * depth), rng.choice(('"""\n\' """', "'''\n\" '''"))
            text += rng.choice(
                (
                    *("net = " + "[" * depth + "]" * depth, "net = " + "{a=" * depth, f"{key} = 1"),
                    # Python knows other ends of lines than TOML, and a text may extend over several lines.
                    *(f'"{rng.choice(_ENDS)}".{key} = 1', f'[{key}."{rng.choice(_ENDS)}"]'),
                    f"net = {{b = {quotes}, {key} = 1}}",
                )
            )
        if rng.random() < 0.003:
            text += "".join(f"key{n} = 1\n" for n in range(rng.choice((30, 2000))))
        data = text.encode("utf-8", "surrogatepass")
        if rng.random() < 0.1:
            data = mutated_bytes(rng, data)
        if rng.random() < 0.05:
            return Case(
                self.name,
                arguments=(*_NUMPY, "train", "--config", "new.toml", "--show-config"),
                files={"work/new.toml": data},
            )
        return Case(self.name, data)

    @staticmethod
    def value(rng: random.Random, key: str) -> str:
        """A value for a setting, most often one of its domain."""
        kind = RunConfig.model_fields[key].annotation
        if rng.random() < 0.06:
            return rng.choice((number_text(rng), _toml(rng.choice(TEXTS)), "[]", "{}", "true", "1979-05-27", "[[1]]"))
        if choices := get_args(kind):
            return _toml(rng.choice(choices))
        if kind is bool:
            return rng.choice(("true", "false"))
        if kind is int:
            return str(_integer(rng, 1, 2, 5, 12, 100))
        if kind is float:
            return rng.choice(("0.0", "0.5", "1.0", "8.0", "0.001", "2.5"))
        special = {
            "surrogate": _surrogate(rng),
            "neuron": _neuron(rng),
            "loss": rng.choice((*LOSSES, "gone:Loss:weight=2")),
            **{f"{model}_model": rng.choice(_own_texts()[model]) for model in _OWN},
            "net": Notation.layer(rng),
            "label_pattern": "01",
            "undesired_pattern": "0",
        }
        return _toml(special.get(key, rng.choice(("", "x", "digits", "folder:x"))))

    def read(self, case: Case, world: World) -> None:
        path = world.outside / "input.toml"
        path.write_bytes(case.content)
        config = resolve([read_toml(path)])
        path.write_text(to_toml(config), encoding="utf-8")
        if resolve([read_toml(path)], with_preset=False) != config:
            raise Complaint("settings that are written and read are other settings")


def _toml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _surrogate(rng: random.Random) -> str:
    name = rng.choice(sorted(SURROGATES))
    (parameter,) = (field.name for field in dataclasses.fields(SURROGATES[name]))
    notation = f"{name}:{parameter}={rng.choice(('0.5', '2', '1e-3', '7.25'))}"
    return notation if rng.random() < 0.6 else name if rng.random() < 0.8 else mutated_text(rng, notation)


def _neuron(rng: random.Random) -> str:
    """A neuron model with parameters, as the command line and notation after `neuron=` know it."""
    name = rng.choice(sorted(NEURONS))
    names = [field for field in parameters(NEURONS[name]) if field != "surrogate"]
    pairs = [f"{key}={_parameter(rng, key)}" for key in rng.sample(names, rng.randrange(3))]
    notation = ":".join([name, *pairs])
    if rng.random() < 0.05:
        return rng.choice(("gone:Model", "gone:Model:a=1", "os:system", "stsbp_spec.models.neurons:LIF:tau_m=3"))
    return notation if rng.random() < 0.8 else mutated_text(rng, notation)


def _parameter(rng: random.Random, key: str) -> str:
    """A value of a neuron's parameter, most often one of its domain."""
    words = {"reset": ("zero", "subtract"), "per": ("layer", "channel"), "tau_rise": ("0", "1", "1.5")}
    numbers = ("0.5", "0", "-1", "1e400", "x") if rng.random() < 0.05 else ("5", "8.0", "1e3", "1.5")
    return rng.choice(words.get(key, numbers))


def _plain(texts: tuple[str, ...]) -> tuple[str, ...]:
    """As a shell can pass them: without zeros and lone surrogates."""
    return tuple(os.fsdecode(text.replace("\0", "").encode("utf-8", "replace")) for text in texts)


class Arrays(Kind):
    """`.npy` files for prediction, `.npz` files of rasters and of events, MNIST's own files, and sounds."""

    name, weight = "arrays", 0.07

    def make(self, rng: random.Random, world: World) -> Case:
        if rng.random() < 0.5:
            shape = rng.choice(((6, 6), (1, 6, 6), (3, 2, 34, 34), (3, 6), (0, 6), (6, 6, 1), ()))
            data = self.npy(rng, shape)
            if rng.random() < 0.4:
                data = mutated_bytes(rng, data, world.content("data/rasters.npz"))
            if rng.random() < 0.01:
                return Case(
                    self.name, arguments=(*_NUMPY, "predict", "runs/pictures", "new.npy"), files={"work/new.npy": data}
                )
            return Case(self.name, data, {"coding": rng.choice(("direct", "events"))})
        if rng.random() < 0.15:
            images, labels = self.idx(rng, rng.choice((1, 2)))
            return Case(self.name, images, {"coding": "digits", "labels": labels.hex()})
        if rng.random() < 0.15:
            return Case(self.name, self.wav(rng), {"coding": "sound"})
        events = rng.random() < 0.3
        data = self.npz(rng, events=events)
        if rng.random() < 0.5:
            data = mutated_bytes(rng, data, world.content("work/one.npy"))
        if events:
            return Case(self.name, data, {"coding": "own events"})
        if rng.random() < 0.01:
            out = ("--out", "runs/new", "--stop-after", "0.001")
            return Case(
                self.name,
                arguments=(*_NUMPY, "train", "sequences:new.npz", *RASTERS[1:], *out),
                files={"work/new.npz": data},
                may_make=("work/runs/new",),
            )
        return Case(self.name, data, {"coding": "sequences"})

    @staticmethod
    def npy(rng: random.Random, shape: tuple[int, ...], fill: int = 255) -> bytes:
        """An array file whose header may say anything."""
        size = int(np.prod(shape, dtype=np.int64))
        body = bytes(min(rng.randrange(256), fill) for _ in range(min(size, 5000))) + bytes(max(0, size - 5000))
        header = {"descr": "|u1", "fortran_order": rng.random() < 0.2, "shape": shape}
        text = repr(header)
        if rng.random() < 0.15:
            text = rng.choice(
                (
                    repr(
                        {
                            **header,
                            "descr": rng.choice(
                                ("<f8", "|O", "<U9", "|V0", ">i8", [("a", "|u1")], "|b1", "M8[ns]", "")
                            ),
                        }
                    ),
                    repr({**header, "shape": tuple(rng.choice((True, -1, 0, 2**31, 2**63, 10**30)) for _ in shape)}),
                    repr({**header, "shape": rng.choice((3, None, [6, 6], (1,) * 40, ("6",), (6.0, 6), ((6,),)))}),
                    repr({**header, rng.choice(TEXTS): 1}),
                    mutated_text(rng, text),
                    "(" * rng.choice((50, 500, 9000)) + text,
                )
            )
        version = rng.choice(((1, 0),) * 40 + ((2, 0), (3, 0), (9, 9), (0, 0)))
        packed = text.encode("utf-8" if version == (3, 0) else "latin-1", "replace")
        packed += b" " * (-(len(packed) + 11) % 64) + b"\n"
        wide = version != (1, 0) or len(packed) > 65535
        length = struct.pack("<I" if wide else "<H", len(packed))
        return b"\x93NUMPY" + bytes(version) + length + packed + body

    @staticmethod
    def idx(rng: random.Random, count: int) -> tuple[bytes, bytes]:
        """Images and labels of MNIST, packed or not."""
        images = struct.pack(">HBBIII", 0, 8, 3, count, 28, 28) + bytes(784 * count)
        labels = struct.pack(">HBBI", 0, 8, 1, count) + bytes(rng.choice((0, 9, 9, 10)) for _ in range(count))
        if rng.random() < 0.3:
            images = (
                images[: rng.choice((3, 4, 12, 16))] + images[16:] if rng.random() < 0.3 else mutated_bytes(rng, images)
            )
        elif rng.random() < 0.3:
            labels = mutated_bytes(rng, labels)
        if rng.random() < 0.5:
            images = gzip.compress(images, 1, mtime=0) if rng.random() < 0.99 else _gzipped_zeros()
            if rng.random() < 0.3:
                images = mutated_bytes(rng, images)
        return images, labels

    @staticmethod
    def wav(rng: random.Random) -> bytes:
        """A sound file, or nearly."""
        file = io.BytesIO()
        with wave.open(file, "wb") as sound:
            usual = rng.random() < 0.8
            sound.setparams((1, 2, 8000, 0, "NONE", "") if usual else (2, rng.choice((1, 2, 3)), 44_100, 0, "NONE", ""))
            sound.writeframes(rng.randbytes(rng.choice((0, 1, 6, 600))))
        return mutated_bytes(rng, file.getvalue()) if rng.random() < 0.7 else file.getvalue()

    def npz(self, rng: random.Random, *, events: bool = False) -> bytes:
        """An archive of rasters or of events, or nearly."""
        if rng.random() < 0.001:
            return _zipped_zeros()
        n, steps = rng.choice((1, 2, 5)), rng.choice((1, 4, 4))
        members = {
            "inputs.npy": self.npy(rng, rng.choice(((n, steps, 3), (n, steps, 1, 2, 2), (n, steps))), 1),
            "targets.npy": self.npy(rng, (n, steps, 2), 1),
        }
        if events:
            m = rng.choice((0, 3, 7))
            names = rng.choice((("x", "t"), ("x", "y", "t"), ("x", "y", "p", "t"), ("x", "p", "t")))
            most = {"x": 9, "y": 9, "t": 255, "p": 1}
            members = {f"{name}.npy": self.npy(rng, (m,), most[name]) for name in names}
            members["sample.npy"] = self.npy(rng, (m,), n - 1)
        if events or rng.random() < 0.3:
            members.pop("targets.npy", None)
            members["labels.npy"] = self.npy(rng, (n,), 2)
        if events and rng.random() < 0.3:
            members["sensor.npy"] = self.npy(rng, rng.choice(((2,), (1,))))
        if rng.random() < 0.4:
            members["split.npy"] = self.npy(rng, (n,), 1)
        if rng.random() < 0.1:
            members[rng.choice((*TEXTS, "inputs", "inputs.npy.npy", "../inputs.npy"))] = rng.randbytes(9)
        if rng.random() < 0.1:
            members.pop(rng.choice(sorted(members)))
        file = io.BytesIO()
        packing = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        with zipfile.ZipFile(file, "w", packing) as archive:
            for name, content in members.items():
                # Without a description of its own, a member has the time of now, and the case is not the same again.
                member = zipfile.ZipInfo(name.replace("\0", "").encode("utf-8", "replace").decode() or "x")
                archive.writestr(member, content, packing)
        return file.getvalue()

    def read(self, case: Case, world: World) -> None:
        coding = case.how["coding"]
        if coding == "sequences":
            path = world.outside / "input.npz"
            path.write_bytes(case.content)
            inputs, targets, split, _ = read_sequences(path)
            if inputs.dtype != np.uint8 or inputs.max(initial=0) > 1 or targets.max(initial=0) > 1:
                raise Complaint("rasters are not binary")
            if inputs.shape[:2] != targets.shape[:2] or (split is not None and len(split) != len(inputs)):
                raise Complaint("rasters do not agree")
            return
        if coding == "own events":
            path = world.outside / "events.npz"
            path.write_bytes(case.content)
            recordings = read_recordings(path, read_arrays(path))
            polarities, height, width = recordings.sensor
            binning = EventBinning(steps=3, polarities=polarities, height=height, width=width)
            frames = binning.frames(*recordings.of(np.arange(len(recordings.columns["t"]))))
            if frames.max(initial=0) > 1 or recordings.columns["sample"].max(initial=0) >= len(recordings.labels):
                raise Complaint(f"events of {len(recordings.labels)} samples became frames {frames.shape}")
            return
        if coding == "sound":
            samples = read_sound(case.content, Path("one.wav"))
            if samples.dtype != np.dtype("<i2") or samples.ndim != 1 or not len(samples):
                raise Complaint(f"a sound {samples.dtype} {samples.shape} was accepted")
            return
        if coding == "digits":
            packed = case.content.startswith(b"\x1f\x8b")
            paths = [world.outside / f"train-{name}-ubyte" for name in ("images-idx3", "labels-idx1")]
            paths[0] = paths[0].with_suffix(".gz") if packed else paths[0]
            for path in (paths[0].with_suffix("" if packed else ".gz"), *paths):
                path.unlink(missing_ok=True)
            paths[0].write_bytes(case.content)
            paths[1].write_bytes(bytes.fromhex(case.how["labels"]))
            digits = mnist.read(world.outside, "train")
            if digits.images.shape != (len(digits.labels), 28, 28) or digits.labels.max() > 9:
                raise Complaint(f"digits {digits.images.shape} were accepted")
            return
        path = world.outside / "input.npy"
        path.write_bytes(case.content)
        shape = (1, 6, 6) if coding == "direct" else (2, 34, 34)
        (array,) = read_inputs([path], Inputs(shape, coding, ("a", "b")), EventBinning(steps=3), "nmnist")
        expected = shape if coding == "direct" else (3, *shape)
        if array.shape != expected or array.dtype != np.uint8:
            raise Complaint(f"an array {array.dtype} {array.shape} was accepted")


_MEGABYTE = bytes(10**6)


@cache
def _gzipped_zeros() -> bytes:
    """Few bytes that mean 300 million."""
    file = io.BytesIO()
    with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1, mtime=0) as packed:
        for _ in range(300):
            packed.write(_MEGABYTE)
    return file.getvalue()


@cache
def _zipped_zeros() -> bytes:
    """An archive whose inputs are 300 million bytes without a header."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in ("inputs.npy", "targets.npy"):
            packed = zipfile.ZipInfo(name)
            packed.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(packed, "w") as member:
                for _ in range(300):
                    member.write(_MEGABYTE)
    return file.getvalue()


@cache
def _pictures() -> tuple[bytes, ...]:
    """Small pictures in formats that are read, and in some that are not."""
    from PIL import Image

    rng = np.random.default_rng(1)
    colours = Image.fromarray(rng.integers(0, 256, (7, 6, 3)).astype(np.uint8))
    files = []
    for kind, modes in (
        ("PNG", ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
        ("JPEG", ("L", "RGB", "CMYK")),
        ("BMP", ("1", "L", "P", "RGB")),
        ("GIF", ("P",)),
        ("TIFF", ("RGB",)),
        ("PPM", ("RGB",)),
    ):
        for mode in modes:
            file = io.BytesIO()
            grey = colours.convert("L")
            image = (
                Image.new("I;16", (6, 7), 300) if mode == "I;16" else (grey if mode == "LA" else colours).convert(mode)
            )
            image.save(file, kind, **({"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"} if kind == "JPEG" else {}))
            files.append(file.getvalue())
    return tuple(files)


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Names and contents of the chunks of a PNG."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return chunks


def _png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, content in chunks:
        parts += [struct.pack(">I", len(content)), name, content, struct.pack(">I", zlib.crc32(name + content))]
    return b"".join(parts)


class Images(Kind):
    """Pictures: damaged, of odd modes, with headers that promise too much."""

    name, weight = "images", 0.1

    def make(self, rng: random.Random, world: World) -> Case:
        data = rng.choice(_pictures())
        if data.startswith(b"\x89PNG") and rng.random() < 0.6:
            data = self.png(rng, data)
        if rng.random() < 0.5:
            data = mutated_bytes(rng, data, rng.choice(_pictures()))
        if rng.random() < 0.01:
            options = ("--skip-malformed",) if rng.random() < 0.5 else ()
            return Case(
                self.name,
                arguments=(*_NUMPY, "train", *PICTURES, *options, "--out", "runs/new", "--stop-after", "0.001"),
                files={"data/pictures/cat/1.png": data},
                may_make=("work/runs/new",),
            )
        settings = {"channels": rng.choice((None, None, 1, 3)), "size": rng.choice((None, None, 1, 5, 64))}
        return Case(self.name, data, settings)

    @staticmethod
    def png(rng: random.Random, data: bytes) -> bytes:
        """A PNG with other chunks and right checksums."""
        chunks = _chunks(data)
        for _ in range(rng.choice((1, 1, 2))):
            at = rng.randrange(len(chunks))
            name, content = chunks[at]
            change = rng.randrange(6)
            if change == 0:
                chunks[at] = (name, mutated_bytes(rng, content))
            elif change == 1 and name == b"IHDR":
                side = [rng.choice((0, 1, 6, 1000, 20_000, 2**31 - 1, 2**32 - 1)) for _ in range(2)]
                chunks[at] = (name, struct.pack(">II", *side) + content[8:])
            elif change == 2:
                new = rng.choice(
                    (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"tRNS", b"gAMA", b"acTL", b"PLTE", b"IEND")
                )
                body = rng.choice((b"", b"k\0\0" + zlib.compress(bytes(rng.choice((10, 10**6)))), rng.randbytes(12)))
                chunks.insert(at + 1, (new, body))
            elif change == 3:
                chunks.insert(rng.randint(0, len(chunks)), chunks[at])
            elif change == 4 and len(chunks) > 1:
                del chunks[at]
            elif name == b"IDAT":
                # Filtered rows of 1 to 24 bytes; most often as many as the header says.
                rows = bytes(rng.choice((0, 0, 1, 4, 5, 255)) for _ in range(7 * rng.choice((2, 7, 13, 19, 25))))
                chunks[at] = (name, zlib.compress(rows if rng.random() < 0.8 else bytes(10**6)))
        return _png(chunks)

    def read(self, case: Case, world: World) -> None:
        image = read_image(case.content, _OUT, **case.how)
        channels, size = case.how["channels"], case.how["size"]
        if image.dtype != np.uint8 or image.ndim != 3 or len(image) not in (1, 3):
            raise Complaint(f"a picture {image.dtype} {image.shape} was accepted")
        if (channels and len(image) != channels) or (size and image.shape[1:] != (size, size)):
            raise Complaint(f"a picture {image.shape} was accepted for {channels} channels and size {size}")


class Checkpoints(Kind):
    """Checkpoints, records and settings of a run, damaged before or after their digests are made; and the cache."""

    name, weight = "checkpoints", 0.052

    def make(self, rng: random.Random, world: World) -> Case:
        run = rng.choice(("pictures", "recordings", "rasters", "stopped"))
        folder = f"work/runs/{run}"
        names = [name for name in world.names() if name.startswith(f"{folder}/") and not name.endswith(".lock")]
        file = rng.choice([*names, *[name for name in names if name.endswith(".json")] * 3])
        files = self.damaged(rng, world, folder, file)
        run = f"runs/{run}"
        checkpoint = "best" if Path(file).name.startswith("best") else "last"
        if not any(Path(name).name.startswith("best") for name in names):
            checkpoint = "last"
        if rng.random() < 0.8:
            return Case(self.name, how={"run": Path(run).name, "checkpoint": checkpoint}, files=files)
        commands: list[tuple[str, ...]] = [
            ("evaluate", run, "--checkpoint", checkpoint),
            ("report", run, "--no-samples", "--checkpoint", checkpoint),
            ("compare", run, "runs/rasters"),
            ("train", "--resume", run, "--stop-after", "0.001"),
        ]
        if rng.random() < 0.1:
            file = "work/several/experiment.json"
            files = {file: self.json(rng, world.content(file))}
            command: tuple[str, ...] = (
                "experiment",
                *PICTURES,
                "--seeds",
                "2",
                "--out",
                "several",
                "--stop-after",
                "0.001",
            )
        elif rng.random() < 0.15:
            file = rng.choice([name for name in world.names() if name.startswith("cache/") and name != "cache"])
            data = world.content(file)
            files = {file: self.json(rng, data) if file.endswith(".json") else mutated_bytes(rng, data)}
            command = commands[0]
        else:
            command = rng.choice(commands)
        return Case(
            self.name,
            arguments=(*_NUMPY, *command),
            files=files,
            may_make=("work/runs/" + Path(run).name + ".html",),
            may_change=(folder, "work/several", "cache", f"work/{run}.html"),
        )

    @staticmethod
    def json(rng: random.Random, content: bytes) -> bytes:
        """Damage to JSON, as text or as values."""
        return mutate.json_bytes(rng, mutated_json(rng, json.loads(content)))

    def damaged(self, rng: random.Random, world: World, folder: str, file: str) -> dict[str, bytes]:
        """A damaged file of a run, and those that have to say the same."""
        content, name = world.content(file), Path(file).name
        if rng.random() < 0.15:
            return {file: mutated_bytes(rng, content, b"{}")}
        if name in ("last.json", "best.json"):
            description = mutated_json(rng, json.loads(content))
            if isinstance(description, dict):
                description.pop("digest", None)
                if rng.random() < 0.02:
                    key = rng.choice(("tensors", "inputs", "data", "sums", "best", "other"))
                    description[key] = mutate.nested(rng.choice((200, 400, 900)))
                description["digest"] = _json_digest(description)
            return {file: mutate.json_bytes(rng, description)}
        if name.endswith(".safetensors"):
            return self.tensors(rng, world, folder, name)
        if name == "environment.json":
            return {file: self.json(rng, content)}
        if name == "metrics.jsonl":
            lines = [
                self.json(rng, line).replace(b"\n", b" ") if rng.random() < 0.5 else line
                for line in content.splitlines()
            ]
            damaged = b"\n".join(lines) + rng.choice((b"", b"\n"))
            description = json.loads(world.content(f"{folder}/last.json"))
            description.update(metrics_bytes=len(damaged), metrics_sha256=hashlib.sha256(damaged).hexdigest())
            description.pop("digest")
            description["digest"] = _json_digest(description)
            return {file: damaged, f"{folder}/last.json": json.dumps(description).encode()}
        text = mutated_text(rng, content.decode(), Toml.words)
        return {file: text.encode("utf-8", "surrogatepass")}

    @staticmethod
    def tensors(rng: random.Random, world: World, folder: str, name: str) -> dict[str, bytes]:
        """Damaged tensors, with a description that agrees with them wherever it can."""
        data = world.content(f"{folder}/{name}")
        which = name.partition("-")[0]
        description = json.loads(world.content(f"{folder}/{which}.json"))
        (length,) = struct.unpack("<Q", data[:8])
        header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
        if rng.random() < 0.5:
            at = 8 * rng.randrange(max(1, len(body) // 8))
            value = rng.choice([x for x in NUMBERS if isinstance(x, float)] + [2**31, -1, 7])
            new = (
                struct.pack("<d" if rng.random() < 0.5 else "<f", max(-3e38, min(value, 3e38)))
                if value == value
                else b"\xff" * 8
            )
            body = body[:at] + new + body[at + len(new) :]
        else:
            header = mutated_json(rng, header)
        text = mutate.json_bytes(rng, header)
        data = struct.pack("<Q", len(text) if rng.random() < 0.95 else rng.choice((0, 2**40, 2**64 - 1))) + text + body
        digest = hashlib.sha256(data).hexdigest()
        kinds = {"F32": "float32", "F64": "float64", "I64": "int64", "U8": "uint8", "I32": "int32", "BOOL": "bool"}
        if isinstance(header, dict):
            listed = {
                key: [kinds.get(str(x.get("dtype")), "float32"), x.get("shape")]
                for key, x in header.items()
                if isinstance(x, dict) and key != "__metadata__"
            }
            description["tensors"] = listed
        file = f"{which}-{description['step']}-{digest[:12]}.safetensors"
        description.update(file=file, sha256=digest)
        description.pop("digest")
        description["digest"] = _json_digest(description)
        encoded = json.dumps(description).encode("utf-8", "surrogatepass")
        return {f"{folder}/{file}": data, f"{folder}/{which}.json": encoded}

    def read(self, case: Case, world: World) -> None:
        with world.run_with("runs", case.how["run"], case.files) as copy:
            folder = RunFolder(copy)
            folder.starts()
            read_records(copy, folder.read_config())
            trained = load_trained(folder, case.how["checkpoint"], _backend(), warn=lambda _: None)
            if case.how["checkpoint"] == "last":
                progress_of(load(copy, "last"), copy)
            if {name: x.shape for name, x in trained.state.weights.items()} != trained.task.network.weight_shapes:
                raise Complaint("weights that are not those of the network were accepted")


@cache
def _backend() -> AbstractBackend:
    return open_backend("numpy")


def _json_digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()


_PATHS = (
    *("runs/new", "runs/new", "runs/pictures", "runs/recordings", "runs/rasters", "runs/stopped", "several", "runs"),
    *("one.png", "one.bin", "one.npy", "settings.toml", "notes.txt", "page.html", "report.html", "runs/new/deep/er"),
    *("../data/pictures", "../data/recordings", "../data/rasters.npz", "../data/hostile", "../data/odd/fifo.bin"),
    *(
        "../data/odd/loop",
        "../data/odd/empty",
        "../data/odd/gone",
        "../data/odd/folder",
        "../data/odd/zero.png",
        "..",
        ".",
    ),
    *("", " ", "n" * 300, "deep/" * 900 + "x", "runs/pictures/last.json", "runs/pictures/config.toml", "one.png/below"),
    *(
        "new\x1b[31m",
        "new\n2",
        os.fsdecode(b"\xffnew"),
        "-new",
        "../data/" + "odd/" * 3,
        "runs/pictures/.lock",
        "~",
        "né",
    ),
    *("../data/odd/" + "n" * 200, "several/seed-1", "several/experiment.json", "runs/pictures/metrics.jsonl"),
)
"""Names for what is read or written; all of them stay in the world."""
_READ_ONLY = ("/dev/zero", "/dev/null", "/proc/self/mem", "/nonexistent/x", "/etc/passwd", "../data/odd/zero.png")
"""Names that are never written to: they lead out of the world."""
_DATASETS = (
    *(
        "folder:../data/pictures",
        "sequences:../data/rasters.npz",
        "nmnist",
        "images",
        "folder:../data/hostile",
        "patterns",
    ),
    *("folder:../data/odd", "sequences:../data/odd/fifo.bin", "sequences:../data/odd/zero.png", "sequences:one.npy"),
    *("folder:", "sequences:", "folder:one.png", "nosuch", "Folder:x", "folder:\x1b[2J", "cifar10", "nmnist-sim", ""),
)


class Options(Kind):
    """Command lines of every command, from what click knows of its options."""

    name, weight = "options", 0.008

    def make(self, rng: random.Random, world: World) -> Case:
        frequent = (
            "train",
            "train",
            "train",
            "experiment",
            "evaluate",
            "evaluate",
            "predict",
            "predict",
            "report",
            "compare",
        )
        name = rng.choice(frequent) if rng.random() < 0.8 else rng.choice(list(COMMANDS))
        if name == "backends" and tuple(installed_backends()) != ("numpy",):
            # It would import every framework that is installed.
            name = "networks"
        arguments = self.command(rng, name)
        options = [*_NUMPY]
        if rng.random() < 0.04:
            odd = (["--backend"], ["--backend", rng.choice(TEXTS[1:])], ["--device", "x"], ["-h"], ["--version"])
            options += rng.choice(odd)
        if rng.random() < 0.02:
            name = mutated_text(rng, name)
        typed: tuple[str, ...] = _plain((*options, name, *arguments))
        if name in ("train", "experiment"):
            typed = (*typed, "--stop-after", rng.choice(("0.002", "0.002", "0.03")))
        values = [os.path.normpath(os.path.join("work", v)) for word in typed for v in word.split("=", 1)[-1:]]
        owned = [v for v in values if not v.startswith("..") and len(v) < 3000]
        going_on = "--overwrite" in typed or "--resume" in typed or name == "experiment"
        overwritten = ("work/runs/", "work/several")
        return Case(
            self.name,
            arguments=typed,
            how={
                "encoding": rng.choice(("utf-8", "utf-8", "ascii")),
                "terminal": rng.random() < 0.1,
            },
            may_make=("work/runs", *owned, *(f"{v}.html" for v in owned)),
            may_change=(
                "work/report.html",
                "data/odd/nothing",
                # An empty file holds nothing that could be lost.
                "data/odd/empty",
                *(v for v in owned if going_on and v.startswith(overwritten)),
                *(() if name != "experiment" else ("work/several",)),
            ),
        )

    def command(self, rng: random.Random, name: str) -> list[str]:
        """Arguments of a command."""
        cli_command = cli.get_command(click.Context(cli), name)
        assert cli_command is not None
        words: list[str] = []
        training = name in ("train", "experiment")
        base = list(rng.choice((PICTURES, PICTURES, RECORDINGS, RASTERS))) if training else []
        if name == "train" and rng.random() < 0.3:
            base = ["--resume", rng.choice(("runs/stopped", "runs/pictures", "runs/stopped"))]
        if training and rng.random() < 0.1:
            base[:1] = [rng.choice(_DATASETS)]
        if name == "benchmark":
            base = ["kernels", "--rounds", "1", "--scale", rng.choice(("nan", "inf", "0", "-1", "2", "x"))]
        # Nothing is fetched, and nothing is measured at full scale.
        never = {"--download", "--help", "--scale", "--rounds"}
        options = [p for p in cli_command.params if isinstance(p, click.Option) and not never & {*p.opts}]
        arguments = [p for p in cli_command.params if isinstance(p, click.Argument)]
        usual = 0.8 if rng.random() < 0.7 else 0.2
        for option in rng.sample(options, min(len(options), rng.choice((0, 1, 1, 2, 3, 5)))):
            flag = rng.choice((*option.opts, *option.secondary_opts))
            if option.is_flag:
                words.append(flag)
            else:
                value = self.value(rng, option, usual)
                words += [flag, value] if rng.random() < 0.7 else [f"{flag}={value}"]
        runs = ("runs/pictures", "runs/recordings", "runs/rasters", "runs/stopped", "several/seed-1")
        for argument in () if training or name == "benchmark" else arguments:
            valid = runs if str(argument.name).startswith("run") else ("one.png", "one.png", "one.npy", "one.bin")
            for _ in range(1 if argument.nargs == 1 else rng.choice((1, 1, 2))):
                fits = argument.name in ("run", "runs", "files") and rng.random() < 0.8
                words.append(rng.choice(valid) if fits else self.value(rng, argument, 0.8))
        if rng.random() < 0.05:
            words.append(rng.choice(("--help", "--nosuch", "-x", "--", "extra", "--out", "\x1b[31m", "--steps")))
        if training and base[0] != "--resume" and rng.random() < 0.7:
            base += ["--out", rng.choice(_PATHS)] if rng.random() < 0.4 else ["--out", "runs/new"]
        return [*base, *words]

    @staticmethod
    def value(rng: random.Random, parameter: click.Parameter, usual: float) -> str:
        """A value for an option: a valid one with the probability `usual`, mostly."""
        kind, name = parameter.type, str(parameter.name)
        if name in ("processes", "jobs"):
            # Several are the business of processes.py.
            return "1" if rng.random() < usual else rng.choice(("0", "-1", "1025", "1.5", "nan", "x", ""))
        if rng.random() < 0.04:
            return rng.choice(TEXTS)
        if isinstance(kind, click.Choice):
            choices = [str(choice) for choice in kind.choices]
            return rng.choice(choices) if rng.random() < 0.9 else mutated_text(rng, rng.choice(choices))
        if isinstance(kind, click.Path):
            writes = name in ("out", "draw", "json_file", "plot_file")
            return rng.choice(_PATHS if writes or rng.random() < 0.9 else _READ_ONLY)
        if isinstance(kind, click.types.IntParamType):
            return rng.choice(("1", "2", "3", "7")) if rng.random() < usual else number_text(rng)
        if isinstance(kind, click.types.FloatParamType):
            return rng.choice(("0.5", "0.1", "1", "2.5")) if rng.random() < usual else number_text(rng)
        if name == "net":
            return Notation.network(rng)
        special = {
            "surrogate": _surrogate(rng),
            "notation": Notation.layer(rng),
            "dataset": rng.choice(_DATASETS),
            "test_on": rng.choice(_DATASETS),
            "on": rng.choice(_DATASETS),
            "loss": rng.choice(sorted(LOSSES)) if rng.random() < 0.9 else "gone:Loss:weight=2",
            "neuron": _neuron(rng),
            "neuron_model": rng.choice(_own_texts()["neuron"]),
            "surrogate_model": rng.choice(_own_texts()["surrogate"]),
            "loss_model": rng.choice(_own_texts()["loss"]),
            "preset_name": rng.choice(sorted(PRESETS)),
            "name": rng.choice(sorted(PRESETS)),
            "data_dir": rng.choice((*_PATHS, *_READ_ONLY)),
            "resume": rng.choice(_PATHS),
            "label_pattern": rng.choice(("01", "1", "110")),
            "undesired_pattern": rng.choice(("0", "10")),
            "input_shape": rng.choice(("2x34x34", "64", "1x1x1", "3x32x32")),
        }
        value = special.get(name, rng.choice(TEXTS))
        return value if rng.random() < 0.85 else mutated_text(rng, value)


class Operations(Models):
    """Models of hundreds of operations, and of names that are words of a language in which they are printed."""

    name, weight, seconds = "operations", 0.04, 20.0

    def make(self, rng: random.Random, world: World) -> Case:
        kind = rng.choice(sorted(_OWN))
        data = json.loads(rng.choice(_own_texts()[kind]))
        compiled = False
        if rng.random() < 0.7:
            # A name that is a word of Python, C, CUDA or a library, in place of one of the model.
            old = rng.choice(sorted(_names_of(data)))
            new = rng.choice(_LANGUAGE_WORDS)
            data = _renamed(data, old, new)
            compiled = rng.random() < 0.02
        else:
            for _ in range(rng.choice((2, 5, 15, 50))):
                self.grow(rng, data)
        return Case(self.name, mutate.json_bytes(rng, data), {"what": kind, "compiled": compiled})

    def read(self, case: Case, world: World) -> None:
        super().read(case, world)
        model = _OWN[case.how["what"]](case.content.decode("utf-8", "replace"))
        for recurrence in self.equations(model):
            self.check_c(definition(recurrence, LANGUAGES["c"])) if case.how["compiled"] else None
            if case.how["compiled"]:
                from stsbp_cpu.equations.recurrence import step_of

                step_of(recurrence)

    @staticmethod
    def check_c(text: str) -> None:
        """Complain of C that does not compile."""
        if shutil.which("gcc") is None:
            return
        head = "#include <math.h>\n#include <stdbool.h>\nstatic float snap(float x) { return x; }\n"
        command = ["gcc", "-std=c99", "-fsyntax-only", "-x", "c", "-"]
        done = subprocess.run(command, input=head + text, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Complaint(f"printed C does not compile\n{done.stderr[:600]}")


_LANGUAGE_WORDS = (
    *dir(builtins),
    *(
        "carray",
        "np",
        "numba",
        "njit",
        "prange",
        "loop",
        "jnp",
        "jax",
        "torch",
        "tl",
        "triton",
        "self",
        "n",
        "p",
        "x",
        "u",
    ),
    *(
        "int",
        "double",
        "auto",
        "restrict",
        "main",
        "NULL",
        "fabsf",
        "sqrtf",
        "expf",
        "threadIdx",
        "__fadd_rn",
        "x1",
        "x2",
    ),
    *("new_m", "m", "z", "dz", "o", "g", "gu", "sum_dz", "inside", "back", "kept", "states", "lif_forward"),
)


def _names_of(data: dict[str, Any]) -> set[str]:
    """Names of states, constants and values of a model."""
    named = {node[1].rpartition(".")[2] for node in data["nodes"] if node[0] not in ("constant",) and node[1]}
    return named | set(data.get("states", ())) | {data["name"]}


def _renamed(data: Any, old: str, new: str) -> Any:
    """A model in which a name is another one, wherever it is."""
    if isinstance(data, dict):
        return {_renamed(key, old, new): _renamed(value, old, new) for key, value in data.items()}
    if isinstance(data, list):
        return [_renamed(value, old, new) for value in data]
    if isinstance(data, str) and data.rpartition(".")[2] == old:
        return data.removesuffix(old) + new
    return data


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        *(Events(), Notation(), Models(), Toml(), Arrays(), Images(), Graphs(), Checkpoints(), Options()),
        *(*SMALL_FILES, *HUB_FILES, *DATA_FILES, Operations()),
    )
}

GROUPS: dict[str, tuple[str, ...]] = {
    "small": (*(kind.name for kind in (*SMALL_FILES, *HUB_FILES)), "operations", "graphs", "models"),
}
"""Names for several kinds: `small` are small files with large harm."""
