"""The default settings of data sets, and presets, which are published experiments.

The default settings of a data set are in its module (`stsbp.datasets.info.DatasetInfo.defaults`). Settings that they do
not contain keep the defaults of `stsbp.config.RunConfig`.

A preset (`--preset NAME`) overrides the default settings of its data set. It contains only settings that its source
states. All other settings are the default settings of the data set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from stsbp.datasets.info import ByLoss, Setting
from stsbp.datasets.registry import info_of, is_known

__all__ = ["PRESETS", "NamedPreset", "Published", "defaults"]


def defaults(dataset: str, loss: str) -> Mapping[str, Setting]:
    """The default settings for a data set and a loss. Empty for an unknown name.

    `folder:PATH` uses the settings of `images`, and `sequences:PATH` those of `sequences`. Those of
    `hf:PATH` depend on the data.
    """
    if not is_known(dataset):
        return {}
    loss_attribute = loss.replace("-", "_")
    return {
        key: getattr(value, loss_attribute, value.van_rossum) if isinstance(value, ByLoss) else value
        for key, value in info_of(dataset).defaults.items()
    }


class Published(NamedTuple):
    """A published accuracy in percent, and the conditions under which it was measured."""

    accuracy: float
    conditions: str


@dataclass(frozen=True)
class NamedPreset:
    """The settings of a published experiment, or of a published network.

    Attributes:
        dataset: the data set for which it was published.
        source: where the settings come from.
        settings: settings that the source states, by the names of `stsbp.config.RunConfig`.
        published: the result to compare with; None: no result is known.
        similar: other data sets for which the settings make sense, because their inputs have the same shape.
        remark: remaining differences from the source.
    """

    name: str
    dataset: str
    source: str
    settings: Mapping[str, Setting]
    published: Published | None = None
    similar: tuple[str, ...] = ()
    remark: str = ""


_PAPER = "Spiking Sequence Label-Based Spatio-Temporal Back-Propagation, J. Electronics & Information Technology, 2024"
_PAPER_REMARK = "time constants, label pattern, binning of the events, augmentation and optimiser are this project's"
_STBP = "Wu et al. 2018, Front. Neurosci. 12:331 (STBP), as compared with in the paper"
_TSSL = "Zhang and Li 2020, NeurIPS (TSSL-BP)"
_FULL_NMNIST = "60,000 + 10,000 recordings"
_FULL_CIFAR10 = "50,000 + 10,000 images, best of several runs"
_LIKE_NMNIST = ("nmnist-sim", "digits-events")
_NMNIST_NET = {"net": "12C5-P2-64C5-P2", "padding": "valid"}
_TSSL_TRAINING: dict[str, Setting] = {
    "batch_size": 50,
    "lr": 5e-4,
    "schedule": "constant",
    "weight_decay": 0.01,
    "clip_norm": 1.0,
}
"""AdamW as in the authors' code."""
_TSSL_CIFAR10: dict[str, Setting] = {
    **_TSSL_TRAINING,
    "padding": "same",
    "loss": "van-rossum",
    "label_pattern": "01111",
    "steps": 5,
    "epochs": 150,
    "tau_m": 5.0,
    "tau_s": 3.0,
    "dropout": 0.2,
    "augment_shift": 4,
    "augment_flip": True,
}
_NO_AUGMENTATION: dict[str, Setting] = {
    "augment_shift": 0,
    "augment_rotate": 0.0,
    "augment_scale": 0.0,
    "augment_shear": 0.0,
    "augment_elastic": 0.0,
}
_TSSL_GREY_IMAGES: dict[str, Setting] = {"padding": "valid", "loss": "van-rossum", "steps": 5, "epochs": 100}
_TSSL_GREY_IMAGES_REMARK = (
    "trained by this project's rule; all that is not listed by the source is this project's: see docs/experiments.md"
)
_TSSL_REMARK = "trained by this project's rule, surrogate and initial weights; pixels enter as x / 256, not normalised"
_NOT_MEASURED = "not measured here; the published figure is in the source"
_SEW_STAGE = "-[{0}C3p1s2bn-{0}C3p1bn|{0}C1s2bn]+-[{0}C3p1bn-{0}C3p1bn]+"
_SEW_RESNET18 = "64C3p1bn" + 2 * "-[64C3p1bn-64C3p1bn]+" + "".join(map(_SEW_STAGE.format, (128, 256, 512))) + "-G"
_PLIF_NET = 2 * "256C3bn-256C3bn-256C3bn-M2-" + "D0.5-2048-D0.5-100"
_VGG = "64C3bn-128C3bn-P2-256C3bn-256C3bn-P2-512C3bn-512C3bn-P2-512C3bn-512C3bn-P2"
_CIFAR10_SETTINGS: dict[str, Setting] = {"padding": "same", "augment_shift": 4, "augment_flip": True, "batch_size": 50}


def _named() -> dict[str, NamedPreset]:
    presets = (
        NamedPreset(
            "nmnist-van-rossum",
            "nmnist",
            f"{_PAPER}, table 3",
            {**_NMNIST_NET, "loss": "van-rossum", "steps": 25, "epochs": 100},
            Published(98.61, f"{_FULL_NMNIST}, T = 25, 100 epochs"),
            _LIKE_NMNIST,
            _PAPER_REMARK,
        ),
        NamedPreset(
            "nmnist-hamming",
            "nmnist",
            f"{_PAPER}, table 4",
            {**_NMNIST_NET, "loss": "hamming", "steps": 25, "epochs": 100},
            Published(98.67, f"{_FULL_NMNIST}, T = 25, 100 epochs"),
            _LIKE_NMNIST,
            _PAPER_REMARK,
        ),
        NamedPreset(
            "nmnist-stbp",
            "nmnist",
            _STBP,
            {**_NMNIST_NET, "loss": "spike-count", "tau_s": 1.0, "steps": 50, "epochs": 150},
            Published(98.19, f"{_FULL_NMNIST}, T = 50, 150 epochs"),
            _LIKE_NMNIST,
            "everything that is not listed here is as in nmnist-van-rossum, so that the two differ in what the methods "
            "differ in; its source wants a spike at every step of the true class, which read less well in the one run "
            "that was tried than one at every other step",
        ),
        NamedPreset(
            "nmnist-tssl",
            "nmnist",
            f"{_TSSL} and the authors' code",
            {
                **_TSSL_TRAINING,
                "net": "12C5p1-P2-64C5-P2",
                "padding": "valid",
                "loss": "spike-count",
                # 15 and 3 spikes in 30 steps.
                "label_pattern": "01",
                "undesired_pattern": "0000000001",
                "steps": 30,
                "bin_ms": 3.0,
                "stabilise": True,
                "epochs": 100,
                "tau_m": 8.0,
                "tau_s": 4.0,
                **_NO_AUGMENTATION,
            },
            Published(
                99.28, f"{_FULL_NMNIST}, T = 30, the first 30 x 3 ms, stabilised, 100 epochs, best of several runs"
            ),
            _LIKE_NMNIST,
            "trained by this project's rule and surrogate",
        ),
        NamedPreset(
            "mnist-tssl",
            "mnist",
            f"{_TSSL}, MNIST",
            {
                **_TSSL_GREY_IMAGES,
                "net": "15C5-P2-40C5-P2-300",
                "lr": 4e-3,
                "augment_shift": 1,
                "augment_rotate": 10.0,
                "augment_scale": 0.1,
                "augment_shear": 0.1,
                "augment_elastic": 1.0,
            },
            Published(99.50, "60,000 + 10,000 images, T = 5, 100 epochs, mean +- 0.02, best 99.53"),
            remark=_TSSL_GREY_IMAGES_REMARK,
        ),
        NamedPreset(
            "fashion-tssl-dense",
            "fashion-mnist",
            f"{_TSSL}, Fashion-MNIST, without convolutions",
            {**_TSSL_GREY_IMAGES, "net": "400-400"},
            Published(89.75, "60,000 + 10,000 images, T = 5, 100 epochs, mean +- 0.03, best 89.92"),
            remark=_TSSL_GREY_IMAGES_REMARK,
        ),
        NamedPreset(
            "fashion-tssl-conv",
            "fashion-mnist",
            f"{_TSSL}, Fashion-MNIST, with convolutions",
            # Padded as in the authors' code. Of the three losses, this one validated best after 20 epochs.
            {
                **_TSSL_GREY_IMAGES,
                "net": "32C5-P2-64C5-P2-1024",
                "padding": "same",
                "loss": "spike-count",
                "augment_shift": 2,
            },
            Published(92.69, "60,000 + 10,000 images, T = 5, 100 epochs, mean +- 0.09, best 92.83"),
            remark=_TSSL_GREY_IMAGES_REMARK,
        ),
        NamedPreset(
            "cifar10-tssl-1",
            "cifar10",
            f"{_TSSL}, first network",
            {**_TSSL_CIFAR10, "net": "96C3-256C3-P2-384C3-P2-384C3-256C3-1024-1024"},
            Published(89.37, f"{_FULL_CIFAR10}, T = 5, 150 epochs"),
            remark=_TSSL_REMARK,
        ),
        NamedPreset(
            "cifar10-tssl-2",
            "cifar10",
            f"{_TSSL}, second network",
            {**_TSSL_CIFAR10, "net": "128C3-256C3-P2-512C3-P2-1024C3-512C3-1024-512"},
            Published(91.41, f"{_FULL_CIFAR10}, T = 5, 150 epochs"),
            remark=_TSSL_REMARK,
        ),
        NamedPreset(
            "cifar10-sew-resnet18",
            "cifar10",
            "Fang et al. 2021, NeurIPS (SEW-ResNet-18, ADD), with the first layers that CIFAR-10 takes",
            {**_CIFAR10_SETTINGS, "net": _SEW_RESNET18, "steps": 4},
            similar=("images",),
            remark=f"published on ImageNet; {_NOT_MEASURED}",
        ),
        NamedPreset(
            "cifar10-plif",
            "cifar10",
            "Fang et al. 2021, ICCV (PLIF-net)",
            {**_CIFAR10_SETTINGS, "net": _PLIF_NET, "neuron": "plif", "tau_m": 2.0, "steps": 8},
            similar=("images",),
            remark=f"ten outputs instead of a hundred that vote; {_NOT_MEASURED}",
        ),
        NamedPreset(
            "cifar10-vgg-tdbn",
            "cifar10",
            "Zheng et al. 2021, AAAI (tdBN), on a VGG of eight convolutions",
            {**_CIFAR10_SETTINGS, "net": _VGG, "steps": 6},
            similar=("images",),
            remark="tdBN's factor is the threshold, here 1, so it is batch normalisation as it stands "
            f"({{factor=0.5}} halves it); {_NOT_MEASURED}",
        ),
        NamedPreset(
            "shd-recurrent",
            "shd",
            "Cramer et al. 2020, IEEE TNNLS (Heidelberg Spiking Digits), one recurrent layer",
            {"net": "128R", "steps": 100},
            similar=("fsdd", "ssc"),
            remark=_NOT_MEASURED,
        ),
        NamedPreset(
            "shd-delays",
            "shd",
            "after Hammouamri et al. 2024, ICLR (delays in feed-forward networks)",
            {"net": "[128|128{delay=6}|128{delay=12}|128{delay=18}]+-[128|128{delay=6}|128{delay=12}]+", "steps": 100},
            similar=("fsdd", "ssc"),
            remark=f"delays are learned there, and fixed here; {_NOT_MEASURED}",
        ),
    )
    return {entry.name: entry for entry in presets}


PRESETS: Mapping[str, NamedPreset] = MappingProxyType(_named())
"""All named presets by name."""
