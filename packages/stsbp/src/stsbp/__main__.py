"""The command `stsbp`, also as `python -m stsbp`."""

from __future__ import annotations

from stsbp.interrupts import install

__all__ = ["main"]


def main() -> None:
    """Install the handler of Ctrl-C before any other import, then run the command line."""
    interrupts = install()
    try:
        from stsbp.cli import main as command

        command()
    except SystemExit:
        raise
    except BaseException:
        # If an interrupt comes while a library is loaded, the library may turn it into an error of its own.
        if interrupts.first is None:
            raise
        interrupts.end()


if __name__ == "__main__":
    main()
