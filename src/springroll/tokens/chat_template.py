"""Messages as the text a model was trained to answer: the Jinja template of its folder.

A template comes with the checkpoint and is a program: it runs in a process of its own (see
`template_worker`), which is killed when it takes too long.
"""

import atexit
import functools
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from springroll import atomic
from springroll.atomic import JsonObject
from springroll.bounded import read_text
from springroll.errors import InputError
from springroll.worker import Worker, WorkerLost

Messages: TypeAlias = Sequence[Mapping[str, Any]]
"""What was said: {"role": ..., "content": ...}; a call of a tool has {"tool_calls": [...]} too."""
Render: TypeAlias = Callable[..., str]

SECONDS = 10.0  # that a text may take; usual ones take a thousandth
_ONE_AT_A_TIME = threading.Lock()
_LONGEST = 1_000_000  # bytes of a template; the largest published has a twentieth
_FILE = "chat_template.jinja"
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


def template_text(folder: str | Path) -> str | None:
    """The template in a folder: `chat_template.jinja`, or what tokenizer_config.json holds.

    Of several named ones it is that of the name "default".
    """
    folder = Path(folder)
    if (folder / _FILE).exists():
        return read_text(folder / _FILE, _LONGEST)
    template = settings(folder).get("chat_template")
    if isinstance(template, list):
        named = {
            entry.get("name"): entry.get("template")
            for entry in template
            if isinstance(entry, dict) and isinstance(entry.get("name"), str)
        }
        template = named.get("default")
    if isinstance(template, str) and len(template) > _LONGEST:
        raise InputError(f"the chat template of {folder} is larger than 1 MB")
    return template if isinstance(template, str) else None


def settings(folder: str | Path) -> JsonObject:
    """tokenizer_config.json, empty where there is none."""
    path = Path(folder) / "tokenizer_config.json"
    return atomic.read_json(path) if path.exists() else {}


def special_tokens(folder: str | Path) -> dict[str, str]:
    """The special tokens that tokenizer_config.json names, as text."""
    said = settings(folder)
    named = {name: said.get(name) for name in _SPECIAL}
    texts = {name: t.get("content") if isinstance(t, dict) else t for name, t in named.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def chat_template(folder: str | Path) -> Render | None:
    """A function of messages to text; None where the folder has no template.

    Its further arguments are variables of the template, such as `enable_thinking=False`;
    `add_generation_prompt` is true unless said otherwise. They are what JSON can say.

    The function raises InputError when the package `jinja2` is missing, the template is none, it
    refuses the messages, or exceeds a limit: `SECONDS`, and the memory and length of
    `template_worker`.
    """
    text = template_text(folder)
    if text is None:
        return None
    tokens = special_tokens(folder)

    def render(messages: Messages, **variables: object) -> str:
        defaults = {"add_generation_prompt": True, "tools": None, "documents": None}
        said = list(map(dict, messages))
        return _rendered(text, str(folder), tokens | defaults | variables | {"messages": said})

    return render


def _rendered(text: str, folder: str, variables: Mapping[str, object]) -> str:
    try:
        request = json.dumps({"template": text, "variables": dict(variables)}).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"the chat template of {folder} takes what JSON can say, and not: {error}"
        ) from None
    try:
        with _ONE_AT_A_TIME:
            answer, rendered = _renderer().ask({}, request)
    except WorkerLost as lost:
        reason = f"it takes more than {SECONDS:g} s" if lost.kind == "timeout" else "it crashes"
        answer, rendered = {"refused": reason}, b""
    if "none" in answer:
        raise InputError(f"the chat template of {folder} is none: {answer['none']}")
    if "refused" in answer:
        raise InputError(
            f"the chat template of {folder} refuses these messages: {answer['refused']}"
        )
    return rendered.decode(errors="surrogatepass")


@functools.cache
def _renderer() -> Worker:
    """One process for all templates, which starts with the first text."""
    module = "springroll.tokens.template_worker"
    worker = Worker(module, limit=SECONDS, what="the renderer of chat templates")
    atexit.register(worker.end)
    return worker
