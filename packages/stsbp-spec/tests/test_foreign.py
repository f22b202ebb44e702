"""Classes of the user's own: found, and what is wrong with them said."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from stsbp_spec.errors import ShapeError, SpecError
from stsbp_spec.foreign import calling, imported, names_a_class, read_pairs, read_values, split
from stsbp_spec.losses.base import Loss
from stsbp_spec.neurons import LIF
from stsbp_spec.neurons.base import NeuronModel

MODULE = """
from dataclasses import dataclass

from stsbp_spec.neurons import LIF


@dataclass(frozen=True)
class Own(LIF):
    kind: str = "soft"


class Undecorated(LIF):
    pass


instance = LIF()
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a module that nobody else has."""
    (tmp_path / "owned_neurons.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "owned_neurons", raising=False)
    return tmp_path


@pytest.mark.usefixtures("here")
def test_a_class_is_found_in_the_current_folder_which_is_searched_for_that_alone() -> None:
    before = list(sys.path)
    found = imported("owned_neurons:Own:tau_m=3", (NeuronModel,), "neuron model")
    assert found.__name__ == "Own"
    assert issubclass(found, LIF)
    assert sys.path == before


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere_at_all:X", "the neuron model 'nowhere_at_all:X' cannot be imported: ModuleNotFoundError: No module"),
        ("owned_neurons:Owm", "there is no 'owned_neurons:Owm': the module has no 'Owm' (did you mean Own?)"),
        (
            "owned_neurons:instance",
            "'owned_neurons:instance' is not a neuron model; it must be a class that derives from NeuronModel",
        ),
        ("owned_neurons:dataclass", "'owned_neurons:dataclass' is not a neuron model; it must be a class that derives"),
        (
            "owned_neurons:Undecorated",
            "'owned_neurons:Undecorated' is not a dataclass; write @dataclass(frozen=True) above",
        ),
    ],
)
def test_what_is_no_class_for_it_is_refused(text: str, message: str) -> None:
    before = list(sys.path)
    with pytest.raises(SpecError) as caught:
        imported(text, (NeuronModel,), "neuron model")
    assert str(caught.value).startswith(message)
    assert sys.path == before


@pytest.mark.usefixtures("here")
def test_a_class_of_another_kind_is_refused() -> None:
    with pytest.raises(SpecError, match=r"is not a loss or model; it must be a class that derives from Loss or Path"):
        imported("owned_neurons:Own", (Loss, Path), "loss or model")


def test_what_code_of_others_raises_is_told_with_its_place() -> None:
    with (
        pytest.raises(SpecError, match=r"^it fails: ZeroDivisionError: .* \(.*test_foreign\.py:\d+\)$"),
        calling("it fails"),
    ):
        1 / 0  # noqa: B018
    with pytest.raises(SpecError, match=r"^it fails: TypeError: no$"), calling("it fails"):
        raise TypeError("no")
    with pytest.raises(ShapeError, match=r"^as it was$"), calling("it fails"):
        raise ShapeError("as it was")


def test_a_class_has_a_module_before_it() -> None:
    assert names_a_class(" mine:Own:tau_m=3", LIF.__name__)
    assert not names_a_class("lif:tau_m=3", {"lif"})
    assert not names_a_class("lif:Own", {"lif"})
    assert not names_a_class("mine", {"lif"})
    assert split(" mine:Own:tau_m=3:kind=hard ") == ("mine", "Own", ["tau_m=3", "kind=hard"])


@pytest.mark.usefixtures("here")
def test_values_are_numbers_and_text_where_the_default_is() -> None:
    own = imported("owned_neurons:Own", (NeuronModel,), "neuron model")
    assert read_values(own, ["kind=3", "tau_m=3"], "neuron") == {"kind": "3", "tau_m": 3.0}
    with pytest.raises(SpecError, match=r"^neuron has no parameter 'tau'; it has: tau_m, "):
        read_values(own, ["tau=3"], "neuron")
    with pytest.raises(SpecError, match=r"^neuron: tau_m must be a number, got 'much'$"):
        read_values(own, ["tau_m=much"], "neuron")
    for pair in ("tau_m", "tau_m=", "=3"):
        if pair == "=3":
            assert list(read_pairs([pair], "neuron")) == [("", "3")]
        else:
            with pytest.raises(SpecError, match=r"^neuron: expected key=value, got "):
                list(read_pairs([pair], "neuron"))
