"""What a training run is to do: its settings, its folder, and the checkpoint from which it continues.

The command line and `stsbp.train` make the same plan from their arguments.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from stsbp.config import (
    FREE,
    RunConfig,
    SettingsSource,
    absolute,
    check_imports,
    check_tracked_imports,
    differences,
    is_named,
    named_preset,
    read_toml,
    resolve,
    split_start,
)
from stsbp.datasets.registry import named_path
from stsbp.errors import ConfigError, FileError
from stsbp.files import real
from stsbp.hub.references import read_network
from stsbp.processes.group import PER_PROCESS, Group
from stsbp.training import checkpoint
from stsbp.training.build import check_patience, check_typed
from stsbp.training.checkpoint import Checkpoint
from stsbp.training.initial import pinned
from stsbp.training.run_folder import RunFolder
from stsbp.training.trackers import require_trackers

__all__ = ["SAME", "RunPlan", "check_resume", "content_of", "plan_run", "settings_sources", "shared", "typed_settings"]

SAME = ""
"""Value of `resume` that means the folder of `out`."""


@dataclass(frozen=True)
class RunPlan:
    """What to do: the settings, the folder of the run, and its previous content.

    Attributes:
        saved: the checkpoint to continue from; only on rank 0.
        goes_on: whether there is such a checkpoint.
        existed, earlier_content: whether the folder existed, and whether it contained a run; only on rank 0.
    """

    config: RunConfig
    folder: RunFolder
    saved: Checkpoint | None = None
    goes_on: bool = False
    existed: bool = True
    earlier_content: tuple[bool, bool] = (False, False)


def settings_sources(
    name: str, values: Mapping[str, Any], preset_name: str | None, file: Path | None
) -> list[SettingsSource]:
    """The settings of a preset, of a file, and those that were typed, `values`. Later ones override earlier ones.

    `name` is that of the typed ones in messages.
    """
    sources = [*([] if file is None else [read_toml(file)]), SettingsSource(name, values)]
    if preset_name is not None:
        dataset = next((str(s.values["dataset"]) for s in reversed(sources) if "dataset" in s.values), None)
        sources.insert(0, named_preset(preset_name, dataset))
    return sources


def check_resume(resume: str | None, *, overwrite: bool) -> None:
    """Raise `ConfigError` if a run is both to be continued and to be replaced."""
    if resume is not None and overwrite:
        raise ConfigError("--resume continues a run and --overwrite replaces it; give one of them")


def plan_run(
    sources: list[SettingsSource],
    out: Path | None,
    resume: str | None,
    overwrite: bool,
    *,
    allow_imports: bool,
    show_config: bool = False,
) -> RunPlan:
    """The plan for these settings, unless something prevents it.

    Args:
        sources: the settings. The last ones are those that were typed.
        out: folder of the run; None: that of `resume`, or a new one in `runs`.
        resume: folder of the run to continue; `SAME`: `out`; None: a new run begins.
        overwrite: whether a new run replaces an earlier one in `out`.
        allow_imports: whether modules of classes are imported that only a file of settings names.
        show_config: whether only the settings are needed.

    Raises:
        StsbpError: the settings contradict each other or the run to continue, or the folder cannot be written.
    """
    folder, saved = None, None
    if resume is not None:
        folder, saved = _run_to_resume(resume, out)
    if folder is not None and folder.is_run:
        config = _resumed(folder, sources)
    else:
        config = resolve([*_network_of_start(sources), *sources])
        if not allow_imports:
            check_imports(config, sources)
        config = pinned(absolute(config))
        check_typed(config, sources[-1].values)
        folder = folder or RunFolder(out or _new_folder(config.dataset))
    if not allow_imports:
        check_tracked_imports(config, sources)
    if show_config:
        return RunPlan(config, folder)
    if saved is None and not folder.is_free:
        if overwrite:
            folder.own_files()
        elif resume is not None and folder.is_run:
            folder.check_settings()
        else:
            advice = "; continue that run with --resume, replace it with --overwrite, or"
            if resume is not None and folder.has_traces:
                advice = ", but holds no complete run to continue; replace it with --overwrite, or"
            advice = advice if folder.has_traces else ", but holds no run;"
            raise FileError(f"{folder.path} exists and is not empty{advice} choose another --out")
    if overwrite and config.init_from and real(split_start(config.init_from)[0]) == real(folder.path):
        raise ConfigError(f"--overwrite would remove the run that --init-from {config.init_from!r} begins with")
    check_patience(config)
    require_trackers(config)
    earlier_content, exists = content_of(folder), folder.path.exists()
    folder.check_writable()
    return RunPlan(config, folder, saved, saved is not None, exists, earlier_content)


def _network_of_start(sources: list[SettingsSource]) -> list[SettingsSource]:
    """The hidden layers of the network that `init_from` names as `hub:...` or `model:NAME`, unless `net` is given.

    Such a network has no folder in which a user could look them up, and its weights fit no others.
    """
    values = typed_settings(sources)
    start = values.get("init_from")
    if not isinstance(start, str) or not is_named(start) or "net" in values:
        return []
    settings = read_network(start).settings
    # The padding completes the notation of `net`.
    layers = {"net": settings.net} if "padding" in values else {"net": settings.net, "padding": settings.padding}
    return [SettingsSource(start, layers)]


def content_of(folder: RunFolder) -> tuple[bool, bool]:
    """Whether the folder is free, and whether it contains a checkpoint."""
    return folder.is_free, (folder.path / "last.json").exists()


def shared(plan: RunPlan | None, group: Group, sources: list[SettingsSource]) -> RunPlan:
    """The plan of rank 0 in every process, together with the options of that process."""
    if group.size == 1:
        assert plan is not None
        return plan
    values = None if plan is None else (plan.config.model_dump(), str(plan.folder.path), plan.goes_on)
    config, path, goes_on = group.share(values)
    if plan is not None:
        return plan
    own_settings = {key: value for key, value in typed_settings(sources).items() if key in PER_PROCESS}
    return RunPlan(absolute(RunConfig(**{**config, **own_settings})), RunFolder(Path(path)), goes_on=goes_on)


def _new_folder(dataset: str) -> Path:
    """`runs/DATASET-DATE-TIME`. For names with a path, such as `folder:PATH`, the last part of the path."""
    named = named_path(dataset)
    name = re.sub("[:/]", "-", dataset) if named is None else named[1].stem
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def _run_to_resume(resume: str, out: Path | None) -> tuple[RunFolder, Checkpoint | None]:
    """The folder to continue in, and its checkpoint; None if the run has not written one."""
    if resume == SAME and out is None:
        raise ConfigError("--resume needs to know the run: --resume RUN or --out RUN --resume")
    if resume != SAME and out is not None and Path(resume) != out:
        raise ConfigError(f"--resume {resume!r} and --out {str(out)!r} name different runs; give one of them")
    folder = RunFolder(out if resume == SAME and out is not None else Path(resume))
    if resume != SAME:
        folder.read_config()
    if not folder.has_checkpoint:
        return folder, None
    return folder, checkpoint.load(folder.path, "last")


def _resumed(folder: RunFolder, sources: list[SettingsSource]) -> RunConfig:
    """The settings of a run, with those settings of `sources` that do not change its result.

    Raises:
        ConfigError: settings would change the result. The message names all of them.
    """
    config = folder.read_config()
    run_settings = SettingsSource(str(folder.config), config.model_dump())
    # This checks names and domains of the requested settings, and reads the file that `net` may name.
    meant = resolve([run_settings, *sources], with_preset=False)
    epochs = max(config.epochs, meant.epochs)
    extended = config.model_copy(update={"epochs": epochs})
    changes = {
        key: value for key, value in typed_settings(sources).items() if getattr(meant, key) != getattr(extended, key)
    }
    if changed := differences(extended, changes):
        raise ConfigError(
            f"the run in {folder.path} was begun with other settings; to continue it, leave these out "
            "(only --epochs may grow), or begin a new run:\n" + "\n".join(f"  {line}" for line in changed)
        )
    free = SettingsSource("command line", {key: value for key, value in changes.items() if key in FREE})
    return resolve([run_settings, SettingsSource("command line", {"epochs": epochs}), free], with_preset=False)


def typed_settings(sources: list[SettingsSource]) -> dict[str, Any]:
    """All settings that were given, by name."""
    return {key: value for source in sources for key, value in source.values.items()}
