"""Policies. The network of the EGGROLL paper: an embedding, hidden layers of one width, a head.

    x = pqn(observation . embed)
    x = pqn(x . weight + bias)            for every hidden layer
    outputs = head . x + head_bias

with pqn(x) = relu(layer norm of x, without scale or shift). The deviations of real-valued actions
do not depend on the observation; their logarithms are parameters that end up behind the means.

Source: arXiv 2511.16652v2, section 6.2 and appendix N (3 layers of 256).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array, lax

from springroll.errors import InputError, brief
from springroll.ranges import COUNT, NOT_NEGATIVE, Range, check_number
from springroll.trees import Params, PyTree
from springroll.typed_call import typed_call

Compute = Literal["float32", "bfloat16"]
_EPSILON = 1e-5
_HEAD = 0.01  # how much smaller than elsewhere the first weights of the head are: no action is dear


class Policy(NamedTuple):
    """What a policy is to those who run it; `PolicyNetwork` is one."""

    init: Callable[[Array], PyTree]
    """`init(key)`: first weights, a pytree of arrays."""
    apply: Callable[[PyTree, Array], Array]
    """`apply(params, observation)`: (inputs,) float32 to (outputs,) float32."""


@dataclass(frozen=True)
class PolicyNetwork:
    """The network for observations of `inputs` numbers and a head of `outputs` numbers.

    The last `deviations` outputs are the parameters `log_deviation`, the same everywhere.
    With `compute` "bfloat16" the hidden layers multiply numbers of 16 bits and add up in float32;
    embedding, head and everything between the products stay float32.
    """

    inputs: int
    outputs: int
    deviations: int = 0
    width: int = 256
    layers: int = 3
    compute: Compute = "float32"

    def __post_init__(self) -> None:
        ranges = {"inputs": COUNT, "outputs": COUNT, "width": COUNT, "layers": NOT_NEGATIVE}
        for name, range in ranges.items():
            check_number(name, getattr(self, name), int, range)
        most = Range(at_least=0, at_most=self.outputs)
        check_number("deviations", self.deviations, int, most)
        if self.compute not in get_args(Compute):
            raise InputError(f"compute is {brief(self.compute)}; expected float32 or bfloat16")

    def init(self, key: Array) -> Params:
        """First weights: normal, of variance 1 / fan-in; the head smaller, biases zero."""
        embed, hidden, head = jax.random.split(key, 3)
        normal = lambda key, *shape: jax.random.normal(key, shape) * shape[-2] ** -0.5
        values = self.outputs - self.deviations
        params = {
            "embed": normal(embed, self.inputs, self.width),
            "hidden": [
                {"weight": normal(key, self.width, self.width), "bias": jnp.zeros(self.width)}
                for key in jax.random.split(hidden, self.layers)
            ],
            "head": _HEAD * normal(head, self.width, values).T,
            "head_bias": jnp.zeros(values),
        }
        return params | ({"log_deviation": jnp.zeros(self.deviations)} if self.deviations else {})

    def ready(self, params: Params) -> Params:
        """The weights as `apply` multiplies them, so that a loop need not convert them."""
        ready = lambda layer: layer | {"weight": layer["weight"].astype(self.compute)}
        return params | {"hidden": [ready(layer) for layer in params["hidden"]]}

    def apply(self, params: Params, observation: Array) -> Array:
        """Observation (inputs,) float32 to outputs (outputs,) float32."""
        x = pqn(observation @ params["embed"])
        for layer in params["hidden"]:
            weight = layer["weight"].astype(self.compute)
            x = lax.dot(x.astype(self.compute), weight, preferred_element_type=jnp.float32)
            x = pqn(x + layer["bias"])
        out = jnp.einsum("w,ow->o", x, params["head"]) + params["head_bias"]
        if not self.deviations:
            return out
        return jnp.concatenate([out, params["log_deviation"]])


@typed_call
def linear(inputs: Annotated[int, COUNT], outputs: Annotated[int, COUNT]) -> Policy:
    """outputs = observation . weight + bias, from zero: few numbers, so that evolution needs fewer
    members to tell which way is up.

    Source: Mania, Guy and Recht, arXiv 1803.07055.
    """
    init = lambda key: {"weight": jnp.zeros((inputs, outputs)), "bias": jnp.zeros(outputs)}
    return Policy(init, lambda params, x: x @ params["weight"] + params["bias"])


def pqn(x: Array) -> Array:
    """relu((x - mean) / sqrt(variance + 1e-5)) over the last axis."""
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    return jax.nn.relu(x * lax.rsqrt(variance + _EPSILON))
