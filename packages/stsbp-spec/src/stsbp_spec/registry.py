"""Installed backends. They are found through the entry-point group `stsbp.backends`, and listed without an import.

There are no silent fallbacks. If the requested backend is not available, an error states the cause and a remedy.
"""

from __future__ import annotations

from importlib.metadata import entry_points, version
from typing import TYPE_CHECKING

from stsbp_spec.errors import BackendError, did_you_mean
from stsbp_spec.validation import shown

if TYPE_CHECKING:
    from stsbp_spec.engine.backend import AbstractBackend

__all__ = ["API", "GROUP", "KNOWN_BACKENDS", "default_backend", "installed_backends", "load_backend", "open_backend"]

API = 2
"""Version of the backend interface (backend.py, operations.py, rules.py). A backend's `api` is the version it has."""
_NEWEST_MEMBER = "arithmetic"
"""What version 2 demands beyond version 1."""
GROUP = "stsbp.backends"
KNOWN_BACKENDS = {"torch": "stsbp-torch", "cupy": "stsbp-cupy", "jax": "stsbp-jax", "cpu": "stsbp-cpu"}
"""Package of each backend of this project. The default backend is the first of them that is installed."""


def installed_backends() -> tuple[str, ...]:
    """Names of the installed backends, sorted."""
    return tuple(sorted({point.name for point in entry_points(group=GROUP)}))


def default_backend() -> str:
    """Name of the default backend: the first of `KNOWN_BACKENDS` that is installed, else any except the reference.

    Raises:
        BackendError: no backend is installed.
    """
    installed = installed_backends()
    if not installed:
        raise BackendError("no backend is installed; install one with: python -m pip install stsbp-torch")
    known_names = (name for name in KNOWN_BACKENDS if name in installed)
    return next(known_names, next((name for name in installed if name != "numpy"), "numpy"))


def load_backend(name: str) -> type[AbstractBackend]:
    """Import a backend's class.

    Raises:
        BackendError: the backend is not installed; its import fails (the error names and keeps the cause); or it is
            written for another version of the interface.
    """
    if not isinstance(name, str):
        raise BackendError(f"a backend has a name such as 'torch', got {shown(name)}")
    points = {point.name: point for point in entry_points(group=GROUP)}
    if name not in points:
        hint = f"; install it with: python -m pip install {KNOWN_BACKENDS[name]}" if name in KNOWN_BACKENDS else ""
        names = ", ".join(sorted(points)) or "none"
        suggestion = did_you_mean(name, {*points, *KNOWN_BACKENDS} - {name})
        raise BackendError(
            f"no backend {name!r} is installed{suggestion if not hint else ''}; installed: {names}{hint}"
        )
    distribution = points[name].dist
    package = KNOWN_BACKENDS.get(name, distribution.name if distribution is not None else name)
    try:
        backend: type[AbstractBackend] = points[name].load()
    except BackendError:
        raise
    except (Exception, SystemExit) as error:
        raise BackendError(
            f"backend {name!r} is installed but cannot be imported: {type(error).__name__}: {error}; "
            f"repair it with: python -m pip install --force-reinstall {package}"
        ) from error
    api = getattr(backend, "api", None)
    if api != API:
        written_for = "an interface without a version" if api is None else f"version {api} of the interface"
        newer = isinstance(api, int) and api > API
        demands = "" if newer else f", which demands the member {_NEWEST_MEMBER!r} (docs/write_a_backend.md)"
        raise BackendError(
            f"backend {name!r} is written for {written_for}, but stsbp-spec {version('stsbp-spec')} has "
            f"version {API}{demands}; install matching versions, for example: python -m pip install --upgrade "
            f"{'stsbp-spec' if newer else package}"
        )
    return backend


def open_backend(name: str, device: str | None = None) -> AbstractBackend:
    """Import a backend and open a device; see `load_backend` and `AbstractBackend`."""
    return load_backend(name)(device)
