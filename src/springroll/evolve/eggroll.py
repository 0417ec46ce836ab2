"""EGGROLL: evolution strategies with low-rank perturbations (arXiv 2511.16652)."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from springroll.errors import InputError
from springroll.evolve import step
from springroll.evolve.members import AXIS, Members, members_spec
from springroll.evolve.noise import Noise
from springroll.evolve.perturbation import Perturbation, describe
from springroll.evolve.shaping import Shaping, finite, shaping_named
from springroll.evolve.strategy import State, Strategy
from springroll.evolve.update import direction, tree_like

Schedule: TypeAlias = float | Callable[[Array], ArrayLike]


def eggroll(
    *,
    pop_size: int,
    sigma: Schedule,
    rank: int = 1,
    optimizer: optax.GradientTransformation | None = None,
    plan: Any = None,
    roles: Mapping[str, str] | None = None,
    noise: str | Noise = "gaussian",
    noise_reuse: int = 1,
    shaping: str | Shaping = "z_score",
    lr_units: Literal["sigma", "paper"] = "sigma",
    master: step.Master = "float32",
    max_step_ratio: float | None = None,
    noise_budget_bytes: int = 1 << 30,
    pairs_per_chunk: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    antithetic: bool = True,
) -> Strategy:
    """Evolve any function's parameters by forward passes alone.

    >>> import jax, jax.numpy as jnp, optax
    >>> import springroll as sr
    >>> def fn(params, x, y):
    ...     return -jnp.mean((x @ params["w"] - y) ** 2)
    >>> x, y = jnp.eye(4), jnp.ones((4, 2))
    >>> es = sr.eggroll(pop_size=64, sigma=0.1, optimizer=optax.sgd(1.0))
    >>> state = es.init(jax.random.key(0), {"w": jnp.zeros((4, 2))})
    >>> for generation in range(30):
    ...     members = es.ask(state)
    ...     fitness = sr.evaluate(fn, state, members, x, y)
    ...     state, metrics = es.tell(state, members, fitness)
    >>> bool(fn(state.params, x, y) > -0.05)
    True
    """
    _check(pop_size, sigma, noise_reuse, lr_units, noise_budget_bytes, antithetic)
    step.check_master(master)
    shape = shaping_named(shaping) if isinstance(shaping, str) else shaping
    optimizer = optimizer if optimizer is not None else optax.sgd(0.1)
    pairs = pop_size // 2 if antithetic else pop_size
    devices = 1 if mesh is None else mesh.shape[AXIS]
    if pairs % devices:
        raise InputError(
            f"pop_size {pop_size} makes {pairs} pairs, which do not divide over {devices} devices"
        )

    def perturbation_of(params: Any) -> Perturbation:
        found = describe(
            params,
            rank=rank,
            plan=plan,
            roles=roles,
            noise=noise,
            antithetic=antithetic,
            mesh=mesh,
        )
        fits = max(1, noise_budget_bytes // max(1, found.bytes_per_pair()))
        stored = fits >= pairs // devices
        limit = pairs_per_chunk if stored else min(fits, pairs_per_chunk or fits)
        return replace(found, stored=stored, pairs_per_chunk=limit)

    def init(key: Array, params: Any) -> State:
        perturbation = perturbation_of(params)
        copies = step.masters(perturbation, params, master)
        weights = step.working_weights(perturbation, params, copies)
        seed = jax.random.bits(key, (2,), jnp.uint32)
        return State(params, copies, optimizer.init(weights), seed, jnp.int32(0))

    @jax.jit
    def ask(state: State) -> Members:
        perturbation = perturbation_of(state.params)
        members = Members(
            pairs=jnp.arange(pairs, dtype=jnp.uint32),
            factors=None,
            seed=state.seed,
            epoch=state.generation // noise_reuse,
            sigma=_at(sigma, state.generation),
            perturbation=perturbation,
        )
        return draw_all(members) if perturbation.stored else members

    @jax.jit
    def tell(state: State, members: Members, fitness: Array) -> tuple[State, dict[str, Array]]:
        perturbation = members.perturbation
        valid = finite(fitness)
        sums = direction(members, shape(fitness))
        count = jnp.maximum(valid.sum().astype(jnp.float32), 1.0)
        if lr_units == "sigma":
            factor = -members.sigma * jax.lax.rsqrt(count)
        else:
            factor = -1.0 / (count * members.sigma)
        nothing = optax.MaskedNode()
        gradients = tree_like(state.params, {k: factor * v for k, v in sums.items()}, nothing)
        weights = step.working_weights(perturbation, state.params, state.master)
        updates, opt_state = optimizer.update(gradients, state.opt_state, weights)
        updates, ratio = step.guarded(updates, weights, max_step_ratio)
        moved = optax.apply_updates(weights, updates)
        params, copies = step.stored(
            state.params, moved, state.master, master, state.seed, state.generation
        )
        new = State(params, copies, opt_state, state.seed, state.generation + 1)
        metrics = _fitness_metrics(fitness, valid)
        return new, metrics | {"sigma": members.sigma, "step_ratio": ratio}

    return Strategy(init, ask, tell)


def draw_all(members: Members) -> Members:
    """Members with their factors drawn, each device its own."""
    perturbation = members.perturbation
    if perturbation.mesh is None:
        return replace(members, factors=members.drawn())
    empty: dict[str, tuple[Any, ...]] = {
        leaf.path: (0,) * (2 if leaf.kind == "low_rank" else 1) for leaf in perturbation.evolved
    }
    specs = members_spec(replace(members, factors=empty))
    draw = jax.shard_map(
        lambda m: replace(m, factors=m.drawn()),
        mesh=perturbation.mesh,
        in_specs=(members_spec(members),),
        out_specs=specs,
        check_vma=False,
    )
    return draw(members)


def _at(schedule: Schedule, generation: Array) -> Array:
    value = schedule(generation) if callable(schedule) else schedule
    return jnp.asarray(value, jnp.float32)


def _fitness_metrics(fitness: Array, valid: Array) -> dict[str, Array]:
    values = fitness.astype(jnp.float32)
    weight = valid.astype(jnp.float32)
    count = jnp.maximum(weight.sum(), 1.0)
    safe = jnp.where(valid, values, 0.0)
    mean = safe.sum() / count
    spread = jnp.sqrt((weight * (safe - mean) ** 2).sum() / count)
    return {
        "fitness_mean": mean,
        "fitness_max": jnp.where(valid, values, -jnp.inf).max(),
        "fitness_std": spread,
        "dropped": (~valid).sum().astype(jnp.int32),
    }


def _check(
    pop_size: int,
    sigma: Schedule,
    noise_reuse: int,
    lr_units: str,
    noise_budget_bytes: int,
    antithetic: bool,
) -> None:
    if pop_size < 2:
        raise InputError(f"pop_size is {pop_size}; expected at least 2")
    if antithetic and pop_size % 2:
        raise InputError(
            f"pop_size is {pop_size}; antithetic pairs need an even number, such as {pop_size + 1}"
        )
    if not callable(sigma) and not sigma > 0:
        raise InputError(f"sigma is {sigma}; expected a positive number or a schedule")
    if noise_reuse < 1:
        raise InputError(
            f"noise_reuse is {noise_reuse}; expected how many generations share their noise, 1 or more"
        )
    if lr_units not in ("sigma", "paper"):
        raise InputError(f"lr_units is {lr_units!r}; expected 'sigma' or 'paper'")
    if noise_budget_bytes < 1:
        raise InputError(f"noise_budget_bytes is {noise_budget_bytes}; expected at least 1")
