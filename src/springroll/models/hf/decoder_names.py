"""How checkpoints of each family name a decoder's tensors, and which of them they store as one."""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from springroll.models.decoder_config import DecoderConfig
from springroll.models.hf.family import Naming, Stored

Layout: TypeAlias = Callable[
    [DecoderConfig, str, tuple[int, ...], int | None], Iterator[Stored]
]  # see `Naming.stored`


def checkpoint_names(
    path: str, shape: tuple[int, ...], layer: int | None = None
) -> Iterator[tuple[tuple[int, ...], str]]:
    """(index into the stacks, name in the checkpoint) of every tensor of a leaf, or of one layer's.

    `shape` is that of the whole leaf. This is how most families store their tensors.
    """
    *inside, leaf = path.split("/")
    stem, kind = leaf, ".weight"
    if leaf == "e_score_correction_bias":
        stem, kind = f"gate.{leaf}", ""
    elif leaf == "sinks":
        kind = ""
    elif leaf.endswith("_bias"):
        stem, kind = leaf.removesuffix("bias") + "proj", ".bias"
    if not inside:
        yield (), stem + kind if leaf == "lm_head" else f"model.{stem}{kind}"
        return
    layers = range(shape[0]) if layer is None else (layer,)
    experts = range(shape[1]) if "experts" in inside else None
    # Not `itertools.product`, which makes all of a range at once: sizes are as a file says.
    for index in ((i, *e) for i in layers for e in ([()] if experts is None else zip(experts))):
        parts = ["model.layers", str(index[0]), *inside[1:], *map(str, index[1:])]
        yield index, ".".join([*parts, stem]) + kind


def _separate(
    config: DecoderConfig, path: str, shape: tuple[int, ...], layer: int | None
) -> Iterator[Stored]:
    for index, name in checkpoint_names(path, shape, layer):
        yield Stored(index, name, shape[len(index) :])


def _phi3(
    config: DecoderConfig, path: str, shape: tuple[int, ...], layer: int | None
) -> Iterator[Stored]:
    """The rows of q, k and v are one matrix, those of gate and up another."""
    q, kv, ffn = config.heads * config.head_dim, config.kv_heads * config.head_dim, config.ffn
    first = {"q_proj": 0, "k_proj": q, "v_proj": q + kv, "gate_proj": 0, "up_proj": ffn}
    for stored in _separate(config, path, shape, layer):
        leaf = path.rpartition("/")[2]
        if leaf not in first:
            yield stored
            continue
        together = "qkv_proj" if leaf[0] in "qkv" else "gate_up_proj"
        rows, width = stored.shape
        total = q + 2 * kv if together == "qkv_proj" else 2 * ffn
        yield stored._replace(
            name=stored.name.replace(leaf, together),
            shape=(total, width),
            part=(slice(first[leaf], first[leaf] + rows),),
        )


_MIXTRAL = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


def _mixtral(
    config: DecoderConfig, path: str, shape: tuple[int, ...], layer: int | None
) -> Iterator[Stored]:
    leaf = path.rpartition("/")[2]
    for stored in _separate(config, path, shape, layer):
        name = stored.name.replace(".mlp.", ".block_sparse_moe.")
        if "/experts/" in path:
            name = name.replace(leaf, _MIXTRAL[leaf])
        yield stored._replace(name=name)


def _gpt_oss(
    config: DecoderConfig, path: str, shape: tuple[int, ...], layer: int | None
) -> Iterator[Stored]:
    """All experts of a layer are one tensor, (in, out) each, gate and up column by column."""
    leaf = path.rpartition("/")[2]
    if "/mlp/" not in path:
        yield from _separate(config, path, shape, layer)
        return
    layers = range(shape[0]) if layer is None else (layer,)
    if "/experts/" not in path:
        kind = "bias" if leaf.endswith("_bias") else "weight"
        for i in layers:
            yield Stored((i,), f"model.layers.{i}.mlp.router.{kind}", shape[1:])
        return
    bias, down = leaf.endswith("_bias"), leaf.startswith("down")
    name = ("down_proj" if down else "gate_up_proj") + ("_bias" if bias else "")
    columns = slice(None) if down else slice(int(leaf.startswith("up")), None, 2)
    out = shape[2] if down else 2 * shape[2]
    whole = (shape[1], out) if bias else (shape[1], shape[3], out)
    for i in layers:
        for e in range(shape[1]):
            part = (e, columns) if bias else (e, slice(None), columns)
            at = f"model.layers.{i}.mlp.experts.{name}"
            yield Stored((i, e), at, whole, transposed=not bias, part=part)


def _naming(layout: Layout) -> Naming[Any]:
    return Naming(
        layout,
        unread=("rotary_emb.inv_freq",),  # a table of old checkpoints
        copies={"lm_head.weight": "model.embed_tokens.weight"},  # of tied models
    )


SEPARATE = _naming(_separate)
JOINED = {"phi3": _naming(_phi3), "mixtral": _naming(_mixtral), "gpt_oss": _naming(_gpt_oss)}
"""The naming of families that store their tensors in another way than most."""
