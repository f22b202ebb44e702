"""Equations as data: expressions, their adjoints, how they are printed and stored."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Names of assembly.py, which was this module once."""
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Late, because assembly.py imports models, which import expressions of this package.
    from stsbp_spec.equations import assembly

    try:
        return getattr(assembly, name)
    except AttributeError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
