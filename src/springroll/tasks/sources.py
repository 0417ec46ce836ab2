"""Where documents come from: the Python standard library, a file, a folder, or the hub.

A document is a bytes object. Every source yields its documents in a fixed order.

Text to pretrain a small model on: generated problems with their solutions, written several ways.

Only training problems are written down, so what is held out stays unseen. A document is a prompt
and its answer; documents are joined by the token that ends a text.
"""

import os
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from springroll.errors import InputError, expect
from springroll.hub import data_set
from springroll.tasks.data_set import files_below
from springroll.tasks.draws import Draws
from springroll.tasks.problem import TextTask, Worked, spoken
from springroll.tasks.tables import packed, refuse_packed
from springroll.tasks.task_line import task_of_line
from springroll.typed_call import typed_call

SURFACES = {
    "plain": "{answer}",
    "hash": "#### {answer}",
    "boxed": "\\boxed{{{answer}}}",
    "tag": "<answer>{answer}</answer>",
    "sentence": "The answer is {answer}.",
}
WORKED = "worked "  # before a surface: the steps first, a line each


@typed_call
def training_text(
    task: TextTask, shares: Mapping[str, float] | None = None, seed: int = 0
) -> Callable[[int], str]:
    """A function of an index, 0 or more, to a document: a pure function of (task, shares, seed).

    A pretrained model answers in each style about as often as it stands here, which leaves it to
    the reward to choose among them.

    Args:
        task: one that is generated: "countdown" or "arithmetic".
        shares: by style, positive numbers in any unit; a style is "plain", "hash", "boxed", "tag"
            or "sentence", or one of these after "worked ", with the steps before the answer. By
            default all are plain.
        seed: which style a document has.

    Raises:
        InputError: a style that is none, no positive share, or a task without solutions.
    """
    shares = {"plain": 1.0} if shares is None else shares
    unknown = [style for style in shares if style.removeprefix(WORKED) not in SURFACES]
    if unknown:
        known = ", ".join(SURFACES)
        raise InputError(f"no style {unknown[0]!r}; expected one of {known}, or 'worked' before it")
    if not shares or min(shares.values()) < 0 or sum(shares.values()) <= 0:
        raise InputError(f"the shares of the styles are {dict(shares)}; expected positive numbers")
    worked = task.worked
    if worked is None:
        raise InputError(f"{task.name} has no solutions to write down; take a generated task")
    return lambda index: document(worked(index), _style(shares, seed, index), message=task.chat)


def document(worked: Worked, style: str, message: bool = False) -> str:
    """A problem and its answer in one style.

    Args:
        message: the prompt is a sentence, so the answer begins on a line of its own, as steps
            always do.
    """
    answer = SURFACES[style.removeprefix(WORKED)].format(answer=worked.answer)
    if style.startswith(WORKED):
        return "\n".join([spoken(worked.problem.prompt), *worked.steps, answer])
    return spoken(worked.problem.prompt) + ("\n" if message else "") + answer


def _style(shares: Mapping[str, float], seed: int, index: int) -> str:
    """Drawn by share: a point on a line that the styles divide."""
    point = Draws("style", int(seed), int(index)).below(2**32) / 2**32 * sum(shares.values())
    for style, share in shares.items():
        point -= share
        if point < 0:
            return style
    return max(shares, key=lambda style: shares[style])  # rounding at the very end of the line


MINIPILE = "JeanKaddour/minipile"
HUB_BYTES = 2**28  # of a hub data set when no limit is given: it is read over the network
TASK_DOCUMENTS = 50_000
TESTS = frozenset({"test", "tests", "idle_test"})
SKIPPED = frozenset({"site-packages", "dist-packages", "__pycache__", *TESTS})


def documents(source: str, max_bytes: int | None = None) -> Iterator[bytes]:
    """The documents of `source`: `stdlib`, a path, `minipile`, `hub:OWNER/NAME[:CONFIG]`, or
    `task:NAME OPTIONS`.

    Raises:
        InputError: no such thing, it cannot be read, or the extra `data` or the network is missing.
    """
    named = isinstance(source, str | os.PathLike)
    expect(named, "the corpus", source, "a path, or the name of one")
    source = os.fspath(source)
    if source == "stdlib":
        return stdlib_documents()
    if source == "minipile":
        return hub_documents(MINIPILE, max_bytes)
    if source.startswith("hub:"):
        return hub_documents(source.removeprefix("hub:"), max_bytes)
    if source.startswith("task:"):
        return task_documents(source.removeprefix("task:"))
    path = Path(os.path.expanduser(source))
    if os.path.isdir(path):  # which takes names of any length
        return folder_documents(path)
    if os.path.isfile(path):
        return file_documents(path, max_bytes)
    if source.count("/") == 1 and not source.startswith((".", "/", "~")) and not path.suffix:
        return hub_documents(source, max_bytes)
    raise InputError(
        f"no corpus {source!r}: it is no file or folder here; give a path, 'stdlib', 'minipile' "
        f"or 'hub:OWNER/NAME'"
    )


def stdlib_documents() -> Iterator[bytes]:
    """The .py files of this Python's standard library by path, its tests left out; about 10 MB.

    Also left out is what is not the library's own: installed packages, and the description of this
    machine's build, `_sysconfigdata*`.
    """
    root = Path(sysconfig.get_path("stdlib"))
    empty = True
    for path in files_below(root, skip=SKIPPED):
        if path.suffix == ".py" and not path.name.startswith("_sysconfigdata"):
            empty = False
            yield _read(path)
    if empty:
        raise InputError(f"no Python source in {root}; give --data PATH instead of 'stdlib'")


def folder_documents(root: Path) -> Iterator[bytes]:
    """Every text file below `root`, by path; hidden, binary and unreadable files are left out."""
    for path in files_below(root):
        try:
            content = path.read_bytes()
        except OSError:
            continue
        if b"\0" not in content[:8192] and not _looks_binary(content):
            yield content


def file_documents(path: Path, max_bytes: int | None = None) -> Iterator[bytes]:
    """The documents of one file: what stands between its 0x00 bytes; without them it is one."""
    content = _read(path, max_bytes)
    refuse_packed(content, path)
    if _looks_binary(content):
        raise InputError(f"{path} is not text: over a tenth of its bytes are control characters")
    yield from content.split(b"\0")


def task_documents(lines: str) -> Iterator[bytes]:
    """Training problems of generated tasks with their solutions, the first `TASK_DOCUMENTS` of each
    task; problems that come again are left out.

    Args:
        lines: of tasks, such as `arithmetic digits=2` (see `task_line.py`), with ; between them;
            `styles=plain:1,sentence:3` says how solutions are written, and in which shares (see
            `training_text.py`; `worked_plain` has the steps before the answer).
    """
    for line in lines.split(";"):
        parts = line.split()
        styles = [part.removeprefix("styles=") for part in parts if part.startswith("styles=")]
        task = task_of_line(" ".join(part for part in parts if not part.startswith("styles=")))
        write = training_text(task, _shares(styles[-1]) if styles else None)
        yield from dict.fromkeys(write(index).encode() for index in range(TASK_DOCUMENTS))


def _shares(text: str) -> dict[str, float]:
    """`plain:1,worked_plain:3` as shares by style."""
    try:
        pairs = [pair.partition(":") for pair in text.split(",")]
        return {style.replace("_", " "): float(share or 1) for style, _, share in pairs}
    except ValueError:
        raise InputError(f"styles is {text!r}; expected STYLE:SHARE,STYLE:SHARE") from None


def hub_documents(name: str, max_bytes: int | None = None) -> Iterator[bytes]:
    """The training texts of a Hugging Face data set, streamed; the first `HUB_BYTES` by default.

    Args:
        name: `OWNER/NAME`, or `OWNER/NAME:CONFIG` for a data set that has several.
        max_bytes: how much to read.

    Raises:
        InputError: the package `datasets`, the network, the data set, or text in it is missing.
    """
    path, _, config = name.partition(":")
    limit = HUB_BYTES if max_bytes is None else max_bytes
    instead = "--data PATH takes any file or folder, and --data stdlib needs no network"
    done = 0
    for row in data_set(path, config or None, instead, split="train", streaming=True):
        content = _text(row, name).encode(errors="replace")
        yield content
        done += len(content)
        if done >= limit:
            return


def _text(row: Mapping[str, object], name: str) -> str:
    """The text of one row: its column `text` or `content`, else its first column of strings."""
    for column in ("text", "content", *row):
        if isinstance(text := row.get(column), str):
            return text
    raise InputError(
        f"the data set {name} has no column of text; it has {', '.join(row)}; chats and prompts "
        "with answers are learnt by springroll train --format records"
    )


def _read(path: Path, max_bytes: int | None = None) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(-1 if max_bytes is None else max_bytes)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


# Tab, line feed, form feed, carriage return and escape occur in text; 0x00 separates documents.
_CONTROL = bytes(set(range(32)) - {0, 9, 10, 12, 13, 27}) + b"\x7f"


def _looks_binary(content: bytes) -> bool:
    start = content[:8192].replace(b"\0", b"")
    control = len(start) - len(start.translate(None, _CONTROL))
    return packed(content) is not None or control > len(start) // 10
