"""Messages as the text a model was trained to answer: the Jinja template of its folder, sandboxed.

A template comes with the checkpoint and is a program: it runs where it can change nothing and call
nothing but what is given here, which is what templates are written for by Hugging Face.
"""

import datetime
import functools
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from springroll import atomic
from springroll.atomic import JsonObject
from springroll.errors import InputError
from springroll.program import pip_install

Messages: TypeAlias = Sequence[Mapping[str, str]]
"""What was said: {"role": ..., "content": ...}."""
Render: TypeAlias = Callable[..., str]


class Template(Protocol):
    """A compiled template of the package jinja2."""

    def render(self, **variables: object) -> str: ...


_FILE = "chat_template.jinja"
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


def template_text(folder: str | Path) -> str | None:
    """The template in a folder: `chat_template.jinja`, or what tokenizer_config.json holds.

    Of several named ones it is that of the name "default".
    """
    folder = Path(folder)
    try:
        return (folder / _FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        template = settings(folder).get("chat_template")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {folder / _FILE}: {error}") from None
    if isinstance(template, list):
        named = {
            entry.get("name"): entry.get("template")
            for entry in template
            if isinstance(entry, dict)
        }
        template = named.get("default")
    return template if isinstance(template, str) else None


def settings(folder: str | Path) -> JsonObject:
    """tokenizer_config.json, empty where there is none."""
    path = Path(folder) / "tokenizer_config.json"
    return atomic.read_json(path) if path.exists() else {}


def special_tokens(folder: str | Path) -> dict[str, str]:
    """The special tokens that tokenizer_config.json names, as text."""
    named = {name: settings(folder).get(name) for name in _SPECIAL}
    texts = {name: t.get("content") if isinstance(t, dict) else t for name, t in named.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def chat_template(folder: str | Path) -> Render | None:
    """A function of messages to text; None where the folder has no template.

    Its further arguments are variables of the template, such as `enable_thinking=False`;
    `add_generation_prompt` is true unless said otherwise.

    The function raises InputError when the package `jinja2` is missing, the template is none, or
    it refuses the messages.
    """
    text = template_text(folder)
    if text is None:
        return None
    compiled = functools.cache(lambda: _compiled(text, folder))  # at first use: needs a package
    tokens = special_tokens(folder)

    def render(messages: Messages, **variables: object) -> str:
        template = compiled()
        defaults = {"add_generation_prompt": True, "tools": None, "documents": None}
        try:
            return template.render(**tokens | defaults | variables, messages=list(messages))
        except Exception as error:  # a template may fail in any way
            raise InputError(
                f"the chat template of {folder} refuses these messages: {_first_line(error)}"
            ) from None

    return render


def _compiled(text: str, folder: str | Path) -> Template:
    try:
        sandbox = importlib.import_module("jinja2.sandbox")
        ext = importlib.import_module("jinja2.ext")
        nodes = importlib.import_module("jinja2.nodes")
    except ImportError:
        raise InputError(
            f"the chat template of {folder} needs the package 'jinja2': {pip_install('hf')}"
        ) from None

    class Generation(ext.Extension):
        """`{% generation %}` marks what a model says, for training; here it changes nothing."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols, Generation]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        return environment.from_string(text)
    except Exception as error:  # whatever a compiler raises over a text
        raise InputError(f"the chat template of {folder} is none: {_first_line(error)}") from None


def _tojson(
    value: object, ensure_ascii: bool = False, indent: int | None = None, **options: Any
) -> str:
    """JSON as it is; Jinja's own filter would write <, > and & in another way."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise_exception(message: str) -> None:
    raise ValueError(message)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0][:200]
