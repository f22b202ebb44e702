"""Training deep spiking neural networks on labels that are spike sequences: command line, data sets, training loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["__version__", "load_run"]

if TYPE_CHECKING:
    import os
    from typing import Literal

    from stsbp.training.trained import Trained

    __version__: str
else:

    def __getattr__(name: str) -> str:
        """Look up `__version__` only on access, so that `stsbp --help` need not read the metadata."""
        if name == "__version__":
            from importlib.metadata import version

            return version("stsbp")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load_run(
    run: str | os.PathLike[str],
    checkpoint: Literal["last", "best"] = "last",
    *,
    backend: str | None = None,
    device: str | None = None,
) -> Trained:
    """Load a trained network from the folder of its run.

        run = stsbp.load_run("runs/digits")
        run.predict(images).classes

    Args:
        run: the folder that `stsbp train --out` wrote.
        checkpoint: which of the two checkpoints to load.
        backend: name of the backend to use, as `stsbp backends` lists them. It may differ from the one that trained
            the run. None: torch if it is installed, otherwise the first installed backend.
        device: device of the backend; None: its default.

    Raises:
        CheckpointError: there is no such run, or its checkpoint is damaged.
        BackendError: the backend or the device is not available. The message gives the reason and a remedy.
    """
    # Heavy modules are imported only when a run is loaded.
    from pathlib import Path

    from stsbp_spec.registry import default_backend, open_backend
    from stsbp_spec.validation import shown

    from stsbp.errors import CheckpointError
    from stsbp.training.run_folder import RunFolder
    from stsbp.training.trained import load_trained

    try:
        folder = RunFolder(Path(run))
    except TypeError as error:
        raise CheckpointError(f"a run is the path of its folder, such as 'runs/digits', got {shown(run)}") from error
    folder.read_config()
    return load_trained(folder, checkpoint, open_backend(default_backend() if backend is None else backend, device))
