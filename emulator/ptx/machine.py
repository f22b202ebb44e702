"""Runs a kernel: every register is an array over the threads of the grid, and threads at one instruction go together.

A thread has its own program counter. The group at the lowest one goes first, so that branches meet again where code
does; with a seed, groups, warps and the order of atomics are chosen at random. Warp shuffles, votes and barriers wait
for the threads that they name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from stsbp_spec.typing import AnyArray

from emulator.ptx.instructions import Action, Threads, action
from emulator.ptx.memory import VARIABLES, WARP, Allocation, Memory
from emulator.ptx.parse import SIZES, Instruction, Kernel, PtxError
from emulator.ptx.races import Log

__all__ = ["Finding", "Launch", "Result", "launch"]

_INTEGER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?")


@dataclass
class Finding:
    """Something that a real device would answer with an error, with undefined bits, or only sometimes."""

    kind: str
    kernel: str
    location: str
    text: str
    detail: str
    count: int = 1

    def __str__(self) -> str:
        return f"{self.kind}: {self.kernel} {self.location}: {self.detail} [{self.text}] x{self.count}"


@dataclass
class Result:
    """What a launch did: findings, executed instructions of threads, threads, and notes that are no errors."""

    findings: list[Finding]
    instructions: int = 0
    threads: int = 0
    notes: set[str] = field(default_factory=set)


def launch(
    kernel: Kernel,
    grid: Sequence[int],
    block: Sequence[int],
    arguments: Sequence[Any],
    *,
    memory: Memory | None = None,
    shared: int = 0,
    seed: int | None = None,
    check_races: bool = True,
    most_accesses: int = 4_000_000,
    blocks: Sequence[int] | None = None,
    chunk: int = 1 << 17,
    fresh: Sequence[bool] | None = None,
) -> Result:
    """Run a kernel on its arguments: numpy arrays for pointers, numpy scalars for numbers.

    Args:
        kernel: of `parse`.
        grid: blocks along x, y and z.
        block: threads along x, y and z.
        arguments: one for each parameter. With `memory`, pointers are integers: addresses in it.
        memory: allocations; None: the arguments are all there is.
        shared: bytes of dynamic shared memory.
        seed: chooses a random order of everything that has none; None: the order of the program.
        check_races: find accesses of two threads to one byte that no barrier separates.
        most_accesses: number of accesses after which races are no longer sought, which a note says.
        blocks: numbers of the blocks that run; None: all. Races are sought among them alone.
        chunk: threads that run at once.
        fresh: which arguments are uninitialised (filled by `memory.poison`).
    """
    grid, block = (tuple(map(int, (*x, 1, 1)[:3])) for x in (grid, block))
    result = Result([])
    if problem := _geometry(kernel, grid, block, shared):
        result.findings.append(Finding("geometry", kernel.name, "", "", problem))
        return result
    if len(arguments) != len(kernel.parameters):
        raise PtxError(f"{kernel.name} takes {len(kernel.parameters)} arguments, got {len(arguments)}")
    arrays = memory is None
    memory = Memory() if memory is None else memory
    values = []
    for i, (parameter, value) in enumerate(zip(kernel.parameters, arguments, strict=True)):
        if isinstance(value, np.ndarray) and arrays:
            raw = memory.argument(f"argument {i}", value, fresh=bool(fresh and fresh[i])).start.to_bytes(8, "little")
        elif isinstance(value, bytes):
            raw = value
        else:
            raw = value.tobytes() if isinstance(value, (np.generic, np.ndarray)) else int(value).to_bytes(8, "little")
        if len(raw) != parameter.size:
            raise PtxError(f"{kernel.name}: argument {i} has {len(raw)} bytes, the parameter {parameter.size}")
        values.append(raw)
    log = Log(most_accesses) if check_races else None
    size = block[0] * block[1] * block[2]
    chosen = np.arange(grid[0] * grid[1] * grid[2], dtype=np.int64) if blocks is None else np.asarray(blocks, np.int64)
    random = None if seed is None else np.random.default_rng(seed)
    if random is not None:
        chosen = random.permutation(chosen)
    per = max(1, chunk // size)
    for first in range(0, len(chosen), per):
        part = chosen[first : first + per]
        Launch(kernel, grid, block, part, values, memory, shared, random, log, result).run()
    if log is not None and log.full:
        result.notes.add(f"{kernel.name}: races were sought among the first {most_accesses} accesses only")
    if log is not None:
        for x in log.conflicts():
            result.findings.append(Finding(x.kind, kernel.name, x.location, x.text, x.detail, x.count))
    return result


def _geometry(kernel: Kernel, grid: tuple[int, ...], block: tuple[int, ...], shared: int) -> str | None:
    """What the driver would refuse."""
    for name, lengths, most in (("grid", grid, (2**31 - 1, 65535, 65535)), ("block", block, (1024, 1024, 64))):
        for axis, x, limit in zip("xyz", lengths, most, strict=True):
            if not 1 <= x <= limit:
                return f"{name}.{axis} is {x}; it must be from 1 to {limit}"
    threads = block[0] * block[1] * block[2]
    if threads > 1024:
        return f"{threads} threads in a block"
    if kernel.reqntid and (*kernel.reqntid, 1, 1)[:3] != block:
        return f"block {block}, but the kernel requires {kernel.reqntid}"
    if kernel.maxntid and threads > np.prod(kernel.maxntid):
        return f"{threads} threads, but the kernel allows {kernel.maxntid}"
    if kernel.shared_bytes + shared > 48 * 1024:
        return f"{kernel.shared_bytes + shared} bytes of shared memory need an opt-in"
    if sum(p.size for p in kernel.parameters) > 4096:
        return "more than 4096 bytes of parameters"
    return None


class Launch:
    """Some blocks of a grid, run together."""

    def __init__(
        self,
        kernel: Kernel,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        blocks: AnyArray,
        values: Sequence[bytes],
        memory: Memory,
        shared: int,
        random: np.random.Generator | None,
        log: Log | None,
        result: Result,
    ) -> None:
        self.kernel, self.memory, self.random, self.log, self.result = kernel, memory, random, log, result
        self.grid, self.block, self.blocks = grid, block, blocks
        self.size = block[0] * block[1] * block[2]
        self.n = self.size * len(blocks)
        self.values = dict(zip((p.name for p in kernel.parameters), values, strict=True))
        within = np.tile(np.arange(self.size, dtype=np.int64), len(blocks))
        number = np.repeat(blocks, self.size)
        self.thread = number * self.size + within
        self.local_block = np.repeat(np.arange(len(blocks)), self.size)
        self.warp = self.local_block * (-(-self.size // WARP)) + within // WARP
        self.lane = within % WARP
        self.special = {"laneid": self.lane, "warpid": within // WARP}
        for i, axis in enumerate("xyz"):
            b, g = (number, within)
            for j in range(i):
                b, g = b // grid[j], g // block[j]
            self.special |= {f"tid.{axis}": g % block[i], f"ctaid.{axis}": b % grid[i],
                             f"ntid.{axis}": np.array([block[i]]), f"nctaid.{axis}": np.array([grid[i]])}  # fmt: skip
        self.shared_stride = kernel.shared_bytes + shared
        self.shared = np.full((len(blocks), max(self.shared_stride, 1)), 0xA5, np.uint8)
        self.shared_written = np.zeros(self.shared.shape, bool)
        self.epoch = np.zeros(len(blocks), np.int64)
        self.registers: dict[str, AnyArray] = {}
        self.undefined: dict[str, AnyArray] = {}
        self.constants: dict[str, int] = {}
        self.compiled = _compile(kernel)
        result.threads += self.n

    # Registers. Values are raw bits as unsigned integers, predicates are booleans.

    def read(self, name: str, dtype: np.dtype[Any] | None, threads: Threads) -> AnyArray:
        """A register's values in a type; None: of a predicate."""
        x = self.registers.get(name)
        if x is None:
            # Compilers print such reads where a later choice drops the value, so they are no error by themselves.
            self.result.notes.add(f"{self.kernel.name} {self.now.location}: {name} is undefined [{self.now.text}]")
            kind = self.kernel.type_of(name)
            x = np.full(self.n, 0xA5, np.uint8).repeat(1 if kind == "pred" else SIZES[kind])
            x = x > 0 if kind == "pred" else x.view(f"u{SIZES[kind]}")
            self.registers[name] = x
            self.undefined[name] = np.ones(self.n, bool)
        missing = self.undefined.get(name)
        if missing is not None and (missing.any() if threads is None else missing[threads].any()):
            self.result.notes.add(
                f"{self.kernel.name} {self.now.location}: {name} is undefined in some threads [{self.now.text}]"
            )
        x = x if threads is None else x[threads]
        if x.dtype == bool or dtype is None:
            return x
        if x.dtype.itemsize == dtype.itemsize:
            return x.view(dtype)
        if x.dtype.itemsize > dtype.itemsize:
            return x.astype(f"u{dtype.itemsize}").view(dtype)
        raise PtxError(f"{self.now.text}: {name} is narrower than {dtype}")

    def write(self, name: str, value: AnyArray, threads: Threads) -> None:
        """Set a register, extended to its width."""
        kind = self.kernel.type_of(name)
        if kind != "pred":
            width = SIZES[kind]
            if value.dtype.itemsize < width:
                value = value.astype(f"{'i' if value.dtype.kind == 'i' else 'u'}{width}")
            elif value.dtype.itemsize > width:
                raise PtxError(f"{self.now.text}: {name} is narrower than its value")
            value = value.view(f"u{width}")
        count = self.n if threads is None else len(threads)
        if value.shape[0] != count:
            value = np.broadcast_to(value, (count,))
        if threads is None:
            self.registers[name] = np.array(value)
            self.undefined.pop(name, None)
            return
        x = self.registers.get(name)
        if x is None:
            x = np.full(self.n, 0xA5, np.uint8).repeat(value.dtype.itemsize)
            x = self.registers[name] = x > 0 if value.dtype == bool else x.view(value.dtype)
            self.undefined[name] = np.ones(self.n, bool)
        x[threads] = value
        if (missing := self.undefined.get(name)) is not None:
            missing[threads] = False

    def operand(self, text: str, dtype: np.dtype[Any] | None, threads: Threads) -> AnyArray:
        """An operand's values in a type; of one value where all threads have the same."""
        if dtype is None:  # predicate
            negated, text = text[0] == "!", text.lstrip("!")
            x = self.read(text, None, threads)
            return ~x if negated else x
        if text in self.kernel.registers or self.is_register(text):
            return self.read(text, dtype, threads)
        return self.immediate(text, dtype, threads)

    def is_register(self, text: str) -> bool:
        try:
            self.kernel.type_of(text)
        except PtxError:
            return False
        return True

    def immediate(self, text: str, dtype: np.dtype[Any], threads: Threads) -> AnyArray:
        """The values of a number, a special register or a variable's address."""
        if text[:2] in ("0f", "0F", "0d", "0D") and len(text) in (10, 18):
            size = 4 if len(text) == 10 else 8
            x = np.array([int(text[2:], 16)], f"u{size}").view(f"f{size}")
            return x.astype(dtype) if dtype.kind == "f" else x.view(dtype)
        if _INTEGER.fullmatch(text):
            number = int(text.rstrip("U"), 0) & (2 ** (8 * dtype.itemsize) - 1)
            return np.array([number], f"u{dtype.itemsize}").view(dtype)
        if text == "WARP_SZ":
            return np.array([WARP], dtype)
        if text.startswith("%") and text[1:] in self.special:
            x = self.special[text[1:]].astype(dtype)
            return x if threads is None or len(x) == 1 else x[threads]
        if text in self.kernel.shared:
            return np.array([self.kernel.shared[text][0]], dtype)
        if text in self.kernel.variables:
            return np.array([self._variable(text)], np.uint64).astype(dtype)
        raise PtxError(f"{self.now.text}: operand {text}")

    def _variable(self, name: str) -> int:
        if name not in self.constants:
            _, raw = self.kernel.variables[name]
            start = VARIABLES + (len(self.constants) << 32)
            data = np.frombuffer(bytearray(raw), np.uint8)
            self.memory.add(Allocation(name, data, start, 0, constant=True))
            self.constants[name] = start
        return self.constants[name]

    def add_finding(self, kind: str, instruction: Instruction, detail: str, count: int = 1) -> None:
        key = (kind, instruction.text)
        for finding in self.result.findings:
            if (finding.kind, finding.text) == key:
                finding.count += count
                return
        self.result.findings.append(
            Finding(kind, self.kernel.name, instruction.location, instruction.text, detail, count)
        )

    def who(self, threads: Threads, first: Any) -> str:
        """Block and thread of one of `threads`, for messages."""
        at = int(first) if threads is None else int(threads[first])
        thread = int(self.thread[at])
        return f"block {thread // self.size} thread {thread % self.size}"

    # The loop.

    def run(self) -> None:
        """Run all threads to their end."""
        end = len(self.kernel.code)
        self.pc = np.zeros(self.n, np.int64)
        with np.errstate(all="ignore"):
            while True:
                at, threads = self._choose(end)
                if at is None:
                    return
                self._group(at, threads, end)

    def _choose(self, end: int) -> tuple[int | None, Threads]:
        """An instruction and the threads (None: all) that execute it next."""
        low = int(self.pc.min())
        if low == end:
            return None, None
        if self.random is None:
            threads = np.flatnonzero(self.pc == low)
            if low not in self.compiled.waits:
                return low, None if len(threads) == self.n else threads
            candidates = np.unique(self.pc)
        else:
            candidates = self.random.permutation(np.unique(self.pc))
        for at in candidates:
            if at == end:
                continue
            threads = np.flatnonzero(self.pc == at)
            if at in self.compiled.waits:
                threads = self._ready(int(at), threads, end)
            elif self.random is not None and len(threads) > WARP:
                warps = np.unique(self.warp[threads])
                first = self.random.random(len(warps)) < 0.7
                if first.any():
                    threads = threads[np.isin(self.warp[threads], warps[first])]
            if len(threads):
                return int(at), None if len(threads) == self.n else threads
        at = int(candidates[candidates != end][0])
        instruction = self.kernel.code[at]
        self.add_finding("deadlock", instruction, "threads wait for others that never come")
        place = f"{self.kernel.name} {instruction.location}"
        raise PtxError(f"{place}: threads wait for others that never come: {instruction.text}")

    def _ready(self, at: int, threads: AnyArray, end: int) -> AnyArray:
        """Of the threads at a shuffle, vote or barrier those whose companions, all that have not ended, are there."""
        group = self.local_block if self.compiled.waits[at] == "block" else self.warp
        count = int(group[-1]) + 1
        here = np.bincount(group[threads], minlength=count)
        alive = np.bincount(group[self.pc != end], minlength=count)
        complete: AnyArray = here == alive
        ready: AnyArray = threads[complete[group[threads]]]
        return ready

    def _group(self, at: int, threads: Threads, end: int) -> None:
        code, waits, leaders = self.kernel.code, self.compiled.waits, self.compiled.leaders
        first = True
        while True:
            if at == end or (not first and (at in leaders or at in waits)):
                self._move(threads, at)
                return
            first = False
            instruction = self.now = code[at]
            self.result.instructions += self.n if threads is None else len(threads)
            chosen = threads
            if instruction.guard is not None:
                name, negated = instruction.guard
                flag = self.read(name, None, threads)
                flag = ~flag if negated else flag
                if instruction.opcode in ("bra", "ret", "exit"):
                    to = self.compiled.target(instruction, end)
                    here = np.arange(self.n) if threads is None else threads
                    self.pc[here[flag]] = to
                    self.pc[here[~flag]] = at + 1
                    return
                if not flag.all():
                    chosen = np.flatnonzero(flag) if threads is None else threads[flag]
            elif instruction.opcode in ("bra", "ret", "exit"):
                self._move(threads, self.compiled.target(instruction, end))
                return
            if chosen is None or len(chosen):
                run = self.compiled.run[at]
                assert run is not None, instruction.text
                run(self, chosen, instruction)
            at += 1

    def _move(self, threads: Threads, at: int) -> None:
        if threads is None:
            self.pc[:] = at
        else:
            self.pc[threads] = at


class Compiled:
    """What is known of a kernel before it runs: where groups part and meet, where they wait, what instructions do."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.leaders = set(kernel.labels.values())
        self.waits: dict[int, str] = {}
        self.run: list[Action | None] = []
        used: set[str] = set()
        for instruction in kernel.code:
            sources = instruction.operands if instruction.opcode == "st" else instruction.operands[1:]
            used |= set(re.findall(r"[%\w$]+", " ".join(sources)))
            used |= {instruction.guard[0]} if instruction.guard else set()
        for at, instruction in enumerate(kernel.code):
            if instruction.opcode in ("bra", "ret", "exit"):
                self.run.append(None)
                if instruction.opcode == "bra" and instruction.operands[0] not in kernel.labels:
                    raise PtxError(f"{instruction.text}: no such label")
                continue
            if (instruction.opcode in ("bar", "barrier")) and "warp" in instruction.parts:
                self.waits[at] = "warp"
            elif instruction.opcode in ("bar", "barrier"):
                self.waits[at] = "block"
            elif instruction.opcode in ("shfl", "vote", "match", "redux"):
                self.waits[at] = "warp"
            self.run.append(action(instruction, used))

    def target(self, instruction: Instruction, end: int) -> int:
        return self.kernel.labels[instruction.operands[0]] if instruction.opcode == "bra" else end


_CACHE: dict[int, tuple[Kernel, Compiled]] = {}


def _compile(kernel: Kernel) -> Compiled:
    if id(kernel) not in _CACHE:
        _CACHE[id(kernel)] = (kernel, Compiled(kernel))
    return _CACHE[id(kernel)][1]
