"""Functions of `programs` that a device records once and then runs as a whole, as CUDA graphs, with any library.

A recording contains the addresses and numbers of the time when it was made. Everything that changes from call to call
must therefore reach it through arrays of its own. Arguments are copied into them, and so are dropout masks and the
scalars of an update (`Tape.filled`). Results are copied out, because the next run overwrites them.

While a function is recorded, the host must neither read a number from the device nor send one. `gradients` and `update`
do neither. The host checks numbers between them.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from stsbp_spec.distributed.collective import Alone, Collective
from stsbp_spec.engine.operations import Operations
from stsbp_spec.engine.programs import gradients, update
from stsbp_spec.equations.assembly import Constants
from stsbp_spec.equations.expressions import Recurrence
from stsbp_spec.errors import BackendError
from stsbp_spec.models.optim.base import Scalars
from stsbp_spec.typing import Array, Float32

__all__ = ["SWITCH", "Graphs", "Tape", "recording_requested"]

# Not a setting: a run would store it although no result depends on it, and it could never be removed. Off by default,
# because no GPU has run a graph yet.
SWITCH = "STSBP_CUDA_GRAPHS"
"""The environment variable. With 1, CUDA devices record; 0 is the default."""

_CHANGES: Mapping[Callable[..., Any], int] = {gradients: 3, update: 0}
"""Index of the argument with the numbers of a step: `dropout` or `scalars`. Other functions have no such argument."""

Result = TypeVar("Result")


def recording_requested() -> bool:
    """Whether CUDA devices that are opened from now on should record.

    Raises:
        BackendError: the variable is neither 0 nor 1.
    """
    value = os.environ.get(SWITCH, "0")
    if value not in ("0", "1"):
        raise BackendError(f"{SWITCH} is 0 or 1, got {value!r}")
    return value == "1"


class Tape(Generic[Array]):
    """The data that a recording reads besides its arguments.

    Attributes:
        changing: numbers of the current step: `dropout` for `gradients`, `scalars` for `update`, else None.
        recording: whether the device is recording, so that no new data may be sent to it.
    """

    def __init__(self, graphs: Graphs[Array], changing: Any) -> None:
        self.changing = changing
        self.recording = False
        self._graphs = graphs
        self._buffers: dict[Hashable, tuple[Array, Callable[[Any], Array]]] = {}
        self._references: list[Any] = []

    def filled(self, key: Hashable, compute: Callable[[Any], Array]) -> Array:
        """An array of the recording. Before each run, it is filled with the result of `compute` for `changing`.

        Raises:
            BackendError: during the recording, the function requests an array that it did not request before.
        """
        if key not in self._buffers:
            if self.recording:
                raise BackendError(f"CUDA graphs: {key} was not requested before the step was recorded")
            array = compute(self.changing)
            buffer = self._graphs.twin(array)
            self._graphs.copy([(array, buffer)])
            self._buffers[key] = buffer, compute
        return self._buffers[key][0]

    def numbers(self, recurrence: Recurrence, constants: Constants, send: Callable[[Float32], Array]) -> Array | None:
        """The parameters of `recurrence` on the device, refilled before each run. None: they do not belong to an
        update."""
        # Kernels of CuPy take constants by value, and a graph would keep the learning rate of the step that was
        # recorded.
        if not isinstance(self.changing, Scalars):
            return None
        constant_values = {name: x for name, x in constants.items() if not hasattr(self.changing, name)}

        def send_numbers(scalars: Scalars) -> Array:
            values = {
                name: constant_values[name] if name in constant_values else getattr(scalars, name)
                for name in recurrence.parameters
            }
            return send(recurrence.numbers(values))

        return self.filled((recurrence.name, *constant_values.items()), send_numbers)

    def keep(self, x: Any) -> None:
        """Keep `x` alive as long as the recording, which reads its memory."""
        self._references.append(x)

    def fill(self, changing: Any) -> None:
        """Compute all arrays of `filled` again."""
        self.changing = changing
        self._graphs.copy([(compute(changing), buffer) for buffer, compute in self._buffers.values()])


class Graphs(ABC, Generic[Array]):
    """The recordings of a backend on its device.

    Attributes:
        tape: tape of the recording that is being made; None: there is none.
    """

    # Not the whole step: the host checks numbers at two points and may refuse the step, which a graph cannot do.
    # `torch.compile` also makes graphs, but it traces Python code without torch, and when it records again is not in
    # our hands.
    RECORDED: ClassVar[tuple[Callable[..., Any], ...]] = (gradients, update)
    """Functions that are recorded."""
    WARM: ClassVar[int] = 2
    """Number of ordinary calls before a recording. In these calls, kernels are compiled and algorithms chosen."""
    LIMIT: ClassVar[int] = 8
    """Largest number of recordings, one per function and set of shapes. The least recently used one is removed."""

    def __init__(self, backend: Operations[Array]) -> None:
        self.tape: Tape[Array] | None = None
        self.backend = backend
        self._calls = Counter[Hashable]()
        self._recordings: OrderedDict[Hashable, _RecordedStep[Array]] = OrderedDict()

    @abstractmethod
    def twin(self, x: Array) -> Array:
        """An uninitialised array with the shape, type and layout of `x`."""

    @abstractmethod
    def copy(self, pairs: Sequence[tuple[Array, Array]]) -> None:
        """Copy the first array of each pair into the second, without waiting."""

    @abstractmethod
    def record(self, run: Callable[[], Result]) -> tuple[Callable[[], None], Result]:
        """Record `run`. Returns a function that repeats its computation at the same addresses, and its result."""

    def call(self, function: Callable[..., Result], fixed: tuple[Hashable, ...], arguments: tuple[Any, ...]) -> Result:
        """Compute `function(backend, *fixed, *arguments)`, with a recording if there is one.

        Raises:
            BackendError: the step cannot be recorded. The message gives the reason.
        """
        if function not in self.RECORDED:
            return function(self.backend, *fixed, *arguments)
        # A recording reads arrays of its own, so arrays cannot be made lazily.
        arguments = tuple([*x] if isinstance(x, Sequence) and not isinstance(x, list | tuple) else x for x in arguments)
        key = (function, tuple(map(_fixed, fixed)), _form(arguments))
        recording = self._recordings.get(key)
        if recording is None:
            self._calls[key] += 1
            if self._calls[key] <= self.WARM:
                return function(self.backend, *fixed, *arguments)
            recording = self._recordings[key] = _RecordedStep(self, function, fixed, arguments)
            if len(self._recordings) > self.LIMIT:
                # The function must be called several times again before it is recorded again.
                self._calls.pop(self._recordings.popitem(last=False)[0])
        self._recordings.move_to_end(key)
        result: Result = recording(arguments)
        return result

    def forget(self) -> None:
        """Free the memory of all recordings."""
        self._recordings.clear()
        self._calls.clear()

    @property
    def count(self) -> int:
        """Number of recordings."""
        return len(self._recordings)


class _RecordedStep(Generic[Array]):
    """A recorded function with its own arrays."""

    def __init__(
        self,
        graphs: Graphs[Array],
        function: Callable[..., Any],
        fixed: tuple[Hashable, ...],
        arguments: tuple[Any, ...],
    ) -> None:
        self._graphs, self._function = graphs, function
        self._arguments = [graphs.twin(x) for x in _arrays(arguments)]
        self._tape = Tape(graphs, self._changing_argument(arguments))
        self._copy_arguments(arguments)
        arrays = iter(self._arguments)
        buffers = _with(arguments, lambda _: next(arrays))

        def run() -> Any:
            return function(graphs.backend, *fixed, *buffers)

        graphs.tape = self._tape
        try:
            run()  # so that the tape gets all requests
            self._tape.recording = True
            self._replay, self._results = self._recorded(run)
        finally:
            graphs.tape = None

    def _recorded(self, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        try:
            return self._graphs.record(run)
        except BackendError:
            raise
        except Exception as error:
            message = str(error).strip().split("\n")[0]
            raise BackendError(
                f"the step cannot be recorded as a CUDA graph ({type(error).__name__}: {message}); unset {SWITCH}"
            ) from error

    def __call__(self, arguments: tuple[Any, ...]) -> Any:
        self._copy_arguments(arguments)
        self._tape.fill(self._changing_argument(arguments))
        self._replay()
        copied = list[tuple[Array, Array]]()

        def copy(x: Array) -> Array:
            twin = self._graphs.twin(x)
            copied.append((x, twin))
            return twin

        results = _with(self._results, copy)
        self._graphs.copy(copied)
        return results

    def _changing_argument(self, arguments: tuple[Any, ...]) -> Any:
        position = _CHANGES.get(self._function)
        return None if position is None else arguments[position]

    def _copy_arguments(self, arguments: tuple[Any, ...]) -> None:
        self._graphs.copy(list(zip(_arrays(arguments), self._arguments, strict=True)))


def _fixed(x: Hashable) -> Hashable:
    """The part of the fixed arguments by which recordings differ.

    Raises:
        BackendError: there are several processes.
    """
    if not isinstance(x, Collective):
        return x
    if not isinstance(x, Alone):
        raise BackendError(f"CUDA graphs record the step of one process; unset {SWITCH} to train on {x.size}")
    return Alone


def _is_array(x: Any) -> bool:
    return hasattr(x, "ndim")


def _arrays(x: Any) -> Iterator[Any]:
    """The arrays in lists, tuples and mappings, in order. Mappings are sorted by name, whatever their own order."""
    if isinstance(x, Mapping):
        x = [part for _, part in sorted(x.items())]
    elif not isinstance(x, list | tuple):
        if _is_array(x):
            yield x
        return
    for part in x:
        yield from _arrays(part)


def _with(x: Any, convert: Callable[[Any], Any]) -> Any:
    """`x` with each array converted, in the order of `_arrays`."""
    if isinstance(x, Mapping):
        return {name: _with(part, convert) for name, part in sorted(x.items())}
    if isinstance(x, list):
        return [_with(part, convert) for part in x]
    if isinstance(x, tuple):
        parts = [_with(part, convert) for part in x]
        return type(x)(*parts) if hasattr(x, "_fields") else tuple(parts)
    return convert(x) if _is_array(x) else x


def _form(x: Any) -> Hashable:
    """The key of a recording: names, shapes and types of arrays, and for all other values whether they are present."""
    if isinstance(x, Mapping):
        return tuple((name, _form(part)) for name, part in sorted(x.items()))
    if isinstance(x, list | tuple):
        return tuple(map(_form, x))
    if _is_array(x):
        return tuple(x.shape), str(x.dtype)
    return x is None
