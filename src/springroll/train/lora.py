"""`--optimizer lora`: a frozen model in a type of its own, and trained adapters beside it.

The base is what is in the model's folder: it is read when a step first needs it and is no part of
the state, so that checkpoints hold A, B and their moments. It may be float32 or bfloat16, and its
matrices 8 bits or 4 bits, which become floats where a product needs them.
"""

import functools
from dataclasses import dataclass, field
from pathlib import Path

import jax
import optax
from jax import Array
from jax.sharding import Sharding
from jax.stages import Wrapped

from springroll.errors import InputError
from springroll.gguf import model_folder
from springroll.models.decoder_config import structs
from springroll.models.hf.family import Config
from springroll.models.hf.files import family_of, fingerprint
from springroll.models.hf.load import coded_structs, load_coded, load_hf
from springroll.models.protocols import LanguageModel
from springroll.subspace.adapters import CODES, adapted, first_adapters, formed, with_adapters
from springroll.subspace.optimizers import OPTIMIZERS
from springroll.thin.factored_array import Factored
from springroll.train.config import TrainConfig
from springroll.train.learners import Learner, Loss, compiled, optax_learner
from springroll.train.pretrained import folder_of
from springroll.trees import Params, PyTree, tree_bytes


@dataclass(frozen=True)
class Base:
    """The frozen weights of a folder, which are read once, when they are first needed.

    dtype: of what has no codes; bits: of a number of an adapted matrix, None for those of `dtype`.
    """

    folder: Path
    config: Config
    dtype: str
    bits: int | None
    _on: dict[frozenset[object], Params] = field(default_factory=dict, compare=False, repr=False)

    @property
    def floats(self) -> Params:
        """The shapes of its weights, in the type of what has no codes."""
        return structs(family_of(self.config).shapes(self.config), self.dtype)

    @property
    def structs(self) -> Params:
        """The shapes and types of what is held."""
        return coded_structs(self.floats, CODES[self.bits], adapted) if self.bits else self.floats

    def on(self, sharding: Sharding) -> Params:
        """The weights, on every device of a state; `sharding` is the state's."""
        devices = frozenset(sharding.device_set)
        if devices not in self._on:
            self._on[devices] = jax.device_put(self.read(), sharding)
        return self._on[devices]

    def read(self) -> Params:
        """The weights, on the default device."""
        if self.bits:
            return load_coded(self.folder, CODES[self.bits], adapted, self.dtype)[1]
        return load_hf(self.folder, self.dtype)[1]


def frozen_folder(config: TrainConfig) -> Path:
    """Where the weights are that a run adapts.

    Raises:
        InputError: the model is none of a folder.
    """
    folder = folder_of(config.model)
    if folder is None:
        raise InputError(
            f"lora adapts a model that is trained already, {config.model} would be made anew: give "
            "--model a Hugging Face folder, or another --optimizer"
        )
    return folder


def base_of(config: TrainConfig, model: LanguageModel) -> Base:
    """The weights that a run adapts."""
    return Base(frozen_folder(config), model.config, config.dtype, config.base_bits)


def frozen_identity(config: TrainConfig) -> dict[str, str]:
    """What tells the frozen weights of a run, which no checkpoint holds; nothing for others."""
    if config.optimizer != "lora":
        return {}
    return {"model": fingerprint(model_folder(frozen_folder(config)))}


def merged(base: Base, trained: Params, scale: float) -> Params:
    """The parameters in floats, B A added in float32 to what the codes of the base stand for."""
    where = jax.tree.leaves(trained)[0].sharding
    thin = with_adapters(base.on(where), trained, scale)
    is_thin = lambda w: isinstance(w, Factored)
    one = lambda w: formed(w, base.dtype) if is_thin(w) else w
    return jax.tree.map(one, thin, is_leaf=is_thin)


def rank_of(config: TrainConfig) -> int:
    """The rank of a run's adapters."""
    return config.rank or OPTIMIZERS["lora"].rank or 1


def scale_of(config: TrainConfig) -> float:
    """What B A is multiplied with; 1 by default, as where PEFT is told neither rank nor alpha."""
    return 1.0 if config.lora_alpha is None else config.lora_alpha / rank_of(config)


def lora_learner(
    config: TrainConfig,
    model: LanguageModel,
    tx: optax.GradientTransformation,
    loss: Loss,
) -> Learner:
    """AdamW, or what `tx` is, on A and B; the gradient of no other number is computed.

    Args:
        config: with its rank and alpha.
        model: of a folder.
        tx: sees the tree of `first_adapters`.
        loss: of the model's parameters and a batch.
    """
    base, scale = base_of(config, model), scale_of(config)
    start = functools.partial(first_adapters, shapes=base.floats, rank=rank_of(config))

    def thin_loss(trained: Params, batch: tuple[Params, PyTree]) -> tuple[Array, PyTree]:
        frozen, tokens = batch
        return loss(with_adapters(frozen, trained, scale), tokens)

    inner = optax_learner(thin_loss, start, tx, accumulate=config.accumulate, in_axes=(None, 0))
    step = inner.step
    assert isinstance(step, Wrapped)
    where = lambda state: jax.tree.leaves(state)[0].sharding

    def lower(state: PyTree, batch: PyTree) -> jax.stages.Lowered:
        at = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where(state))
        return step.lower(state, (jax.tree.map(at, base.structs), batch))

    return Learner(
        init=inner.init,
        step=lambda state, batch: step(state, (base.on(where(state)), batch)),
        memory=compiled(
            inner.init,
            lower,
            inner.params,
            lambda state: tree_bytes(state.params),
            frozen=tree_bytes(base.structs),
        ),
        params=lambda state: with_adapters(base.on(where(state)), state.params, scale),
        load=base.on,
    )
