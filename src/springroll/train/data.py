"""What `train` learns: text, all of it, or records, whose answers are learnt."""

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from springroll.errors import InputError
from springroll.models.packed import Packed
from springroll.models.rwkv7.config import RWKV7Config
from springroll.run.progress import counted
from springroll.run.text_job import lines_to_beat
from springroll.tasks.corpus import Corpus, load_corpus
from springroll.tasks.data_set import DESCRIPTIONS, files_below
from springroll.tasks.encoded import batches, encoded, rows_of, sample_of
from springroll.tasks.examples import Sides, read_examples, sides
from springroll.tasks.tables import READERS
from springroll.tasks.text import (
    baselines,
    document_encoder,
    streams,
    tokenized,
    validation,
)
from springroll.tokens.byte_tokenizer import byte_tokenizer
from springroll.tokens.tokenizer import Tokenizer, open_tokenizer
from springroll.train.config import TrainConfig
from springroll.train.pretrained import folder_of
from springroll.trees import PyTree

BESIDE = {"", ".md"}  # endings of files that lie beside records: a licence, a card


class Measure(NamedTuple):
    """What a loss is told in."""

    name: str  # in metrics, after `train_` and `valid_`
    label: str
    short: str
    per_nat: float


BYTES = Measure("bits_per_byte", "bits per byte", "bits/byte", 1 / math.log(2))
ANSWERS = Measure("nats_per_answer_token", "nats per answer token", "nats/token", 1.0)


class Data(NamedTuple):
    """What is learnt and what it is validated on."""

    batch: Callable[[int], PyTree]  # of a step, on the host: tokens (rows, T + 1), or `Packed`
    sample: PyTree  # the same of the validation
    measure: Measure
    lines: Mapping[str, float]  # figures to beat
    identity: Mapping[str, str]  # what it is recognised by
    opening: list[str]  # lines for people


def format_of(source: str) -> str:
    """Whether data is `text` or `records`, by the names of its files."""
    path = Path(os.path.expanduser(source))
    if not os.path.isdir(path):
        table = os.path.isfile(path) and path.suffix.lower() in READERS
        return "records" if table else "text"
    endings = {
        file.suffix.lower() for file in files_below(path) if file.name not in DESCRIPTIONS
    } - BESIDE
    return "records" if endings and endings <= READERS.keys() else "text"


def batch_shape(config: TrainConfig) -> PyTree:
    """A batch of a step as `jax.ShapeDtypeStruct`s."""
    rows, time = config.accumulate * config.batch, config.sequence
    kind = np.int32 if folder_of(config.model) else np.uint8
    if config.format != "records":
        return jax.ShapeDtypeStruct((rows, time + 1), kind)
    row = jax.ShapeDtypeStruct((rows, time), np.int32)
    return Packed(row, row, row, jax.ShapeDtypeStruct((rows,), np.float32))


class Text:
    """A corpus; in the tokens of the model when they are asked for."""

    def __init__(self, config: TrainConfig):
        self.config, self.corpus = config, load_corpus(config.data)
        self.lines = baselines(self.sample(self.corpus))
        if not folder_of(config.model):  # tokens are bytes: too much of them is said at once
            streams(self.corpus.train, config.batch * config.accumulate, config.sequence)

    def sample(self, corpus: Corpus) -> np.ndarray:
        return validation(corpus, self.config.valid_streams, self.config.valid_tokens)

    def data(self) -> Data:
        """Batches of it."""
        config, corpus, per_byte = self.config, self.corpus, 1.0
        folder = folder_of(config.model)
        if folder is not None:
            corpus, per_byte = tokenized(corpus, document_encoder(folder))
        train = streams(corpus.train, config.batch * config.accumulate, config.sequence)
        return Data(
            batch=train.batch,
            sample=self.sample(corpus),
            measure=BYTES._replace(per_nat=per_byte * BYTES.per_nat),
            lines=self.lines,
            identity={"corpus": corpus.digest},
            opening=[str(self.corpus), lines_to_beat(self.lines)],
        )


class Records:
    """The examples of a data set in the tokens of the model; of a long text several pieces."""

    def __init__(self, config: TrainConfig, packing: bool):
        self.config, self.packing = config, packing
        tokenizer = tokenizer_of(config.model)
        columns = config.prompt_column, config.answer_column
        self.found = read_examples(config.data, *columns, chat=tokenizer.chats)
        with self._named():
            self.encoded = encoded(self.found.all, tokenizer, config.sequence, note)

    def data(self) -> Data:
        """Batches of the one side, and a sample of the other."""
        config, of = self.config, self.encoded
        with self._named():
            both = self.sides()
            train, held_out = map(of.pieces, both)
            rows = rows_of(of, train, config.sequence, self.packing)
            size = config.batch * config.accumulate
            batch = batches(of, rows, size, config.sequence, config.seed)
        told = [
            f"{counted(len(side), 'record')} with {counted(of.answers(pieces), 'answer token')}"
            for side, pieces in zip(both, (train, held_out), strict=True)
        ]
        lines = [f"{config.data}: {told[0]} for training, {told[1]} held out"]
        if of.left_out.line:
            lines.append(f"left out of the records: {of.left_out.line}")
        return Data(
            batch=lambda step: Packed(*batch(step)),
            sample=self.sample(held_out),
            measure=ANSWERS,
            lines={},
            identity={"records": self.found.digest},
            opening=lines,
        )

    def sides(self) -> Sides:
        """The examples for training, and those that are never trained on."""
        return sides(self.found, np.unique(self.encoded.source).tolist())

    def sample(self, pieces: Sequence[int]) -> Packed:
        """Rows of some pieces, to validate on."""
        config = self.config
        size = config.valid_streams, config.sequence
        return Packed(*sample_of(self.encoded, pieces, *size, self.packing, config.batch))

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """What is wrong with the records is said of their file."""
        try:
            yield
        except InputError as error:
            raise InputError(f"{self.config.data}: {error}") from None


def note(line: str) -> None:
    """A line of progress."""
    print(line, file=sys.stderr, flush=True)


def tokenizer_of(model: str) -> Tokenizer:
    """That of a folder; bytes for a model made anew."""
    folder = folder_of(model)
    return byte_tokenizer() if folder is None else open_tokenizer(folder)


def packs(config: TrainConfig, shape: object) -> bool:
    """Whether rows hold several records.

    Raises:
        InputError: it was asked for, and the model cannot keep them apart.
    """
    recurrent = isinstance(shape, RWKV7Config)
    if recurrent and config.packing == "on":
        raise InputError(
            "the state of an RWKV-7 goes on from one record of a row to the next; leave out "
            "--packing on, and each record has a row of its own"
        )
    return config.packing == "on" or (config.packing == "auto" and not recurrent)
