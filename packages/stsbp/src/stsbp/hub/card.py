"""The model card of a network: what it does, how well it was tested, and how to use it."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from typing import Any

from stsbp.config import FREE, RunConfig, SettingsSource, resolve
from stsbp.datasets.registry import info_of, is_known
from stsbp.hub.license import check_license
from stsbp.training.regression_text import errors_text
from stsbp.training.trained import Trained

__all__ = ["model_card", "result_text", "training_command", "wilson_interval"]

_Z = 1.959963984540054
"""97.5th percentile of the normal distribution, for intervals of 95 %."""


_PACKING = "stsbp export RUN --to hub --packed --out RUN-hub"
"""The command that rounds the weights of the run, so that their SHA-256 can be compared."""


def wilson_interval(share: float, samples: int) -> tuple[float, float]:
    """Interval of Wilson with 95 % confidence for a share of independent samples.

    It treats the samples as drawn at random, and says nothing about other seeds of the training. Source: E. B. Wilson,
    Journal of the American Statistical Association 22 (1927), 209-212.
    """
    z = _Z**2 / samples
    centre = (share + z / 2) / (1 + z)
    half = _Z / (1 + z) * math.sqrt(share * (1 - share) / samples + z / (4 * samples))
    return max(0.0, centre - half), min(1.0, centre + half)


def model_card(
    trained: Trained, name: str, values: Mapping[str, Any], license: str, reference: str, remark: str = ""
) -> str:
    """The text of `README.md`.

    Args:
        trained: the network.
        name: its name.
        values: the values of `config.json`.
        license: identifier of the licence; empty: none is stated.
        reference: how commands name the network: `hub:...` or `model:...`.
        remark: sentences about the data; empty: none.
    """
    config, inputs = trained.settings, trained.task.inputs
    title = _inline(name)
    dataset = _inline(str(values["settings"]["dataset"]))
    labels = f"{len(inputs.classes)} classes" if inputs.classes else f"target sequences of {inputs.neurons} neurons"
    head = ["---", "library_name: stsbp", *([f"license: {check_license(license)}"] if license else [])]
    head += ["tags:", "- stsbp", "- spiking-neural-network", "---"]
    precise = config.precision == "reproducible"
    lines = [
        *head,
        f"# {title}",
        "",
        "A deep spiking network, trained with [stsbp](https://stsbp.example) on labels that are spike trains.",
        "",
        "| | |",
        "|---|---|",
        f"| Task | {dataset}: {'images' if inputs.coding == 'direct' else 'events'} of shape {list(inputs.shape)}, "
        f"{labels} |",
        f"| Network | {_inline(str(trained.network))} |",
        f"| Time steps | {config.steps} |",
        f"| Trained | {values['step']} updates, {values['epoch']} epochs, seed {config.seed} |",
        f"| Precision | {config.precision}: "
        + (
            "training again gives weights with the same bits on every backend |"
            if precise
            else "training again gives the same bits only on the same backend with as many threads |"
        ),
        f"| Exact arithmetic | version {values['contract']} of the contract; in evaluation, the backends numpy, cpu, "
        "torch, jax and cupy give the same spikes, bit for bit |",
        f"| SHA-256 of the weights | `{values['sha256']}` |",
        f"| stsbp | {values['stsbp']} |",
        f"| Licence | {license or 'not stated'}{_of_data(config.dataset)} |",
        "",
        "## Test",
        "",
        *_test(values.get("test")),
        "",
        "## Use",
        "",
        "```sh",
        f"stsbp evaluate {reference}",
        "```",
        "",
        *(
            ["COMMIT is the hash of a commit of this repository, 40 hexadecimal digits. In Python:"]
            if "@COMMIT" in reference
            else ["In Python:"]
        ),
        "",
        "```python",
        f'trained = stsbp.load_hub("{reference}")          # any backend',
        f'network = stsbp_torch.Network.from_pretrained("{reference}")',
        "```",
        "",
        "## Training",
        "",
        "```sh",
        training_command(config, values["settings"]),
        *([_PACKING] if "packed" in values else []),
        "```",
        "",
        *_about_command(values, remark),
        "",
    ]
    return "\n".join(lines)


def _of_data(dataset: str) -> str:
    """The licence of the data, if it is known, as the end of a sentence."""
    licence = info_of(dataset).licence if is_known(dataset) else ""
    return f"; the data have the licence {licence}, and are not in this folder" if licence else ""


def _about_command(values: Mapping[str, Any], remark: str) -> list[str]:
    """What the command of the training needs, and how its weights are compared."""
    counts = {split: values["contents"].get(f"number of the {split} samples") for split in ("train", "test")}
    text = ["These commands are made" if "packed" in values else "This command is made"]
    text[0] += " from the settings in `config.json`. Paths are left out."
    # A folder that anybody wrote may have been read and exported again.
    if all(count is not None and count.isdecimal() and len(count) < 16 for count in counts.values()):
        text[0] += f" The data were {counts['train']} training samples and {counts['test']} test samples."
    text[0] += f" {remark}" if remark else ""
    if "packed" in values:
        text += [
            "",
            "The second command rounds the weights to the grids on which the network computes with them, and prints "
            "their SHA-256.",
        ]
    return text


def result_text(test: Mapping[str, Any] | None) -> str:
    """The last test of the weights in one line, with its interval if samples have classes; None: there was none."""
    if test is None:
        return "not tested"
    samples = f"{test['samples']} test samples"
    if test.get("regression") is not None:
        return f"{errors_text(test['regression'])}, {samples}"
    if test.get("accuracy") is not None:
        if not test["samples"]:
            return "no test samples"
        low, high = wilson_interval(test["accuracy"], test["samples"])
        return f"accuracy {test['accuracy']:.2%} ({low:.2%} to {high:.2%}), {samples}"
    if test.get("f1") is None:
        return f"MSE {test['mse']:.4g}, {samples}"
    return f"precision {test['precision']:.2%}, recall {test['recall']:.2%}, F1 {test['f1']:.2%}, {samples}"


def _test(test: Mapping[str, Any] | None) -> list[str]:
    """The last test of the weights, as a sentence."""
    if test is None:
        return ["These weights were not tested during the training."]
    samples = int(test["samples"])
    if test.get("accuracy") is not None and samples:
        low, high = wilson_interval(test["accuracy"], samples)
        return [
            f"Accuracy {test['accuracy']:.2%} on {samples} test samples (95 % confidence interval of Wilson "
            f"{low:.2%} to {high:.2%}, for one training with one seed)."
        ]
    result = result_text(test)
    of_spikes = " The figures are those of the spike times." if result.startswith("precision") else ""
    return [f"{result[0].upper()}{result[1:]}.{of_spikes}"]


def training_command(config: RunConfig, settings: Mapping[str, Any]) -> str:
    """`stsbp train` with the settings that are not the default ones of the data set.

    Args:
        config: all settings.
        settings: those of `config.json`, without paths.
    """
    usual = resolve([SettingsSource("", {"dataset": config.dataset})]).model_dump()
    words = ["stsbp", "train", str(settings["dataset"])]
    for key, value in settings.items():
        if key == "dataset" or key in FREE - {"patience"} or key.endswith("_model") or value == usual[key]:
            continue
        flag = f"--{key.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            words += [flag, str(value)]
    return shlex.join([*words, "--out", "RUN"])


def _inline(text: str) -> str:
    """A text that may stand in a table of Markdown."""
    return json.dumps(text, ensure_ascii=True)[1:-1].replace("|", "\\|").replace("`", "'").replace("<", "&lt;")
