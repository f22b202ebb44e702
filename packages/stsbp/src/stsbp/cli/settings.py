"""The settings of a run as options, in the sections of docs/options.md, with completion and suggestions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, get_args

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from stsbp.cli.common import Choice, completes
from stsbp.config import OWN, SECTIONS, SEVERAL, RunConfig
from stsbp.datasets import DATASETS
from stsbp.presets import PRESETS

__all__ = [
    "SettingsCommand",
    "allow_imports",
    "complete_data_set",
    "complete_experiment",
    "complete_preset",
    "given_settings",
    "settings",
]

_SECTION = {"--" + name.replace("_", "-"): title for title, names in SECTIONS.items() for name in names}

_ALSO = {"lr": ("--learning-rate",)}
"""Other names of options."""

complete_data_set = completes(DATASETS)
complete_preset = completes(PRESETS)
complete_experiment = completes(PRESETS, DATASETS)


def _complete_folder(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="dir")]


_COMPLETE: dict[str, Callable[..., Iterable[Any]]] = {
    **{setting: completes(user_class.spec_names) for setting, user_class in OWN.items()},
    "test_on": complete_data_set,
    "data_dir": _complete_folder,
    "init_from": _complete_folder,
}


def _joined(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> str:
    """Values of an option that was given several times, as the text of its setting."""
    return ",".join(values)


class _LossType(Choice):
    """A known loss, or a user-defined class."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if OWN["loss"].names_a_class(str(value)) else super().convert(value, param, ctx)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        return "TEXT"


allow_imports = click.option(
    "--allow-imports",
    is_flag=True,
    help="Import the modules of classes and trackers that the file of --config or the run to continue names. Use this "
    "only for a file that you trust.",
)
"""Option of the commands that have `--config`."""


class SettingsCommand(click.Command):
    """A command whose help page shows the settings in their sections, below its own options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Options": [], **{title: [] for title in SECTIONS}}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                sections[_SECTION.get(parameter.opts[0], "Options")].append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def given_settings(flags: dict[str, Any]) -> dict[str, Any]:
    """The options of `settings` that were given on the command line."""
    ctx = click.get_current_context()
    return {key: value for key, value in flags.items() if ctx.get_parameter_source(key) != ParameterSource.DEFAULT}


def settings(
    function: Callable[..., None], hidden: Collection[str] = (), defaults: Mapping[str, str] | None = None
) -> Callable[..., None]:
    """Add an option for every setting except the data set, in sections. Help pages do not show the `hidden` ones.

    `defaults` are the defaults that the help page shows for settings whose default is another one in this command.
    """
    command_defaults = defaults or {}
    for name in reversed([name for names in SECTIONS.values() for name in names]):
        field = RunConfig.model_fields[name]
        flag, annotation = "--" + name.replace("_", "-"), field.annotation
        flags = (flag, *_ALSO.get(name, ()))
        default = command_defaults.get(name, field.default)
        help_text = f"{field.description}  [default: {default}]" if default != "" else field.description
        attributes: dict[str, Any] = {"help": help_text, "hidden": name in hidden}
        if annotation is bool:
            option = click.option(f"{flag}/--no-{flag[2:]}", name, default=None, **attributes)
        elif name in SEVERAL:
            option = click.option(flag, name, metavar=SEVERAL[name], multiple=True, callback=_joined, **attributes)
        elif name == "loss":
            option = click.option(flag, name, type=_LossType(list(OWN[name].spec_names)), **attributes)
        elif choices := get_args(annotation):
            option = click.option(flag, name, type=Choice(choices), **attributes)
        else:
            option = click.option(*flags, name, type=annotation, shell_complete=_COMPLETE.get(name), **attributes)
        function = option(function)
    return function
