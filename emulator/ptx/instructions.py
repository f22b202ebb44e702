"""What PTX instructions do to the registers and the memory of a launch, one function for each kind of instruction."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from stsbp_spec.typing import AnyArray

from emulator.ptx.memory import RANGE, SHARED, VARIABLES, WARP, Allocation
from emulator.ptx.parse import SIZES, Instruction, PtxError
from emulator.ptx.semantics import APPROXIMATE, Function, convert, dtype_of, flush, operation

if TYPE_CHECKING:
    from emulator.ptx.machine import Launch

__all__ = ["Action", "Threads", "action"]

Threads: TypeAlias = AnyArray | None
"""Numbers of the threads of a group; None: all threads of the launch."""
Action: TypeAlias = Callable[["Launch", Threads, Instruction], None]

_COMPARE: dict[str, Function] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal, "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip
_ATOMICS = {"add", "min", "max", "and", "or", "xor", "exch", "inc", "dec", "cas"}
_CACHES = {"L1", "L2", "no_allocate", "evict_first", "evict_last", "evict_normal", "evict_unchanged"}
_ORDERS = {"volatile", "relaxed", "weak", "gpu", "sys", "cta"}
# Modifiers that change nothing here, because threads see memory at once, or that the functions below obey.
_MODIFIERS = {
    "ld": {"global", "shared", "const", "param", "local", "nc", "v2", "v4", "acquire", "ca", "cg", "cs", "lu", "cv",
           "64B", "128B", "256B", *_CACHES, *_ORDERS},
    "st": {"global", "shared", "v2", "v4", "release", "wb", "cg", "cs", "wt", *_CACHES, *_ORDERS},
    "atom": {"global", "release", "acquire", "acq_rel", *_ORDERS, *_ATOMICS},
    "red": {"global", "release", *_ORDERS, *_ATOMICS},
    "mov": set(),
    "cvta": {"to", "global", "shared", "const", "param"},
    "setp": {*_COMPARE, "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan", "ftz", "and", "or", "xor"},
    "selp": set(),
    "shfl": {"sync", "bfly", "up", "down", "idx"},
    "vote": {"sync", "any", "all", "ballot"},
}  # fmt: skip


def action(instruction: Instruction, used: set[str]) -> Action:
    """What an instruction does. `used` are the registers that any instruction reads.

    Raises:
        PtxError: the instruction, or one of its modifiers, is not interpreted.
    """
    opcode, parts = instruction.opcode, instruction.parts
    if opcode in _MODIFIERS and (unknown := set(parts[:-1]) - _MODIFIERS[opcode]):
        raise PtxError(f"{instruction.text}: {', '.join(sorted(unknown))}")
    if opcode == "ld" and "param" in parts:
        return _load_parameter
    if opcode in ("atom", "red"):
        return _atomic(instruction, used)
    if opcode == "cvt":
        return _arithmetic(*convert(parts), instruction)
    if opcode in ("bar", "barrier"):
        return _barrier_of(instruction)
    if opcode in _ACTIONS:
        return _ACTIONS[opcode]
    if opcode in ("membar", "fence", "griddepcontrol", "prefetch", "nanosleep"):
        return _nothing
    return _arithmetic(*operation(opcode, parts), instruction)


def _arithmetic(function: Function, source: str | tuple[str, ...], target: str, instruction: Instruction) -> Action:
    sources = source if isinstance(source, tuple) else (source,) * (len(instruction.operands) - 1)
    types = [None if kind == "pred" else dtype_of(kind) for kind in sources]
    if len(types) != len(instruction.operands) - 1:
        raise PtxError(f"{instruction.text}: {len(instruction.operands)} operands")
    approximate = bool(APPROXIMATE & set(instruction.parts))
    by_zero = instruction.opcode in ("div", "rem") and instruction.parts[-1][0] != "f"

    def run(launch: Launch, threads: Threads, instruction: Instruction) -> None:
        operands = [
            launch.operand(text, dtype, threads) for text, dtype in zip(instruction.operands[1:], types, strict=True)
        ]
        if approximate:
            launch.result.notes.add(
                f"{launch.kernel.name} {instruction.location}: {instruction.text}: bits of the hardware are not defined"
            )
        if by_zero and not operands[1].all():
            _, divisors = np.broadcast_arrays(*operands)
            launch.add_finding("division by zero", instruction, launch.who(threads, np.argmin(divisors != 0)))
        launch.write(instruction.operands[0], np.atleast_1d(function(*operands)), threads)

    return run


def _vector(text: str) -> list[str]:
    return [x.strip() for x in text.strip("{} ").split(",")] if text.startswith("{") else [text]


def _mov(launch: Launch, threads: Threads, instruction: Instruction) -> None:
    kind, (to, source) = instruction.parts[-1], instruction.operands
    if kind == "pred":
        value = (
            np.array([source not in ("0", "0x0")])
            if re.fullmatch(r"-?(0x)?\d+", source)
            else launch.operand(source, None, threads)
        )
        launch.write(to, value, threads)
        return
    if to.startswith("{"):
        names = _vector(to)
        raw = launch.operand(source, np.dtype(f"u{SIZES[kind]}"), threads)
        raw = np.ascontiguousarray(np.atleast_1d(raw))
        parts = raw.view(f"u{SIZES[kind] // len(names)}").reshape(-1, len(names))
        for i, name in enumerate(names):
            if name != "_":
                launch.write(name, np.ascontiguousarray(parts[:, i]), threads)
        return
    if source.startswith("{"):
        names = _vector(source)
        part = np.dtype(f"u{SIZES[kind] // len(names)}")
        columns = np.broadcast_arrays(*(launch.operand(name, part, threads) for name in names))
        launch.write(to, np.ascontiguousarray(np.stack(columns, 1)).view(f"u{SIZES[kind]}")[:, 0], threads)
        return
    launch.write(to, launch.operand(source, dtype_of(kind), threads), threads)


def _cvta(launch: Launch, threads: Threads, instruction: Instruction) -> None:
    value = launch.operand(instruction.operands[1], np.dtype("u8"), threads)
    if "shared" in instruction.parts:
        value = value - np.uint64(SHARED) if "to" in instruction.parts else value + np.uint64(SHARED)
    launch.write(instruction.operands[0], value, threads)


def _setp(launch: Launch, threads: Threads, instruction: Instruction) -> None:
    compare, *modifiers, kind = instruction.parts
    a, b = (launch.operand(x, dtype_of(kind), threads) for x in instruction.operands[1:3])
    if kind[0] == "f":
        if "ftz" in modifiers:
            a, b = flush(a), flush(b)
        either = np.isnan(a) | np.isnan(b)
        if compare in ("num", "nan"):
            flag = either if compare == "nan" else ~either
        elif compare.endswith("u") and compare[:-1] in _COMPARE:
            flag = _COMPARE[compare[:-1]](a, b) | either
        else:
            flag = _COMPARE[compare](a, b) & ~either
    else:
        flag = _COMPARE[compare](a, b)
    other = ~flag
    if combine := next((m for m in modifiers if m in ("and", "or", "xor")), None):
        operand = launch.operand(instruction.operands[3], None, threads)
        function = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[combine]
        flag, other = function(flag, operand), function(other, operand)
    first, _, second = instruction.operands[0].partition("|")
    if first != "_":
        launch.write(first, np.atleast_1d(flag), threads)
    if second:
        launch.write(second, np.atleast_1d(other), threads)


def _selp(launch: Launch, threads: Threads, instruction: Instruction) -> None:
    to, a, b, which = instruction.operands
    dtype = dtype_of(instruction.parts[-1])
    launch.write(
        to,
        np.where(
            launch.operand(which, None, threads), launch.operand(a, dtype, threads), launch.operand(b, dtype, threads)
        ),
        threads,
    )


def _trap(launch: Launch, threads: Threads, instruction: Instruction) -> None:
    launch.add_finding("trap", instruction, launch.who(threads, 0))
    raise PtxError(f"{launch.kernel.name}: {instruction.text}")


# Memory.

_ADDRESS = re.compile(r"\[\s*([%\w$.]+)\s*(?:\+\s*(-?\w+))?\s*\]")


def _split(text: str) -> tuple[str, int]:
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise PtxError(f"address {text}")
    return match[1], int(match[2], 0) if match[2] else 0


def _load_parameter(launch: Launch, threads: Threads, instruction: Instruction) -> None:
    name, offset = _split(instruction.operands[1])
    dtype = dtype_of(instruction.parts[-1])
    raw = launch.values.get(name)
    if raw is None:
        raise PtxError(instruction.text)
    for i, to in enumerate(_vector(instruction.operands[0])):
        at = offset + i * dtype.itemsize
        launch.write(to, np.frombuffer(raw[at : at + dtype.itemsize], dtype), threads)


def _addresses(launch: Launch, instruction: Instruction, text: str, threads: Threads) -> AnyArray:
    name, offset = _split(text)
    if launch.is_register(name):
        kind = launch.kernel.type_of(name)
        base = launch.read(name, np.dtype(f"u{SIZES[kind]}"), threads).astype(np.uint64)
    else:
        base = launch.immediate(name, np.dtype("u8"), threads)
    count = launch.n if threads is None else len(threads)
    base = np.broadcast_to(base, (count,))
    return base + np.uint64(offset & (2**64 - 1)) if offset else base


def _shared_space(instruction: Instruction, address: AnyArray) -> AnyArray | None:
    """Offsets if the access is to shared memory."""
    if "shared" in instruction.parts:
        return address
    if any(space in instruction.parts for space in ("global", "const")):
        return None
    if "local" in instruction.parts:
        raise PtxError(f"{instruction.text}: local memory")
    generic = (address >= np.uint64(SHARED)) & (address < np.uint64(VARIABLES))
    if generic.any():
        if not generic.all():
            raise PtxError(f"{instruction.text}: generic addresses of two kinds")
        return address - np.uint64(SHARED)
    return None


def _pieces(
    launch: Launch, instruction: Instruction, address: AnyArray, threads: Threads, size: int, access: str
) -> Iterator[tuple[Allocation, AnyArray, AnyArray]]:
    """Allowed accesses: `(allocation, offsets, their places in the group)`; the rest is a finding."""
    off = address % np.uint64(size)
    if off.any():
        first = int(np.argmax(off != 0))
        detail = f"{launch.who(threads, first)}: {access} of {size} bytes at ...{int(address[first]) & 0xFFFF:#x}"
        launch.add_finding("misaligned", instruction, detail, int(np.count_nonzero(off)))
    for allocation, places in launch.memory.find(address):
        addresses = address if places is None else address[places]
        at = np.arange(len(address)) if places is None else places
        if allocation is None:
            detail = f"{launch.who(threads, int(at[0]))}: {access} at {int(addresses[0]):#x}, which is no array's"
            launch.add_finding("out of bounds", instruction, detail, len(addresses))
            continue
        offset = (addresses - np.uint64(allocation.start)).astype(np.int64)
        bad = (offset + size > allocation.size) | (offset < 0)
        if allocation.constant and access == "store":
            bad[:] = True
        if bad.any():
            first = int(np.argmax(bad))
            distance = int(offset[first])
            relative = distance - RANGE if distance > RANGE // 2 else distance
            detail = f"{launch.who(threads, int(at[first]))}: {access} of {size} bytes at byte {relative} of "
            detail += f"{allocation.name}, which has {allocation.size}"
            launch.add_finding("out of bounds", instruction, detail, int(np.count_nonzero(bad)))
            offset, at = offset[~bad], at[~bad]
        if len(offset):
            yield allocation, offset, at


def _note(
    launch: Launch,
    instruction: Instruction,
    kind: str,
    allocation: Allocation,
    offset: AnyArray,
    at: AnyArray,
    threads: Threads,
    size: int,
) -> None:
    if launch.log is not None:
        which = at if threads is None else threads[at]
        base, epoch = allocation.real or allocation.start, launch.epoch[launch.local_block[which]]
        thread, read_only = launch.thread[which], "nc" in instruction.parts
        launch.log.add(kind, instruction, base, offset, size, thread, launch.size, epoch, read_only)


def _load(launch: Launch, threads: Threads, instruction: Instruction) -> None:
    dtype, names = dtype_of(instruction.parts[-1]), _vector(instruction.operands[0])
    address = _addresses(launch, instruction, instruction.operands[1], threads)
    unit, size = dtype.itemsize, dtype.itemsize * len(names)
    shared = _shared_space(instruction, address)
    values = [np.zeros(len(address), f"u{unit}") for _ in names]
    if shared is not None:
        rows, offset = _shared_access(launch, instruction, threads, shared, size, "load")
        for i in range(len(names)):
            columns = (offset + i * unit)[:, None] + np.arange(unit)
            if not launch.shared_written[rows[:, None], columns].all():
                launch.add_finding("uninitialised read", instruction, "of shared memory")
            values[i] = np.ascontiguousarray(launch.shared[rows[:, None], columns]).view(f"u{unit}")[:, 0]
    else:
        for allocation, offset, at in _pieces(launch, instruction, address, threads, size, "load"):
            for i in range(len(names)):
                values[i][at] = allocation.gather(offset + i * unit, unit)
                bad = allocation.unwritten(offset + i * unit, unit, values[i][at])
                if bad is not None and bad.any():
                    first = int(at[int(np.argmax(bad))])
                    launch.add_finding(
                        "uninitialised read", instruction, f"{launch.who(threads, first)}: of {allocation.name}"
                    )
            _note(launch, instruction, "load", allocation, offset, at, threads, size)
    for name, value in zip(names, values, strict=True):
        if name != "_":
            launch.write(name, value.view(dtype), threads)


def _shared_access(
    launch: Launch, instruction: Instruction, threads: Threads, offset: AnyArray, size: int, access: str
) -> tuple[AnyArray, AnyArray]:
    rows = launch.local_block if threads is None else launch.local_block[threads]
    offset = offset.astype(np.int64)
    bad = (offset < 0) | (offset + size > launch.shared_stride) | (offset % size != 0)
    if bad.any():
        first = int(np.argmax(bad))
        detail = f"{launch.who(threads, first)}: {access} of {size} bytes at {int(offset[first])} of shared memory, "
        launch.add_finding("out of bounds", instruction, f"{detail}which has {launch.shared_stride}")
        offset = np.where(bad, 0, offset)
    if launch.log is not None:
        which = np.arange(launch.n) if threads is None else threads
        base = -(1 << 50) + launch.thread[which] // launch.size * (1 << 24)
        launch.log.add(access, instruction, 0, base + offset, size, launch.thread[which], launch.size,
                       launch.epoch[launch.local_block[which]], False)  # fmt: skip
    return rows, offset


def _store(launch: Launch, threads: Threads, instruction: Instruction) -> None:
    dtype, names = dtype_of(instruction.parts[-1]), _vector(instruction.operands[1])
    address = _addresses(launch, instruction, instruction.operands[0], threads)
    unit, size = dtype.itemsize, dtype.itemsize * len(names)
    raw = np.dtype(f"u{unit}")
    values = [np.broadcast_to(launch.operand(name, raw, threads), address.shape) for name in names]
    shared = _shared_space(instruction, address)
    if shared is not None:
        rows, offset = _shared_access(launch, instruction, threads, shared, size, "store")
        for i, value in enumerate(values):
            columns = (offset + i * unit)[:, None] + np.arange(unit)
            launch.shared[rows[:, None], columns] = np.ascontiguousarray(value).view(np.uint8).reshape(-1, unit)
            launch.shared_written[rows[:, None], columns] = True
        return
    for allocation, offset, at in _pieces(launch, instruction, address, threads, size, "store"):
        for i, value in enumerate(values):
            allocation.scatter(offset + i * unit, value[at], unit)
        _note(launch, instruction, "store", allocation, offset, at, threads, size)


def _atomic(instruction: Instruction, used: set[str]) -> Action:
    kinds = [p for p in instruction.parts if p in _ATOMICS]
    # On global memory, a float32 sum flushes subnormal numbers, which is not interpreted.
    if (
        len(kinds) != 1
        or (instruction.opcode == "red" and kinds[0] in ("exch", "cas"))
        or instruction.parts[-1] == "f32"
    ):
        raise PtxError(instruction.text)
    (kind,) = kinds
    dtype = dtype_of(instruction.parts[-1])
    has_result = instruction.opcode == "atom"
    returns = has_result and instruction.operands[0] != "_" and instruction.operands[0] in used
    fast = {
        "add": np.add,
        "min": np.minimum,
        "max": np.maximum,
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
    }

    def run(launch: Launch, threads: Threads, instruction: Instruction) -> None:
        target, *sources = instruction.operands[1:] if has_result else instruction.operands
        address = _addresses(launch, instruction, target, threads)
        if _shared_space(instruction, address) is not None:
            raise PtxError(f"{instruction.text}: atomics on shared memory")
        values = [np.broadcast_to(launch.operand(x, dtype, threads), address.shape) for x in sources]
        old = np.zeros(len(address), dtype)
        for allocation, offset, at in _pieces(launch, instruction, address, threads, dtype.itemsize, "atomic"):
            if (offset % dtype.itemsize).any():
                raise PtxError(f"{instruction.text}: an array at an odd address")
            order = np.arange(len(at)) if launch.random is None else launch.random.permutation(len(at))
            cells = allocation.view(dtype.itemsize).view(dtype)
            bad = allocation.unwritten(offset, dtype.itemsize, cells[offset // dtype.itemsize])
            if bad is not None and bad.any():
                launch.add_finding(
                    "uninitialised read",
                    instruction,
                    f"{launch.who(threads, int(at[int(np.argmax(bad))]))}: of {allocation.name}",
                )
            allocation.mark(offset, dtype.itemsize)
            slots = offset[order] // dtype.itemsize
            if not returns and kind in fast:
                fast[kind].at(cells, slots, values[0][at[order]])
            else:
                for slot, place in zip(slots, at[order], strict=True):
                    old[place] = cells[slot]
                    v = values[0][place]
                    if kind in fast:
                        cells[slot] = fast[kind](cells[slot], v)
                    elif kind == "exch":
                        cells[slot] = v
                    elif kind == "inc":
                        cells[slot] = 0 if cells[slot] >= v else cells[slot] + dtype.type(1)
                    elif kind == "dec":
                        cells[slot] = v if cells[slot] == 0 or cells[slot] > v else cells[slot] - dtype.type(1)
                    elif cells[slot] == v:
                        cells[slot] = values[1][place]
            _note(launch, instruction, "atomic", allocation, offset, at, threads, dtype.itemsize)
        if returns:
            launch.write(instruction.operands[0], old, threads)

    return run


# Threads together.


def _shuffle(launch: Launch, threads: Threads, instruction: Instruction) -> None:
    to, *sources = instruction.operands
    mode = next(p for p in instruction.parts if p in ("bfly", "up", "down", "threads"))
    here = np.arange(launch.n) if threads is None else threads
    u4 = np.dtype("u4")
    values, by, clamp, mask = (np.broadcast_to(launch.operand(x, u4, threads), here.shape) for x in sources)
    lane = launch.lane[here]
    if not ((mask >> lane.astype(np.uint32)) & 1).all():
        launch.add_finding("shuffle", instruction, "a thread is not in its own mask")
    bound, segment = (clamp & 31).astype(np.int64), ((clamp >> 8) & 31).astype(np.int64)
    low, high = lane & segment, (lane & segment) | (bound & ~segment)
    step = (by & 31).astype(np.int64)
    if mode == "up":
        source = lane - step
        inside = source >= high
    elif mode == "down":
        source = lane + step
        inside = source <= high
    elif mode == "bfly":
        source = lane ^ step
        inside = source <= high
    else:
        source = low | (step & ~segment)
        inside = source <= high
    source = np.where(inside, source, lane)
    place = np.full(launch.n, -1)
    place[here] = np.arange(len(here))
    other = here - lane + source
    within = (other < launch.n) & (source < WARP)
    other = np.where(within, other, here)
    same = launch.warp[other] == launch.warp[here]
    missing = ~within | ~same | (place[other] < 0) | (((mask >> source.astype(np.uint32)) & 1) == 0)
    if missing.any():
        first = int(np.argmax(missing))
        detail = f"{launch.who(threads, first)} reads lane {int(source[first])}, which has ended or does not take part"
        launch.add_finding("shuffle", instruction, detail, int(np.count_nonzero(missing)))
    shuffled = np.where(missing, np.uint32(0xDEADBEEF), values[np.where(place[other] < 0, 0, place[other])])
    register, _, flag = to.partition("|")
    launch.write(register, shuffled, threads)
    if flag:
        launch.write(flag, inside, threads)


def _vote(launch: Launch, threads: Threads, instruction: Instruction) -> None:
    to, value, _mask = instruction.operands
    here = np.arange(launch.n) if threads is None else threads
    flag, warp = launch.operand(value, None, threads), launch.warp[here]
    flag = np.broadcast_to(flag, here.shape)
    count = int(launch.warp[-1]) + 1
    true, all_ = np.bincount(warp[flag], minlength=count), np.bincount(warp, minlength=count)
    if "ballot" in instruction.parts:
        bits = np.zeros(count, np.uint32)
        np.bitwise_or.at(bits, warp[flag], np.uint32(1) << launch.lane[here][flag].astype(np.uint32))
        launch.write(to, bits[warp], threads)
    elif "any" in instruction.parts or "all" in instruction.parts:
        launch.write(to, ((true > 0) if "any" in instruction.parts else (true == all_))[warp], threads)
    else:
        raise PtxError(instruction.text)


def _barrier_of(instruction: Instruction) -> Action:
    if set(instruction.parts) - {"sync", "cta", "aligned", "warp"}:
        raise PtxError(instruction.text)
    if "warp" in instruction.parts:
        return _nothing
    if len(instruction.operands) > 1 or (instruction.operands and not instruction.operands[0].isdigit()):
        raise PtxError(f"{instruction.text}: a barrier of some threads")
    return _barrier


def _barrier(launch: Launch, threads: Threads, instruction: Instruction) -> None:
    here = np.arange(launch.n) if threads is None else threads
    launch.epoch[np.unique(launch.local_block[here])] += 1


def _nothing(launch: Launch, threads: Threads, instruction: Instruction) -> None:
    """Warps meet, and memory is in order, without more."""


_ACTIONS: dict[str, Action] = {
    "ld": _load,
    "st": _store,
    "mov": _mov,
    "cvta": _cvta,
    "setp": _setp,
    "selp": _selp,
    "shfl": _shuffle,
    "vote": _vote,
    "trap": _trap,
    "brkpt": _trap,
}
