"""Finds the rank of this process, and the number of processes, in the environment variables of its launcher.

The launchers are torchrun (and programs that set its variables, as `stsbp --processes` does), JAX's own variables,
mpirun of Open MPI, mpiexec of MPICH and related MPIs, and srun of Slurm. The first one that is found counts.
MASTER_ADDR and MASTER_PORT, if set, always define where the processes meet. Otherwise the place follows from the
launcher's variables.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from typing import NamedTuple

from stsbp_spec.distributed.collective import Rendezvous
from stsbp_spec.errors import BackendError
from stsbp_spec.validation import shown

__all__ = ["DEFAULT_PORT", "first_host", "rendezvous_from_environment"]

DEFAULT_PORT = 29500
"""The default port of torchrun."""
_FIRST_PORT, _PORTS = 20_000, 12_000
"""Range of ports that are derived from a job's number. It is below the range that systems use for other connections."""
_ALONE = "127.0.0.1"

Environment = Mapping[str, str]


class _LaunchSettings(NamedTuple):
    """The information of a launcher.

    Attributes:
        local_rank: rank on this machine; None: unknown.
        address: address of rank 0; None: unknown.
        names: names of the variables of rank and size.
    """

    launcher: str
    rank: int
    size: int
    local_rank: int | None
    address: str | None
    port: int
    names: str


def rendezvous_from_environment(environ: Environment, timeout: float = 60.0) -> Rendezvous | None:
    """Read the environment variables of a process. Returns None if it is a single process.

    Args:
        environ: environment variables.
        timeout: time in seconds to wait for the other processes.

    Raises:
        BackendError: variables contradict each other, are missing, or have invalid values. The message names them.
    """
    # Variables of torchrun or JAX may be set within a job of Slurm or MPI. The numbers of the latter then count nodes.
    torchrun_settings, jax_settings = _torchrun(environ), _jax(environ)
    if torchrun_settings is not None and jax_settings is not None and torchrun_settings[1:3] != jax_settings[1:3]:
        raise BackendError(
            f"RANK and WORLD_SIZE say rank {torchrun_settings.rank} of {torchrun_settings.size}, JAX_PROCESS_ID and "
            f"JAX_NUM_PROCESSES rank {jax_settings.rank} of {jax_settings.size}: unset the wrong ones"
        )
    ranks = torchrun_settings or jax_settings or _open_mpi(environ) or _mpich(environ) or _slurm(environ)
    # A process that srun or mpirun starts alone is an ordinary single process.
    return None if ranks is None or ranks.size == 1 else _joined(environ, ranks, timeout)


def _joined(environ: Environment, ranks: _LaunchSettings, timeout: float) -> Rendezvous:
    if not 0 <= ranks.rank < ranks.size:
        raise BackendError(
            f"{ranks.names} say that this is rank {ranks.rank} of {ranks.size} processes: "
            f"ranks are 0 to {ranks.size - 1}"
        )
    if ranks.local_rank is not None and ranks.local_rank > ranks.rank:
        raise BackendError(
            f"{ranks.names} say rank {ranks.rank}, but number {ranks.local_rank} among the processes of this machine"
        )
    address = environ.get("MASTER_ADDR") or ranks.address
    if address is None:
        raise BackendError(
            f"{ranks.launcher} started processes on several machines but does not say where rank 0 "
            "runs; for all processes, set MASTER_ADDR to the name of its machine and MASTER_PORT to "
            "a free port there"
        )
    port = _port(environ, "MASTER_PORT") if environ.get("MASTER_PORT") else ranks.port
    local = ranks.rank if ranks.local_rank is None else ranks.local_rank
    return Rendezvous(ranks.rank, ranks.size, local, address, port, ranks.launcher, timeout)


def _torchrun(environ: Environment) -> _LaunchSettings | None:
    is_launched = _all_or_none(environ, "RANK", "WORLD_SIZE")
    if not is_launched:
        return None
    size = _integer(environ, "WORLD_SIZE")
    address = environ.get("MASTER_ADDR")
    if size > 1 and not (address and environ.get("MASTER_PORT")):
        missing = "MASTER_ADDR" if not address else "MASTER_PORT"
        raise BackendError(
            f"RANK and WORLD_SIZE are set, but {missing} is not; set all of them, as torchrun does, "
            "or unset RANK and WORLD_SIZE to run one process"
        )
    by_stsbp = "STSBP_LAUNCHER" in environ
    by_torchrun = any(name.startswith("TORCHELASTIC_") for name in environ)
    name = "stsbp --processes" if by_stsbp else "torchrun" if by_torchrun else "RANK and WORLD_SIZE"
    rank, local_rank = _integer(environ, "RANK"), _optional(environ, "LOCAL_RANK")
    return _LaunchSettings(name, rank, size, local_rank, address, DEFAULT_PORT, "RANK and WORLD_SIZE")


def _jax(environ: Environment) -> _LaunchSettings | None:
    if not _all_or_none(environ, "JAX_COORDINATOR_ADDRESS", "JAX_PROCESS_ID", "JAX_NUM_PROCESSES"):
        return None
    coordinator = environ["JAX_COORDINATOR_ADDRESS"]
    address, colon, port = coordinator.rpartition(":")
    if not colon or not address or not _is_port(port):
        raise BackendError(
            f"JAX_COORDINATOR_ADDRESS is {shown(coordinator)}: expected HOST:PORT, for example node01:29500"
        )
    rank, size = _integer(environ, "JAX_PROCESS_ID"), _integer(environ, "JAX_NUM_PROCESSES")
    local_rank, names = _optional(environ, "LOCAL_RANK"), "JAX_PROCESS_ID and JAX_NUM_PROCESSES"
    return _LaunchSettings("JAX's variables", rank, size, local_rank, address, int(port), names)


def _open_mpi(environ: Environment) -> _LaunchSettings | None:
    if not _all_or_none(environ, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"):
        return None
    job = environ.get("PMIX_NAMESPACE") or environ.get("OMPI_MCA_ess_base_jobid")
    return _mpi(
        environ,
        "Open MPI",
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
        job,
    )


def _mpich(environ: Environment) -> _LaunchSettings | None:
    # srun also sets the variables of PMI, but its own variables contain more information.
    is_slurm = "SLURM_STEP_NODELIST" in environ and "MPI_LOCALRANKID" not in environ
    if is_slurm or not _all_or_none(environ, "PMI_RANK", "PMI_SIZE"):
        return None
    names = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
    return _mpi(environ, "MPICH", names, environ.get("PMI_PORT") or environ.get("PMI_ID"))


def _mpi(environ: Environment, launcher: str, names: tuple[str, str, str, str], job: str | None) -> _LaunchSettings:
    rank, size, local_rank, local_size = names
    local_processes = _optional(environ, local_size)
    on_one = local_processes is None or local_processes == _integer(environ, size)
    port = DEFAULT_PORT if job is None else _FIRST_PORT + zlib.crc32(job.encode()) % _PORTS
    address = _ALONE if on_one else _slurm_host(environ)
    numbers = _integer(environ, rank), _integer(environ, size), _optional(environ, local_rank)
    return _LaunchSettings(launcher, *numbers, address, port, f"{rank} and {size}")


def _slurm(environ: Environment) -> _LaunchSettings | None:
    # A batch script also has SLURM_PROCID and SLURM_NTASKS, but it is one process. Only srun sets variables of a step.
    if "SLURM_STEP_NODELIST" not in environ and "SLURM_STEP_NUM_TASKS" not in environ:
        return None
    count = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
    if not _all_or_none(environ, "SLURM_PROCID", count):
        return None
    rank, size = _integer(environ, "SLURM_PROCID"), _integer(environ, count)
    if size > 1 and _slurm_host(environ) is None:
        raise BackendError(
            "Slurm started several tasks, but SLURM_STEP_NODELIST, which says where rank 0 runs, is not set"
        )
    job, step = (_optional(environ, name) or 0 for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    port = _FIRST_PORT + (job * 31 + step) % _PORTS
    local_rank, names = _optional(environ, "SLURM_LOCALID"), f"SLURM_PROCID and {count}"
    return _LaunchSettings("Slurm", rank, size, local_rank, _slurm_host(environ), port, names)


def _slurm_host(environ: Environment) -> str | None:
    for name in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"):
        if environ.get(name):
            return first_host(environ[name], name)
    return None


def first_host(nodes: str, variable: str = "SLURM_JOB_NODELIST") -> str:
    """The first host of a list in Slurm's format: `node[01-03,7],other` is node01, node02, node03, node7 and other.

    Raises:
        BackendError: the text is not such a list. The message names the variable.
    """
    first = re.match(r"((?:[^,\[\]]|\[[^\[\]]*\])+)(?:,|$)", nodes.strip())
    host = "" if first is None else re.sub(r"\[(\w+)(?:-\w+)?(?:,[\w,-]*)?\]", r"\1", first[1])
    if not host or re.search(r"[\s\[\]]", host):
        raise BackendError(f"{variable} is {shown(nodes)}: expected hosts as Slurm writes them, like node[01-03,7]")
    return host


def _all_or_none(environ: Environment, *names: str) -> bool:
    """Whether all of these variables are set.

    Raises:
        BackendError: only some of them are set.
    """
    missing = [name for name in names if not environ.get(name)]
    if missing and len(missing) < len(names):
        present = " and ".join(name for name in names if name not in missing)
        only_one = len(names) - len(missing) == 1
        raise BackendError(
            f"{present} {'is' if only_one else 'are'} set and {missing[0]} is not: "
            f"set {'both' if len(names) == 2 else 'all'} for several processes, none for one"
        )
    return not missing


def _integer(environ: Environment, name: str) -> int:
    text = environ[name].strip()
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise BackendError(f"{name} is {shown(environ[name])}: expected a whole number, 0 or more")
    return int(text)


def _optional(environ: Environment, name: str) -> int | None:
    return _integer(environ, name) if environ.get(name) else None


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 6 and 0 < int(text) < 2**16


def _port(environ: Environment, name: str) -> int:
    if not _is_port(environ[name].strip()):
        raise BackendError(f"{name} is {shown(environ[name])}: expected a port, 1 to 65535")
    return int(environ[name])
