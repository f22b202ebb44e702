"""The command `stsbp`, also as `python -m stsbp`."""

from __future__ import annotations

from stsbp.interrupts import install

__all__ = ["main"]


def main() -> None:
    """Handle Ctrl-C before anything else is imported, then do what the command line says."""
    interrupts = install()
    try:
        from stsbp.cli import main as command

        command()
    except SystemExit:
        raise
    except BaseException:
        # Libraries turn an interrupt while they are loaded into errors of their own.
        if interrupts.first is None:
            raise
        interrupts.end()


if __name__ == "__main__":
    main()
