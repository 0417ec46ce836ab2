"""What `--env` means where it names code of the user's own."""

from typing import Literal

from springroll.envs.environment import Environment
from springroll.envs.gymnasium_worker import PREFIX
from springroll.errors import InputError
from springroll.tasks.failures import reason
from springroll.tasks.user_code import named_function
from springroll.worker import Worker, WorkerLost

Kind = Literal["objective", "gymnasium", "environment"]


def is_python(name: str) -> bool:
    """Whether it names code that is no JAX environment by an id: `module:function`, or gymnasium's.

    >>> is_python("mine.py:score"), is_python("gymnasium-CartPole-v1"), is_python("CartPole-v1")
    (True, True, False)
    """
    return name.startswith(PREFIX) or (":" in name and "::" not in name)


def kind_of(name: str, timeout: float = 60.0) -> Kind:
    """What `module:function` or `file.py:function` is, found out in a process of its own.

    - "objective": it must be given an argument, the weights; see `objective`;
    - "gymnasium": it makes something with Gymnasium's reset and step; see `gymnasium_pool`;
    - "environment": it makes a `springroll.envs.Environment`; see `python_environment`.

    Args:
        timeout: seconds that the function may take.

    Raises:
        InputError: there is no such function, it fails, or it makes something else.
    """
    if name.startswith(PREFIX):
        return "gymnasium"
    module, what = "springroll.envs.python_worker", f"the environment {name}"
    worker = Worker(module, name, str(timeout), limit=timeout, what=what)
    try:
        answer, _ = worker.ask({})
    except WorkerLost as lost:
        raise InputError(f"{name} is no environment: {reason(lost.kind, lost.line)}") from None
    finally:
        worker.end()
    if "failed" in answer:
        raise InputError(
            f"{name} is no environment: {reason(*answer['failed'])}; expected a function of "
            "weights that returns a float, or one without arguments that makes an environment"
        )
    kind: Kind = answer["kind"]
    return kind


def python_environment(name: str) -> Environment:
    """The `Environment` that a function of the user's makes, in this process.

    Raises:
        InputError: there is no such function, or it makes something else.
    """
    _, function = named_function(name, "the environment")
    environment = function()
    if not isinstance(environment, Environment):
        raise InputError(f"{name}() returned {type(environment).__name__}; expected an Environment")
    return environment
