"""EGGROLL: evolution strategies with low-rank perturbations (arXiv 2511.16652).

OpenES (arXiv 1703.03864): the full-rank baseline, under the same protocol as EGGROLL.
"""

import functools
from typing import Literal, TypedDict, Unpack

import jax
import jax.numpy as jnp
import optax
from jax import Array

from springroll.errors import InputError, check_takes, expect
from springroll.evolve import step
from springroll.evolve.arguments import check_optimizer, is_positive
from springroll.evolve.layer_population import check_elementwise
from springroll.evolve.members import Members
from springroll.evolve.momentum import Momentum, check_momentum, no_past, passed, past_direction
from springroll.evolve.roles import Roles, plan_keyword
from springroll.evolve.shaping import Shaping, finite, pair_difference, pair_sign, shaping_named
from springroll.evolve.strategy import (
    EvolutionState,
    Parts,
    Population,
    SigmaSchedule,
    Step,
    Strategy,
    as_arrays,
    checked,
    fitness_metrics,
)
from springroll.evolve.update import direction
from springroll.noise.kinds import Noise
from springroll.trees import Metrics, PyTree, squared_norm


class _Options(TypedDict, total=False):
    """The arguments of `eggroll` that `open_es` hands on."""

    optimizer: optax.GradientTransformation | None
    noise: str | Noise
    noise_reuse: int
    shaping: str | Shaping
    lr_units: Literal["sigma", "paper"]
    master: step.Master
    max_step_ratio: float | None
    noise_budget_bytes: int
    pairs_per_chunk: int | None
    mesh: jax.sharding.Mesh | None
    antithetic: bool
    momentum: Momentum | None


def open_es(
    *,
    pop_size: int,
    sigma: SigmaSchedule,
    roles: Roles | None = None,
    **options: Unpack[_Options],
) -> Strategy:
    """Evolution strategies with a full Gaussian matrix per pair and weight.

    The same machinery with every parameter marked dense: noise of the size of the model per pair,
    one copy of the weights per member.

    Args:
        pop_size: N, the number of members.
        sigma: Size of the perturbation in units of the weights.
        roles: Patterns of parameters to freeze.
        **options: Those of `sr.eggroll` except `rank`.

    Raises:
        InputError: An argument is out of its range.

    Source: arXiv 1703.03864.
    """
    return eggroll(pop_size=pop_size, sigma=sigma, roles={"*": "dense", **(roles or {})}, **options)


@plan_keyword
def eggroll(
    *,
    pop_size: int,
    sigma: SigmaSchedule,
    rank: int = 1,
    optimizer: optax.GradientTransformation | None = None,
    roles: Roles | None = None,
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
    momentum: Momentum | None = None,
) -> Strategy:
    """Evolve any function's parameters by forward passes alone.

    Member i of N stands at `M + sigma s_i E_i` with `E = left @ right.T / sqrt(rank)`, entries of
    unit variance, and s_i = +1, -1 for the two members of an antithetic pair, who share E. After
    evaluation every weight moves along `sum_i fhat_i s_i E_i`, fhat the shaped fitness.

    Args:
        pop_size: N, even with `antithetic` pairs. The update has rank min(N rank / 2, m, n).
        sigma: Size of the perturbation in units of the weights, a finite number or a schedule of
            the generation (an int32 scalar).
        rank: Of E, at least 1.
        optimizer: Any optax optimizer (default `optax.sgd(0.1)`); it is handed minus the direction.
        roles: How each parameter is perturbed: what `sr.discover` returns, or path patterns with
            "frozen", "dense", or letters such as "mn"; without it the shapes decide. Both may be
            joined: `{**sr.discover(...), "*norm*": "frozen"}`. Vectors get full-rank noise.
        noise: "gaussian" (float32), "rademacher" or "int8" (a quarter of the memory).
        noise_reuse: How many consecutive generations see the same noise; 1 is fresh every time.
        shaping: "z_score", "centred_ranks", "pair_sign", "pair_difference", or a function
            (N,) -> (N,). A fitness that is more than a hundred times further below the others than
            these are apart counts as just worse than the worst of them (see `evolve.shaping`).
        lr_units: "sigma" hands the optimizer `-sigma / sqrt(N) sum fhat_i s_i E_i`, so that with
            SGD and z-scores the learning rate is the root mean square move per step in units of
            sigma, whatever N and sigma are; "paper" hands it `-1 / (N sigma) sum fhat_i s_i E_i`.
        master: What bfloat16 and `Int8` weights keep of small steps: "float32" copies in the state,
            "stochastic" rounding without copies, "error_feedback", which is that for bfloat16 and
            one more byte per weight for `Int8` ones, "error_feedback_4bit", the same with half a
            byte (see `quant.int8_weights`), or None, which loses them.
        max_step_ratio: Bound on |step| / |weights| over all evolved parameters. With or without it
            a weight or moment that would not be finite stays as it was.
        noise_budget_bytes: Factors up to this size (per device) are drawn once per generation and
            kept; beyond it they are drawn chunk by chunk, in the forward and again in the update.
        pairs_per_chunk: How many pairs the forward runs at once (per device), to bound activations.
        mesh: A mesh with an axis "population", over which the pairs are split.
        antithetic: Whether members come in pairs of opposite sign.
        momentum: A moving average of the last estimates, made again from their noise: that of SGD
            without its memory (see `evolve.momentum`).

    Returns:
        The strategy. Its `tell` takes fitness as an array or a list and returns metrics:
        fitness_mean, fitness_max, fitness_std, sigma, step_ratio (not finite if the step was not),
        and dropped, the number of members whose fitness was NaN or infinite; they weigh
        nothing, and if all of them are dropped nothing moves.

    Raises:
        InputError: An argument is out of its range; in `init` also if a weight above 1 MiB would be
            formed by every member although no role says so (see `docs/factored.md`).

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
    population = Population(
        pop_size=pop_size,
        sigma=sigma,
        rank=rank,
        roles=roles,
        noise=noise,
        noise_reuse=noise_reuse,
        noise_budget_bytes=noise_budget_bytes,
        pairs_per_chunk=pairs_per_chunk,
        mesh=mesh,
        antithetic=antithetic,
    )
    _check_step(lr_units, max_step_ratio)
    step.check_master(master)
    shape = shaping_named(shaping) if isinstance(shaping, str) else shaping
    expect(callable(shape), "shaping", shaping, "a name or a function")
    check_takes(shape, "shaping", "fitness")
    if shape in (pair_sign, pair_difference) and not antithetic:
        raise InputError(f"shaping {shaping!r} compares antithetic pairs; it needs antithetic=True")
    optimizer = optimizer if optimizer is not None else optax.sgd(0.1)
    check_optimizer(optimizer)
    check_momentum(momentum)
    return _by_direction(
        population,
        shape=shape,
        optimizer=optimizer,
        lr_units=lr_units,
        master=master,
        max_step_ratio=max_step_ratio,
        momentum=momentum,
    )


def _by_direction(
    population: Population,
    *,
    shape: Shaping,
    optimizer: optax.GradientTransformation,
    lr_units: str,
    master: step.Master,
    max_step_ratio: float | None,
    momentum: Momentum | None,
) -> Strategy:
    """The strategy that hands the optimizer the sum of all members."""
    if momentum is not None and (momentum.generations == 1 or not momentum.decay):
        momentum = None

    def init(key: Array, params: PyTree) -> EvolutionState:
        params = as_arrays(params)
        perturbation = population.announced(params)
        copies = step.master_copies(perturbation, params, master)
        weights = step.working_weights(perturbation, params, copies)
        seed = jax.random.bits(key, (2,), jnp.uint32)
        with jax.numpy_dtype_promotion("standard"):  # optimizers need not be strict where users are
            opt_state = optimizer.init(weights)
        if population.known is not None:
            check_elementwise(optimizer, weights, opt_state)
        past = None if momentum is None else no_past(momentum, population.pop_size)
        state = EvolutionState(params, copies, opt_state, seed, jnp.int32(0), past)
        return population.placed(state)

    @jax.jit
    def ask(state: EvolutionState) -> Members:
        return population.members(state)

    def proposed(
        state: EvolutionState, members: Members, fitness: Array
    ) -> tuple[PyTree, PyTree, PyTree]:
        """(updates, the weights that they are added to, the optimizer's state after them)."""
        sums = direction(members, shape(fitness))
        factor = _descent_factor(lr_units, members.sigma, finite(fitness))
        sums = {path: factor * x for path, x in sums.items()}
        if momentum is not None and state.past is not None:
            before = past_direction(momentum, state.past, members)
            sums = {path: x + before[path] for path, x in sums.items()}
        weights = step.working_weights(members.perturbation, state.params, state.master)
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(
                step.by_path(state.params, sums), state.opt_state, weights
            )
        return updates, weights, opt_state

    def squares(state: EvolutionState, members: Members, fitness: Array) -> Array:
        updates, weights, _ = proposed(state, members, fitness)
        return jnp.stack([squared_norm(updates), squared_norm(weights)])

    def move(
        state: EvolutionState, members: Members, fitness: Array, guard: step.Guard
    ) -> EvolutionState:
        updates, weights, opt_state = proposed(state, members, fitness)
        if max_step_ratio is not None:
            updates = jax.tree.map(lambda u: u * guard.shrink.astype(u.dtype), updates)
        moved = step.moved(weights, updates)
        opt_state = jax.tree.map(step.finite_or, opt_state, state.opt_state)
        params, copies = step.stored(
            state.params, moved, state.master, master, state.seed, state.generation, members.first
        )
        past, valid = state.past, finite(fitness)
        if past is not None:
            factor = _descent_factor(lr_units, members.sigma, valid)
            past = passed(past, factor * shape(fitness), members.epoch)
        # With no member left there is no direction: momentum must not move the weights either.
        keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(valid.any(), a, b), new, old)
        return EvolutionState(
            params=keep(params, state.params),
            master=keep(copies, state.master),
            opt_state=keep(opt_state, state.opt_state),
            seed=state.seed,
            generation=state.generation + 1,
            past=keep(past, state.past),
        )

    @jax.jit
    def tell(
        state: EvolutionState, members: Members, fitness: Array
    ) -> tuple[EvolutionState, Metrics]:
        guard = step.guard(squares(state, members, fitness), max_step_ratio)
        metrics = fitness_metrics(fitness, finite(fitness)) | {
            "sigma": members.sigma,
            "step_ratio": jnp.where(finite(fitness).any(), guard.ratio, 0.0),
        }
        return move(state, members, fitness, guard), metrics

    make = functools.partial(
        _by_direction,
        shape=shape,
        optimizer=optimizer,
        lr_units=lr_units,
        master=master,
        max_step_ratio=max_step_ratio,
        momentum=momentum,
    )
    return checked(init, ask, tell, Parts(population, make, Step(max_step_ratio, squares, move)))


def _descent_factor(lr_units: str, sigma: Array, valid: Array) -> Array:
    """What turns the sum of members into the gradient that a minimiser takes."""
    count = jnp.maximum(valid.sum().astype(jnp.float32), 1.0)
    return -sigma * jax.lax.rsqrt(count) if lr_units == "sigma" else -1.0 / (count * sigma)


def _check_step(lr_units: str, max_step_ratio: float | None) -> None:
    if lr_units not in ("sigma", "paper"):
        raise InputError(f"lr_units is {lr_units!r}; expected 'sigma' or 'paper'")
    if max_step_ratio is not None and not is_positive(max_step_ratio):
        raise InputError(f"max_step_ratio is {max_step_ratio}; expected a positive number or None")
