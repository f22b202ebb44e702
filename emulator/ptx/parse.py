"""PTX text as kernels: parameters, registers, shared and constant variables, and instructions with their source lines.

Only what compilers print for self-contained kernels is understood; anything else is a PtxError, never a guess.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

__all__ = ["SIZES", "Instruction", "Kernel", "Module", "PtxError", "parse"]

SIZES = {"b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "f16": 2, "b32": 4, "u32": 4, "s32": 4, "f32": 4,
         "b64": 8, "u64": 8, "s64": 8, "f64": 8}  # fmt: skip


class PtxError(Exception):
    """The text, or what it does, is outside the subset that is interpreted."""


@dataclass(frozen=True)
class Parameter:
    name: str
    type: str
    offset: int
    size: int


@dataclass
class Instruction:
    """One instruction. `guard`: (name of a predicate, negated) or None."""

    opcode: str
    parts: tuple[str, ...]
    operands: tuple[str, ...]
    guard: tuple[str, bool] | None
    location: str
    text: str


@dataclass
class Kernel:
    name: str
    target: int
    parameters: list[Parameter]
    registers: dict[str, str] = field(default_factory=dict)
    ranges: list[tuple[str, int, str]] = field(default_factory=list)
    shared: dict[str, tuple[int, int]] = field(default_factory=dict)
    shared_bytes: int = 0
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    variables: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    reqntid: tuple[int, ...] | None = None
    maxntid: tuple[int, ...] | None = None

    def type_of(self, register: str) -> str:
        """Declared type of a register.

        Raises:
            PtxError: it is not declared.
        """
        if register not in self.registers:
            for prefix, count, kind in self.ranges:
                number = register[len(prefix) :]
                if register.startswith(prefix) and number.isdigit() and int(number) < count:
                    self.registers[register] = kind
                    break
            else:
                raise PtxError(f"{self.name}: register {register} is not declared")
        return self.registers[register]


@dataclass
class Module:
    target: int
    kernels: dict[str, Kernel]


_ENTRY = re.compile(r"(?:\.visible\s+|\.weak\s+)?\.entry\s+([\w$]+)\s*\(([^)]*)\)((?:\s*\.\w+\s+[\d,\s]+)*)\s*\{")
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr\s+(?:\.\w+\s+)?(?:\.align\s+\d+\s+)?)?([\w$]+)(?:\[(\d+)\])?"
)
_VARIABLE = re.compile(
    r"^(?:\.visible |\.extern |\.weak )*\.(const|global|shared)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)"
    r"(?:\[(\d*)\])?(?:\s*=\s*(\{[^}]*\}|[^;{]+))?$"
)


def parse(text: str) -> Module:
    """A PTX module.

    Raises:
        PtxError: it holds something that is not understood.
    """
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S).split("\n\t.section")[0].split("\n.section")[0]
    if (heading := re.search(r"\.target\s+sm_(\d+)", text)) is None:
        raise PtxError("no .target sm_NN: this is no PTX")
    target = int(heading[1])
    files: dict[str, str] = dict(re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', text, re.M))
    lines = []
    for line in text.split("\n"):
        line = line.split("//")[0].strip()
        if match := re.match(r"\.loc\s+(\d+)\s+(\d+)", line):
            number, row = match.groups()
            line = f"!loc {files.get(number, number).split('/')[-1]}:{row};"
        elif line.startswith((".file", ".version", ".target", ".address_size")):
            continue
        if line:
            lines.append(line)
    text = "\n".join(lines)
    if re.search(r"^\s*(?:\.visible\s+|\.weak\s+)?\.func\b", text, re.M):
        raise PtxError("device functions that were not inlined are not interpreted")
    kernels: dict[str, Kernel] = {}
    variables: dict[str, tuple[str, bytes]] = {}
    outside, end = list[str](), 0
    for match in _ENTRY.finditer(text):
        if match.start() < end:
            continue
        outside.append(text[end : match.start()])
        depth, end = 1, match.end()
        while depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        kernel = Kernel(match[1], target, _parameters(match[2]))
        for kind, numbers in re.findall(r"\.(\w+)\s+([\d,\s]+)", match[3] or ""):
            if kind in ("reqntid", "maxntid"):
                setattr(kernel, kind, tuple(int(x) for x in numbers.split(",")))
        _body(kernel, text[match.end() : end - 1])
        kernels[kernel.name] = kernel
    outside.append(text[end:])
    shared: dict[str, tuple[int, int]] = {}
    for statement in "\n".join(outside).split(";"):
        statement = re.sub(r"!loc \S+", "", statement).strip()
        if statement:
            _variable(statement, variables, shared)
    for kernel in kernels.values():
        kernel.variables = variables | kernel.variables
        for name, (size, align) in shared.items():
            _share(kernel, name, size, align)
    return Module(target, kernels)


def _parameters(text: str) -> list[Parameter]:
    parameters, offset = list[Parameter](), 0
    for align, kind, name, count in _PARAMETER.findall(text):
        if kind not in SIZES:
            raise PtxError(f"parameters not understood: {text}")
        size = SIZES[kind] * (int(count) if count else 1)
        step = int(align) if align else SIZES[kind]
        offset = -(-offset // step) * step
        parameters.append(Parameter(name, kind, offset, size))
        offset += size
    if len(parameters) != text.count(".param"):
        raise PtxError(f"parameters not understood: {text}")
    return parameters


def _variable(statement: str, variables: dict[str, tuple[str, bytes]], shared: dict[str, tuple[int, int]]) -> None:
    match = _VARIABLE.match(" ".join(statement.split()))
    if match is None:
        raise PtxError(f"not understood: {statement[:100]}")
    space, align, kind, name, count, value = match.groups()
    if kind not in SIZES:
        raise PtxError(f"not understood: {statement[:100]}")
    many = int(count) if count else (0 if count == "" else 1)
    if space == "shared":
        shared[name] = (SIZES[kind] * many, int(align or 1))
        return
    raw = bytes(SIZES[kind] * many)
    if value:
        numbers = [_literal(x.strip(), kind) for x in value.strip("{} ").split(",")]
        raw = b"".join(numbers).ljust(len(raw), b"\0")
    variables[name] = (space, raw)


def _literal(text: str, kind: str) -> bytes:
    if text[:2] in ("0f", "0d", "0F", "0D") and kind[0] == "f":
        return int(text[2:], 16).to_bytes(SIZES[kind], "little")
    mask: int = 2 ** (8 * SIZES[kind]) - 1
    return (int(text, 0) & mask).to_bytes(SIZES[kind], "little")


def _share(kernel: Kernel, name: str, size: int, align: int) -> None:
    start = -(-kernel.shared_bytes // align) * align
    kernel.shared[name] = (start, size)
    kernel.shared_bytes = start + size


def _body(kernel: Kernel, text: str) -> None:
    location = ""
    for statement in text.split(";"):
        statement = statement.strip()
        while True:  # scopes and labels in front
            if statement[:1] in ("{", "}"):
                statement = statement[1:].strip()
            elif match := re.match(r"([\w$%]+):(?!:)", statement):
                kernel.labels[match[1]] = len(kernel.code)
                statement = statement[match.end() :].strip()
            else:
                break
        if not statement:
            continue
        if statement.startswith("!loc"):
            location = statement[5:]
        elif statement.startswith(".reg"):
            _, kind, names = statement.split(None, 2)
            for name in names.split(","):
                name = name.strip()
                if match := re.fullmatch(r"([\w$%]+)<(\d+)>", name):
                    kernel.ranges.append((match[1], int(match[2]), kind[1:]))
                else:
                    kernel.registers[name] = kind[1:]
        elif statement.startswith((".shared", ".const", ".global")):
            shared: dict[str, tuple[int, int]] = {}
            _variable(statement, kernel.variables, shared)
            for name, (size, align) in shared.items():
                _share(kernel, name, size, align)
        elif statement.startswith(".pragma"):
            continue
        elif statement.startswith("."):
            raise PtxError(f"{kernel.name}: not understood: {statement}")
        else:
            kernel.code.append(_instruction(statement, location))


def _instruction(statement: str, location: str) -> Instruction:
    text, guard = " ".join(statement.split()), None
    unguarded = text
    if match := re.match(r"@(!?)([\w$%]+)\s+", unguarded):
        guard, unguarded = (match[2], match[1] == "!"), unguarded[match.end() :]
    word, _, tail = unguarded.partition(" ")
    operands, depth, current = [], 0, ""
    for c in tail:
        depth += (c in "{[(") - (c in "}])")
        if c == "," and depth == 0:
            operands.append(current.strip())
            current = ""
        else:
            current += c
    if current.strip():
        operands.append(current.strip())
    opcode, *parts = word.split(".")
    return Instruction(
        opcode, tuple(p for part in parts for p in part.split("::")), tuple(operands), guard, location, text
    )
