"""EGGROLL: evolution strategies with low-rank perturbations (arXiv 2511.16652)."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from springroll.errors import InputError
from springroll.evolve import step
from springroll.evolve.members import Members
from springroll.evolve.noise import Noise
from springroll.evolve.perturbation import AXIS, Perturbation, auto_mesh, describe
from springroll.evolve.shaping import Shaping, finite, shaping_named
from springroll.evolve.strategy import State, Strategy
from springroll.evolve.update import direction

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

    Member i of N stands at `M + sigma s_i E_i` with `E = left @ right.T / sqrt(rank)`, entries of
    unit variance, and s_i = +1, -1 for the two members of an antithetic pair, who share E. After
    evaluation every weight moves along `sum_i fhat_i s_i E_i`, fhat the shaped fitness.

    - `pop_size`: N, even with `antithetic` pairs. The update has rank min(N rank / 2, m, n).
    - `sigma`: size of the perturbation in units of the weights, a number or a schedule of the
      generation (an int32 scalar).
    - `optimizer`: any optax optimizer (default `optax.sgd(0.1)`); it is handed minus the direction.
    - `lr_units`: "sigma" hands it `-sigma / sqrt(N) sum fhat_i s_i E_i`, so that with SGD and
      z-scores the learning rate is the root mean square move per step in units of sigma, whatever
      N and sigma are; "paper" hands it `-1 / (N sigma) sum fhat_i s_i E_i`.
    - `plan`: what `sr.discover` found; without it the shapes decide. `roles` overrides either by
      path pattern: "frozen", "dense", or letters such as "mn". Vectors get full-rank noise.
    - `noise`: "gaussian" (float32), "rademacher" or "int8" (a quarter of the memory).
    - `noise_reuse`: how many consecutive generations see the same noise; 1 is fresh every time.
    - `shaping`: "z_score", "centred_ranks", "pair_sign", or a function (N,) -> (N,).
    - `master`: what bfloat16 weights keep of small steps: "float32" copies in the state,
      "stochastic" rounding without copies, or None, which loses them.
    - `max_step_ratio`: bound on |step| / |weights| over all evolved parameters.
    - `noise_budget_bytes`: factors up to this size (per device) are drawn once per generation and
      kept; beyond it they are drawn chunk by chunk, in the forward and again in the update.
    - `pairs_per_chunk`: how many pairs the forward runs at once (per device), to bound activations.
    - `mesh`: a mesh with an axis "population", over which the pairs are split.

    `tell` returns metrics: fitness_mean, fitness_max, fitness_std, sigma, step_ratio, and dropped,
    the number of members whose fitness was NaN or infinite; they weigh nothing, and if all of them
    are dropped nothing moves. Raises InputError for arguments that cannot be.

    Source: arXiv 2511.16652v2, section 4, algorithm 1.

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
    _check_population(pop_size, sigma, noise_reuse, antithetic)
    _check_step(lr_units, max_step_ratio, noise_budget_bytes, pairs_per_chunk)
    step.check_master(master)
    shape = shaping_named(shaping) if isinstance(shaping, str) else shaping
    optimizer = optimizer if optimizer is not None else optax.sgd(0.1)
    pairs = pop_size // 2 if antithetic else pop_size
    mesh = auto_mesh(mesh)
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
        params = jax.tree.map(jnp.asarray, params)
        perturbation = perturbation_of(params)
        copies = step.master_copies(perturbation, params, master)
        weights = step.working_weights(perturbation, params, copies)
        seed = jax.random.bits(key, (2,), jnp.uint32)
        with jax.numpy_dtype_promotion("standard"):  # optimizers need not be strict where users are
            opt_state = optimizer.init(weights)
        state = State(params, copies, opt_state, seed, jnp.int32(0))
        # On every device from the start, so that the second step compiles to the same as the first.
        return (
            state if mesh is None else jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
        )

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
        return members.keep_factors() if perturbation.stored else members

    @jax.jit
    def tell(state: State, members: Members, fitness: Array) -> tuple[State, dict[str, Array]]:
        if fitness.shape != (members.size,):
            raise InputError(f"fitness has shape {list(fitness.shape)}; expected [{members.size}]")
        perturbation, valid = members.perturbation, finite(fitness)
        sums = direction(members, shape(fitness))
        factor = _descent_factor(lr_units, members.sigma, valid)
        gradients = step.by_path(state.params, {k: factor * v for k, v in sums.items()})
        weights = step.working_weights(perturbation, state.params, state.master)
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(gradients, state.opt_state, weights)
        updates, ratio = step.guarded(updates, weights, max_step_ratio)
        moved = optax.apply_updates(weights, updates)
        params, copies = step.stored(
            state.params, moved, state.master, master, state.seed, state.generation
        )
        # With no member left there is no direction: momentum must not move the weights either.
        keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(valid.any(), a, b), new, old)
        metrics = _fitness_metrics(fitness, valid) | {"sigma": members.sigma, "step_ratio": ratio}
        state = State(
            params=keep(params, state.params),
            master=keep(copies, state.master),
            opt_state=keep(opt_state, state.opt_state),
            seed=state.seed,
            generation=state.generation + 1,
        )
        return state, metrics

    return Strategy(init, ask, tell)


def _descent_factor(lr_units: str, sigma: Array, valid: Array) -> Array:
    """What turns the sum of members into the gradient that a minimiser takes."""
    count = jnp.maximum(valid.sum().astype(jnp.float32), 1.0)
    return -sigma * jax.lax.rsqrt(count) if lr_units == "sigma" else -1.0 / (count * sigma)


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


def _check_population(pop_size: int, sigma: Schedule, noise_reuse: int, antithetic: bool) -> None:
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
            f"noise_reuse is {noise_reuse}; expected how many generations share noise, 1 or more"
        )


def _check_step(
    lr_units: str,
    max_step_ratio: float | None,
    noise_budget_bytes: int,
    pairs_per_chunk: int | None,
) -> None:
    if lr_units not in ("sigma", "paper"):
        raise InputError(f"lr_units is {lr_units!r}; expected 'sigma' or 'paper'")
    if max_step_ratio is not None and not max_step_ratio > 0:
        raise InputError(f"max_step_ratio is {max_step_ratio}; expected a positive number or None")
    if noise_budget_bytes < 1:
        raise InputError(f"noise_budget_bytes is {noise_budget_bytes}; expected at least 1")
    if pairs_per_chunk is not None and pairs_per_chunk < 1:
        raise InputError(f"pairs_per_chunk is {pairs_per_chunk}; expected at least 1 or None")
