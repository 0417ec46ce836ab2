"""Which launch this is: one process, or one of several. Imports no JAX."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from springroll.errors import InputError

LAUNCHED = ("SPRINGROLL_COORDINATOR", "SPRINGROLL_PROCESSES", "SPRINGROLL_PROCESS")
PORTS = 61440  # the first of 4,096 from which a SLURM job takes one by its number


@dataclass(frozen=True)
class Launch:
    """One process of several."""

    coordinator: str  # host:port of the first process
    size: int
    rank: int
    devices: tuple[int, ...] | None = None  # its accelerators on this host; None: all


def detected(environment: Mapping[str, str] = os.environ) -> Launch | None:
    """What `springroll launch`, SLURM or Open MPI set; None for a process on its own.

    Raises:
        InputError: SLURM started several tasks and does not say where the first one runs.
    """
    given = [environment.get(name) for name in LAUNCHED]
    if all(given):
        coordinator, size, rank = map(str, given)
        return Launch(coordinator, int(size), int(rank))
    return _slurm(environment) or _open_mpi(environment)


def launch_of(
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    environment: Mapping[str, str] = os.environ,
) -> Launch | None:
    """The launch by options, in whose place stands what was detected; None for one process.

    Raises:
        InputError: some of what is needed was neither given nor detected, or it does not fit.
    """
    found = detected(environment)
    where = coordinator or (found.coordinator if found else None)
    size = processes if processes is not None else (found.size if found else None)
    rank = process if process is not None else (found.rank if found else None)
    if where is None and size is None and rank is None:
        return None
    lacking = {"coordinator": where, "processes": size, "process": rank}
    names = [f"--{name}" for name, value in lacking.items() if value is None]
    if where is None or size is None or rank is None:
        raise InputError(
            f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} missing: a run on several "
            "processes needs --coordinator HOST:PORT, --processes and --process; springroll "
            "launch, srun and mpirun set them"
        )
    if not 0 <= rank < size:
        raise InputError(f"process is {rank}; {size} processes are numbered from 0 to {size - 1}")
    if not re.fullmatch(r".+:[0-9]+", where):
        raise InputError(f"coordinator is {where!r}; expected HOST:PORT of the first process")
    return None if size == 1 else Launch(where, size, rank, found.devices if found else None)


def _slurm(environment: Mapping[str, str]) -> Launch | None:
    # Of the step: what a batch script runs without srun is one process, whatever the job asked for.
    size = int(environment.get("SLURM_STEP_NUM_TASKS") or 1)
    if size == 1 or "SLURM_PROCID" not in environment:
        return None
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", "")
    if not nodes:
        raise InputError("SLURM started several tasks and SLURM_STEP_NODELIST is not set")
    port = PORTS + int(environment.get("SLURM_JOB_ID", 0)) % 4096
    each = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get(
        "SLURM_TASKS_PER_NODE", "1"
    )
    alone = re.fullmatch(r"1(\(x\d+\))?(,1(\(x\d+\))?)*", each)  # one task on every node
    devices = None if alone else (int(environment.get("SLURM_LOCALID", 0)),)
    where = f"{first_host(nodes)}:{port}"
    return Launch(where, size, int(environment["SLURM_PROCID"]), devices)


def _open_mpi(environment: Mapping[str, str]) -> Launch | None:
    size = int(environment.get("OMPI_COMM_WORLD_SIZE", 1))
    if size == 1:
        return None
    local = environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1")
    devices = None if local == "1" else (int(environment["OMPI_COMM_WORLD_LOCAL_RANK"]),)
    # hnp: "1234.0;tcp://10.0.0.1,10.0.0.2:5678", the address of mpirun, where task 0 runs
    found = re.search(
        r"tcp://\[?([^,:\]/]+)[^;]*?:(\d+)", environment.get("OMPI_MCA_orte_hnp_uri", "")
    )
    if found is None:
        return None  # to be given by options
    port = PORTS + int(found[2]) % 4096
    return Launch(f"{found[1]}:{port}", size, int(environment["OMPI_COMM_WORLD_RANK"]), devices)


def first_host(nodes: str) -> str:
    """The first host of SLURM's short lists.

    >>> first_host("node[003-005,9],login"), first_host("a1,a2"), first_host("gpu-7")
    ('node003', 'a1', 'gpu-7')
    """
    found = re.match(r"([^,\[]*)(?:\[([0-9]+))?", nodes)
    return "" if found is None else found[1] + (found[2] or "")
