"""Episodes of a whole population at once.

A row is one episode of one member; the members of a pair sit together, with the same factors. Rows
are taken in blocks that fit a cache, a block for a segment of steps at a time; between segments
seats in which a row still lives move to the front, so that what is over costs nothing but the rest
of its segment. A row's numbers depend on its member and its key only.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, PartitionSpec

from springroll.compat import small_jit
from springroll.envs.action_choice import choose
from springroll.envs.action_choice import uniform as any_of
from springroll.envs.environment import Environment, EnvState, Step
from springroll.envs.observation_scaling import Scaling, centered_sums
from springroll.evolve.members import Members
from springroll.evolve.rows import prepare_rows
from springroll.models.policy import Policy, PolicyNetwork
from springroll.noise import counter
from springroll.trees import PyTree

SEGMENT = 32  # steps

Count = TypeVar("Count", int, Array)
Act = Callable[[Array], Array]  # observations of a block (rows, size) to outputs


class Episodes(NamedTuple):
    """What came of every row."""

    returns: Array  # (rows,) float32, sums of rewards
    lengths: Array  # (rows,) int32, steps
    sums: Array  # (rows, 2, observation) float32, of observations less their mean, and squares


@dataclass(frozen=True)
class Rollout:
    """How episodes are run; hashable, so that programs are compiled once for equal ones."""

    policy: Policy | PolicyNetwork
    environment: Environment
    deterministic: bool = False  # the likeliest action instead of a drawn one
    counting: bool = False  # sum up observations
    devices: int | None = None  # to spread rows over; None: all there are
    block: int | None = None  # rows at once; None: what suits the device
    segment: int = SEGMENT

    def ready(self, params: PyTree) -> PyTree:
        """Weights as the policy multiplies them."""
        return self.policy.ready(params) if isinstance(self.policy, PolicyNetwork) else params


def usual_block() -> int:
    """Rows whose factors fit the cache of a core; an accelerator wants many."""
    return 128 if jax.default_backend() == "cpu" else 1 << 14


class Start(NamedTuple):
    """What rows begin with."""

    keys: Array  # (rows, 2) uint32
    live: Array  # (rows,) bool, whether they are run at all


class _Rows(NamedTuple):
    """The state of rows; every array has a leading axis of them."""

    row: Array  # which row this is, int32
    key: Array  # (rows, 2) uint32
    live: Array  # bool
    state: EnvState
    observation: Array
    episodes: Episodes


@functools.partial(small_jit, static_argnums=0)
def population_episodes(
    rollout: Rollout,
    params: PyTree,
    members: Members,
    keys: Array,
    scaling: Scaling | None = None,
    rows: Array | int | None = None,
    uniform: Array | bool = False,
) -> Episodes:
    """The episodes of all members, (N, episodes) of them.

    Compiling is dear where environments are large, so that one program serves all: members of
    sigma 0 are the weights themselves, `rows` says that only so many episodes matter, and `uniform`
    that actions are any, whatever the policy says.

    Args:
        params: what `members` perturb.
        keys: (N, episodes, 2) uint32, each episode's.
        scaling: of observations; None: they pass as they are.
        rows: only the first so many, counted member by member, are run; the rest stay zero.
    """
    params = rollout.ready(params)
    count, each = keys.shape[:2]
    signs = np.asarray(members.perturbation.signs, np.float32)
    pairs, together = count // len(signs), len(signs)

    def acting(shared: tuple[PyTree, Members], pair: Array) -> Act:
        params, members = shared
        sign = jnp.broadcast_to(signs, (len(pair), together))
        seats = prepare_rows(params, members.groups(pair), sign)
        by_seat = lambda x: x.reshape(*sign.shape, *x.shape[1:])

        def act(observations: Array) -> Array:
            outputs = seats.call(rollout.policy.apply, by_seat(observations))
            return outputs.reshape(-1, *outputs.shape[2:])

        return act

    # Members go by pair and sign, seats by pair and episode.
    seat_by_seat = lambda x: x.reshape(pairs, together, each, *x.shape[2:]).swapaxes(1, 2)
    member_by_member = lambda x: x.reshape(pairs, each, together, *x.shape[1:]).swapaxes(1, 2)
    live = jnp.arange(count * each) < (count * each if rows is None else rows)
    start = Start(
        seat_by_seat(keys).reshape(-1, 2), seat_by_seat(live.reshape(count, each)).reshape(-1)
    )
    common = (params, members), scaling, jnp.asarray(uniform)
    pair = jnp.repeat(jnp.arange(pairs), each)
    episodes = _on_devices(rollout, acting, common, pair, start)
    return jax.tree.map(lambda x: member_by_member(x).reshape(count, each, *x.shape[1:]), episodes)


@functools.partial(small_jit, static_argnums=0)
def unperturbed_episodes(
    rollout: Rollout,
    params: PyTree,
    keys: Array,
    scaling: Scaling | None = None,
    uniform: Array | bool = False,
) -> Episodes:
    """Episodes of the weights themselves, one for each of `keys` (episodes, 2) uint32."""
    params = rollout.ready(params)
    acting = lambda params, _: jax.vmap(functools.partial(rollout.policy.apply, params))
    start = Start(keys, jnp.ones(keys.shape[0], bool))
    seats = jnp.arange(keys.shape[0])
    return _on_devices(rollout, acting, (params, scaling, jnp.asarray(uniform)), seats, start)


def episode_keys(key: Array, *shape: int) -> Array:
    """Keys of episodes, (*shape, 2) uint32."""
    return jax.random.key_data(jax.random.split(key, shape))


def _on_devices(
    rollout: Rollout,
    acting: Callable[[PyTree, Array], Act],
    common: tuple[PyTree, Scaling | None, Array],
    who: Array,
    start: Start,
) -> Episodes:
    """`_episodes` with the seats split over as many devices as divide them."""
    run = functools.partial(_episodes, rollout, acting)
    local = jax.local_devices()[: rollout.devices]
    devices = math.gcd(len(who), len(local))
    if devices == 1:
        return run(common, who, start)
    mesh = Mesh(np.array(local[:devices]), ("rows",))
    shared, split = PartitionSpec(), PartitionSpec("rows")
    return jax.shard_map(
        run, mesh=mesh, in_specs=(shared, split, split), out_specs=split, check_vma=False
    )(common, who, start)


def _episodes(
    rollout: Rollout,
    acting: Callable[[PyTree, Array], Act],
    common: tuple[PyTree, Scaling | None, Array],
    who: Array,
    start: Start,
) -> Episodes:
    """One episode for every row.

    `acting(shared, part of who)` makes what a block acts by; `common` are shared, scaling and
    whether actions are uniform; `who` (seats,) sits there.
    """
    shared, scaling, uniform = common
    count = start.keys.shape[0]
    together = count // len(who)
    block = together * _parts(min(rollout.block or usual_block(), count), together)
    rows = _begin(rollout, start, block * _parts(count, block))
    step = functools.partial(_step, rollout, scaling, uniform)

    def sweep(carry: tuple[_Rows, Array]) -> tuple[_Rows, Array]:
        rows, time = carry
        alive = jnp.sum(_living(rows, together))

        def turn(index: Array, rows: _Rows) -> _Rows:
            part = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, index * block, block), rows)
            seat = jnp.minimum(part.row[::together] // together, len(who) - 1)
            act = acting(shared, who[seat])
            going = lambda carry: (carry[1] < time + rollout.segment) & jnp.any(carry[0].live)
            part, _ = lax.while_loop(going, lambda carry: step(act, carry), (part, time))
            put = lambda x, y: lax.dynamic_update_slice_in_dim(x, y, index * block, 0)
            return jax.tree.map(put, rows, part)

        rows = lax.fori_loop(0, _parts(alive, block), turn, rows)
        return _to_the_front(rows, block, together), time + rollout.segment

    more = lambda carry: jnp.any(carry[0].live) & (carry[1] < rollout.environment.max_steps)
    rows, _ = lax.while_loop(more, sweep, (rows, jnp.int32(0)))
    back = jnp.argsort(rows.row)[:count]
    return jax.tree.map(lambda x: x[back], rows.episodes)


def _begin(rollout: Rollout, start: Start, rows: int) -> _Rows:
    """All rows at their first observation; those that fill the last block up are over already."""
    environment, count = rollout.environment, start.keys.shape[0]
    row = jnp.arange(rows, dtype=jnp.int32)
    keys, live = (x[np.minimum(np.arange(rows), count - 1)] for x in start)
    first = jax.vmap(lambda key: jax.random.split(jax.random.wrap_key_data(key))[0])(keys)
    state, observation = jax.vmap(environment.reset)(first)
    size = environment.observation_size if rollout.counting else 0
    episodes = Episodes(jnp.zeros(rows), jnp.zeros(rows, jnp.int32), jnp.zeros((rows, 2, size)))
    return _Rows(row, keys, live & (row < count), state, observation, episodes)


def _step(
    rollout: Rollout,
    scaling: Scaling | None,
    uniform: Array,
    act: Act,
    carry: tuple[_Rows, Array],
) -> tuple[_Rows, Array]:
    """One step of a block."""
    environment, (rows, time) = rollout.environment, carry
    actions = environment.actions
    outputs = act(rows.observation if scaling is None else scaling.apply(rows.observation))

    def one(key: Array, state: EnvState, outputs: Array) -> Step:
        drawn, moved = step_keys(key, time)
        mask = environment.action_mask(state) if environment.action_mask else None
        chosen = choose(actions, outputs, None if rollout.deterministic else drawn, mask)
        return environment.step(
            moved, state, jnp.where(uniform, any_of(actions, drawn, mask), chosen)
        )

    after = jax.vmap(one)(rows.key, rows.state, outputs)
    live, done = rows.live, rows.episodes
    sums = done.sums
    if rollout.counting:
        new = centered_sums(rows.observation, scaling)
        sums = sums + jnp.where(live[:, None, None], new, 0.0)
    episodes = Episodes(
        done.returns + jnp.where(live, after.reward, 0.0),
        done.lengths + live.astype(jnp.int32),
        sums,
    )
    going = live & ~after.terminated & ~after.truncated
    going &= time + 1 < environment.max_steps
    rows = _Rows(rows.row, rows.key, going, after.state, after.observation, episodes)
    return rows, time + 1


def step_keys(words: Array, time: Array | int) -> tuple[Array, Array]:
    """Two words to draw an action from, and the key of the environment's step.

    Args:
        words: (2,) uint32 of the episode.
        time: steps before this one.
    """
    words = counter.fold(words, jnp.asarray(time, jnp.uint32))
    return words, jax.random.wrap_key_data(counter.fold(words, jnp.uint32(0)))


def record_episode(
    rollout: Rollout,
    params: PyTree,
    key: Array,
    scaling: Scaling | None = None,
    most: int = 500,
) -> tuple[list[EnvState], float]:
    """The states of an episode of `params` on the host, the first one included, and its return.

    Args:
        most: steps, whatever the environment allows.
    """
    environment = rollout.environment
    params = rollout.ready(params)

    @jax.jit
    def step(time: int, state: EnvState, observation: Array) -> Step:
        drawn, moved = step_keys(jax.random.key_data(key), time)
        scaled = observation if scaling is None else scaling.apply(observation)
        mask = environment.action_mask(state) if environment.action_mask else None
        outputs = rollout.policy.apply(params, scaled)
        to_draw = None if rollout.deterministic else drawn
        return environment.step(moved, state, choose(environment.actions, outputs, to_draw, mask))

    state, observation = jax.jit(environment.reset)(key)
    states, total = [jax.device_get(state)], 0.0
    for time in range(min(most, environment.max_steps)):
        after = step(time, state, observation)
        state, observation = after.state, after.observation
        states.append(jax.device_get(state))
        total += float(after.reward)
        if after.terminated or after.truncated:
            break
    return states, total


def _to_the_front(rows: _Rows, block: int, together: int) -> _Rows:
    """Seats in which somebody lives first, where that saves a block."""
    living = _living(rows, together)
    last = jnp.max(jnp.where(living, jnp.arange(living.shape[0]) + 1, 0))

    def ordered(rows: _Rows) -> _Rows:
        order = jnp.argsort(~living, stable=True)
        return jax.tree.map(lambda x: x[order], rows)

    saves = _parts(last, block) > _parts(jnp.sum(living), block)
    return lax.cond(saves, ordered, lambda rows: rows, rows)


def _living(rows: _Rows, together: int) -> Array:
    """(rows,) bool: whether anybody in the same seat still lives."""
    return jnp.repeat(rows.live.reshape(-1, together).any(1), together)


def _parts(total: Count, size: int) -> Count:
    """How many of `size` hold `total`."""
    return -(-total // size)
