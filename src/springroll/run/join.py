"""How a command finds the other processes of its run. Imports no JAX before it joins."""

from collections.abc import Callable

from springroll.cluster.crew import Crew
from springroll.cluster.detect import Launch, launch_of
from springroll.errors import InputError
from springroll.run.config import RunConfig


def launch_for(config: RunConfig) -> Launch | None:
    """Which process of how many a command is; None: it is alone.

    Raises:
        InputError: options are missing, or contradict each other.
    """
    given = {
        "--coordinator": config.coordinator,
        "--processes": config.processes,
        "--process": config.process,
    }
    names = [name for name, value in given.items() if value is not None]
    if config.cluster == "off":
        if names:
            raise InputError(f"{names[0]} is of runs on several processes, and --cluster is off")
        return None
    found = launch_of(config.coordinator, config.processes, config.process)
    if found is None and config.cluster == "jax" and config.processes != 1:
        raise InputError(
            "--cluster jax needs --coordinator HOST:PORT, --processes and --process: neither "
            "springroll launch nor srun nor mpirun started this command"
        )
    return found


def join(launch: Launch, config: RunConfig, say: Callable[[str], None]) -> Crew:
    """Wait for the other processes; to be called before JAX's backend starts.

    Args:
        launch: which process this is.
        config: how long to wait.
        say: is given a line where somebody is waited for.

    Raises:
        InputError: they do not come together in `config.patience` seconds.
    """
    from springroll.cluster.jax_store import JaxStore

    store = JaxStore(launch, config.patience)
    return Crew(launch.rank, launch.size, store, patience=config.patience, say=say)
