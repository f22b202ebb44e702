"""Settings of numba with which the kernels cannot run. numba reads them from environment variables when it is imported.

numba itself would raise an error of its own, in the middle of a computation.
"""

from __future__ import annotations

from numba import config, get_num_threads
from stsbp_spec.errors import BackendError, printable

__all__ = ["check_settings", "settings_problem"]

_LAYERS = {
    "NUMBA_THREADING_LAYER": "default",
    "NUMBA_THREADING_LAYER_PRIORITY": ["tbb", "omp", "workqueue"],
}
"""Variables that choose how numba starts threads, and their defaults, with which numba always finds a layer."""


def settings_problem() -> str | None:
    """Why the kernels cannot run with numba's settings, or None."""
    if config.DISABLE_JIT:
        return (
            f"the environment variable NUMBA_DISABLE_JIT={config.DISABLE_JIT} turns off numba's compiler, which makes "
            "the kernels; unset it before Python starts, or take --backend numpy"
        )
    values = {name: getattr(config, name.removeprefix("NUMBA_")) for name in _LAYERS}
    chosen = {name: value for name, value in values.items() if value != _LAYERS[name]}
    if not chosen:
        return None  # Without need, opening a device starts no threads, which forks could not use.
    try:
        get_num_threads()
    except ValueError:
        variables = " and ".join(
            f"{name}={printable(value if isinstance(value, str) else ' '.join(value))}"
            for name, value in chosen.items()
        )
        return (
            f"with the environment variable {variables}, numba finds no library for its threads (tbb needs the package "
            "tbb); unset it, or set NUMBA_THREADING_LAYER to omp or workqueue, before Python starts"
        )
    return None


def check_settings() -> None:
    """Raise `BackendError` if the kernels cannot run with numba's settings."""
    if (problem := settings_problem()) is not None:
        raise BackendError(problem)
