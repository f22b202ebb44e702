"""The model card of a network: what it does, how well it was tested, and how to use it."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from stsbp.config import FREE, RunConfig, SettingsSource, resolve
from stsbp.hub.license import check_license
from stsbp.training.regression_text import errors_text
from stsbp.training.trained import Trained

__all__ = ["model_card", "wilson_interval"]

_Z = 1.959963984540054
"""97.5th percentile of the normal distribution, for intervals of 95 %."""


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
    trained: Trained, name: str, values: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], license: str
) -> str:
    """The text of `README.md`.

    Args:
        trained: the network.
        name: its name.
        values: the values of `config.json`.
        metrics: records of the run.
        license: identifier of the licence; empty: none is stated.
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
        f"| SHA-256 of model.safetensors | `{values['sha256']}` |",
        f"| stsbp | {values['stsbp']} |",
        f"| Licence | {license or 'not stated'} |",
        "",
        "## Test",
        "",
        *_test(metrics, int(values["step"])),
        "",
        "## Use",
        "",
        "```sh",
        "stsbp evaluate hub:OWNER/NAME@COMMIT",
        "```",
        "",
        "COMMIT is the hash of a commit of this repository, 40 hexadecimal digits. In Python:",
        "",
        "```python",
        'trained = stsbp.load_hub("hub:OWNER/NAME@COMMIT")          # any backend',
        'network = stsbp_torch.Network.from_pretrained("hub:OWNER/NAME@COMMIT")',
        "```",
        "",
        "## Training",
        "",
        "```sh",
        _command(config, values["settings"]),
        "```",
        "",
        "This command is made from the settings in `config.json`. Paths are left out.",
        "",
    ]
    return "\n".join(lines)


def _test(metrics: Sequence[Mapping[str, Any]], step: int) -> list[str]:
    """The last test of the weights, which are those after update `step`."""
    tests = [r for r in metrics if r["kind"] == "evaluation" and r["split"] == "test" and r["step"] == step]
    if not tests:
        return ["These weights were not tested during the training."]
    test = tests[-1]
    samples = int(test["samples"])
    if "regression" in test:
        return [f"{errors_text(test['regression'])}, {samples} test samples."]
    if "accuracy" in test:
        low, high = wilson_interval(test["accuracy"], samples)
        return [
            f"Accuracy {test['accuracy']:.2%} on {samples} test samples (95 % confidence interval of Wilson "
            f"{low:.2%} to {high:.2%}, for one training with one seed)."
        ]
    return [
        f"Precision {test['precision']:.2%}, recall {test['recall']:.2%}, F1 {test['f1']:.2%} of the spike times, "
        f"{samples} test samples."
    ]


def _command(config: RunConfig, settings: Mapping[str, Any]) -> str:
    """`stsbp train` with the settings that are not the default ones of the data set."""
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
    return shlex.join(words)


def _inline(text: str) -> str:
    """A text that may stand in a table of Markdown."""
    return json.dumps(text, ensure_ascii=True)[1:-1].replace("|", "\\|").replace("`", "'").replace("<", "&lt;")
