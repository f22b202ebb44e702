"""Runs pytest in forks of one process, which has imported what its arguments name.

A line on standard input asks for a run, `{"arguments": [...], "environment": {...}, "output": PATH, "limit": SECONDS}`;
a line on standard output answers with its exit code, negative for a signal, `null` past the limit. Linux only.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import sys
import traceback


def main() -> None:
    """Import, then answer until standard input ends."""
    sys.path[0] = os.getcwd()  # as with `python -m pytest`
    # Threads do not survive a fork, so nothing here may start one. The libraries are imported, the tested code is not.
    for name in ("pytest", *sys.argv[1:]):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for line in iter(sys.stdin.readline, ""):
        print(json.dumps(run(**json.loads(line))), flush=True)


def run(arguments: list[str], environment: dict[str, str], output: str, limit: float) -> int | None:
    """Run pytest in a fork: its exit code, negative for a signal; None past the limit."""
    if not (child := os.fork()):
        _tests(arguments, environment, output)
    ended = os.pidfd_open(child)
    # Until it has its answer the other side writes nothing: standard input can be read only when that side is gone.
    in_time = ended in select.select([ended, sys.stdin], [], [], limit)[0]
    os.close(ended)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it started goes with it
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) if in_time else None


def _tests(arguments: list[str], environment: dict[str, str], output: str) -> None:
    """The child: run pytest and end."""
    os.setsid()
    stdout = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(stdout, 1)
    os.dup2(stdout, 2)
    code = 3  # pytest's own number for an error of its own
    try:
        import pytest

        os.environ.update(environment)
        sys.argv = ["pytest", *arguments]
        code = int(pytest.main(arguments))
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
