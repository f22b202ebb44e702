"""The stored hashes: every backend still computes them, the cases reach what they are for, and a difference is told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stsbp_conformance import hashes, reference
from stsbp_conformance.faults import BACKENDS
from stsbp_conformance.hashes import CASES, Case, HashesDiffer
from stsbp_conformance.process import Trained
from stsbp_conformance.reference import NUMPY
from stsbp_conformance.tiers import elementwise, parts
from stsbp_conformance.tiers.reproducible import OPTIMIZER
from stsbp_spec.contract.grid import CONTRACT_VERSION, FLOOR
from stsbp_spec.engine.backend import AbstractBackend, RunResult
from stsbp_spec.models.neurons import LIF
from stsbp_spec.models.surrogates import SURROGATES
from stsbp_spec.networks.ops import PSP
from stsbp_spec.reference.backend import NumpyBackend
from stsbp_spec.registry import load_backend

QUICK = [case for case in CASES if case.quick]
_KINDS = ("neuron", "synaptic", "error", "AdamW", "Adam", "SGD", "rate")
SINGLE = [case for case in CASES if case.id.split()[0].strip(",") in _KINDS]
UPDATES = [case for case in CASES if case.id.startswith("updates")]
NETWORKS = [case for case in CASES if case not in SINGLE and case not in UPDATES]
TAUS = [(tau_m, tau_s) for tau_m in (1.0, 5 / 3, 2.0, 8.0) for tau_s in (1.0, 5 / 3, 3.0, 4.0, 5.0)]


def test_stored_hashes(stsbp_backend: AbstractBackend) -> None:
    """On numpy all of them. The cases of single operations are checks of tier 5, which every backend passes."""
    # JAX compiles for each network for several seconds. torch computes with the kernels of cpu, and with expressions
    # that the networks of tier 4 compare in other sizes.
    cases = CASES if stsbp_backend.name == "numpy" else [*NETWORKS, *UPDATES]
    if stsbp_backend.name in ("jax", "torch"):
        cases = [case for case in cases if case.quick]
    computed = hashes.compute(stsbp_backend, cases)
    stored = hashes.read()
    assert stored.contract == CONTRACT_VERSION
    hashes.compare(f"{stsbp_backend.name}={stsbp_backend.device}", computed, stored.cases, "hashes.json")


def test_kernels_are_compiled_ahead_for_the_arguments_they_get() -> None:
    """What `stsbp backends --compile` leaves out, a first run would compile."""
    precompile = pytest.importorskip("stsbp_cpu.engine.precompile")
    from stsbp_cpu.backend import CpuBackend

    # Tests before this one have called kernels too, some for arguments that no network has.
    kernels = {precompile.kernel(line).dispatcher for line in precompile.FIRST + precompile.OTHERS}
    signatures = {kernel: set(kernel.signatures) for kernel in kernels}
    hashes.compute(CpuBackend(), QUICK)
    listed: dict[Any, set[Any]] = {}
    for compiled in map(precompile.kernel, precompile.FIRST + precompile.OTHERS):
        listed.setdefault(compiled.dispatcher, set()).add(compiled.types)
    assert sum(len(kernel.signatures) for kernel in kernels) > 10
    assert all(set(kernel.signatures) - signatures[kernel] <= types for kernel, types in listed.items())


def test_the_file_has_every_case_and_no_other() -> None:
    stored = hashes.read()
    assert list(stored.cases) == [case.id for case in CASES]
    assert len(stored.cases) == len(CASES), "two cases with one name"
    assert set(stored.backends) == {"numpy", "torch=cpu", "torch=cpu:eager", "cpu", "jax", "cupy=host"}


def test_cases_of_single_operations_are_checks_of_tier_5() -> None:
    single = {case.id for case in SINGLE}
    assert len(single) == 71 + 10 * len(elementwise.LATER)
    assert single <= {check.id for check in elementwise.CHECKS}


def test_every_exact_surrogate_loss_and_time_constant_is_there() -> None:
    networks = [case.id for case in NETWORKS]
    neurons = [case.id for case in CASES if case.id.startswith("neuron")]
    for surrogate in (name for name, cls in SURROGATES.items() if cls().exact):
        assert sum(surrogate in i for i in networks) >= 3
        for kind in ("stepped", "static"):
            assert sum(surrogate in i and kind in i for i in neurons) >= 5
    assert len([i for i in neurons if "tau_s" in i]) == 2 * len(TAUS) + 10 * len(elementwise.LATER)
    assert {c.id.split(",")[0] for c in QUICK} >= {"neuron", "synaptic filter", "AdamW", "small network"}


@pytest.mark.parametrize("static", [False, True], ids=["stepped", "static"])
@pytest.mark.parametrize(("tau_m", "tau_s"), TAUS)
def test_neuron_inputs_meet_the_threshold_and_the_floor(tau_m: float, tau_s: float, static: bool) -> None:
    neuron, filter = LIF(tau_m, tau_s, 0.5), elementwise.first_order(tau_s, 1.25)
    z, ds = elementwise.neuron_inputs(neuron, filter, 3, steps=10, static=static, shape=(3, 43))
    s, residuals = NUMPY.neuron_forward(neuron, filter, z, 10)
    dz = NUMPY.neuron_backward(neuron, filter, residuals, ds)[0]
    threshold = np.float32(0.5)
    lower, higher = (np.nextafter(threshold, np.float32(to)) for to in (0, np.inf))
    assert NUMPY.neuron_potentials(residuals)[0, 0, :4].tolist() == [lower, threshold, threshold, higher]
    assert s[0, 0, :4].tolist() == [0, 1, 1, 1]
    _, without = BACKENDS["NoFloorForward"]().neuron_forward(neuron, filter, z, 10)
    assert (NUMPY.neuron_potentials(without) != NUMPY.neuron_potentials(residuals)).any()
    assert (BACKENDS["NoFloorBackward"]().neuron_backward(neuron, filter, residuals, ds)[0] != dz).any()
    for x in (z, ds):
        assert (np.signbit(x) & (x == 0)).any()
        assert (~np.signbit(x) & (x == 0)).any()
    assert 0.02 < s[..., 24:].mean() < 0.6


def test_states_and_errors_meet_the_floor_itself() -> None:
    filter = elementwise.first_order(1)
    z, ds = elementwise.neuron_inputs(elementwise.HALVING, filter, 3, steps=10, static=False, shape=(3, 43))
    _, residuals = NUMPY.neuron_forward(elementwise.HALVING, filter, z, 10)
    for x in (NUMPY.neuron_potentials(residuals), NUMPY.neuron_backward(elementwise.HALVING, filter, residuals, ds)[0]):
        assert (np.abs(x) == FLOOR).any()


def test_potentials_meet_the_edges_of_the_surrogate() -> None:
    filter = elementwise.first_order(1)
    z, _ = elementwise.neuron_inputs(elementwise.HALVING, filter, 3, steps=10, static=False, shape=(3, 43), quantum=3)
    _, residuals = NUMPY.neuron_forward(elementwise.HALVING, filter, z, 10)
    x = NUMPY.neuron_potentials(residuals) - np.float32(elementwise.HALVING.threshold)
    assert (x == 1).any()
    assert (x == -1).any()


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.id.split()[0] in ("synaptic", "error")], ids=lambda c: c.id
)
def test_filters_and_losses_end_in_silence(case: Case) -> None:
    """Of the results one sample at least is zero at an end, after values that are not."""
    results: list[Any] = []

    class RecordingBackend(NumpyBackend):
        def psp_forward(self, psp: PSP, s: Any) -> Any:
            results.append(super().psp_forward(psp, s))
            return results[-1]

        def psp_backward(self, psp: PSP, da: Any) -> Any:
            results.append(super().psp_backward(psp, da)[::-1])
            return results[-1][::-1]

        def loss_error(self, *args: Any) -> Any:
            results.append(super().loss_error(*args))
            return results[-1]

    case.compute(RecordingBackend())
    if "spike-count" not in case.id:  # the same at every step
        for x in results:
            assert (x[-1, 0] == 0).all()
            assert (x[0, 0] != 0).any()


@pytest.mark.parametrize("case", NETWORKS, ids=lambda case: case.id)
def test_every_layer_of_the_networks_fires(case: Case) -> None:
    class Stop(Exception):
        pass

    class Watched(NumpyBackend):
        def run(self, *args: Any) -> RunResult:
            spiking = {block.name for block in args[0].blocks if block.neuron.makes_spikes}
            layers = super().run(*args).layers
            rates = {name: layer.spikes.mean() for name, layer in layers.items() if name in spiking}
            assert all(0.01 < rate < 0.8 for rate in rates.values()), rates
            raise Stop

    with pytest.raises(Stop):
        case.compute(Watched())


@pytest.mark.parametrize("case", UPDATES, ids=lambda case: case.id)
def test_every_layer_fires_in_the_updates(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    train, seen = reference.train, list[float]()

    def watched(*arguments: Any) -> Any:
        state, results = train(*arguments)
        seen.extend(rate for result in results for rate in result.rates.values())
        return state, results

    monkeypatch.setattr(reference, "train", watched)
    case.compute(NumpyBackend())
    assert len(seen) == 3 * 20
    assert all(0.01 < rate < 0.8 for rate in seen)


@pytest.mark.parametrize(
    ("fault", "kinds"),
    [
        ("FusedMembrane", {"potentials"}),
        ("StrictThreshold", {"spikes", "potentials", "dL/dz"}),
        ("NoFloorForward", {"potentials"}),
        ("NoFloorBackward", {"dL/dz"}),
        ("StaticErrorOtherOrder", {"dL/dz"}),
        ("WiderSurrogate", {"dL/dz"}),
        ("FusedAdamW", {"weights"}),
        ("PspAdjointForward", {"dL/do"}),
        ("BatchNotDivided", {"dL/do"}),
        ("PrinterFuses", {"potentials", "dL/dz", "dL/do", "weights", "m", "v"}),
        ("PrinterDropsASnap", {"dL/dz"}),
        ("PrinterSwapsOperands", {"dL/dz", "dL/do", "weights"}),
        ("PrinterSwapsBranches", {"spikes", "potentials", "dL/dz"}),
        ("PrinterReassociates", {"dL/dz", "v"}),
        ("PrinterConstantsInDouble", {"potentials", "dL/dz"}),
        ("PrinterConstantsOfSixDigits", {"potentials", "dL/dz", "dL/do", "weights"}),
        ("PrinterLessOrEqual", {"dL/dz"}),
        ("PrinterReciprocal", {"weights"}),
        ("PrinterSnapsTheFloor", {"potentials", "dL/dz"}),
        ("PrinterTakesTheNewState", {"spikes", "potentials", "dL/dz", "dL/do"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_fault_changes_hashes_of_pairs(fault: str, kinds: set[str]) -> None:
    stored = hashes.read().cases
    with np.errstate(all="ignore"):
        computed = hashes.compute(BACKENDS[fault](), SINGLE)
    changed = {kind for case, x in computed.items() for kind in x if x[kind] != stored[case][kind]}
    assert changed >= kinds


@pytest.mark.parametrize(
    ("fault", "network", "changed"),
    [
        ("ErrorGridBit", "linear layers; arctan", "gradient/linear2"),
        ("DropoutShifted", "small network", "gradient with dropout/linear2"),
        ("NoClipping", "small network", "weight/conv1 after 20 updates"),
        ("NoBiasCorrection", "small network", "weight/linear2 after 20 updates"),
        ("LossAddedInOrder", "small network", "losses of the updates"),
    ],
    ids=["ErrorGridBit", "DropoutShifted", "NoClipping", "NoBiasCorrection", "LossAddedInOrder"],
)
def test_a_fault_changes_hashes_of_a_network(fault: str, network: str, changed: str) -> None:
    (case,) = (case for case in NETWORKS if case.id.startswith(network))
    computed, stored = case.compute(BACKENDS[fault]()), hashes.read().cases[case.id]
    assert computed[changed] != stored[changed]
    assert computed["spikes/linear2"] == stored["spikes/linear2"]


def test_a_difference_names_backend_case_result_and_layer() -> None:
    expected = {"net": {"spikes/conv1": "a" * 64, "loss": "0x1.8p+1"}}
    computed = {"net": {"spikes/conv1": "b" * 64, "loss": "0x1.9p+1"}, "new": {"spikes/conv1": "a" * 64}}
    hashes.compare("jax", expected, expected, "FILE")
    with pytest.raises(HashesDiffer) as raised:
        hashes.compare("jax", computed, expected, "FILE")
    assert str(raised.value).splitlines() == [
        "jax: 3 of 3 hashes differ",
        "net: spikes/conv1: jax has bbbbbbbbbbbb, FILE has aaaaaaaaaaaa",
        "net: loss: jax has 0x1.9p+1, FILE has 0x1.8p+1",
        "new: FILE has no such case",
    ]
    with pytest.raises(HashesDiffer, match="net: loss: jax has none, FILE has"):
        hashes.compare("jax", {"net": {"spikes/conv1": "a" * 64}}, expected, "FILE")


def test_hashes_are_written_where_backends_agree_alone(tmp_path: Path) -> None:
    path = tmp_path / "hashes.json"
    path.write_text("before")
    one = {"net": {"spikes/conv1": "a" * 64}}
    with pytest.raises(HashesDiffer, match="name more than one"):
        hashes.write(path, {"numpy": one})
    for other in ({"net": {"spikes/conv1": "b" * 64}}, {}, {**one, "more": {}}):
        with pytest.raises(HashesDiffer):
            hashes.write(path, {"numpy": one, "torch": other})
    assert path.read_text() == "before"
    hashes.write(path, {"numpy": one, "torch": one})
    stored = hashes.read(path)
    assert (stored.cases, stored.backends, stored.contract) == (one, ("numpy", "torch"), CONTRACT_VERSION)
    assert [p.name for p in tmp_path.iterdir()] == ["hashes.json"]


GOOD = {"format": 1, "stsbp": "0", "contract": 2, "backends": ["numpy"], "cases": {"net": {"spikes": "a"}}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file"),
        ("{", "it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ("[]", "expected hashes of format 1, got None"),
        (json.dumps(GOOD | {"format": 2}), "expected hashes of format 1, got 2"),
        *((json.dumps(GOOD | {key: 1.5}), "write it anew") for key in ("stsbp", "contract", "backends", "cases")),
        (json.dumps(GOOD | {"contract": True}), "write it anew"),
        (json.dumps(GOOD | {"backends": [1]}), "write it anew"),
        (json.dumps(GOOD | {"cases": {"net": 1}}), "write it anew"),
        (json.dumps(GOOD | {"cases": {"net": {"spikes": 1}}}), "write it anew"),
    ],
    ids=range(13),
)
def test_a_damaged_file_is_refused_in_a_line(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "hashes.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(HashesDiffer, match=message) as raised:
        hashes.read(path)
    assert "\n" not in str(raised.value)


@pytest.fixture
def few_cases(monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """The module with three cases alone."""
    chosen = [case for case in CASES if case.id.startswith("error of") and case.id.endswith("5/3")]
    monkeypatch.setattr(hashes, "CASES", chosen)
    return chosen


def test_the_command_writes_and_checks(
    few_cases: list[Case], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "hashes.json"
    assert hashes.main(["numpy", "torch=cpu:eager", "--write", str(path)]) == 0
    assert hashes.main(["numpy", "--check", str(path)]) == 0
    assert "numpy: 3 cases, 3 hashes" in capsys.readouterr().out
    data = json.loads(path.read_text())
    data["cases"][few_cases[1].id]["dL/do"] = "0" * 64
    path.write_text(json.dumps(data))
    assert hashes.main(["numpy", "--check", str(path)]) == 1
    assert f"{few_cases[1].id}: dL/do: numpy has " in capsys.readouterr().out
    data["cases"][few_cases[1].id] = hashes.read().cases[few_cases[1].id]
    path.write_text(json.dumps(data | {"contract": 1}))
    assert hashes.main(["numpy", "--check", str(path)]) == 0
    assert f"under version 1 of the contract, this is version {CONTRACT_VERSION}" in capsys.readouterr().out
    path.write_text(json.dumps(data | {"cases": data["cases"] | {"gone": {}}}))
    assert hashes.main(["numpy", "--check", str(path)]) == 1
    assert "cases that are not computed any more: gone" in capsys.readouterr().out


def test_the_command_keeps_every_backend_of_the_file_and_says_what_it_changes(
    few_cases: list[Case], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "hashes.json"
    stored = hashes.read()
    cases = {case.id: stored.cases[case.id] for case in few_cases[1:]}
    cases[few_cases[1].id] = {"dL/do": "0" * 64}
    head = {
        "format": 1,
        "stsbp": stored.stsbp,
        "contract": CONTRACT_VERSION,
        "backends": ["numpy", "torch=cpu:eager", "jax"],
    }
    path.write_text(before := json.dumps({**head, "cases": cases | {"gone": {}}}))
    assert hashes.main(["numpy", "cpu", "--write", str(path)]) == 1
    assert (
        "hashes.json was also written on torch=cpu:eager, jax; name every backend on which the hashes must be equal: "
        "numpy torch=cpu:eager jax cpu. To leave a backend out, remove the file first"
    ) in capsys.readouterr().err
    assert path.read_text() == before
    path.write_text(before.replace(', "jax"', ""))
    assert hashes.main(["numpy", "torch=cpu:eager", "cpu", "--write", str(path)]) == 0
    assert "hashes.json: 1 cases added, 1 changed, 1 removed, 1 as before" in capsys.readouterr().out
    assert hashes.read(path).backends == ("numpy", "torch=cpu:eager", "cpu")
    path.write_text("{")
    assert hashes.main(["numpy", "cpu", "--write", str(path)]) == 0
    assert "hashes.json: 3 cases added, 0 changed, 0 removed, 0 as before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nosuch"], "no backend 'nosuch' is installed"),
        (["numpy", "--write", "DIR/hashes.json"], "name more than one"),
        (["numpy", "numpy=cpu", "--write", "DIR/hashes.json"], "name more than one"),
        (["numpy", "torch=cpu:eager", "--write", "DIR/none/hashes.json"], "cannot be written: No such file"),
        (["numpy", "--check", "DIR/none.json"], "cannot be read"),
    ],
    ids=["backend", "one backend", "two names", "folder", "file"],
)
def test_the_command_says_what_is_wrong(
    arguments: list[str], message: str, few_cases: list[Case], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hashes.main([argument.replace("DIR", str(tmp_path)) for argument in arguments]) == 1
    output = capsys.readouterr().err
    assert output.startswith("Error: ")
    assert message in output


def test_without_arguments_every_backend_opens_a_device_that_can_be_used(
    few_cases: list[Case], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hashes, "installed_backends", lambda: ["cupy", "numpy"])
    if not any(device.name == "host" and device.problem is None for device in load_backend("cupy").devices()):
        pytest.skip("no C++ compiler is installed, which device host needs")
    assert hashes.main([]) == 1
    out = capsys.readouterr().out
    assert "cupy: 3 cases, 3 hashes" in out
    assert "numpy: 3 cases, 3 hashes" in out


def test_the_module_is_a_command(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "stsbp_conformance.hashes", "numpy", "--quick", "--write", "x"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert "leave --quick out" in run.stderr


def test_cases_of_parts_end_where_they_did_before_a_batch_had_parts() -> None:
    for case in parts.CASES[: len(parts.BEFORE)]:
        state, results = reference.trained(case, parts.UPDATES[case.id], OPTIMIZER, 20)
        assert Trained.of(state, results).weights == parts.BEFORE[case.id]
