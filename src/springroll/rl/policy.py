"""What acts in an environment: the paper's network, or a policy of the user's own."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from springroll.envs.environment import Actions, Box
from springroll.errors import InputError
from springroll.models.policy import Policy, PolicyNetwork
from springroll.rl.config import RLConfig
from springroll.tasks.user_code import named_function, raised_line


def policy_of(config: RLConfig, inputs: int, actions: Actions) -> Policy | PolicyNetwork:
    """The paper's policy, or the user's.

    Raises:
        InputError: the user's cannot be found, or returns another number of outputs.
    """
    if config.policy is not None:
        return own_policy(config.policy, inputs, actions.outputs)
    return PolicyNetwork(
        inputs,
        actions.outputs,
        deviations=actions.size if isinstance(actions, Box) else 0,
        width=config.width,
        layers=config.layers,
        compute="bfloat16" if config.compute == "bfloat16" else "float32",
    )


def own_policy(name: str, inputs: int, outputs: int) -> Policy:
    """A user's policy, looked at."""
    make: Callable[..., Any] = named_function(name, "the policy")[1]
    try:
        made = make(inputs, outputs)
        policy = Policy(made.init, made.apply)
        shapes = jax.eval_shape(policy.init, jax.random.key(0))
        found = jax.eval_shape(policy.apply, shapes, jax.ShapeDtypeStruct((inputs,), jnp.float32))
    except Exception as error:  # whatever the user's code raises
        raise InputError(f"the policy {name} cannot be made: {raised_line(error)}") from None
    if getattr(found, "shape", None) != (outputs,):
        raise InputError(
            f"the policy {name} returns {getattr(found, 'shape', type(found).__name__)} for an "
            f"observation of {inputs}; expected an array of shape ({outputs},)"
        )
    return policy
