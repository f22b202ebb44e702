"""Files of published data sets, read as such; and files of one kind, given to the network of another kind of data."""

from __future__ import annotations

import gzip
import importlib.util
import random
import shutil
import struct
from collections.abc import Mapping

import numpy as np
from stsbp.cli.predict import read_inputs
from stsbp.datasets import load
from stsbp.training.build import Inputs
from stsbp_spec.models.encoders import EventBinning
from stsbp_spec.typing import AnyArray, Coding

from campaigns.calls import Complaint
from campaigns.cases import Case, Kind
from campaigns.mutate import mutated_bytes
from campaigns.worlds import World, picture, recording

__all__ = ["DATA_FILES"]

_RECORD = 1 + 3 * 32 * 32
_SIDE = 28
_IMAGES, _LABELS = (f"train-{name}-ubyte" for name in ("images-idx3", "labels-idx1"))


class Published(Kind):
    """Batches of CIFAR-10 and idx files of MNIST, compared with what another reader makes of their bytes."""

    name, weight = "published", 0.04

    def make(self, rng: random.Random, world: World) -> Case:
        if rng.random() < 0.5:
            count = rng.choice((2, 2, 3))
            records = [bytes([rng.randrange(10)]) + rng.randbytes(_RECORD - 1) for _ in range(count)]
            return Case(self.name, self.damaged(rng, b"".join(records), (0, _RECORD)), {"form": "cifar10"})
        count = rng.choice((2, 2, 3))
        images = struct.pack(">HBBIII", 0, 8, 3, count, _SIDE, _SIDE) + rng.randbytes(_SIDE * _SIDE * count)
        labels = struct.pack(">HBBI", 0, 8, 1, count) + bytes(rng.randrange(10) for _ in range(count))
        if rng.random() < 0.5:
            images = self.damaged(rng, images, range(16))
        else:
            labels = self.damaged(rng, labels, range(8 + count))
        return Case(self.name, images, {"form": "mnist", "labels": labels.hex(), "packed": rng.random() < 0.3})

    @staticmethod
    def damaged(rng: random.Random, content: bytes, places: tuple[int, ...] | range) -> bytes:
        """The bytes of a file, some of them changed, among them those at the places that say what follows."""
        change = rng.randrange(6)
        if change == 0:
            return mutated_bytes(rng, content)
        if change == 1:
            return content[: rng.randrange(len(content))]
        if change == 2:
            return content + rng.randbytes(rng.choice((1, 784, _RECORD - 1, _RECORD)))
        if change == 3:
            at = rng.choice(places)
            return content[:at] + bytes([rng.choice((0, 1, 9, 10, 255))]) + content[at + 1 :]
        return content

    def read(self, case: Case, world: World) -> None:
        folder = world.outside / "published"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if case.how["form"] == "cifar10":
            (folder / "data_batch_1.bin").write_bytes(case.content)
            expected = _batch(case.content)
        else:
            labels, packed = bytes.fromhex(case.how["labels"]), case.how["packed"]
            (folder / (_IMAGES + ".gz" * packed)).write_bytes(gzip.compress(case.content) if packed else case.content)
            (folder / _LABELS).write_bytes(labels)
            expected = _digits(case.content, labels)
        data = load(case.how["form"], data_dir=folder, cache_dir=folder / "cache", train_only=True).train
        if expected is None:
            raise Complaint("a damaged file of a published data set was accepted")
        images, numbers = expected
        if not (np.array_equal(data.inputs(np.arange(len(data))), images) and np.array_equal(data.labels, numbers)):
            raise Complaint("samples are not those of the file")


def _batch(content: bytes) -> tuple[AnyArray, AnyArray] | None:
    """Images `[n, 3, 32, 32]` and labels `[n]` of a batch of CIFAR-10; None if it has none."""
    if not content or len(content) % _RECORD:
        return None
    records = [content[at : at + _RECORD] for at in range(0, len(content), _RECORD)]
    labels = np.array([record[0] for record in records])
    images = np.array([list(record[1:]) for record in records], np.uint8).reshape(-1, 3, 32, 32)
    return None if labels.max() > 9 else (images, labels)


def _digits(images: bytes, labels: bytes) -> tuple[AnyArray, AnyArray] | None:
    """Images `[n, 1, 28, 28]` and labels `[n]` of MNIST; None if the files have none."""
    count = len(labels) - 8
    if count < 1 or labels[:8] != struct.pack(">HBBI", 0, 8, 1, count):
        return None
    if images[:16] != struct.pack(">HBBIII", 0, 8, 3, count, _SIDE, _SIDE) or len(images) - 16 != count * _SIDE**2:
        return None
    numbers = np.array(list(labels[8:]))
    return None if numbers.max() > 9 else (np.array(list(images[16:]), np.uint8).reshape(-1, 1, 28, 28), numbers)


class Others(Kind):
    """Files of another kind than the data of a network, which `predict` must refuse."""

    name, weight = "others", 0.01

    def make(self, rng: random.Random, world: World) -> Case:
        end = rng.choice((".png", ".bin", ".wav", ".npz", ".txt"))
        whole = {".png": picture(1), ".bin": recording(1), ".wav": _sound()}
        content = rng.choice((whole.get(end, b""), whole.get(end, b""), *whole.values(), b"0 1\n", b""))
        if rng.random() < 0.9:
            trained_on = rng.choice(sorted(_TRAINED_ON))
            coding, shape, ends = _TRAINED_ON[trained_on]
            how = {"trained_on": trained_on, "coding": coding, "shape": list(shape), "end": end}
            return Case(self.name, content, how | self.refused(end, ends, trained_on))
        run = rng.choice(("pictures", "recordings", "rasters"))
        ends = {"pictures": ".png", "recordings": ".bin"}.get(run, "")
        arguments = ("--backend", "numpy", "predict", f"runs/{run}", f"new{end}")
        return Case(self.name, how=self.refused(end, ends, run), arguments=arguments, files={f"work/new{end}": content})

    @staticmethod
    def refused(end: str, ends: str, trained_on: str) -> dict[str, str]:
        """What tells that a file with this end must not be accepted."""
        return {} if end == ends else {"refuse": f"{end} is no file of the data {trained_on}"}

    def read(self, case: Case, world: World) -> None:
        how = case.how
        path = world.outside / f"new{how['end']}"
        path.write_bytes(case.content)
        inputs = Inputs(tuple(how["shape"]), how["coding"], ("a", "b"))
        read_inputs([path], inputs, EventBinning(steps=3), how["trained_on"])


_TRAINED_ON: Mapping[str, tuple[Coding, tuple[int, ...], str]] = {
    "nmnist": ("events", (2, 34, 34), ".bin"),
    "events:own.npz": ("events", (1, 34, 34), ".bin"),
    "sequences:own.npz": ("events", (2, 34, 34), ""),
    "fsdd": ("events", (40,), ".wav"),
    "shd": ("events", (700,), ""),
    "patterns": ("events", (40,), ""),
    "digits": ("direct", (1, 8, 8), ".png"),
    "gone": ("events", (2, 34, 34), ""),
}
"""Data sets, the coding and the shape of their samples, and the end of the files that their networks read, besides
`.npy`."""


def _sound() -> bytes:
    """A sound as those of fsdd."""
    header = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", 436, b"WAVE", b"fmt ", 16, 1, 1, 8000, 16000, 2, 16)
    return header + struct.pack("<4sI", b"data", 400) + bytes(range(200)) * 2


DATA_FILES: tuple[Kind, ...] = (
    Published(),
    *((Others(),) if importlib.util.find_spec("tonic") else ()),
)
"""The kinds of this module. Recordings of a camera need the library tonic."""
