"""Training deep spiking neural networks on labels that are spike sequences: command line, data sets, training loop.

`stsbp.train`, `stsbp.load_run`, `stsbp.load_hub`, `stsbp.save_run`, `stsbp.compare`, `stsbp.sweep` and
`stsbp.load_sweep` are the interface for programs (docs/python.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stsbp.api.functions import compare, load_hub, load_run, load_sweep, save_run, sweep, train

if TYPE_CHECKING:
    from stsbp.api.run import Run

    __version__: str

__all__ = ["Run", "__version__", "compare", "load_hub", "load_run", "load_sweep", "save_run", "sweep", "train"]


def __getattr__(name: str) -> Any:
    """Import `Run`, and look up `__version__`, only on access, so that `import stsbp` and `stsbp --help` are quick."""
    if name == "__version__":
        from importlib.metadata import version

        return version("stsbp")
    if name == "Run":
        from stsbp.api.run import Run

        return Run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
