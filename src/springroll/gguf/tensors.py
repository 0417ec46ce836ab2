"""The tensors of a GGUF file under the names of Hugging Face's format, unpacked when they are used.

Numbers are stored in blocks of a few bits and a scale. Which type they are unpacked to is up to who
copies them; nothing of a tensor is held in float32 but some rows at a time.
"""

import math
import re
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from springroll.errors import InputError
from springroll.gguf.header import Entry, Header, package
from springroll.safetensors_map import forget

FLOAT32 = 0  # of the package's GGMLQuantizationType
_MOST_EXPERTS = 1024  # of a layer; each is a tensor of its own
_AT_ONCE = 1 << 22  # numbers that are unpacked together

_OUTSIDE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_OF_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
}
_OF_EXPERTS = {
    "ffn_gate_exps": "gate_proj",
    "ffn_up_exps": "up_proj",
    "ffn_down_exps": "down_proj",
}
_UNREAD = ("rope_freqs.weight",)  # told by the configuration


@dataclass(frozen=True, eq=False)
class Packed:
    """A tensor in a mapped file; `np.asarray` unpacks it.

    `rows` (n, bytes) uint8 are those of the tensor as a matrix, `order` (n,) the row of the file
    that is each row of the tensor.
    """

    rows: np.ndarray
    kind: Any
    shape: tuple[int, ...]
    dtype: np.dtype  # it is unpacked to, unless asked for another
    order: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        """The numbers, in memory of their own."""
        count, width = len(self.rows), self.shape[-1]
        out = np.empty((count, width), self.dtype if dtype is None else dtype)
        step = max(1, _AT_ONCE // width)
        unpack = package("a GGUF file").dequantize
        for start in range(0, count, step):
            some = slice(start, start + step)
            rows = self.rows[some] if self.order is None else self.rows[self.order[some]]
            with np.errstate(all="ignore"):  # a damaged scale may be infinite
                np.copyto(out[some], unpack(rows, self.kind), casting="unsafe")
        forget(self.rows)
        return out.reshape(self.shape)


def packed(header: Header) -> dict[str, Packed]:
    """Every tensor of a model by the name it has in Hugging Face's format.

    A tensor that no known model has keeps its own name. Unpacked they are bfloat16; float32 if all
    of them are stored so.

    Raises:
        InputError: a type that the package `gguf` cannot unpack.
    """
    _check_types(header)
    kinds = {entry.kind for entry in header.tensors.values()}
    dtype = np.dtype(np.float32 if kinds <= {FLOAT32} else ml_dtypes.bfloat16)
    found: dict[str, Packed] = {}
    for name, entry in header.tensors.items():
        if name not in _UNREAD:
            found |= _named(header, name, entry, dtype)
    return found


def _check_types(header: Header) -> None:
    gguf = package(header.path)
    for kind in {entry.kind for entry in header.tensors.values()}:
        one = np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
        try:
            gguf.dequantize(one, gguf.GGMLQuantizationType(kind))
        except NotImplementedError:
            name = next(name for name, e in header.tensors.items() if e.kind == kind)
            raise InputError(
                f"{header.path}: {name} is stored as {gguf.GGMLQuantizationType(kind).name}, which "
                "cannot be read; take a file of another type, such as Q8_0 or F16"
            ) from None


def _named(header: Header, name: str, entry: Entry, dtype: np.dtype) -> dict[str, Packed]:
    """A tensor under its new name; one of all experts of a layer as one of each."""
    kind = package(header.path).GGMLQuantizationType(entry.kind)
    rows = header.content[entry.begin : entry.end].reshape(math.prod(entry.shape[:-1]), -1)
    whole = Packed(rows, kind, entry.shape, dtype)
    parts = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if parts is None:
        return {name: whole}
    layer, stem, ending = parts.groups()
    if layer is None:
        return {f"{_OUTSIDE[stem]}.{ending}" if stem in _OUTSIDE else name: whole}
    inside = f"model.layers.{layer}"
    if stem in _OF_EXPERTS and len(entry.shape) == 3 and entry.shape[0] <= _MOST_EXPERTS:
        each = np.split(rows, entry.shape[0])
        stem = f"{_OF_EXPERTS[stem]}.{ending}"
        return {
            f"{inside}.mlp.experts.{i}.{stem}": Packed(part, kind, entry.shape[1:], dtype)
            for i, part in enumerate(each)
        }
    if stem not in _OF_LAYER:
        return {name: whole}
    if header.metadata.get("general.architecture") == "llama" and stem in ("attn_q", "attn_k"):
        whole = _unturned(header, stem, whole)
    return {f"{inside}.{_OF_LAYER[stem]}.{ending}": whole}


def _unturned(header: Header, stem: str, turned: Packed) -> Packed:
    """Queries or keys of a Llama in the order of Hugging Face's format.

    There the two numbers that a position turns together stand half a head apart, in a GGUF of this
    architecture side by side. Whole rows change places, so that blocks stay as they are.
    """
    key = "llama.attention.head_count"
    heads = header.metadata.get(key)
    if stem == "attn_k":
        heads = header.metadata.get(f"{key}_kv", heads)
    count = turned.shape[0]
    if type(heads) is not int or heads < 1 or count % (2 * heads):
        raise InputError(f"{header.path}: {stem} has {count} rows, which {heads} heads cannot have")
    order = np.arange(count).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
    if len(turned.shape) == 1:  # a bias is one row of numbers
        raise InputError(f"{header.path}: {stem} has a bias, which is not supported")
    return replace(turned, order=order)
