"""Classes of the user's own: found, and what is wrong with them said."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stsbp_spec import AdamW, Batch, NetworkSpec, initial_weights, open_backend
from stsbp_spec.equations.expressions import spike, where
from stsbp_spec.errors import ShapeError, SpecError
from stsbp_spec.models.losses import LOSSES
from stsbp_spec.models.losses.base import Loss, LossStep
from stsbp_spec.models.losses.stored import as_text as loss_text
from stsbp_spec.models.neurons import LIF
from stsbp_spec.models.neurons.base import Adjoint, NeuronModel, Step
from stsbp_spec.models.neurons.stored import as_text as neuron_text
from stsbp_spec.models.surrogates import Surrogate
from stsbp_spec.models.user_classes import calling, imported, names_a_class, read_pairs, read_values, split

MODULE = """
from dataclasses import dataclass

from stsbp_spec.models.neurons import LIF


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
    paths = list(sys.path)
    cls = imported("owned_neurons:Own:tau_m=3", (NeuronModel,), "neuron model")
    assert cls.__name__ == "Own"
    assert issubclass(cls, LIF)
    assert sys.path == paths


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
    paths = list(sys.path)
    with pytest.raises(SpecError) as caught:
        imported(text, (NeuronModel,), "neuron model")
    assert str(caught.value).startswith(message)
    assert sys.path == paths


@pytest.mark.usefixtures("here")
def test_a_class_of_another_kind_is_refused() -> None:
    with pytest.raises(SpecError, match=r"is not a loss or model; it must be a class that derives from Loss or Path"):
        imported("owned_neurons:Own", (Loss, Path), "loss or model")


def test_what_code_of_others_raises_is_told_with_its_place() -> None:
    with (
        pytest.raises(SpecError, match=r"^it fails: ZeroDivisionError: .* \(.*test_user_classes\.py:\d+\)$"),
        calling("it fails"),
    ):
        1 / 0  # noqa: B018
    with pytest.raises(SpecError, match=r"^it fails: TypeError: no$"), calling("it fails"):
        raise TypeError("no")
    with pytest.raises(ShapeError, match=r"^as it was$"), calling("it fails"):
        raise ShapeError("as it was")
    with pytest.raises(MemoryError), calling("it fails"):
        raise MemoryError
    with (
        pytest.raises(ShapeError, match=r"^it fails: ValueError: no \(.*test_user_classes\.py"),
        calling("it fails", ShapeError),
    ):
        raise ValueError("no")


def test_place_is_that_of_the_users_line_and_not_of_a_library() -> None:
    line = sys._getframe().f_lineno + 2
    with pytest.raises(SpecError, match=rf"FileNotFoundError: .*test_user_classes\.py:{line}\)$"), calling("it fails"):
        np.load("nowhere.npy")


@pytest.mark.parametrize(("code", "shown"), [("", "None"), ("0", "0"), ("3", "3"), ("'bye'", "'bye'")])
def test_module_that_ends_the_program_is_refused(here: Path, code: str, shown: str) -> None:
    (here / "owned_neurons.py").write_text(f"import sys\n\nsys.exit({code})\n")
    message = rf"^the neuron model 'owned_neurons:Own' cannot be imported: it calls sys\.exit\({shown}\) "
    with pytest.raises(SpecError, match=message + r"\(.*owned_neurons\.py:3\)$"):
        imported("owned_neurons:Own", (NeuronModel,), "neuron model")


def test_module_that_lacks_another_module_is_named(here: Path) -> None:
    (here / "owned_neurons.py").write_text("import nowhere_at_all\n")
    with pytest.raises(
        SpecError, match=r"ModuleNotFoundError: No module named 'nowhere_at_all' \(.*owned_neurons\.py:1\)$"
    ):
        imported("owned_neurons:Own", (NeuronModel,), "neuron model")


def test_a_class_has_a_module_before_it() -> None:
    assert names_a_class(" mine:Own:tau_m=3", LIF.__name__)
    assert not names_a_class("lif:tau_m=3", {"lif"})
    assert not names_a_class("lif:Own", {"lif"})
    assert not names_a_class("mine", {"lif"})
    assert split(" mine:Own:tau_m=3:kind=hard ") == ("mine", "Own", ["tau_m=3", "kind=hard"])


@pytest.mark.usefixtures("here")
def test_values_are_numbers_and_text_where_the_default_is() -> None:
    cls = imported("owned_neurons:Own", (NeuronModel,), "neuron model")
    assert read_values(cls, ["kind=3", "tau_m=3"], "neuron") == {"kind": "3", "tau_m": 3.0}
    with pytest.raises(SpecError, match=r"^neuron has no parameter 'tau'; it has: tau_m, "):
        read_values(cls, ["tau=3"], "neuron")
    with pytest.raises(SpecError, match=r"^neuron: tau_m must be a number, got 'much'$"):
        read_values(cls, ["tau_m=much"], "neuron")
    for pair in ("tau_m", "tau_m=", "=3"):
        if pair == "=3":
            assert list(read_pairs([pair], "neuron")) == [("", "3")]
        else:
            with pytest.raises(SpecError, match=r"^neuron: expected key=value, got "):
                list(read_pairs([pair], "neuron"))


ZERO: Any = 0
NOTHING: Any = []


def _model(base: Any, **members: Any) -> Any:
    """A model of the class `Own`, derived from `base`, with these members in place of those that are right."""
    right: dict[Any, dict[str, Any]] = {
        NeuronModel: {
            "states": ("m",),
            "constants": lambda self: {"vth": 1.0},
            "step": lambda self, p, s, i: _step(s.m + i),
        },
        Surrogate: {"constants": lambda self: {"k": 0.5}, "expression": lambda self, p, x: p.k, "primitive": None},
        Loss: {
            "parameters": ("k",),
            "constants": lambda self, psp, steps, batch: {"k": 1 / batch},
            "measure": lambda self, p, x: abs(x.o - x.target),
            "back": lambda self, p, s, x: LossStep({}, p.k * (x.o - x.target)),
        },
    }
    model: Any = dataclass(frozen=True)(type("Own", (base,), {"name": "own"} | right[base] | members))
    return model()


def _step(u: Any, **parts: Any) -> Step:
    return Step(**{"u": u, "spike": spike(u, 1), "states": {"m": where(spike(u, 1), 0, u)}, **parts})


def _used(model: Any) -> None:
    """Store a model, and train with it."""
    neuron: NeuronModel = LIF()
    loss: Loss = LOSSES["van-rossum"]
    if isinstance(model, NeuronModel):
        neuron = model
        neuron_text(model)
    elif isinstance(model, Surrogate):
        neuron = LIF(surrogate=model)
        neuron_text(neuron)
    else:
        loss = model
        loss_text(model)
    network = NetworkSpec.parse("6R", input_shape=(5,), outputs=2, neuron=neuron)
    trainer = open_backend("numpy").trainer(network, loss, AdamW(lr=0.1))
    batch = Batch(np.ones((4, 3, 5), np.uint8), np.zeros((4, 3, 2), np.uint8))
    trainer.step(trainer.init(initial_weights(network, 0)), batch)


@pytest.mark.parametrize(
    ("base", "members"),
    [
        (NeuronModel, {"step": lambda self, p, s, i: _step(s.m + i, states={"m": 1})}),
        (NeuronModel, {"step": lambda self, p, s, i: _step(1.0)}),
        (Surrogate, {"expression": lambda self, p, x: 1}),
        (Loss, {"measure": lambda self, p, x: 1.0}),
        (Loss, {"back_states": ("b",), "back": lambda self, p, s, x: LossStep({"b": ZERO}, p.k * x.o)}),
        (NeuronModel, {"constants": lambda self: {"vth": np.float32(1), "soft": True}}),
    ],
)
def test_numbers_are_expressions(base: type[Any], members: dict[str, Any]) -> None:
    _used(_model(base, **members))


MISTAKES: dict[str, tuple[type[Any], dict[str, Any], str]] = {
    "tuple": (
        NeuronModel,
        {"step": lambda self, p, s, i: (s.m, spike(s.m, 1), {})},
        "Own.step must return a Step",
    ),
    "nothing": (NeuronModel, {"step": lambda self, p, s, i: None}, "Own.step must return a Step, got None"),
    "list": (NeuronModel, {"step": lambda self, p, s, i: _step(i, states=[i])}, "states of a step must be a dict of"),
    "no state": (NeuronModel, {"step": lambda self, p, s, i: _step(i, states={"m": None})}, "m must be a number, got"),
    "truth": (NeuronModel, {"step": lambda self, p, s, i: _step(i, spike=True)}, r"spike\(u, threshold\) .*, got True"),
    "numpy": (
        NeuronModel,
        {"step": lambda self, p, s, i: _step(np.exp(i))},
        r"Own.step fails: TypeError: .*ufuncs.*test_user_classes\.py:[0-9]+",
    ),
    "item": (NeuronModel, {"step": lambda self, p, s, i: _step(s["m"])}, "Own.step fails: TypeError: 'Names' object"),
    "adjoint": (NeuronModel, {"adjoint": lambda self, *_: 1}, "Own.adjoint must return a Adjoint, got 1"),
    "carried": (
        NeuronModel,
        {"adjoint": lambda self, *_: Adjoint(ZERO, NOTHING)},
        "carried of an adjoint must be",
    ),
    "word": (NeuronModel, {"constants": lambda self: {"vth": "x"}}, "Own.constants: vth must be a number, got 'x'"),
    "none": (NeuronModel, {"constants": lambda self: None}, "Own.constants must return a dict of numbers"),
    "array": (NeuronModel, {"constants": lambda self: {"vth": np.ones(2)}}, "vth must be a number, got array"),
    "large": (NeuronModel, {"constants": lambda self: {"vth": 1e300}}, r"vth must be finite .*, got 1e\+300 for Own\("),
    "no number": (NeuronModel, {"constants": lambda self: {"vth": np.nan}}, "vth must be finite in float32, got nan"),
    "large slope": (Surrogate, {"constants": lambda self: {"k": 3.5e38}}, r"k must be finite in float32, got 3.5e\+38"),
    "large error": (Loss, {"constants": lambda self, *_: {"k": 1e39}}, r"k must be finite in float32, got 1e\+39"),
    "learned": (NeuronModel, {"learned": lambda self: {"b": 0.5}}, r"Own.learned must return a dict of Learned\(...\)"),
    "states": (NeuronModel, {"states": None}, "the class Own must define states, a tuple of texts, got None"),
    "name": (NeuronModel, {"name": None}, "the class Own must define name, a text, got None"),
    "slope": (Surrogate, {"expression": lambda self, p, x: None}, "Own.expression must be a number, got None"),
    "numpy slope": (Surrogate, {"expression": lambda self, p, x: np.abs(x)}, "Own.expression fails: TypeError"),
    "surrogate": (Surrogate, {"constants": lambda self: [1]}, "Own.constants must return a dict of numbers"),
    "surrogate's name": (Surrogate, {"name": None}, "the class Own must define name, a text, got None"),
    "error": (Loss, {"back": lambda self, p, s, x: p.k * x.o}, "Own.back must return a LossStep, got Expr"),
    "no error": (Loss, {"back": lambda self, p, s, x: None}, "Own.back must return a LossStep, got None"),
    "r": (Loss, {"back": lambda self, p, s, x: LossStep({}, x.r)}, "there is no value of a step 'r'; there are: o,"),
    "distance": (Loss, {"measure": lambda self, p, x: x.r}, "there is no value of a step 'r'; there are: o,"),
    "zero": (
        Loss,
        {"constants": lambda self, *_: {"k": 1 / 0}},
        "Own.constants fails: ZeroDivisionError: .*test_user_classes",
    ),
    "missing": (Loss, {"constants": lambda self, *_: {}}, "its constants lack k, which `parameters` names"),
    "arrays": (Loss, {"constants": lambda self, *_: {"k": np.ones(3)}}, "Own.constants: k must be a number, got array"),
    "parameters": (Loss, {"parameters": None}, "the class Own must define parameters, a tuple of texts, got None"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_methods_of_a_model_are_named(mistake: str) -> None:
    base, members, message = MISTAKES[mistake]
    with pytest.raises(SpecError, match=message):
        _used(_model(base, **members))


@pytest.mark.parametrize(
    "mistake", [name for name, (_, members, _) in MISTAKES.items() if all(map(callable, members.values()))]
)
def test_mistakes_in_methods_that_are_assigned_later_are_named(mistake: str) -> None:
    base, members, message = MISTAKES[mistake]
    model = type(_model(base))
    for name, method in members.items():
        setattr(model, name, method)
    with pytest.raises(SpecError, match=message):
        _used(model())


def test_decorated_methods_are_guarded_and_called_as_before() -> None:
    class Own(LIF):
        @cache  # noqa: B019
        def constants(self) -> dict[str, float]:
            return {"vth": math.inf}

    with pytest.raises(SpecError, match=r"^Own\.constants: vth must be finite in float32, got inf for "):
        Own().constants()
    guarded: Any = Own
    guarded.constants = staticmethod(lambda: {"vth": 2.0})
    assert Own().constants() == {"vth": 2.0}
    guarded.constants = classmethod(lambda cls: {"vth": cls.__name__})
    with pytest.raises(SpecError, match=r"^Own\.constants: vth must be a number, got 'Own'$"):
        Own().constants()
