"""What is thrown at the product: a case of each kind is made from a generator of random numbers, and run in a world."""

from __future__ import annotations

import base64
import errno
import json
import os
import random
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, ClassVar

from stsbp.errors import StsbpError

from campaigns.calls import Complaint, call, check_message, check_output, check_warnings, shown_warnings
from campaigns.worlds import World

__all__ = ["Case", "Kind", "run_case", "run_command"]


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        kind: name of the kind that made it.
        content: bytes for a reader that is called directly.
        how: parameters of that call, and of `run_command`, as JSON values. `refuse`: why the input must be refused.
            `kept`: names below which nothing may change if a command ends with an error.
        arguments: a command line, where the case is one.
        files: written into the world before, by their names.
        may_make: names below which new files may appear.
        may_change: names below which anything may change.
    """

    kind: str
    content: bytes = b""
    how: dict[str, Any] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    files: dict[str, bytes] = field(default_factory=dict)
    may_make: tuple[str, ...] = ()
    may_change: tuple[str, ...] = ()

    def to_json(self) -> str:
        """As a file that `from_json` reads back; arguments are readable, bytes are base64."""
        values = {
            "kind": self.kind,
            "arguments": self.arguments,
            "how": self.how,
            "may_make": self.may_make,
            "may_change": self.may_change,
            "content": base64.b64encode(self.content).decode(),
            "files": {name: base64.b64encode(content).decode() for name, content in self.files.items()},
        }
        return json.dumps(values, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Case:
        """Inverse of `to_json`."""
        values = json.loads(text)
        return cls(
            values["kind"],
            base64.b64decode(values["content"]),
            values["how"],
            tuple(values["arguments"]),
            {name: base64.b64decode(content) for name, content in values["files"].items()},
            tuple(values["may_make"]),
            tuple(values["may_change"]),
        )


class Kind(ABC):
    """A kind of input."""

    name: ClassVar[str]
    weight: ClassVar[float]
    """Share of the cases of a campaign over all kinds."""
    seconds: ClassVar[float] = 8.0
    """Seconds of processor time that a case may take."""
    memory: ClassVar[int] = 1 << 28
    """Bytes of memory that a case may take."""

    modules: ClassVar[tuple[str, ...]] = ()
    """Modules that its cases need. They are imported once for all workers."""

    @abstractmethod
    def make(self, rng: random.Random, world: World) -> Case:
        """A case, the same for the same state of the generator."""

    def read(self, case: Case, world: World) -> None:
        """Call the reader directly, and look at what it gives.

        Raises:
            StsbpError: the input was refused.
            Complaint: what it gives is wrong.
        """
        raise NotImplementedError

    def check(self, case: Case, world: World) -> None:  # noqa: B027 - most commands leave nothing to look at
        """Look at what a command has left in the world, before it is put back.

        Raises:
            Complaint: it is wrong.
        """


def run_case(kind: Kind, case: Case, world: World) -> bool:
    """Run a case; returns whether the input was accepted.

    Raises:
        Complaint, or anything but a `StsbpError`: a fault of the product.
    """
    if case.arguments:
        accepted = run_command(case, world, kind.check)
    else:
        with shown_warnings() as caught:
            try:
                kind.read(case, world)
                accepted = True
            except StsbpError as error:
                check_message(str(error))
                _check_size(str(error))
                accepted = False
        check_warnings(caught)
    if accepted and (why := case.how.get("refuse")):
        raise Complaint(f"an input was accepted although {why}")
    return accepted


def _check_size(text: str) -> None:
    """Complain of a message that a file was too large to be written: the campaign limits the size of files."""
    if os.strerror(errno.EFBIG) in text:
        raise Complaint(f"a huge file was written\n{text[:600]}")


def run_command(case: Case, world: World, check: Callable[[Case, World], None] | None = None) -> bool:
    """Run a command line in the world, look at it and put it back; returns whether it succeeded.

    `check` looks at what a command without an error has left.

    Raises:
        Complaint: see `check_output`; or files were changed, lost or made that the command does not own, a temporary
            file or a thread was left.
    """
    terminal = bool(case.how.get("terminal"))
    for name, content in case.files.items():
        world.write(name, content)
    earlier = set(threading.enumerate())
    try:
        with world.at_home():
            called = call(case.arguments, encoding=case.how.get("encoding", "utf-8"), terminal=terminal)
        check_output(called, terminal=terminal)
        _check_size(called.err)
        _check_world(case, world, refused=called.code in (1, 2))
        if check is not None and called.code == 0:
            check(case, world)
        for thread in set(threading.enumerate()) - earlier:
            # The thread of a progress bar ends after its last refresh.
            thread.join(2.0)
            if thread.is_alive():
                raise Complaint(f"a thread was left: {thread.name}")
    finally:
        world.restore()
    return called.code in (0, 75)


def _check_world(case: Case, world: World, *, refused: bool) -> None:
    for name, change in world.differences().items():
        if refused and _is_related(name, tuple(case.how.get("kept", ()))) and name not in case.files:
            raise Complaint(f"a command that ended with an error {change} a file\n{name}")
        if name in case.files:
            same = change != "lost" and (world.root / name).read_bytes() == case.files[name]
            if not same and not _is_related(name, case.may_change):
                raise Complaint(f"a file of the case was {change}\n{name}")
            continue
        if name.endswith(".tmp"):
            raise Complaint(f"a temporary file was left\n{name}")
        if change == "new" and (
            _is_related(name, case.may_make) or any(written.startswith(f"{name}/") for written in case.files)
        ):
            continue
        if not _is_related(name, ("cache", *case.may_change)):
            raise Complaint(f"a file was {change} that the command does not own\n{name}")


def _is_related(name: str, owners: tuple[str, ...]) -> bool:
    path = PurePosixPath(name)
    return any(path.is_relative_to(owner) or PurePosixPath(owner).is_relative_to(path) for owner in owners)
