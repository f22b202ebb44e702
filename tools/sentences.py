"""Sentences of the documentation and of the help texts, drawn by a seed, for somebody to read with fresh eyes.

    python tools/sentences.py --seed 1 --count 40

A sentence that has to be read twice is mended. Code, tables of numbers and generated pages are left out.
"""

from __future__ import annotations

import argparse
import inspect
import random
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

__all__ = ["draw", "main", "sentences"]

ROOT = Path(__file__).parents[1]
GENERATED = {"docs/conformance.md", "docs/options.md"}
FEWEST_WORDS = 6
_NAMES = "stsbp|numpy|numba|torch|glibc|gloo|cuBLAS|cppcheck|norse|onnx|rockpool|sinabs|snntorch|spikingjelly|spyx"
_END = re.compile(rf"(?<=[.!?])\s+(?=[A-Z*`\[\"(]|(?:{_NAMES})\b)")
"""Ends of sentences; the next one may begin with a name in small letters."""


def sentences(root: Path = ROOT) -> list[tuple[str, str]]:
    """Place and text of every sentence."""
    pages = [root / "README.md", root / "CONTRIBUTING.md", *sorted(root.glob("docs/**/*.md"))]
    lines = [
        (name, line)
        for page in pages
        if (name := str(page.relative_to(root))) not in GENERATED
        for line in _of_page(page)
    ]
    return lines + [(f"stsbp {name} --help", line) for name, text in _help_texts() for line in _split(text)]


def _of_page(page: Path) -> Iterator[str]:
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    text = re.sub(r"^(`{3,}).*?^\1[^\n]*$", "", text, flags=re.DOTALL | re.MULTILINE)
    for block in re.split(r"\n\s*\n|\n(?=\s*- |[|#>]|\d+\. )", text):
        if block.startswith("    "):  # code
            continue
        block = block.strip()
        if block.startswith("|"):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", block)[1:-1]]
            for cell in cells:
                yield from _split(cell)
        elif block and not block.startswith("#"):
            yield from _split(block)


def _split(text: str) -> Iterator[str]:
    for sentence in _END.split(" ".join(text.split())):
        words = re.sub(r"`[^`]*`|\]\([^)]*\)", " ", sentence)
        if len(re.findall(r"[A-Za-z]{2,}", words)) >= FEWEST_WORDS:
            yield sentence


def _help_texts() -> Iterator[tuple[str, str]]:
    """Every command, with its help and that of each of its options."""
    import click
    from stsbp.cli import COMMANDS, cli

    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        # A paragraph, or a line of a block that is not wrapped.
        for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
            for text in paragraph[2:].splitlines() if paragraph.startswith("\b\n") else [paragraph]:
                yield name, text
        for option in command.params:
            if isinstance(option, click.Option) and option.help and (name == "train" or option.name not in _shared()):
                yield name, option.help


def _shared() -> set[str]:
    """Settings of a run, which several commands show."""
    from stsbp.config import RunConfig

    return {*RunConfig.model_fields}


def draw(seed: int, count: int, root: Path = ROOT) -> list[tuple[str, str]]:
    """`count` of the sentences, the same ones for the same seed."""
    drawn = sentences(root)
    random.Random(seed).shuffle(drawn)
    return drawn[:count]


def main() -> None:
    """Print them, numbered."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=40)
    options = parser.parse_args()
    for number, (place, sentence) in enumerate(draw(options.seed, options.count), 1):
        print(textwrap.fill(f"{number}. [{place}] {sentence}", 110, subsequent_indent="    "))


if __name__ == "__main__":
    main()
