"""Training deep spiking neural networks on labels that are spike sequences: command line, data sets, training loop.

`stsbp.train`, `stsbp.load_run`, `stsbp.save_run` and `stsbp.compare` are the interface for programs (docs/python.md).
Their modules are imported when one of the names is used, so that `stsbp --help` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stsbp.api.run import Run, compare, load_run
    from stsbp.api.save import save_run
    from stsbp.api.train import train

    __version__: str

__all__ = ["Run", "__version__", "compare", "load_run", "save_run", "train"]

_HOMES = {
    "stsbp.api.run": ("Run", "compare", "load_run"),
    "stsbp.api.save": ("save_run",),
    "stsbp.api.train": ("train",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it, and look up `__version__` only on access."""
    if name == "__version__":
        from importlib.metadata import version

        return version("stsbp")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    exported = globals()[name] = getattr(import_module(_HOME[name]), name)
    return exported


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
