"""What launchers set, as plain dictionaries, and what is read from it."""

from __future__ import annotations

import pytest
from stsbp_spec.distributed.collective import Rendezvous
from stsbp_spec.distributed.launcher import DEFAULT_PORT, first_host, rendezvous_from_environment
from stsbp_spec.errors import BackendError

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "node07",
    "MASTER_PORT": "29611",
    "TORCHELASTIC_RUN_ID": "none",
}
SLURM = {
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "node[01-02]",
    "SLURM_JOB_NODELIST": "login,node[01-03]",
    "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_ID": "0",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "3", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "3"}
JAX = {"JAX_COORDINATOR_ADDRESS": "host.example:1234", "JAX_PROCESS_ID": "2", "JAX_NUM_PROCESSES": "4"}


def required_rendezvous(environ: dict[str, str]) -> Rendezvous:
    """What is found where there are several processes."""
    rendezvous = rendezvous_from_environment(environ)
    assert rendezvous is not None
    return rendezvous


def test_nothing_set_is_one_process() -> None:
    assert rendezvous_from_environment({}) is None
    assert rendezvous_from_environment({"PATH": "/usr/bin", "MASTER_ADDR": "node07", "MASTER_PORT": "x"}) is None


def test_torchrun() -> None:
    assert rendezvous_from_environment(TORCHRUN, timeout=7.0) == Rendezvous(5, 8, 1, "node07", 29611, "torchrun", 7.0)


def test_variables_of_torchrun_set_by_hand_and_by_the_command_itself() -> None:
    by_hand = {name: value for name, value in TORCHRUN.items() if not name.startswith("TORCHELASTIC")}
    del by_hand["LOCAL_RANK"]
    assert rendezvous_from_environment(by_hand) == Rendezvous(5, 8, 5, "node07", 29611, "RANK and WORLD_SIZE")
    by_command = required_rendezvous({**by_hand, "STSBP_LAUNCHER": "3"})
    assert by_command.launcher == "stsbp --processes"


@pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_half_of_torchruns_variables(missing: str) -> None:
    environ = {name: value for name, value in TORCHRUN.items() if name != missing}
    with pytest.raises(BackendError, match=f"{missing} is not"):
        rendezvous_from_environment(environ)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"RANK": "8"}, "RANK and WORLD_SIZE say that this is rank 8 of 8"),
        ({"RANK": "-1"}, "RANK is '-1'"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"LOCAL_RANK": "6"}, "number 6 among the processes of this machine"),
        ({"LOCAL_RANK": "1.0"}, "LOCAL_RANK is '1.0'"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT is '65536'"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT is '0'"),
        ({**JAX, "JAX_NUM_PROCESSES": "8"}, r"RANK and WORLD_SIZE say rank 5 of 8, JAX_PROCESS_ID .* rank 2 of 8"),
    ],
)
def test_contradictions(changed: dict[str, str], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        rendezvous_from_environment({**TORCHRUN, **changed})


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        (("WORLD_SIZE",), "RANK is set and WORLD_SIZE is not: set both for several processes, none for one"),
        (
            ("JAX_NUM_PROCESSES",),
            "JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID are set and JAX_NUM_PROCESSES is not: set all",
        ),
        (("JAX_PROCESS_ID", "JAX_NUM_PROCESSES"), "JAX_COORDINATOR_ADDRESS is set and JAX_PROCESS_ID is not: set all"),
    ],
)
def test_what_is_missing_is_said_in_words(missing: tuple[str, ...], says: str) -> None:
    environ = {**(TORCHRUN if "WORLD_SIZE" in missing else JAX)}
    with pytest.raises(BackendError) as error:
        rendezvous_from_environment({name: value for name, value in environ.items() if name not in missing})
    assert says in str(error.value)


def test_torchrun_and_jax_may_say_the_same() -> None:
    assert required_rendezvous(
        {**TORCHRUN, **JAX, "JAX_PROCESS_ID": "5", "JAX_NUM_PROCESSES": "8"}
    ) == rendezvous_from_environment(TORCHRUN)


def test_torchrun_counts_within_a_job_of_slurm() -> None:
    assert rendezvous_from_environment({**SLURM, **TORCHRUN}) == required_rendezvous(TORCHRUN)


def test_slurm() -> None:
    rendezvous = required_rendezvous(SLURM)
    assert (rendezvous.rank, rendezvous.size, rendezvous.local_rank, rendezvous.address, rendezvous.launcher) == (
        3,
        4,
        1,
        "node01",
        "Slurm",
    )
    other = required_rendezvous({**SLURM, "SLURM_JOB_ID": "1234568"})
    step = required_rendezvous({**SLURM, "SLURM_STEP_ID": "1"})
    assert len({rendezvous.port, other.port, step.port}) == 3
    assert (rendezvous.port, step.port) == (20_000 + 1_234_567 * 31 % 12_000, 20_000 + (1_234_567 * 31 + 1) % 12_000)


def test_slurm_takes_the_nodes_of_the_job_where_the_step_says_none() -> None:
    environ = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_NODELIST"}
    rendezvous = required_rendezvous(environ)
    assert rendezvous.address == "login"
    with pytest.raises(BackendError, match="SLURM_STEP_NODELIST, which says where rank 0 runs, is not set"):
        rendezvous_from_environment({name: value for name, value in environ.items() if name != "SLURM_JOB_NODELIST"})


def test_slurms_place_and_port_may_be_given() -> None:
    rendezvous = required_rendezvous({**SLURM, "MASTER_ADDR": "other", "MASTER_PORT": "999"})
    assert (rendezvous.address, rendezvous.port) == ("other", 999)


def test_a_batch_script_of_slurm_is_one_process() -> None:
    script = {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0", "SLURM_JOB_NODELIST": "node[01-02]"}
    assert rendezvous_from_environment(script) is None


@pytest.mark.parametrize(
    "environ",
    [
        {**SLURM, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
        {**OPEN_MPI, "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
        {"PMI_RANK": "0", "PMI_SIZE": "1"},
        {"RANK": "0", "WORLD_SIZE": "1"},
    ],
    ids=["srun -n 1", "mpirun -n 1", "mpiexec -n 1", "WORLD_SIZE=1"],
)
def test_one_of_one_is_one_process(environ: dict[str, str]) -> None:
    assert rendezvous_from_environment(environ) is None


@pytest.mark.parametrize("missing", ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"])
def test_half_of_slurms_variables(missing: str) -> None:
    environ = {name: value for name, value in SLURM.items() if name != missing}
    if missing == "SLURM_PROCID":
        with pytest.raises(BackendError, match="SLURM_PROCID is not"):
            rendezvous_from_environment(environ)
    else:
        assert rendezvous_from_environment(environ) == required_rendezvous(SLURM)


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node01", "node01"),
        ("node01,node02", "node01"),
        ("node[01-03,7]", "node01"),
        ("node[7,01-03],other", "node7"),
        ("rack[1-2]node[05-08]", "rack1node05"),
        ("gpu[3-4].cluster.example,x[1-2]", "gpu3.cluster.example"),
        ("a-b[001]", "a-b001"),
    ],
)
def test_first_host(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


@pytest.mark.parametrize("nodes", ["", "node[", "node[]", "node[1-2", ",node", "no de", "]"])
def test_no_list_of_hosts(nodes: str) -> None:
    with pytest.raises(BackendError, match="SLURM_STEP_NODELIST is"):
        first_host(nodes, "SLURM_STEP_NODELIST")


def test_open_mpi() -> None:
    assert rendezvous_from_environment(OPEN_MPI) == Rendezvous(1, 2, 1, "127.0.0.1", DEFAULT_PORT, "Open MPI")
    one, other = (required_rendezvous({**OPEN_MPI, "PMIX_NAMESPACE": name}) for name in ("prterun-1@1", "prterun-2@1"))
    assert one.port != other.port


def test_open_mpi_on_several_machines_wants_to_know_where() -> None:
    apart = {**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
    with pytest.raises(BackendError, match="MASTER_ADDR"):
        rendezvous_from_environment(apart)
    rendezvous = required_rendezvous({**apart, "MASTER_ADDR": "node3"})
    assert (rendezvous.address, rendezvous.local_rank) == ("node3", 0)
    in_slurm = required_rendezvous({**apart, "SLURM_JOB_NODELIST": "node[4-5]"})
    assert (in_slurm.address, in_slurm.launcher) == ("node4", "Open MPI")


def test_mpich() -> None:
    assert rendezvous_from_environment(MPICH) == Rendezvous(1, 3, 1, "127.0.0.1", DEFAULT_PORT, "MPICH")
    with pytest.raises(BackendError, match="PMI_SIZE is not"):
        rendezvous_from_environment({"PMI_RANK": "1"})
    # srun sets PMI's variables too; then its own count.
    of_srun = required_rendezvous({"PMI_RANK": "3", "PMI_SIZE": "4", **SLURM})
    assert of_srun.launcher == "Slurm"


def test_jax() -> None:
    assert rendezvous_from_environment(JAX) == Rendezvous(2, 4, 2, "host.example", 1234, "JAX's variables")
    assert required_rendezvous({**JAX, "LOCAL_RANK": "0"}).local_rank == 0


@pytest.mark.parametrize("missing", list(JAX))
def test_half_of_jaxs_variables(missing: str) -> None:
    with pytest.raises(BackendError, match=f"{missing} is not"):
        rendezvous_from_environment({name: value for name, value in JAX.items() if name != missing})


@pytest.mark.parametrize("address", ["host", "host:", ":1", "host:x", "host:70000"])
def test_jax_without_a_port(address: str) -> None:
    with pytest.raises(BackendError, match=r"JAX_COORDINATOR_ADDRESS is .*HOST:PORT"):
        rendezvous_from_environment({**JAX, "JAX_COORDINATOR_ADDRESS": address})
