"""`stsbp export --to onnx`: a trained network as an ONNX model, the extra `onnx`.

onnx_model.py makes the model, and needs the library. This module checks that the library is installed, and writes the
file.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING

from stsbp_spec.equations.expressions import ordered

from stsbp.errors import ConfigError, printable
from stsbp.files import OutputKind
from stsbp.interop.program import About, NetworkProgram

if TYPE_CHECKING:
    from onnx import ValueInfoProto

__all__ = ["MODEL", "write"]

MODEL = OutputKind("an ONNX model of stsbp", re.compile(rb"\x08.\x12\x05stsbp", re.DOTALL))
"""The kind of file that an export may replace. The format version and the producer are at its beginning."""


_INEXACT = {
    "exp": "exp is not exact: its last bits differ between programs, and so may the spikes",
    "sqrt": "sqrt is exact where it is rounded correctly: in onnxruntime from version 1.21 on",
}
"""Messages about operations."""


def write(
    program: NetworkProgram, about: About, path: Path, *, layers: bool = False, states: bool = False
) -> list[str]:
    """Write the network as an ONNX model. Returns the messages to print.

    Args:
        program, about: the network, and information about its run for the file.
        path: the file.
        layers: whether spikes and potentials of hidden layers are outputs too.
        states: whether states are inputs and outputs, so that a call can continue where another one ended.

    Raises:
        ConfigError: onnx is not installed, or the network is too large for a file.
        FileError: the file cannot be written, or an existing file is of another kind.
    """
    if importlib.util.find_spec("onnx") is None:
        raise ConfigError('--to onnx needs the library onnx; install it with: python -m pip install "stsbp[onnx]"')
    # Imported here, because it needs onnx.
    from stsbp.interop.onnx_model import OPSET, model

    onnx_model = model(program, about, layers=layers, states=states)
    data = onnx_model.SerializeToString()
    MODEL.write(path, data)
    messages = [f"{printable(str(path))}: {len(data):,} bytes, standard operators of opset {OPSET}"]
    for verb, values in (("reads", onnx_model.graph.input), ("gives", onnx_model.graph.output)):
        messages += [f"{verb} {_typed(value_info)}" for value_info in values]
    for name, population in program.populations.items():
        used = {x.op for x in ordered(population.step.roots)}
        messages += [f"{name}: {inexact_text}" for op, inexact_text in _INEXACT.items() if op in used]
    return messages


def _typed(value: ValueInfoProto) -> str:
    """`spikes uint8 [T, B, 10]`."""
    from onnx import TensorProto

    tensor = value.type.tensor_type
    dims = ", ".join(dim.dim_param or str(dim.dim_value) for dim in tensor.shape.dim)
    type_name = TensorProto.DataType.Name(tensor.elem_type).lower().replace("float", "float32")
    return f"{value.name} {type_name} [{dims}]" if dims else f"{value.name} {type_name}"
