"""Every task of the project: `nox -l` lists them, `nox -s NAME` runs one; arguments after `--` go to its tool.

Sessions install the packages of this repository from their folders, in editable mode, so that they see the working
tree; environments are kept and reused. What takes long is not run by a plain `nox`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import nox

if sys.version_info < (3, 11):  # noqa: UP036 - nox itself runs on older Pythons
    raise SystemExit(f"stsbp needs Python 3.11 or newer; this nox runs on {sys.version.split()[0]}")

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = True
nox.options.sessions = ["lint", "typing", "tests"]

ROOT = Path(__file__).parent
SPEC, CLI, CONFORMANCE = "packages/stsbp-spec", "packages/stsbp", "conformance"
MODELS = "packages/stsbp-models"
SUITE = f"{CONFORMANCE}/tests/test_suite.py"
BACKENDS = {name: f"packages/stsbp-{name}" for name in ("cpu", "torch", "jax", "cupy")}
TORCH = (BACKENDS["cpu"], BACKENDS["torch"])
JAX = (BACKENDS["cpu"], BACKENDS["jax"])
TEST_TOOLS = ("pytest>=8.2", "hypothesis>=6.100")
ONNX = ("onnx>=1.22", "onnxruntime>=1.21")
ALL_TEST_TOOLS = (
    *TEST_TOOLS,
    "optax>=0.2.4",
    "matplotlib>=3.8",
    "tensorboard>=2.16",
    "wandb>=0.31",
    "mlflow-skinny>=3.18",
    "sqlalchemy>=2",
    "alembic>=1.13",
    "huggingface_hub>=0.34",
    "hatchling>=1.26",
    *ONNX,
    "nir>=1.0.8",
    "optuna>=4",
    "coverage>=7.6",
)
PEERS = {
    "spikingjelly": ("spikingjelly==2.0.0", "torch"),
    "snntorch": ("snntorch==1.0.0", "numpy", "torch"),
    "norse": ("norse==1.1.0", "torch"),
    "sinabs": ("sinabs==3.1.3", "torch"),
    "spyx": ("spyx==1.0.0", "jax"),
}
NIR = ("nir==1.0.8", "nirtorch==2.6")
NIR_PEERS = {
    "spikingjelly": ("spikingjelly==2.0.0", "torch", *NIR),
    "norse": ("norse==1.1.0", "torch", *NIR),
    "snntorch": ("snntorch==1.0.0", "torch", *NIR),
    "spyx": ("spyx==1.0.0", "jax", NIR[0]),
    "sinabs": ("sinabs==3.1.3", "torch"),  # brings the older nir that it asks for
    "rockpool": ("rockpool==3.1.0", "torch", *NIR),
}
DOCS = ("sphinx>=8.1", "myst-nb>=1.2", "furo>=2024.8.6", "latex2mathml>=3.77", "matplotlib>=3.8", "optax>=0.2.4")
TRITON = "triton>=3; platform_system == 'Linux'"
NVDISASM = "nvidia-cuda-nvdisasm>=13"  # reads machine code, so the newest is the best
QUICK_PAIRS = (
    "gradient_squares",
    "rounded_keeps_subnormal_numbers",
    "conv2d",
    "weight_grid",
    "lif",
    "pooling",
    "dropout",
)
"""Tests of pairs that continuous integration runs as PTX; each mutant of emulator/mutants.py fails one of them."""
QUICK_PAIRS_OF_WARPS = ("gradient_squares", "weight_grid")
"""Those of kernels whose threads exchange values, so that the order of the threads can matter."""
XLA_REPEATED = (
    "small, tau 2",
    "small, tau 3",
    "small, tau 5",
    "direct, stride 2, P4",
    "learned delays",
    "learned delays of channels and of neurons",
    "learned delays, a readout",
    "a readout after convolutions",
    "concatenations, a delay, a recurrence, step by step",
    "neurons that learn, step by step",
    "learned delays, batch normalisation, step by step",
)
"""Checks of tier 2 that XLA compiles for long and whose operations are all in others. Of the time constants, 5/3 stays:
with tau 2 products are exact, and 5 is that of the network of full size in test_jax_bits.py."""
RUFF, MYPY = "ruff>=0.17,<0.18", "mypy>=2.4,<2.5"  # what they accept changes with the version
SCHEMAS = "check-jsonschema>=0.33,<1"  # brings the schemas of workflow and citation files along
FRAMEWORKS = ("torch", "jax", "cupy")
"""What a deployment of one backend brings none of the others of."""
INTEROP: dict[str, tuple[str, ...]] = {
    "c": (),
    "onnx": ("onnx>=1.18", "onnxruntime>=1.21"),
    "nir": ("nir>=1.0.8", "virtualenv"),
    "elephant": ("elephant>=1.2",),
    "neurobench": ("neurobench>=2.3,<3",),
    "hf": ("datasets>=4", "pyarrow>=17", "pillow>=10.2"),
    "trainers": ("lightning>=2.5", "accelerate>=1.10"),
}
"""Forms of `stsbp export` that `benchmarks/interop_FORM.py` holds against the reference, and what that needs; elephant,
whose distances of spike trains are those of `stsbp.measures`; NeuroBench, whose figures are those of `stsbp.energy`;
Hugging Face's library `datasets`, whose folders `hf:PATH` reads; and Lightning and Accelerate, whose loops are in
docs/trainers.md."""
INTEROP_TESTS = {
    "elephant": f"{CLI}/tests/test_measures.py",
    "neurobench": f"{CLI}/tests/test_neurobench.py",
    "hf": f"{CLI}/tests/test_datasets_hf.py",
    "trainers": f"{BACKENDS['torch']}/tests/test_trainers_page.py",
}
"""Parts that are tests, which other sessions skip, because they do not have these libraries."""
ARCHIVE = "nmnist-1k.tar.xz"
DIGITS_FLOOR = 96.0
"""Percent of 359 held-out digits; seeds 0 to 2 reach 98.1 to 98.6."""
FOREIGN = """\
import importlib.util as util
found = [name for name in {others!r} if util.find_spec(name)]
raise SystemExit(f"also installed: {{found}}" if found else 0)
"""

# Thread pools that spin keep each other from the few cores of a small machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def install(session: nox.Session, *folders: str, tools: tuple[str, ...] = ()) -> None:
    """Install packages of this repository, in one go so that they find each other, and tools from the index."""
    requirements: list[str] = []
    for folder in folders:
        extra_names = ",".join(extras(folder, folders))
        requirements += ["-e", f"{ROOT / folder}[{extra_names}]" if extra_names else str(ROOT / folder)]
    session.install(*requirements, *tools)


def extras(folder: str, folders: Sequence[str]) -> tuple[str, ...]:
    """Optional dependencies of a package that its tests use; torchvision, which brings PyTorch, only beside PyTorch."""
    if folder != CLI:
        return ()
    return ("tonic", "cifar10" if BACKENDS["torch"] in folders else "images")


def everything(session: nox.Session) -> list[str]:
    """Folders of all packages; models, backends and the suite only where this checkout has them."""
    folders = [SPEC, CLI, MODELS, *BACKENDS.values(), CONFORMANCE]
    present = [folder for folder in folders if (ROOT / folder / "pyproject.toml").is_file()]
    if missing := [folder for folder in folders if folder not in present]:
        session.warn(f"not in this checkout: {', '.join(missing)}")
    return present


@nox.session
def train(session: nox.Session) -> None:
    """Train a data set, by default the embedded digits, and print the test accuracy: -- [DATASET] [OPTIONS]."""
    install(session, SPEC, CLI, *TORCH)
    has_dataset = bool(session.posargs) and not session.posargs[0].startswith("-")
    # Without the PATH of the session, so that the commands that it prints can be typed as they are.
    program = str(shutil.which("stsbp", path=session.bin))
    command = [program, "--backend", "torch", "train", *([] if has_dataset else ["digits"]), *session.posargs]
    if code := subprocess.run(command, check=False).returncode:
        session.error(f"{program} ended with exit code {code}")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests of every package and the quick checks of the conformance suite: -- [PYTEST ARGUMENTS]."""
    install(session, *everything(session), tools=ALL_TEST_TOOLS)
    chosen = any(Path(arg.split("::")[0]).exists() for arg in session.posargs)
    paths = [] if chosen else [*everything(session), "benchmarks", "campaigns", "tools", "emulator"]
    session.run("python", "-m", "pytest", *paths, "--conformance-quick", *devices(session), *session.posargs)
    if not chosen:
        of_xla(session)


def of_xla(session: nox.Session, *arguments: str) -> None:
    """Hold XLA's own code against the spec. It compiles for long: by default the tier that shows its rounding."""
    tests = (f"{SUITE}::test_tier2_bits[jax@cpu:xla-{case}]" for case in XLA_REPEATED)
    chosen = arguments or ("--conformance-quick", "-k", "tier2", *(f"--deselect={test}" for test in tests))
    session.run("python", "-m", "pytest", SUITE, "--backend", "jax", "--device", "jax=cpu:xla", *chosen)


def long_tests(session: nox.Session, *paths: str) -> None:
    """Tests that `nox -s tests` leaves to sessions of their own, but for one quick case of their kind."""
    session.run("python", "-m", "pytest", *paths, "-m", "long")


@nox.session
def long(session: nox.Session) -> None:
    """Run the cases that `tests` leaves out beside a quick one of their kind (half an hour): -- [PYTEST ARGUMENTS]."""
    install(session, *everything(session), tools=ALL_TEST_TOOLS)
    paths = (*everything(session), "benchmarks", "campaigns", "tools")
    session.run("python", "-m", "pytest", *paths, "-m", "long", *devices(session), *session.posargs)


def devices(session: nox.Session) -> list[str]:
    """Options that have the suite run on every device of a CPU, unless the caller chose some."""
    if any(arg.startswith(("--backend", "--device")) for arg in session.posargs):
        return []
    if not compiler():
        session.warn("no C++ compiler: the tests of the cupy backend on its device host will be skipped")
    names = ["torch=cpu", "torch=cpu:eager", "jax=cpu", *(["cupy=host"] if compiler() else [])]
    return [word for name in names for word in ("--device", name)]


def compiler() -> str | None:
    """The C++ compiler that the cupy backend's device `host` would take."""
    names = [configured] if (configured := os.environ.get("CXX")) else ["c++", "g++", "clang++"]
    return next((path for name in names if (path := shutil.which(name))), None)


@nox.session(python=["3.11", "3.12", "3.13"])
def spec(session: nox.Session) -> None:
    """Test the spec and the command line with numpy as the only backend, on each supported Python."""
    install(session, SPEC, CLI, CONFORMANCE, tools=TEST_TOOLS)
    session.run("python", "-m", "pytest", SPEC, CLI, *session.posargs)


@nox.session
def conformance(session: nox.Session) -> None:
    """Hold every backend against the spec and print the matrix (minutes; -- --conformance-quick: fewer cases)."""
    folders = everything(session)
    if CONFORMANCE not in folders:
        session.error("this checkout has no conformance suite")
    install(session, *folders, tools=TEST_TOOLS)
    arguments = list(session.posargs) or ["--conformance-json", "build/conformance.json"]
    (ROOT / "build").mkdir(exist_ok=True)
    session.run("python", "-m", "pytest", SUITE, *devices(session), *arguments)


@nox.session
def graphs(session: nox.Session) -> None:
    """Compare all backends on random networks (40 in ten minutes): -- [--count N] [--seed S] [--replay SEED:K]."""
    install(session, *everything(session), tools=TEST_TOOLS)
    named = [word for word in devices(session) if "=" in word]
    session.run("python", "-m", "stsbp_conformance.compare_networks", "numpy", "cpu", *named, *session.posargs)


@nox.session
def xla(session: nox.Session) -> None:
    """Hold what JAX runs on GPUs and TPUs, XLA's own code, against the spec: -- [PYTEST ARGUMENTS: -k tier1]."""
    install(session, SPEC, *JAX, CONFORMANCE, tools=TEST_TOOLS)
    of_xla(session, *session.posargs)


@nox.session
def kernels(session: nox.Session) -> None:
    """Compile the CUDA kernels for every GPU, read their code, and run them as PTX, without a GPU: -- [--quick] [...].

    It installs 230 MB of NVRTC and CuPy. `--quick` compiles for the oldest and the newest GPU alone, runs a part of the
    tests as PTX, and leaves out the stored hashes.
    """
    backend, suite = f"{ROOT / BACKENDS['cupy']}[nvrtc]", str(ROOT / CONFORMANCE)
    session.install("-e", str(ROOT / SPEC), "-e", backend, "-e", suite, NVDISASM, *TEST_TOOLS)
    arguments = [word for word in session.posargs if word != "--quick"]
    quick = len(arguments) < len(session.posargs)
    tests = Path(BACKENDS["cupy"]) / "tests"
    compiled = () if quick else ("-m", "")
    session.run("python", "-m", "pytest", str(tests / "test_kernels.py"), "emulator/tests", *compiled, *arguments)
    pairs = str(tests / "test_operations.py")
    for order, names in (
        ({"PTX_ARCH": "sm_80"}, QUICK_PAIRS),
        ({"PTX_ARCH": "sm_90", "PTX_SEED": "1"}, QUICK_PAIRS_OF_WARPS),
    ):
        chosen = [f"{pairs}::test_{name}" for name in names] if quick else [pairs, str(tests / "test_recurrence.py")]
        session.run("python", "-m", "pytest", "-p", "emulator.cupy_kernels", *chosen, *arguments, env=order)
    if not quick:
        session.run("python", "-m", "emulator.hashes")


@nox.session
def triton(session: nox.Session) -> None:
    """Run the Triton kernels without a GPU, in Triton's interpreter and as PTX (1 GB of Triton; Linux; minutes)."""
    install(session, SPEC, *TORCH, tools=(*TEST_TOOLS, TRITON))
    tests = (f"{BACKENDS['torch']}/tests/test_triton.py", "emulator/tests/test_triton_kernels.py")
    session.run("python", "-m", "pytest", "-m", "", *tests, *session.posargs)


@nox.session
def gpu_emulated(session: nox.Session) -> None:
    """Run the real CuPy on an emulated GPU: conformance and CUDA graphs (Linux; an hour): -- [sm_80] [sm_90]."""
    folder = Path(session.create_tmp()).resolve() / "gpu"
    sys.path[:0] = [str(ROOT)]
    from emulator.gpu.build import REQUIREMENTS, environment

    install(session, SPEC, CLI, BACKENDS["cupy"], CONFORMANCE, tools=(*TEST_TOOLS, *REQUIREMENTS))
    session.run("python", "-m", "emulator.gpu.build", str(folder))
    suite = (
        SUITE,
        "--backend",
        "cupy",
        "--device",
        "cupy=cuda",
        "--conformance-quick",
        "-k",
        "tier1 or tier2 or tier3",
    )
    for architecture in session.posargs or ("sm_80", "sm_90"):
        variables = {**environment(folder), "PTX_ARCH": architecture}
        session.run("python", "-m", "emulator.gpu.steps", "recorded", env=variables)
        session.run("python", "-m", "pytest", "-p", "emulator.gpu.cupy_cuda", *suite, env=variables)


@nox.session
def arm(session: nox.Session) -> None:
    """Compare the stored hashes on an emulated Arm processor (Debian; 2 GB, half an hour): -- [ARGUMENTS OF arm.py]."""
    session.run("python", "tools/arm.py", *session.posargs)


@nox.session
def mutation(session: nox.Session) -> None:
    """Break the sources in one place at a time; a test must notice (an hour): -- [--seed S --random N --only PATH]."""
    install(session, *everything(session), tools=(*ALL_TEST_TOOLS, TRITON))
    session.run("python", "tools/mutation.py", *session.posargs)


@nox.session
def lines(session: nox.Session) -> None:
    """Record which test executes which lines, for `mutation --nearest` (an hour): -- [PATHS]."""
    install(session, *everything(session), tools=ALL_TEST_TOOLS)
    session.env["PYTHONPATH"] = str(ROOT / "tools")
    recorded = ["-p", "nearest", "--lines", "build/lines.json", "--conformance-quick"]
    paths = session.posargs or everything(session)
    session.run("python", "-m", "pytest", *recorded, *devices(session), *paths)
    if not session.posargs:
        of_xla(session, *recorded, "-k", "tier1 or tier2")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format, version copies, workflow and citation files; -- --fix repairs style and format."""
    session.install(RUFF, SCHEMAS)
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", *([] if "--fix" in session.posargs else ["--check"]))
    session.run("python", "tools/version.py")
    workflows = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(".github/workflows/*.yml"))
    session.run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *workflows)
    session.run("check-jsonschema", "--builtin-schema", "vendor.citation-file-format", "CITATION.cff")


@nox.session
def typing(session: nox.Session) -> None:
    """Check types with mypy --strict, package by package."""
    folders = everything(session)
    install(session, *folders, tools=(*ALL_TEST_TOOLS, *DOCS, MYPY, "types-docutils", "nox"))
    failed = []
    # Tests of two packages may have the same file name, so each package is a run of its own.
    for paths in [
        *([f"{folder}/src", f"{folder}/tests"] for folder in folders),
        ["benchmarks"],
        ["campaigns"],
        ["noxfile.py", "experiments"],
        ["docs/extensions", "docs/pictures"],
        ["tools"],
        ["emulator"],
    ]:
        try:
            session.run("mypy", *(path for path in paths if (ROOT / path).exists()))
        except nox.command.CommandFailed:
            failed.append(paths[0])
    if failed:
        session.error(f"type errors in {', '.join(failed)}")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into build/docs, notebooks executed; every warning is an error (minutes)."""
    install(session, *everything(session), tools=DOCS)
    session.run("sphinx-build", "-W", "--keep-going", "-b", "html", "docs", "build/docs", *session.posargs)
    session.log("open build/docs/index.html")


@nox.session
def notebooks(session: nox.Session) -> None:
    """Run the tutorials from top to bottom, each in a folder of its own (minutes): -- [-k NAME]."""
    install(session, *everything(session), tools=(*TEST_TOOLS, *DOCS))
    session.run("python", "-m", "pytest", "packages/stsbp/tests/test_tutorials.py", "-m", "", *session.posargs)


@nox.session
def third_party(session: nox.Session) -> None:
    """Hold the documentation's worked third-party backend against the spec (minutes): -- [PYTEST ARGUMENTS]."""
    install(session, SPEC, CONFORMANCE, "docs/third_party_backend", tools=(*TEST_TOOLS, "hatchling>=1.26"))
    if not session.posargs:
        long_tests(session, f"{CONFORMANCE}/tests/test_third_party.py")
    session.run("python", "-m", "pytest", "docs/third_party_backend", "--backend", "einsum", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Throw hostile inputs at readers and command line for two minutes: -- [--cases N] [--kind K] [--replay FILE]."""
    install(session, SPEC, CLI, tools=("nir>=1.0.8",))
    session.run("python", "-m", "campaigns.fuzz", *session.posargs)


@nox.session
def crash(session: nox.Session) -> None:
    """Kill commands at every file operation, two minutes long, and see them go on to the same end: -- [--kills N]."""
    install(session, SPEC, CLI)
    session.run("python", "-m", "campaigns.crash", *session.posargs)


@nox.session
def convolutions(session: nox.Session) -> None:
    """Compare convolutions of torch and cpu with integer sums, in many memory layouts: -- [--cases N] [--seed S]."""
    install(session, SPEC, CLI, *TORCH)
    session.run("python", "-m", "campaigns.convolutions", *session.posargs)


@nox.session
def processes(session: nox.Session) -> None:
    """Tests on many processes, then kill, stop and mislead those of a run: -- [--kills N] [--each N], campaign only."""
    install(session, SPEC, CLI, *TORCH, BACKENDS["jax"], tools=TEST_TOOLS)
    if not session.posargs:
        long_tests(session, CLI, BACKENDS["jax"], "campaigns")
    session.run("python", "-m", "campaigns.processes", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure the torch backend against the floors of this machine (minutes): -- [GROUP] [OPTIONS]."""
    install(session, SPEC, CLI, *TORCH)
    session.run("stsbp", "--backend", "torch", "benchmark", *session.posargs)


@nox.session
def bench_peers(session: nox.Session) -> None:
    """Time the training step beside other libraries, each in its own environment (half an hour): -- [ARGUMENTS]."""
    session.run("python", "benchmarks/compare.py", "--envs", str(peers(session)), *session.posargs)


@nox.session
def bench_accuracy(session: nox.Session) -> None:
    """Train CIFAR-10 with another library too, for the same time (an hour): -- --data-dir D [ARGUMENTS]."""
    session.run("python", "benchmarks/same_time.py", "--envs", str(peers(session)), *session.posargs)


def peers(session: nox.Session) -> Path:
    """Make an environment for each of the other libraries, and return the folder of them."""
    install(session, SPEC, CLI, *TORCH, BACKENDS["jax"], tools=("virtualenv",))
    envs = ROOT / ".nox" / "peers"
    for name, requirements in PEERS.items():
        session.run("virtualenv", "--quiet", str(envs / name))
        python = str(envs / name / "bin" / "python")
        session.run(python, "-m", "pip", "install", "--quiet", *requirements, external=True)
    return envs


@nox.session
def bench_check(session: nox.Session) -> None:
    """Measure again and compare ratios to the floors with the stored ones (minutes): -- [ARGUMENTS]."""
    install(session, SPEC, CLI, *TORCH)
    session.run("python", "benchmarks/check.py", *session.posargs)


@nox.session
def interop(session: nox.Session) -> None:
    """Hold what is exported against the reference, in the programs that read it: -- [c|onnx|nir] [RUN... OPTIONS].

    -- elephant holds the measures of spike times against elephant, -- neurobench the counts of operations against
    NeuroBench, -- hf reads what the library datasets has saved, and -- trainers runs the programs of docs/trainers.md
    (a minute each).

    Each importer of NIR has an environment of its own (half an hour): -- nir [NAMES].
    """
    part, *arguments = session.posargs or ["c"]
    if part not in INTEROP:
        session.error(f"there is no part {part}; there are: {', '.join(INTEROP)}")
    install(session, SPEC, CLI, *TORCH, tools=(*TEST_TOOLS, *INTEROP[part]))
    if part in INTEROP_TESTS:
        session.run("python", "-m", "pytest", INTEROP_TESTS[part], *arguments)
        return
    if part == "c" and not arguments:
        long_tests(session, f"{CLI}/tests/test_interop_c.py")
    if part == "nir":
        arguments = importers(session, arguments)
    elif not any(Path(word).is_dir() for word in arguments[:1]):
        arguments = [*trained_runs(session), *arguments]
    session.run("python", f"benchmarks/interop_{part}.py", *arguments)


def importers(session: nox.Session, names: Sequence[str]) -> list[str]:
    """Environments of importers of NIR, those with these names or all; the arguments of benchmarks/interop_nir.py."""
    if unknown := [name for name in names if name not in NIR_PEERS]:
        session.error(f"there is no importer {unknown[0]}; there are: {', '.join(NIR_PEERS)}")
    arguments = [str(Path(session.create_tmp()).resolve() / "nir"), "--data-dir", str(recordings(session))]
    for name in names or NIR_PEERS:
        environment = ROOT / ".nox" / "importers" / name
        python = str(environment / "bin" / "python")
        session.run("virtualenv", "--quiet", str(environment))
        session.run(python, "-m", "pip", "install", "--quiet", *NIR_PEERS[name], external=True)
        arguments += ["--peer", f"{name}={python}"]
    return arguments


def trained_runs(session: nox.Session) -> list[str]:
    """Runs to export: digits, and N-MNIST where there are recordings."""
    home = Path(session.create_tmp()).resolve()
    settings = {"digits": ["digits"]}
    if any((data_folder() / name).exists() for name in ("NMNIST", ARCHIVE)):
        settings["nmnist"] = ["nmnist", "--data-dir", str(recordings(session)), "--holdout", "100", "--epochs", "6"]
    for name, words in settings.items():
        out = ["--out", str(home / name), "--overwrite"]
        session.run("stsbp", "--backend", "torch", "train", *words, *out, silent=True)
    return [str(home / name) for name in settings]


@nox.session
def nmnist(session: nox.Session) -> None:
    """Train briefly on real N-MNIST recordings ($STSBP_DATA) and require an accuracy: -- [FLOOR IN PERCENT]."""
    folder = recordings(session)
    install(session, SPEC, CLI, *TORCH)
    floor = float(session.posargs[0]) if session.posargs else 85.0
    run = Path(session.create_tmp()) / "nmnist"
    options = ["--data-dir", str(folder), "--epochs", "4", "--holdout", "100", "--seed", "0", "--out", str(run)]
    printed = session.run(
        "stsbp", "--backend", "torch", "train", "nmnist", *options, "--overwrite", silent=True, stderr=None
    )
    session.log(str(printed).strip())
    accuracy = re.search(r"test accuracy ([0-9.]+)%", str(printed))
    if accuracy is None:
        session.error("the command printed no test accuracy")
    elif float(accuracy[1]) < floor:
        session.error(f"test accuracy {accuracy[1]} % is below {floor:g} %")


@nox.session
def experiment(session: nox.Session) -> None:
    """Train a preset with several seeds and write its table (many minutes): -- PRESET [OPTIONS]."""
    if not session.posargs:
        session.error("name a preset, for example: nox -s experiment -- nmnist-hamming --data-dir D --epochs 10")
    install(session, SPEC, CLI, *TORCH)
    session.run("stsbp", "--backend", "torch", "experiment", *session.posargs)


def data_folder() -> Path:
    """The folder of the real data sets, which may not be there."""
    return Path(os.environ.get("STSBP_DATA") or ROOT.parent / "shared" / "data")


def recordings(session: nox.Session) -> Path:
    """The folder that holds NMNIST/, from $STSBP_DATA or ../shared/data; archives are unpacked beside the session."""
    data = data_folder()
    if (data / "NMNIST").is_dir():
        return data
    archive = data / ARCHIVE
    if not archive.is_file():
        session.error(f"no recordings: {data} has neither a folder NMNIST nor {archive.name}; set STSBP_DATA")
    target = Path(session.create_tmp()).resolve()
    if not (target / "NMNIST").is_dir():
        with tarfile.open(archive) as tar:
            tar.extractall(target, filter="data")
    return target


@nox.session
@nox.parametrize("backend", ["numpy", "cpu", "torch", "jax"], ids=["numpy", "cpu", "torch", "jax"])
def min_versions(session: nox.Session, backend: str) -> None:
    """Test with the lowest supported version of every direct dependency: -- [PACKAGES TO LEAVE FREE]."""
    folders = [SPEC, *{"numpy": (CLI,), "cpu": (BACKENDS["cpu"],), "torch": TORCH, "jax": JAX}[backend]]
    pins = lowest(folders)
    for name in session.posargs:
        pins.pop(name, None)
    install(session, *folders, tools=(*TEST_TOOLS, *(f"{name}=={version}" for name, version in pins.items())))
    session.run("python", "-m", "pytest", *folders, "-m", "not slow and not long")


def lowest(folders: list[str]) -> dict[str, str]:
    """Lower bounds of the direct dependencies, extras included; of two bounds on one package the higher."""
    import tomllib

    bounds: dict[str, tuple[int, ...]] = {}
    for folder in folders:
        project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
        optional = (project["optional-dependencies"][extra] for extra in extras(folder, folders))
        for line in [*project["dependencies"], *chain.from_iterable(optional)]:
            if bound := re.match(r"([A-Za-z0-9_.-]+)(?:\[.*\])?>=([0-9.]+)", line):
                version = tuple(int(part) for part in bound[2].split("."))
                bounds[bound[1]] = max(bounds.get(bound[1], ()), version)
    return {name: ".".join(map(str, version)) for name, version in bounds.items()}


@nox.session(python=["3.11", "3.12", "3.13"])
def packages(session: nox.Session) -> None:
    """Build all wheels and sdists; install each backend's alone and train the digits with it: -- [BACKENDS]."""
    backends = session.posargs or ["numpy", *BACKENDS]
    if unknown := [name for name in backends if name not in ("numpy", *BACKENDS)]:
        session.error(f"unknown backends: {', '.join(unknown)}; known: numpy, {', '.join(BACKENDS)}")
    session.install("build>=1.2", "hatchling>=1.26", "twine>=6.1", "virtualenv")
    home = Path(session.create_tmp()).resolve()
    dist = home / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    for folder in everything(session):
        # An sdist, and the wheel from that sdist.
        session.run("python", "-m", "build", "--no-isolation", "--outdir", str(dist), folder, silent=True)
    session.run("python", "tools/check_dist.py", str(dist))
    session.run("twine", "check", "--strict", *map(str, sorted(dist.iterdir())), silent=True)
    for name in backends:
        session.log(only(session, name, home / f"only-{name}", dist))


def only(session: nox.Session, name: str, home: Path, dist: Path) -> str:
    """Install the wheels of the command line and one backend, and train; returns a line on what came of it."""
    session.run("virtualenv", "--quiet", "--clear", str(home))
    python = str(home / ("Scripts" if os.name == "nt" else "bin") / "python")
    # By file name, so that nothing of the same name is taken from an index.
    parts = {"numpy": [], "torch": ["stsbp_cpu", "stsbp_torch"], "jax": ["stsbp_cpu", "stsbp_jax"]}
    required = ["stsbp", "stsbp_spec", *parts.get(name, [f"stsbp_{name}"])]
    wheels = [str(next(dist.glob(f"{package}-*.whl"))) for package in required]
    session.run(python, "-m", "pip", "install", "--quiet", *wheels, external=True)
    others = [framework for framework in FRAMEWORKS if framework != name]
    session.run(python, "-c", FOREIGN.format(others=others), external=True)
    if name == "cupy" and not compiler():
        return "cupy alone installs; not trained: there is no C++ compiler for its device host"
    device = {"cupy": ["--device", "host"], "jax": ["--device", "cpu"], "torch": ["--device", "cpu"]}.get(name, [])
    command = ["-m", "stsbp", "--backend", name, *device, "train", "digits", "--out", str(home / "run"), "--overwrite"]
    with session.chdir(home):  # where no checkout can be imported
        printed = str(session.run(python, *command, external=True, silent=True, stderr=None))
    accuracy = re.search(r"test accuracy ([0-9.]+)%", printed)
    if accuracy is None or float(accuracy[1]) < DIGITS_FLOOR:
        session.error(f"{name} alone: expected a test accuracy of {DIGITS_FLOOR} % or more on digits, got:\n{printed}")
    return f"{name} alone brings none of {', '.join(others)} and reaches {accuracy[1]} % on digits"


@nox.session(venv_backend="none")
def version(session: nox.Session) -> None:
    """Say whether every copy of the version and the licence follows; -- VERSION writes a new one everywhere."""
    session.run(sys.executable, "tools/version.py", *session.posargs)
