"""What a run of pretraining is made of: a corpus, a byte model, a strategy and the loop's task."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from springroll.cluster.spans import Span
from springroll.compat import edge_jit
from springroll.errors import InputError
from springroll.evolve.eggroll import eggroll
from springroll.evolve.lattice import lattice
from springroll.evolve.lattice_published import published
from springroll.evolve.lattice_rules import RULES, Rule
from springroll.evolve.members import AXIS, Members, evaluate
from springroll.evolve.strategy import EvolutionState, Strategy
from springroll.models.cross_entropy import bits_per_byte
from springroll.models.egg import VECTORS_IN_STACKS, Egg, EggConfig, egg
from springroll.pretrain.config import PretrainConfig
from springroll.pretrain.streamed import must_stream, streamed_task
from springroll.quant.registers import fastest_registers
from springroll.run.devices import devices_for
from springroll.run.task import Blocks, Curve, Metrics, Task
from springroll.tasks.corpus import Corpus, load_corpus
from springroll.tasks.text import Streams, baselines, streams, validation
from springroll.thin.discovery import discover
from springroll.trees import PyTree


class Pretraining(NamedTuple):
    """Everything a run is made of."""

    task: Task
    model: Egg
    strategy: Strategy
    corpus: Corpus
    sample: np.ndarray  # validation text, (streams, T + 1) uint8
    lines: dict[str, float]  # bits per byte to beat
    streams: bool = False  # layers pass through the device


def population_mesh(devices: int | None, pairs: int) -> Mesh | None:
    """A mesh over as many devices as divide the pairs; None for one device."""
    found = devices_for(devices or len(jax.local_devices()))
    if devices is not None and pairs % devices:
        raise InputError(f"{pairs} pairs do not divide over {devices} devices")
    count = next(n for n in range(len(found), 0, -1) if pairs % n == 0)
    return None if count == 1 else Mesh(np.array(found[:count]), (AXIS,))


def build(config: PretrainConfig) -> Pretraining:
    """Load the text, make the model and the strategy, and join them to a task."""
    corpus = load_corpus(config.data)
    text = streams(corpus.train, config.num_streams, config.tokens_per_member)
    sample = validation(corpus, config.valid_streams, config.valid_tokens)
    lines = baselines(sample)
    model = model_of(config)
    params = jax.eval_shape(model.init, jax.random.key(0))
    one = config.engine == "stream"
    mesh = None if one else population_mesh(config.devices, config.pop_size // 2)
    strategy = strategy_for(config, model, params, mesh)
    task = text_task(config, model, strategy, text, sample, lines, corpus.digest, mesh)
    streamed = must_stream(config, strategy, params)
    if streamed:
        if mesh is not None:
            strategy = strategy_for(config, model, params, None)
        task = streamed_task(config, model, strategy, task, sample)
    return Pretraining(task, model, strategy, corpus, sample, lines, streamed)


def model_of(config: PretrainConfig) -> Egg:
    """The byte model, in the registers that this processor is quick at."""
    return egg(
        EggConfig(
            n_layers=config.n_layers,
            hidden=config.hidden,
            precision=config.precision,
            registers=fastest_registers() if config.integer else "int8",
        )
    )


def strategy_for(config: PretrainConfig, model: Egg, params: PyTree, mesh: Mesh | None) -> Strategy:
    """Votes on the lattice for integers, EGGROLL with a float optimizer otherwise."""
    devices = 1 if mesh is None else mesh.size
    shared: dict[str, Any] = {
        "pop_size": config.pop_size,
        "noise_budget_bytes": config.noise_budget_mib << 20,
        "pairs_per_chunk": pairs_per_chunk(config, devices),
        "mesh": mesh,
    }
    if config.precision == "compat":
        return published(
            sigma_shift=config.sigma_shift,
            rule=integer_rule(config),
            roles=VECTORS_IN_STACKS,
            table_seed=config.seed,
            **shared,
        )
    roles = discover(
        model.score, params, jnp.zeros(config.tokens_per_member + 1, jnp.uint8), model.state()
    )
    shared |= {"rank": config.rank, "roles": roles}
    if not config.integer:
        half_life = config.lr_half_life or math.inf
        schedule = lambda step: (config.lr or 0.04) / (1 + step / half_life)
        return eggroll(
            sigma=config.sigma or 2.0**-4,
            optimizer=optax.sgd(schedule, momentum=config.momentum),
            noise="int8",
            shaping="pair_difference",
            **shared,
        )
    return lattice(sigma=config.sigma or 2.0**-4, rule=integer_rule(config), **shared)


def integer_rule(config: PretrainConfig) -> Rule:
    """How votes move integer weights, as configured."""
    name = config.rule or ("published" if config.precision == "compat" else "residual")
    options: dict[str, Any] = {"decay": config.lr_half_life or math.inf}
    if name == "residual":
        options |= {"lr": config.lr or 0.1, "momentum": config.momentum}
    else:
        options |= {"alpha": config.alpha}
    return RULES[name](**options)


def pairs_per_chunk(config: PretrainConfig, devices: int) -> int:
    """Pairs run at once on a device: as asked, or what keeps activations within 1 GiB."""
    if config.members_per_chunk is not None:
        return max(1, config.members_per_chunk // 2)
    # int32 sums of the widest layer and the logits, and x of every token
    per_member = 4 * (4 * config.hidden + 256) * 2 + config.tokens_per_member * (
        config.hidden + 256
    )
    return max(1, min(config.pop_size // 2 // devices, (1 << 30) // (2 * per_member)))


def text_task(
    config: PretrainConfig,
    model: Egg,
    strategy: Strategy,
    text: Streams,
    sample: np.ndarray,
    lines: dict[str, float],
    digest: str,
    mesh: Mesh | None,
) -> Task:
    """The loop's view: which functions make a generation, and how weights are validated."""
    members_per_stream = config.pop_size // config.num_streams
    unit = model.bits_scale * config.tokens_per_member

    def init() -> tuple[EvolutionState, PyTree]:
        key = jax.random.key(config.seed)
        state = strategy.init(jax.random.fold_in(key, 1), model.init(jax.random.fold_in(key, 0)))
        carry = model.state((config.pop_size,))
        if mesh is not None:
            carry = jax.device_put(carry, NamedSharding(mesh, PartitionSpec(AXIS)))
        return state, carry

    def score(
        state: EvolutionState,
        members: Members,
        carry: PyTree,
        batch: Array,
        first: Array,
        count: int,
    ) -> tuple[Array, PyTree]:
        tokens = jnp.repeat(batch, members_per_stream, axis=0)
        if 2 * count < config.pop_size:
            members = members.chunk(first, count)
            tokens = lax.dynamic_slice_in_dim(tokens, 2 * first, 2 * count)
        return evaluate(
            model.score, state, members, tokens, carry, in_axes=0, has_aux=True, mesh=mesh
        )

    compiled = edge_jit(score, donate_argnums=2, static_argnums=5)

    def scored(
        state: EvolutionState, members: Members, carry: PyTree, batch: np.ndarray, span: Span
    ) -> tuple[Array, PyTree, None]:
        return *compiled(state, members, carry, batch, np.int32(span.first), span.pairs), None

    def joined(
        carry: PyTree, fitness: Array | np.ndarray, notes: Sequence[None]
    ) -> tuple[PyTree, Metrics]:
        return carry, {"train_bits_per_byte": mean_bits(fitness)}

    mean_bits = jax.jit(lambda fitness: -jnp.mean(fitness.astype(jnp.float32)) / unit)
    blocks = Blocks(
        pairs=config.pop_size // 2,
        score=scored,
        join=joined,
        keeps=True,
        exact=config.integer,
        block=config.block,
        unit=1 if mesh is None else mesh.size,
    )

    def bits_of(params: PyTree) -> Metrics:
        run = lambda row: model.apply(params, row[:-1], model.state())[0]
        return {"valid_bits_per_byte": bits_per_byte(jax.vmap(run)(sample), sample)}

    validate = edge_jit(bits_of)
    return Task(
        init=init,
        batch=text.batch,
        ask=strategy.ask,
        evaluate=blocks.evaluate,
        blocks=blocks,
        tell=strategy.tell,
        validate=lambda state, _: validate(state.params),
        pop_size=config.pop_size,
        tokens=config.pop_size * config.tokens_per_member,
        seed=config.seed,
        identity={"corpus": digest},
        summary=lines,
        curve=Curve(
            lines={name.removesuffix("_bits_per_byte"): bits for name, bits in lines.items()},
            title=f"{model.config.parameters:,} {config.precision} parameters, no gradients",
        ),
    )
