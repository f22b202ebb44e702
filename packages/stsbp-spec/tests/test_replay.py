"""Recordings: what stands in for a device keeps the function, and computes again on the recording's own arrays."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import pytest
from stsbp_spec import LIF, AdamW, Batch, NetworkSpec, VanRossum, initial_weights
from stsbp_spec.engine.replay import SWITCH, Graphs, Tape, _arrays, _form, _with, recording_requested
from stsbp_spec.errors import BackendError
from stsbp_spec.reference.backend import NumpyBackend

NETWORK = NetworkSpec.parse("6-5", input_shape=(4,), outputs=3, neuron=LIF(3, 5 / 3))


class Again(Graphs[Any]):
    """Records by keeping the function."""

    def twin(self, x: Any) -> Any:
        return np.full_like(x, 77)

    def copy(self, pairs: Sequence[tuple[Any, Any]]) -> None:
        for source, target in pairs:
            target[...] = source

    def record(self, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        results = run()
        return lambda: self.copy([*zip(_arrays(run()), _arrays(results), strict=True)]), results


class Recording(NumpyBackend):
    """The reference, whose functions are recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.graphs = Again(self)
        self.called: list[str] = []

    def compiled(self, function: Callable[..., Any], *fixed: Hashable) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            self.called.append(function.__name__)
            return self.graphs.call(function, fixed, arguments)

        return counted


def batches(*samples: int) -> list[Batch]:
    rng = np.random.default_rng(0)
    return [
        Batch((rng.random((5, n, 4)) < 0.4).astype(np.uint8), (rng.random((5, n, 3)) < 0.3).astype(np.uint8))
        for n in samples
    ]


def train(backend: NumpyBackend, data: list[Batch], **options: Any) -> dict[str, bytes]:
    options = {"precision": "reproducible", **options}
    trainer = backend.trainer(NETWORK, VanRossum(), AdamW(lr=0.01), **options)
    state = trainer.init(initial_weights(NETWORK, 1, 2.0))
    for batch in data:
        state, _ = trainer.step(state, batch)
    return {name: x.tobytes() for name, x in trainer.export_state(state).items()}


def test_what_is_recorded_takes_new_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, data = Recording(), batches(2, 2, 2, 3, 2, 2)
    # The stand-in computes an update with the scalars of the step that it kept: gradients alone are recorded here.
    monkeypatch.setattr(Again, "RECORDED", (Graphs.RECORDED[0],))
    assert train(backend, data) == train(NumpyBackend(), data)
    assert backend.graphs.count == 1, "batches of 3 came once"
    assert backend.called.count("gradients") == 6
    backend.graphs.forget()
    assert backend.graphs.count == 0


def test_parts_whose_inputs_are_encoded_late_are_arguments_too(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, parts = Recording(), batches(4, 4, 4, 4, 4)
    monkeypatch.setattr(Again, "RECORDED", (Graphs.RECORDED[0],))
    options = {"precision": "fast", "micro_batch": 2}
    assert train(backend, parts, **options) == train(NumpyBackend(), parts, **options)
    assert backend.graphs.count == 1


def test_what_is_forgotten_must_be_called_often_again(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, recorded = Recording(), list[int]()
    monkeypatch.setattr(Again, "LIMIT", 1)
    monkeypatch.setattr(Again, "WARM", 1)
    monkeypatch.setattr(Again, "RECORDED", (Graphs.RECORDED[0],))
    original_record = backend.graphs.record

    def record(run: Callable[[], Any]) -> Any:
        recorded.append(len(recorded))
        return original_record(run)

    monkeypatch.setattr(backend.graphs, "record", record)
    data = batches(2, 2, 3, 3, 2, 2, 2)
    counts = []
    trainer = backend.trainer(NETWORK, VanRossum(), AdamW(lr=0.01), precision="reproducible")
    state = trainer.init(initial_weights(NETWORK, 1, 2.0))
    for batch in data:
        state, _ = trainer.step(state, batch)
        counts.append(len(recorded))
    assert counts == [0, 1, 1, 2, 2, 3, 3]
    assert backend.graphs.count == 1


def test_other_functions_run_as_they_are() -> None:
    backend = Recording()
    (batch,) = batches(2)
    for _ in range(4):
        backend.run(NETWORK, initial_weights(NETWORK, 1), batch.inputs, 5)
    assert backend.called == ["states"] * 4
    assert backend.graphs.count == 0


def test_a_tape_fills_its_arrays_anew_and_refuses_new_ones_while_recording() -> None:
    tape = Tape(Again(NumpyBackend()), 2)
    filled = tape.filled("twice", lambda now: np.array([2 * now]))
    assert filled.tolist() == [4]
    assert tape.filled("twice", lambda now: np.array([0])) is filled
    tape.fill(5)
    assert filled.tolist() == [10]
    tape.recording = True
    assert tape.filled("twice", lambda now: np.array([0])) is filled
    with pytest.raises(BackendError, match="CUDA graphs: thrice was not requested before the step was recorded"):
        tape.filled("thrice", lambda now: np.array([0]))


def test_arrays_are_found_in_what_holds_them() -> None:
    a, b, c = (np.full(n, n) for n in (1, 2, 3))
    x = ({"a": a, "none": None}, [(b, 4)], c)
    assert [array.size for array in _arrays(x)] == [1, 2, 3]
    doubled = _with(x, lambda array: 2 * array)
    assert [array.tolist() for array in _arrays(doubled)] == [[2], [4, 4], [6, 6, 6]]
    assert doubled[0]["none"] is None
    assert doubled[1][0][1] == 4
    same = ({"none": None, "a": a + 1}, [(b, 9)], c)
    assert _form(x) == _form(same), "numbers do not matter"
    for other in (
        ({"a": a, "none": 1}, [(b, 4)], c),
        ({"z": a, "none": None}, [(b, 4)], c),
        ({"a": a.astype(np.float32), "none": None}, [(b, 4)], c),
        ({"a": a, "none": None}, [(c, 4)], c),
    ):
        assert _form(x) != _form(other)


@pytest.mark.parametrize(("value", "expected"), [(None, False), ("0", False), ("1", True), ("on", None)])
def test_the_switch_is_0_or_1(value: str | None, expected: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    if value is not None:
        monkeypatch.setenv(SWITCH, value)
    if expected is None:
        with pytest.raises(BackendError, match="is 0 or 1, got 'on'"):
            recording_requested()
    else:
        assert recording_requested() is expected
