"""Arrays with axes in another order, or names in another form, are refused with what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import stsbp as package
from stsbp.datasets.arrays import given_data
from stsbp.errors import ConfigError, DataError
from stsbp_spec import NetworkSpec, initial_weights, open_backend
from stsbp_spec.equations.expressions import Expr, Names, named, spike, where
from stsbp_spec.models.neurons.base import NeuronModel, Step, parameter, steps
from stsbp_spec.models.surrogates import Arctan, Surrogate
from stsbp_spec.validation import array_of

IMAGES, LABELS = np.zeros((6, 1, 28, 28), np.uint8), np.arange(6) % 3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((IMAGES.transpose(0, 2, 3, 1), LABELS), r"np\.moveaxis\(x, -1, 1\)"),
        ({"inputs": IMAGES, "targets": np.zeros((6, 8, 3), bool)}, r"targets must be \[T, n, N\].*np\.swapaxes"),
        ({"inputs": np.zeros((8, 6, 5), bool), "targets": np.zeros((6, 8, 3), bool)}, r"targets must be.*swapaxes"),
        ({"inputs": IMAGES, "labels": LABELS, "classes": np.array("abc")}, "classes must be the names of at least 3"),
        ({"inputs": IMAGES, "labels": LABELS, "classes": np.array([["a", "b"]] * 3)}, "classes must be the names"),
    ],
    ids=["channels last", "targets of images", "targets of events", "a text in an array", "a matrix of names"],
)
def test_another_order_or_form_is_refused_with_a_remedy(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        given_data(data)


LONG, TARGETS = np.zeros((9, 6, 5), bool), np.zeros((9, 6, 3), bool)
"""Nine steps of six samples, or nine samples of six steps."""
ASKED = r"data have 6 samples of 9 steps if the first axis .* is time.*give steps=9.*np\.swapaxes\(x, 0, 1\)"


@pytest.mark.parametrize(
    "data",
    [(LONG, TARGETS), (LONG, TARGETS, LONG, TARGETS), (LONG[..., None, None], TARGETS)],
    ids=["rasters", "test samples of the same number", "frames"],
)
def test_rasters_that_may_have_samples_first_are_asked_about(data: Any, tmp_path: Path) -> None:
    network = NetworkSpec.parse("4", input_shape=data[0].shape[2:], outputs=3)
    weights = initial_weights(network, seed=0)
    settings: dict[str, Any] = {"epochs": 1, "backend": "numpy", "progress": False}
    asked: list[dict[str, Any]] = [{}, {"steps": 6}, {"config": {"steps": 6}}]
    for given in asked:
        with pytest.raises(DataError, match=ASKED):
            package.train(data, "4", out=tmp_path / "t", **given, **settings)
    with pytest.raises(DataError, match=ASKED):
        package.save_run(network, tmp_path / "s", weights=weights, data=data, backend="numpy")
    assert not (tmp_path / "t").exists()
    assert not (tmp_path / "s").exists()
    saved = package.save_run(network, tmp_path / "s", weights=weights, data=data, steps=9, backend="numpy")
    assert saved.evaluate(data)["samples"] == 6
    with pytest.raises(DataError, match=r"have 6 steps, not 9.*if their first axis is the samples, .*np\.swapaxes"):
        saved.evaluate([np.swapaxes(x, 0, 1) for x in data])
    confirmed: list[dict[str, Any]] = [{"steps": 9}, {"config": {"steps": 9}}]
    for number, given in enumerate(confirmed):
        assert package.train(data, "4", out=tmp_path / f"t{number}", **given, **settings).settings.steps == 9
    # The run that is continued knows its steps.
    assert package.train(data, resume=tmp_path / "t0", epochs=2, progress=False, backend="numpy").finished


@pytest.mark.parametrize(
    "data",
    [
        {"inputs": LONG, "labels": LABELS},
        {"inputs": LONG, "targets": TARGETS, "lengths": np.full(6, 9)},
        (LONG, TARGETS, LONG[:, :4], TARGETS[:, :4]),
        (np.swapaxes(LONG, 0, 1), np.swapaxes(TARGETS, 0, 1)),
    ],
    ids=["labels", "lengths", "test samples", "fewer steps than samples"],
)
def test_rasters_whose_samples_are_confirmed_are_not_asked_about(data: Any) -> None:
    given_data(data).check_axes([None])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((LONG, TARGETS, LONG[:4], TARGETS[:4]), r"those of the test samples 4; the first axis .*np\.swapaxes"),
        ({"inputs": LONG, "targets": TARGETS, "lengths": np.full(9, 6)}, r"got int64 \[9\]; they fit .*np\.swapaxes"),
        ({"inputs": IMAGES, "labels": LABELS, "lengths": np.full(6, 9)}, "are images, which have none; leave lengths"),
    ],
    ids=["test samples", "lengths", "lengths of images"],
)
def test_what_tells_samples_from_steps_is_named(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        given_data(data)


def test_an_array_of_names_is_a_list_of_names() -> None:
    given = given_data({"inputs": IMAGES, "labels": LABELS, "classes": np.array(["a", "b", "c"])})
    assert given.info.name == "arrays"


LOAD_RUN: Any = package.load_run


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run, folder: LOAD_RUN(folder, "../x/last"), "checkpoint is 'last' or 'best', got '../x/last'"),
        (lambda run, folder: run("y", history=b"123"), "history is a list of records, or lists by name, got b'123'"),
        (lambda run, folder: run("y", history=[{1: 0.5, "1": 0.4}]), "two of the names are equal as text, got 1, '1'"),
        (lambda run, folder: run("y", history={1: [0.5], "1": [0.4]}), "two of the names are equal as text"),
        (
            lambda run, folder: run("y", data_dir=["a", "b"]),
            r"data_dir = \[\"a\", \"b\"\]: input should be a valid str",
        ),
    ],
    ids=["a checkpoint elsewhere", "bytes", "equal names", "equal columns", "two folders"],
)
def test_small_mistakes_are_not_read_as_something_else(call: Any, message: str, tmp_path: Path) -> None:
    network = NetworkSpec.parse("4", input_shape=(5,), outputs=3)

    def saved(name: str, **arguments: Any) -> Any:
        settings: dict[str, Any] = {"steps": 4, "backend": "numpy", **arguments}
        return package.save_run(network, tmp_path / name, weights=initial_weights(network, seed=0), **settings)

    saved("x")
    with pytest.raises(ConfigError, match=message):
        call(saved, tmp_path / "x")
    assert not (tmp_path / "y").exists()


def test_two_lists_of_two_samples_are_inputs_and_labels() -> None:
    """Not two pairs."""
    given = given_data(([[1, 0, 3], [0, 2, 1]], [0, 1]))
    assert (given.coding, given.steps) == ("direct", None)
    pairs = given_data(((IMAGES, LABELS), (IMAGES, LABELS)))
    assert pairs.coding == "direct"


def test_arrays_of_unusual_types_are_read_as_their_numbers() -> None:
    expected = np.array([0, 1, 3])
    assert array_of(expected) is expected
    foreign = array_of(expected.astype(">f4"))
    assert foreign.dtype == np.float32
    assert foreign.tolist() == [0, 1, 3]
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    negative = torch._neg_view(torch.tensor([0, -1, -3]))
    assert negative.is_neg()
    assert array_of(negative).tolist() == [0, 1, 3]
    for name in ("int4", "uint4"):
        small = array_of(jax.numpy.array([0, 1, 3], name))
        assert small.dtype == name.replace("4", "8")
        assert small.tolist() == [0, 1, 3]


@dataclass(frozen=True)
class Doubled(NeuronModel):
    """A model of the user: leaky, and a current counts twice."""

    name: ClassVar[str] = "doubled"
    states: ClassVar[tuple[str, ...]] = ("m",)
    tau_m: float = parameter(3.0, steps)
    tau_s: float = 2.0
    threshold: float = 1.0
    surrogate: Surrogate = field(default_factory=Arctan)

    def constants(self) -> Mapping[str, float]:
        return {"km": 1 - 1 / self.tau_m, "vth": self.threshold}

    def step(self, p: Names, s: Names, i: Expr) -> Step:
        u = named("u", s.m + 2 * i)
        o = spike(u, p.vth)
        return Step(u, o, {"m": where(o, 0, p.km * u)})


class _NoPath:
    def __fspath__(self) -> Any:
        return 3


@pytest.mark.parametrize("path", ["r/\0", "r/\ud800", _NoPath()], ids=["zero byte", "surrogate", "no text"])
def test_what_is_no_path_is_refused(path: Any) -> None:
    with pytest.raises(ConfigError, match="out is a path such as"):
        package.train((IMAGES, LABELS), "4", out=path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": np.array("abcd")}, "classes are the names of the classes"),
        ({"classes": ["a", "a", "b"]}, "two of the names are equal"),
        ({"init_from": "runs/x"}, "init_from= names weights to begin with"),
    ],
    ids=["a text in an array", "equal names", "weights to begin with"],
)
def test_save_run_takes_nothing_that_does_not_describe_the_run(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    network = NetworkSpec.parse("4", input_shape=(5,), outputs=3)
    with pytest.raises(ConfigError, match=message):
        package.save_run(
            network, tmp_path / "run", weights=initial_weights(network, seed=0), steps=4, backend="numpy", **arguments
        )
    run = package.save_run(network, tmp_path / "y", weights=initial_weights(network, seed=0), steps=4, backend="numpy")
    with pytest.raises(ConfigError, match="unknown format"):
        run.export(["c"], tmp_path / "c")  # type: ignore[arg-type]


def test_a_network_that_reads_other_inputs_than_the_data_is_refused(tmp_path: Path) -> None:
    events = np.zeros((4, 6, 12), bool)
    for arguments in ({"input_shape": (13,)}, {"input_shape": (12,), "coding": "direct"}):
        network = NetworkSpec.parse("8", outputs=3, **arguments)
        with pytest.raises(ConfigError, match="but the data are"):
            package.train((events, LABELS), network, out=tmp_path / "x", epochs=1, backend="numpy", progress=False)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("gain", ["normalised", "unit"])
def test_a_network_with_a_neuron_of_the_user_is_trained_and_saved(gain: str, tmp_path: Path) -> None:
    neuron = Doubled(tau_m=3.0, tau_s=2.0, threshold=0.5, psp_gain=gain)  # type: ignore[call-arg]
    network = NetworkSpec.parse("8", input_shape=(12,), outputs=3, neuron=neuron)
    events = np.random.default_rng(0).random((6, 9, 12)) < 0.4
    data, weights = (events, np.arange(9) % 3), initial_weights(network, seed=0)
    settings: dict[str, Any] = {"backend": "numpy", "progress": False}
    run = package.save_run(network, tmp_path / "saved", weights=weights, data=data, **settings)
    spikes = open_backend("numpy").run(network, weights, events.astype(np.uint8), 6).layers["linear2"].spikes
    assert np.array_equal(run.predict(events.astype(np.uint8)).spikes, spikes)
    assert package.train(data, network, out=tmp_path / "trained", epochs=1, test=False, **settings).finished
    assert package.train(data, resume=tmp_path / "saved", **settings).finished
