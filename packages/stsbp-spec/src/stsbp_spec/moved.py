"""Former names of modules. Code that imports them, such as neurons of users, gets the module under its present name."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType

__all__ = ["present_name", "redirect"]

_SAME_NAME = {
    "equations": ("adjoint", "printers", "ranges", "stored"),
    "models": ("decoders", "encoders", "learned", "lengths", "losses", "metrics", "neurons", "optim", "surrogates"),
    "networks": ("graph", "layers", "nodes", "notation"),
    "contract": ("arrays", "elementary", "grid", "random"),
    "engine": (
        *("backend", "checks", "kernel_cache", "memory", "passes", "plan", "programs", "replay", "results"),
        *("rules", "stream", "trainer"),
    ),
    "distributed": ("collective", "host"),
}
_PRESENT = {
    **{name: f"stsbp_spec.{folder}.{name}" for folder, names in _SAME_NAME.items() for name in names},
    "expr": "stsbp_spec.equations.expressions",
    "foreign": "stsbp_spec.models.user_classes",
    "init": "stsbp_spec.networks.initial_weights",
    "meeting": "stsbp_spec.distributed.rendezvous",
    "network": "stsbp_spec.networks.spec",
    "network_table": "stsbp_spec.networks.table",
    "pairs": "stsbp_spec.engine.operations",
    "rendezvous": "stsbp_spec.distributed.launcher",
    "synapses": "stsbp_spec.networks.ops",
    "tables": "stsbp_spec.engine.dispatch",
    "values": "stsbp_spec.validation",
}


def present_name(module: str) -> str | None:
    """The present name of a module that has moved, or of a module in a folder that has moved; None for all others."""
    package, _, path = module.partition(".")
    # Python asks for every module that the process imports, so those of other packages are told apart first.
    if package != "stsbp_spec":
        return None
    top, _, submodule = path.partition(".")
    present = _PRESENT.get(top)
    return f"{present}.{submodule}" if present and submodule else present


class _MovedModules(MetaPathFinder, Loader):
    """Imports a module under its present name. Both names are one module, so that its classes exist once."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return None if present_name(fullname) is None else spec_from_loader(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        present = present_name(module.__name__)
        assert present is not None
        # import_module returns what stands here after the execution, not the empty module of the former name.
        sys.modules[module.__name__] = import_module(present)


def redirect() -> None:
    """Let former names be imported."""
    # Before Python's own finders: a package has its folder's path under either name, where these would load a file of
    # it a second time, as another module.
    sys.meta_path.insert(0, _MovedModules())
