"""Language-model pretraining by evolution: a corpus, a byte model, a strategy and the loop.

Importing this file imports no JAX: commands read the options from it before anything else.
"""

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from springroll.cpu import use_cpu_devices
from springroll.errors import InputError
from springroll.pretrain.config import PretrainConfig

if TYPE_CHECKING:
    import jax
    import numpy as np
    from rich.console import Console

    from springroll.evolve.lattice_rules import Rule
    from springroll.evolve.strategy import Strategy
    from springroll.models.egg import Egg
    from springroll.run.loop import Result
    from springroll.run.task import Task
    from springroll.tasks.corpus import Corpus
    from springroll.tasks.text import Streams


class Pretraining(NamedTuple):
    """Everything a run is made of."""

    task: "Task"
    model: "Egg"
    strategy: "Strategy"
    corpus: "Corpus"
    sample: "np.ndarray"  # validation text, (streams, T + 1) uint8
    lines: dict[str, float]  # bits per byte to beat
    streams: bool = False  # layers pass through the device


def pretrain(config: PretrainConfig, console: "Console | None" = None) -> "Result":
    """Run it: a new run folder, or an old one gone on with; progress on `console`.

    Raises:
        InputError: the corpus cannot be read, the folder holds another run, or a figure is off.
    """
    from springroll.memory import allow_page_locking
    from springroll.run.folder import open_run
    from springroll.run.loop import run

    allow_page_locking()
    use_cpu_devices(config.devices)
    if config.resume:
        folder, config = open_run(config, PretrainConfig())
        made = build(config)
    else:
        made = build(config)  # first: what is wrong with the options leaves no folder behind
        folder, config = open_run(config, PretrainConfig())
    if console is not None:
        console.print(opening(config, made))
    return run(config, made.task, folder, console=console)


def opening(config: PretrainConfig, made: Pretraining) -> str:
    """Two lines before training starts: what learns from what, and the lines to beat."""
    lines = made.lines
    return (
        f"{made.model.config.parameters:,} {config.precision} parameters, population "
        f"{config.pop_size:,}, {config.num_streams:,} streams of {config.tokens_per_member} bytes; "
        f"{made.corpus}{'; layers pass through the device' if made.streams else ''}\n"
        "to beat, in bits/byte of the validation text: "
        f"unigram {lines['unigram_bits_per_byte']:.3f}, "
        f"bigram {lines['bigram_bits_per_byte']:.3f}, gzip {lines['gzip_bits_per_byte']:.3f}"
    )


def population_mesh(devices: int | None, pairs: int) -> "jax.sharding.Mesh | None":
    """A mesh over as many devices as divide the pairs; None for one device."""
    import jax
    import numpy as np

    from springroll.evolve.members import AXIS

    found = jax.devices()
    wanted = devices or len(found)
    if wanted > len(found):
        raise InputError(f"devices is {wanted}; this process has {len(found)}")
    if devices is not None and pairs % devices:
        raise InputError(f"{pairs} pairs do not divide over {devices} devices")
    count = next(n for n in range(wanted, 0, -1) if pairs % n == 0)
    return None if count == 1 else jax.sharding.Mesh(np.array(found[:count]), (AXIS,))


def build(config: PretrainConfig) -> Pretraining:
    """Load the text, make the model and the strategy, and join them to a task."""
    import jax

    from springroll.models.egg import EggConfig, egg
    from springroll.pretrain.streamed import must_stream, streamed_task
    from springroll.quant.registers import fastest_registers
    from springroll.tasks.baselines import baselines
    from springroll.tasks.corpus import load_corpus
    from springroll.tasks.text import streams, validation

    corpus = load_corpus(config.data)
    text = streams(corpus.train, config.num_streams, config.tokens_per_member)
    sample = validation(corpus, config.valid_streams, config.valid_tokens)
    lines = baselines(sample)
    model = egg(
        EggConfig(
            n_layers=config.n_layers,
            hidden=config.hidden,
            precision=config.precision,
            registers=fastest_registers() if config.integer else "int8",
        )
    )
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


def strategy_for(config: PretrainConfig, model: "Egg", params: Any, mesh: Any) -> "Strategy":
    """Votes on the lattice for integers, EGGROLL with a float optimizer otherwise."""
    import jax.numpy as jnp
    import optax

    from springroll.evolve.eggroll import eggroll
    from springroll.evolve.lattice import lattice
    from springroll.evolve.lattice_published import published
    from springroll.models.egg import VECTORS_IN_STACKS
    from springroll.thin.discovery import discover

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
    plan = discover(
        model.score, params, jnp.zeros(config.tokens_per_member + 1, jnp.uint8), model.state()
    )
    shared |= {"rank": config.rank, "plan": plan}
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


def integer_rule(config: PretrainConfig) -> "Rule":
    """How votes move integer weights, as configured."""
    from springroll.evolve.lattice_rules import RULES

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


def code_length(logits: Any, rows: Any) -> Any:
    """Bits per byte of rows (n, T + 1) under logits (n, T, 256)."""
    import jax
    import jax.numpy as jnp

    labels = rows[:, 1:, None].astype(jnp.int32)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels, axis=-1)
    return -jnp.mean(chosen) / jnp.log(2.0)


def text_task(
    config: PretrainConfig,
    model: "Egg",
    strategy: "Strategy",
    text: "Streams",
    sample: "np.ndarray",
    lines: dict[str, float],
    digest: str,
    mesh: Any,
) -> "Task":
    """The loop's view: which functions make a generation, and how weights are validated."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from springroll.compat import edge_jit
    from springroll.evolve.members import AXIS, evaluate
    from springroll.run.task import Curve, Task

    members_per_stream = config.pop_size // config.num_streams
    unit = model.bits_scale * config.tokens_per_member

    def init() -> tuple[Any, Any]:
        key = jax.random.key(config.seed)
        state = strategy.init(jax.random.fold_in(key, 1), model.init(jax.random.fold_in(key, 0)))
        carry = model.state((config.pop_size,))
        if mesh is not None:
            carry = jax.device_put(carry, NamedSharding(mesh, PartitionSpec(AXIS)))
        return state, carry

    def score(state: Any, members: Any, carry: Any, batch: Any) -> tuple[Any, Any, Any]:
        tokens = jnp.repeat(batch, members_per_stream, axis=0)
        fitness, carry = evaluate(
            model.score, state, members, tokens, carry, in_axes=0, has_aux=True, mesh=mesh
        )
        bits = -jnp.mean(fitness.astype(jnp.float32)) / unit
        return fitness, carry, {"train_bits_per_byte": bits}

    def bits_of(params: Any) -> Any:
        run = lambda row: model.apply(params, row[:-1], model.state())[0]
        return {"valid_bits_per_byte": code_length(jax.vmap(run)(sample), sample)}

    validate = edge_jit(bits_of)
    return Task(
        init=init,
        batch=text.batch,
        ask=strategy.ask,
        evaluate=edge_jit(score, donate_argnums=2),
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
