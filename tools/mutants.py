"""Mutants of a source file: every place that can be broken, and how.

Python is broken along its syntax tree, by replacing the text of one node; CUDA text along its tokens. A mutant is known
by its file, its line without the spaces and what was changed in it, so that it is the same one when lines move.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

__all__ = ["Key", "Mutant", "changes", "collapsed", "mutants_of", "read"]

# Many lines of the CUDA sources are roundings that the contract prescribes. mutmut and cosmic-ray change only Python.
CUDA = (".cu", ".cuh")

Key = tuple[str, str, str]
"""File, line and change of a mutant."""


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes:
        path: of the file, relative to the repository.
        start, end: characters that are replaced ...
        new: ... by this.
        line: number of the first changed line, for the reader.
        context: that line, its spaces collapsed.
        change: `old -> new`.
        subtle: a comparison, a rounding or a snap: what looks right and is seldom wrong.
    """

    path: str
    start: int
    end: int
    new: str
    line: int
    context: str
    change: str
    subtle: bool

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.change}   in   {self.context}"

    @property
    def key(self) -> Key:
        """What it is known by when lines move."""
        return self.path, self.context, self.change

    def applied(self, text: str) -> str:
        """The file's text with the change."""
        return text[: self.start] + self.new + text[self.end :]


def collapsed(text: str) -> str:
    """`text` with every run of white space as one space."""
    return " ".join(text.split())


def changes(mutant: Mutant, text: str) -> bool:
    """Whether a mutant of Python can be parsed and is another program."""
    if mutant.path.endswith(CUDA):
        return True
    try:
        return ast.dump(ast.parse(mutant.applied(text))) != ast.dump(ast.parse(text))
    except SyntaxError:
        return False


def mutants_of(path: str, text: str) -> list[Mutant]:
    """Every mutant of a file, in the order of the text; `changes` says of each whether it is one."""
    edits = _of_cuda(text) if path.endswith(CUDA) else _of_python(text)
    lines = text.splitlines()
    mutants: dict[tuple[int, int, str], Mutant] = {}
    for start, end, new, subtle in edits:
        old, number = text[start:end], text.count("\n", 0, start) + 1
        change = f"{collapsed(old)} -> {collapsed(new) or 'nothing'}"
        mutant = Mutant(path, start, end, new, number, collapsed(lines[number - 1]), change, subtle)
        if new != old:
            mutants.setdefault((start, end, new), mutant)
    return _numbered(sorted(mutants.values(), key=lambda m: (m.start, m.end, m.new)))


def _numbered(mutants: list[Mutant]) -> list[Mutant]:
    """The same change in another place of one line is told apart by a number."""
    counts: Counter[tuple[str, str]] = Counter()
    numbered = []
    for mutant in mutants:
        key = (mutant.context, mutant.change)
        counts[key] += 1
        numbered.append(
            replace(mutant, change=f"{mutant.change} (number {counts[key]})") if counts[key] > 1 else mutant
        )
    return numbered


Edit = tuple[int, int, str, bool]
"""First and last character, new text, whether it is subtle."""

_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
}  # fmt: skip
_NUMBERS_COMPARED = (ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq)
_OPERATORS: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"), ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"), ast.Pow: ("**", "*"), ast.LShift: ("<<", ">>"), ast.RShift: (">>", "<<"),
    ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&"), ast.BitXor: ("^", "&"), ast.MatMult: ("@", "*"),
}  # fmt: skip
_ROUNDINGS = {
    "rint": "trunc", "floor": "ceil", "ceil": "floor", "trunc": "rint", "round": "int", "maximum": "minimum",
    "minimum": "maximum", "max": "min", "min": "max", "float32": "float64", "any": "all", "all": "any",
}  # fmt: skip
_DROPPED = ("snap", "rounded", "abs", "sorted")
"""Functions of one argument that are replaced by their argument."""
_SUBTLE_NAMES = ("rint", "floor", "ceil", "trunc", "round", "float32", "snap", "rounded")


def _of_python(text: str) -> Iterator[Edit]:
    tree = ast.parse(text)
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    lines = text.splitlines(keepends=True)

    def at(line: int, column: int) -> int:
        # Columns of the tree count bytes.
        return starts[line - 1] + len(lines[line - 1].encode()[:column].decode())

    def span(node: ast.AST) -> tuple[int, int]:
        assert isinstance(node, (ast.expr, ast.stmt))
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return at(node.lineno, node.col_offset), at(node.end_lineno, node.end_col_offset)

    def between(left: ast.expr, right: ast.expr, old: str, new: str) -> tuple[int, int, str] | None:
        begin, end = span(left)[1], span(right)[0]
        offset = text[begin:end].find(old)
        return None if offset < 0 else (begin + offset, begin + offset + len(old), new)

    for node in _computing(tree):
        yield from _of_node(node, text, span, between)


def _computing(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that compute something: no annotations, imports, docstrings, exports or messages of errors."""
    if isinstance(tree, ast.keyword) and tree.arg == "strict":
        return  # of zip, an assertion
    for field, value in ast.iter_fields(tree):
        if field in ("annotation", "returns", "decorator_list", "bases", "type_comment"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, (ast.Import, ast.ImportFrom, ast.JoinedStr)):
                continue
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                continue
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, (ast.Assign, ast.AnnAssign)) and _is_alias(child):
                continue
            yield child
            yield from _computing(child)


def _is_alias(node: ast.Assign | ast.AnnAssign) -> bool:
    """`__all__`, and names of types such as `Body = Callable[...]`."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    named = [t.id for t in targets if isinstance(t, ast.Name)]
    of_types = isinstance(node.value, ast.Subscript) and isinstance(node.value.value, ast.Name)
    return "__all__" in named or (
        bool(named) and of_types and named[0][:1].isupper() and not named[0].isupper() and "Callable" in ast.dump(node)
    )


def _of_node(
    node: ast.AST,
    text: str,
    span: Callable[[ast.AST], tuple[int, int]],
    between: Callable[[ast.expr, ast.expr, str, str], tuple[int, int, str] | None],
) -> Iterator[Edit]:
    if isinstance(node, ast.Compare):
        operands = [node.left, *node.comparators]
        for operator, left, right in zip(node.ops, operands, operands[1:], strict=False):
            begin, end = span(left)[1], span(right)[0]
            old = text[begin:end]
            symbol = old.strip().strip("()").strip()
            if symbol:
                first = begin + old.index(symbol)
                new = _COMPARISONS[type(operator)]
                yield first, first + len(symbol), new, isinstance(operator, _NUMBERS_COMPARED)
    elif isinstance(node, ast.BinOp) and not _of_text(node):
        old, new = _OPERATORS[type(node.op)]
        if (edit := between(node.left, node.right, old, new)) is not None:
            yield *edit, False
    elif isinstance(node, ast.AugAssign):
        old, new = _OPERATORS[type(node.op)]
        if isinstance(node.target, ast.expr) and (edit := between(node.target, node.value, f"{old}=", f"{new}=")):
            yield *edit, False
        yield *span(node), "pass", False
    elif isinstance(node, ast.BoolOp):
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            if (edit := between(left, right, old, new)) is not None:
                yield *edit, False
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        start = span(node)[0]
        yield start, start + len("not" if isinstance(node.op, ast.Not) else "-"), "", False
    elif isinstance(node, ast.Constant):
        start, end = span(node)
        if isinstance(node.value, bool):
            yield start, end, str(not node.value), False
        elif isinstance(node.value, int):
            yield start, end, str(node.value + 1), False
            yield start, end, str(node.value - 1) if node.value else "-1", False
        elif isinstance(node.value, float):
            yield start, end, repr(node.value + 1 if node.value else 1.0), False
            yield start, end, repr(node.value * 2), False
    elif isinstance(node, (ast.If, ast.While, ast.IfExp)):
        start, end = span(node.test)
        yield start, end, f"not ({text[start:end]})", False
    elif isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield *span(node.value), "None", False
    elif isinstance(node, (ast.Raise, ast.Continue, ast.Break)) or (
        isinstance(node, ast.Expr) and isinstance(node.value, (ast.Call, ast.Await))
    ):
        yield *span(node), "pass", False
    elif isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        end = span(node.func)[1]
        if name in _ROUNDINGS:
            yield end - len(name), end, _ROUNDINGS[name], name in _SUBTLE_NAMES
        if name in _DROPPED and len(node.args) == 1 and not node.keywords:
            start, last = span(node)
            inner, outer = span(node.args[0])
            yield start, last, f"({text[inner:outer]})", name in _SUBTLE_NAMES


def _of_text(node: ast.BinOp) -> bool:
    """Whether an operand is text, so that the operator is no arithmetic."""
    return any(
        isinstance(x, ast.JoinedStr) or (isinstance(x, ast.Constant) and isinstance(x.value, str | bytes))
        for x in (node.left, node.right)
    )


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


_CUDA: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    (r"(?<= )<(?= )", ("<=",), True),
    (r"(?<= )>(?= )", (">=",), True),
    (r"<=", ("<",), True),
    (r"(?<!-)>=", (">",), True),
    (r"==", ("!=",), True),
    (r"!=", ("==",), True),
    (r"&&", ("||",), False),
    (r"\|\|", ("&&",), False),
    (r"(?<= )\+(?= )", ("-",), False),
    (r"(?<= )-(?= )", ("+",), False),
    (r"(?<= )\*(?= )", ("/",), False),
    (r"(?<= )/(?= )", ("*",), False),
    (r"(?<= )%(?= )", ("*",), False),
    (r"(?<= )<<(?= )", (">>",), False),
    (r"(?<= )>>(?= )", ("<<",), False),
    (r"(?<= )\+=(?= )", ("-=",), False),
    (r"__fadd_rn", ("__fsub_rn",), False),
    (r"__fsub_rn", ("__fadd_rn",), False),
    (r"__fmul_rn", ("__fadd_rn",), False),
    (r"\brintf\b", ("truncf", "floorf"), True),
    (r"\bsnap(?=\()", ("",), True),
    (r"\bfabsf(?=\()", ("",), False),
    (r"\bfmaxf\b", ("fminf",), False),
    (r"\bfminf\b", ("fmaxf",), False),
    (r"0x1p-100f", ("0x1p-99f",), True),
    (r"(?<![\w.])-?\d+\.\d*f\b", ("2.0f",), False),
    (r"!(?=[\w(])", ("",), False),
)
_CUDA_NUMBER = re.compile(r"(?<![\w.\"])\d+(?![\w.])")
_CUDA_STATEMENT = re.compile(r"^ +[\w\[\].>*-]+ [+|^-]?= [^;]*;$|^ +atomic\w+\(.*\);$|^ +break;$", re.MULTILINE)


def _of_cuda(text: str) -> Iterator[Edit]:
    code = re.sub(r"//[^\n]*|/\*.*?\*/|^#[^\n]*", lambda m: re.sub(r"[^\n]", "\0", m[0]), text, flags=re.S | re.M)
    for pattern, replacements, subtle in _CUDA:
        for match in re.finditer(pattern, code):
            for new in replacements:
                yield match.start(), match.end(), new, subtle
    for match in _CUDA_NUMBER.finditer(code):
        for new_number in (int(match[0]) + 1, int(match[0]) - 1):
            yield match.start(), match.end(), str(new_number), False
    for match in _CUDA_STATEMENT.finditer(code):
        first = match.start() + len(match[0]) - len(match[0].lstrip())
        yield first, match.end(), ";", False


def read(root: Path, path: str) -> str:
    """Text of a file of the repository, its line ends as they are."""
    return (root / path).read_bytes().decode()
