"""What is compiled to evolve a model layer by layer: once, whatever the number of layers.

A population stays in its thin form: a program gets the weights of one layer and draws the factors
of some pairs by their address. Programs that read a layer also return a token, a number that is
there when the program is done and is never donated.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from springroll.compat import edge_jit
from springroll.evolve.members import Members, each_member
from springroll.evolve.strategy import EvolutionState, Strategy
from springroll.models.protocols import Stages, read_part
from springroll.stream.layered_strategy import ByPath, LayeredStrategy
from springroll.trees import PyTree


class Chunk(NamedTuple):
    """Pairs that run together."""

    start: np.int32
    pairs: int


class MemberSeed(NamedTuple):
    """What members are drawn from: seed (2,) uint32 and generation () int32 of the state."""

    seed: Array
    generation: Array


def chunks(pairs: int, limit: int | None) -> list[Chunk]:
    """All pairs, at most `limit` at once; the last chunk may be smaller."""
    size = min(pairs, limit or pairs)
    return [Chunk(np.int32(at), min(size, pairs - at)) for at in range(0, pairs, size)]


class PopulationPrograms:
    """The compiled parts of a generation of `stages` under a strategy in parts."""

    def __init__(self, stages: Stages, layered: LayeredStrategy, per_member: bool):
        self._stages, self._layered = stages, layered
        self._axis = 0 if per_member else None  # of the inputs
        self.pairs = layered.population.pairs
        self._signs = layered.population.pop_size // self.pairs
        # Integer networks need their barriers kept; for others some are too much for the compiler.
        self.compiled = edge_jit if layered.population.integers else jax.jit
        compiled = self.compiled
        self.update = compiled(self._update)
        self.embed = compiled(self._embed, static_argnums=(4,))
        self.forward = compiled(self._forward, static_argnums=(6,), donate_argnums=(2, 3))
        self.score = compiled(self._score, static_argnums=(5,))

    @property
    def limit(self) -> int | None:
        """Pairs that may run at once: what the strategy allows for a layer and for the rest."""
        limits = [part.pairs_per_chunk for part in self._layered.perturbations]
        return min((limit for limit in limits if limit is not None), default=None)

    def _update(
        self, fields: ByPath, shared: ByPath, fitness: Array, index: Array
    ) -> tuple[ByPath, Array]:
        """(the bundle of a layer after a generation with that fitness (N,), token)."""
        state = self._layered.layer_state(fields, shared)
        members = dataclasses.replace(self._layered.for_layer.ask(state), first=index)
        new, _ = self._layered.for_layer.tell(state, members, fitness)
        return self._layered.fields(new), _token()

    def _embed(
        self, rest: PyTree, seed: MemberSeed, inputs: PyTree, start: Array, pairs: int
    ) -> PyTree:
        """x of a chunk of members, before the first layer."""
        members = self._members(self._layered.for_rest, seed, start, pairs)
        inputs = self._of_chunk(inputs, start, pairs)
        embed = lambda rest, inputs: self._stages.embed(rest, read_part(inputs))
        return _all_members(embed, rest, members, inputs, in_axes=self._axis)

    def _forward(
        self,
        weights: PyTree,
        seed: MemberSeed,
        x: PyTree,
        memory: PyTree,
        start: Array,
        index: Array,
        pairs: int,
    ) -> tuple[PyTree, PyTree, Array]:
        """(x of a chunk after layer `index`, memory (N, layers, ...), token)."""
        members = self._members(self._layered.for_layer, seed, start, pairs)
        members = dataclasses.replace(members, first=index)
        at = lambda m: (start * self._signs, index, *(0,) * (m.ndim - 2))
        size = lambda m: (pairs * self._signs, 1, *m.shape[2:])
        own = jax.tree.map(lambda m: lax.dynamic_slice(m, at(m), size(m))[:, 0], memory)
        params = {self._layered.stack: jax.tree.map(lambda w: w[None], weights)}
        axes = (0, 0, None)
        x, own = _all_members(self._block, params, members, x, own, index, in_axes=axes)
        put = lambda m, new: lax.dynamic_update_slice(m, new[:, None], at(m))
        return x, jax.tree.map(put, memory, own), _token()

    def _score(
        self, rest: PyTree, seed: MemberSeed, x: PyTree, inputs: PyTree, start: Array, pairs: int
    ) -> Array:
        """Fitness of a chunk, int32 or float32."""
        members = self._members(self._layered.for_rest, seed, start, pairs)
        inputs = self._of_chunk(inputs, start, pairs)
        axes = (0, self._axis)
        score = lambda rest, x, inputs: -self._stages.finish(rest, x, {}, inputs)[0]
        fitness = _all_members(score, rest, members, x, inputs, in_axes=axes)
        integer = jnp.issubdtype(fitness.dtype, jnp.integer)
        return fitness.astype(jnp.int32 if integer else jnp.float32)

    def _block(self, params: PyTree, x: PyTree, memory: PyTree, index: Array) -> PyTree:
        layer = jax.tree.map(lambda w: lax.squeeze(w, (0,)), params[self._layered.stack])
        if memory is None:
            return self._stages.block(layer, x, index)[0], None
        return self._stages.block(layer, x, index, memory)

    def _members(self, strategy: Strategy, seed: MemberSeed, start: Array, pairs: int) -> Members:
        members = strategy.ask(EvolutionState(None, None, None, seed.seed, seed.generation))
        return members.chunk(start, pairs)

    def _of_chunk(self, inputs: PyTree, start: Array, pairs: int) -> PyTree:
        if self._axis is None:
            return inputs
        size = pairs * self._signs
        return jax.tree.map(
            lambda x: lax.dynamic_slice_in_dim(x, start * self._signs, size), inputs
        )


_all_members = functools.partial(each_member, pairs_per_chunk=1 << 62)  # a chunk is not cut again


def _token() -> Array:
    return jnp.zeros((), jnp.int32)
