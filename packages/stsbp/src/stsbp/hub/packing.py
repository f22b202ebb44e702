"""Weights packed into few bytes: numbers on a grid of powers of two as integers, sorted by bytes and compressed.

A network of `reproducible` and of `fast` precision computes with weights on grids, of which the largest has 12 bits
(the spec's contract/grid.py). `on_grids` rounds the weights as every backend does, and `pack` stores them without loss:
the unpacked weights have the same float32 bits. What lies on no grid, such as biases, keeps its four bytes.

The packed bytes are not compared, because other versions of the compressor may write others. `safetensors_bytes` is the
form of the weights whose SHA-256 is compared.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from stsbp_spec.contract.grid import unsigned_zeros
from stsbp_spec.engine.operations import weights_on_grid
from stsbp_spec.networks.spec import NetworkSpec
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.typing import Float32

from stsbp.records import PACKED_EXPONENTS, PackedTensor

__all__ = ["MAGIC", "on_grids", "pack", "safetensors_bytes", "unpack", "unpacked_size"]

MAGIC = b"stsbp packed weights\n"
"""The first bytes of a packed file. The others are compressed by zlib."""
_LARGEST = 2**15 - 1


def on_grids(network: NetworkSpec, weights: Mapping[str, Float32]) -> dict[str, Float32]:
    """The weights as the network computes with them; other parameters and statistics as they are.

    A parameter that several nodes read keeps its own bits if the grids of the nodes differ. Rounded weights are rounded
    to themselves, so the network gives the same spikes with them.

    Raises:
        NumericError, ExactnessError: the weights have no grid.
    """
    projections = network.graph.projections
    rounded, _ = weights_on_grid(NumpyBackend(), network.graph, weights)
    result = {name: np.ascontiguousarray(x, np.float32) for name, x in weights.items()}
    for parameter in {projection.parameter for projection in projections}:
        first, *others = [rounded[projection.name] for projection in projections if projection.parameter == parameter]
        if all(np.array_equal(first, other) for other in others):
            # Rounding leaves -0, which is no integer and gives the same sums as +0.
            result[parameter] = unsigned_zeros(np.ascontiguousarray(first, np.float32))
    return result


def _exponent(x: Float32) -> int | None:
    """The smallest `q` for which all `x 2^q` are integers of 16 bits with a sign. None: there is no such `q`.

    The sign of a zero is not an integer, so an array with -0 has none.
    """
    if not np.isfinite(x).all() or np.any((x == 0) & np.signbit(x)):
        return None
    mantissas, exponents = np.frexp(x[x != 0].astype(np.float64))
    if not mantissas.size:
        return 0
    integers = np.abs(np.ldexp(mantissas, 24)).astype(np.int64)
    # The number of zeros at the end of each mantissa of 24 bits.
    zeros = np.log2(integers & -integers).astype(np.int64)
    q = int(np.max(24 - zeros - exponents))
    is_small = float(np.max(np.abs(x))) * 2.0**q <= _LARGEST
    return q if q in PACKED_EXPONENTS and is_small else None


def pack(weights: Mapping[str, Float32]) -> tuple[bytes, dict[str, dict[str, Any]]]:
    """Pack weights.

    Args:
        weights: arrays by name, float32.

    Returns:
        The bytes, and for each name in the order of the bytes its `shape` and its `exponent` `q`: the numbers are
        integers times `2^-q`. None: they are stored as float32.
    """
    tensors, planes = dict[str, dict[str, Any]](), list[bytes]()
    for name in sorted(weights):
        x = np.asarray(weights[name], np.float32)
        q = _exponent(x)
        stored = x.astype("<f4") if q is None else np.rint(np.ldexp(x.astype(np.float64), q)).astype("<i2")
        # The high bytes of neighbours are alike, the low bytes are not: apart, they take fewer bytes.
        by_byte = np.frombuffer(stored.tobytes(), np.uint8).reshape(-1, stored.itemsize).T
        planes.append(np.ascontiguousarray(by_byte).tobytes())
        tensors[name] = {"shape": list(x.shape), "exponent": q}
    return MAGIC + zlib.compress(b"".join(planes), 9), tensors


def _bytes_of(tensor: PackedTensor) -> int:
    return math.prod(tensor.shape) * (4 if tensor.exponent is None else 2)


def unpacked_size(tensors: Mapping[str, PackedTensor]) -> int:
    """Number of bytes of the weights as float32."""
    return sum(4 * math.prod(tensor.shape) for tensor in tensors.values())


def unpack(data: bytes, tensors: Mapping[str, PackedTensor]) -> dict[str, Float32]:
    """The weights of `pack`, with the same bits. Takes no more memory than `tensors` declares.

    Raises:
        ValueError: the bytes are damaged, or are not those of `tensors`.
    """
    size = sum(map(_bytes_of, tensors.values()))
    if not data.startswith(MAGIC):
        raise ValueError("they do not begin as packed weights of stsbp")
    decompressor = zlib.decompressobj()
    try:
        content = decompressor.decompress(data[len(MAGIC) :], size + 1)
    except zlib.error as error:
        raise ValueError(f"they cannot be unpacked: {error}") from error
    if len(content) != size or not decompressor.eof or decompressor.unused_data:
        raise ValueError(f"they do not unpack into the {size:,} bytes of the tensors")
    weights, first = dict[str, Float32](), 0
    for name, tensor in tensors.items():
        end = first + _bytes_of(tensor)
        kind = np.dtype("<f4" if tensor.exponent is None else "<i2")
        by_byte = np.frombuffer(content[first:end], np.uint8).reshape(kind.itemsize, -1).T
        numbers = np.frombuffer(np.ascontiguousarray(by_byte).tobytes(), kind).reshape(tensor.shape)
        exact = numbers if tensor.exponent is None else np.ldexp(numbers.astype(np.float64), -tensor.exponent)
        weights[name], first = exact.astype(np.float32), end
    return weights


def safetensors_bytes(weights: Mapping[str, Float32]) -> bytes:
    """The weights as a file `model.safetensors`: the bytes that the library safetensors writes, in every version."""
    header: dict[str, Any] = {"__metadata__": {"format": "stsbp"}}
    first, contents = 0, []
    for name in sorted(weights):
        content = np.asarray(weights[name], "<f4").tobytes()
        offsets = [first, first + len(content)]
        header[name] = {"dtype": "F32", "shape": list(weights[name].shape), "data_offsets": offsets}
        contents.append(content)
        first += len(content)
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(contents)
