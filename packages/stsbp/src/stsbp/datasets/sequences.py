"""Samples whose labels are spike trains: in memory, and from a user's own `.npz` file.

The file (docs/sequences.md) holds `inputs` `[n, T, ...]` and `targets` `[n, T, N]`, 0 and 1, and perhaps `split` `[n]`,
0 for training and 1 for test samples, and `lengths` `[n]`, the steps of each sample, whose later ones are padding.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from stsbp_spec.encoders.packed import Inputs
from stsbp_spec.typing import AnyArray, Int64, UInt8
from stsbp_spec.values import shown

from stsbp.datasets.base import Dataset, FrameSplit, Request, Split, Subset, cut_test, names_unreadable
from stsbp.datasets.info import DatasetInfo
from stsbp.errors import DataError
from stsbp.files import GIGABYTE, open_regular

__all__ = ["SEQUENCES", "SequenceSplit", "Sequences", "load", "read_sequences"]

_TEST_SHARE = 0.2
_MAGIC = b"\x93NUMPY"
_MOST = 8 * GIGABYTE


class SequenceSplit:
    """Input rasters `[n, T, ...]` with target rasters `[n, T, N]`, zeros and ones, both kept as bits.

    `labels` are groups to choose samples by, `lengths` the steps of samples that have fewer than T.
    """

    def __init__(self, rasters: UInt8, targets: UInt8, labels: Int64, lengths: Int64 | None = None) -> None:
        self.labels, self.lengths = labels, lengths
        self._rasters, self._targets = (
            FrameSplit(FrameSplit.store(x), labels, x.shape[1], lengths=lengths) for x in (rasters, targets)
        )

    def __len__(self) -> int:
        return len(self.labels)

    def inputs(self, indices: Int64) -> UInt8:
        return self._rasters.inputs(indices)

    def stored(self, indices: Int64) -> Inputs:
        return self._rasters.stored(indices)

    def targets(self, indices: Int64) -> UInt8:
        """Target spike trains of some samples, `[T, B, N]`."""
        return self._targets.inputs(indices)


class Sequences(NamedTuple):
    """What a file holds: inputs `[n, T, ...]`, targets `[n, T, N]` and, where it has them, split and lengths `[n]`."""

    inputs: UInt8
    targets: UInt8
    split: UInt8 | None
    lengths: Int64 | None


def read_sequences(path: Path) -> Sequences:
    """The arrays of a file.

    Raises:
        DataError: the file cannot be read, or its arrays do not have these shapes or hold other values than 0 and 1.
    """
    try:
        with open_regular(path, _MOST) as content:
            file = np.load(content, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            with file:
                # A few packed bytes can mean many gigabytes; no more is unpacked than is said there.
                assert file.zip is not None
                whole = sum(entry.file_size for entry in file.zip.infolist())
                if whole > _MOST:
                    raise ValueError(f"its arrays have {whole:,} bytes, more than the {_MOST:,} that are read")
                for entry in file.zip.infolist():
                    # Of what is no array numpy would give the bytes, all of them.
                    with file.zip.open(entry) as member:
                        if member.read(len(_MAGIC)) != _MAGIC:
                            raise ValueError(f"{shown(entry.filename)} in it is no array")
                # numpy warns of sizes beyond a float before it refuses them, and of files that Python 2 wrote.
                with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
                    arrays: dict[str, AnyArray] = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise DataError(f"there is no file {path}") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:
        # A forged header can make numpy and zipfile raise almost anything; of a file that is neither, numpy advises to
        # unpickle it.
        unlike = "pickled" in str(error)
        reason = (
            "it begins like neither a .npz nor a .npy file" if unlike else str(error).partition(" when allow_pi")[0]
        )
        raise DataError(f"{path} is not a file of numpy arrays (.npz): {reason or type(error).__name__}") from error
    missing = {"inputs", "targets"} - set(arrays)
    if missing or set(arrays) - {"inputs", "targets", "split", "lengths"}:
        raise DataError(
            f"{path} must hold inputs, targets and perhaps split and lengths, got {', '.join(arrays) or 'nothing'}"
        )
    lengths = arrays.pop("lengths", None)
    for name, array in arrays.items():
        if array.dtype != np.uint8:
            raise DataError(f"{path}: {name} must be uint8 values 0 and 1, got {array.dtype}")
        if array.size and array.max() > 1:
            raise DataError(f"{path}: {name} must be uint8 values 0 and 1, got {array.dtype} up to {array.max()}")
    inputs, targets, split = arrays["inputs"], arrays["targets"], arrays.get("split")
    if inputs.ndim not in (3, 5) or targets.ndim != 3 or 0 in (*inputs.shape, *targets.shape):
        raise DataError(
            f"{path}: inputs must be [n, T, N] or [n, T, C, H, W] and targets [n, T, N], "
            f"got {list(inputs.shape)} and {list(targets.shape)}"
        )
    if inputs.shape[:2] != targets.shape[:2] or (split is not None and split.shape != inputs.shape[:1]):
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
        raise DataError(f"{path}: the arrays do not agree in samples n and steps T: {shapes}")
    if lengths is not None:
        n, steps = inputs.shape[:2]
        if lengths.dtype.kind not in "iu" or lengths.shape != (n,):
            raise DataError(f"{path}: lengths must be integers [n] = [{n}], got {lengths.dtype} {list(lengths.shape)}")
        if (wrong := np.flatnonzero((lengths < 1) | (lengths > steps))).size:
            raise DataError(
                f"{path}: lengths must be from 1 to the {steps} steps of the arrays; sample {wrong[0]} has "
                f"{lengths[wrong[0]]}"
            )
        lengths = lengths.astype(np.int64)
    return Sequences(inputs, targets, split, lengths)


@names_unreadable
def load(request: Request) -> Dataset:
    """The samples of a file; without `split` a fifth of them is held out as the test set."""
    path = request.data_dir
    if path is None:
        raise DataError("name the file: stsbp train sequences:PATH, or --data-dir PATH")
    if path.is_dir():
        path = path / "sequences.npz"
    inputs, targets, parts, lengths = read_sequences(path)
    n, steps = inputs.shape[:2]
    if steps != request.binning.steps:
        raise DataError(f"the samples of {path} have {steps} steps, not {request.binning.steps}: give --steps {steps}")
    samples = SequenceSplit(inputs, targets, np.zeros(n, dtype=np.int64), lengths)
    train: Split
    test: Split
    if request.holdout is None and parts is not None:
        train, test = (Subset(samples, np.flatnonzero(parts == part)) for part in (0, 1))
        if not len(train) or not (len(test) or request.train_only):
            raise DataError(f"{path}: split has no {'test' if len(train) else 'training'} samples")
        note = f"{len(train)} training and {len(test)} test samples of {path}"
    else:
        train, test = cut_test(samples, max(1, round(_TEST_SHARE * n)), request)
        cut = request.told_of_test(f", {len(test)} of them held out as test samples (split seed {request.seed})")
        note = f"{n} samples of {path}{cut}"
    return Dataset("sequences", "events", inputs.shape[2:], (), train, test, (note,), neurons=targets.shape[2])


SEQUENCES = DatasetInfo(
    name="sequences",
    description="your own input and target rasters in an .npz file; also written sequences:PATH",
    coding="events",
    load=load,
    preset={
        "net": "200",
        "steps": 50,
        "epochs": 40,
        "batch_size": 20,
        "lr": 5e-3,
        "tau_m": 5.0,
        "tau_s": 2.0,
        "test_every": 5,
    },
)
"""What `stsbp train sequences` trains on, and how by default."""
