"""The process that renders chat templates (see `springroll.worker`).

A template comes with the checkpoint and is a program. Here it runs where it can change nothing and
call nothing but what it is given, with as much memory as a text can need; the other side kills it
when it takes too long. A request and its answer stand in the bytes behind a message:

    {}, {"template": text, "variables": {...}}  ->  {}, text
                                                    {"none": line} or {"refused": line}
"""

import datetime
import functools
import importlib
import json
import re
from pathlib import Path
from typing import Any, TypeAlias

from springroll.errors import InputError, first_line
from springroll.program import pip_install
from springroll.worker import Answer, Message, Progress, serve

LONGEST = 10_000_000  # characters of a text; a context of a million tokens has less than half
MEMORY = 512 << 20  # bytes beyond those of the process at its start
ORPHANED = 60.0  # seconds after which a request ends itself when nobody is there to do it
NEEDED = (3, 1, 6)  # the sandbox of earlier versions can be left

Template: TypeAlias = Any
"""A compiled template of the package jinja2."""


def main(progress: Progress) -> None:
    serve(renderer, ORPHANED)


def renderer() -> Answer:
    """What answers requests; takes away this process's right to more memory.

    Raises:
        InputError: the package jinja2 is missing or too old.
    """
    compiled = functools.lru_cache(maxsize=16)(environment().from_string)
    _limit_memory()

    def answer(message: Message, payload: bytes) -> tuple[Message, bytes]:
        request = json.loads(payload)
        try:
            template = compiled(request["template"])
        except MemoryError:
            return {"none": _OVER}, b""
        except Exception as error:  # whatever a compiler raises over a text
            return {"none": first_line(error, 200)}, b""
        try:
            return {}, rendered(template, request["variables"]).encode(errors="surrogatepass")
        except MemoryError:
            return {"refused": _OVER}, b""
        except Exception as error:  # a template may fail in any way
            return {"refused": first_line(error, 200)}, b""

    return answer


def rendered(template: Template, variables: dict[str, Any]) -> str:
    """The text of a template; ValueError as soon as it has too many characters."""
    parts, length = [], 0
    for part in template.generate(**variables):
        parts.append(part)
        length += len(part)
        if length > LONGEST:
            raise ValueError(f"its text is longer than {LONGEST:,} characters")
    return "".join(parts)


def environment() -> Any:
    """The sandbox that transformers renders in.

    Raises:
        InputError: the package jinja2 is missing or too old.
    """
    needed = ".".join(map(str, NEEDED))
    try:
        jinja2 = importlib.import_module("jinja2")
        sandbox = importlib.import_module("jinja2.sandbox")
        ext = importlib.import_module("jinja2.ext")
        nodes = importlib.import_module("jinja2.nodes")
    except ImportError:
        raise InputError(
            f"chat templates need the package 'jinja2' {needed}: {pip_install('hf')}"
        ) from None
    version = str(jinja2.__version__)
    if tuple(int(part) for part in re.findall(r"\d+", version)[:3]) < NEEDED:
        raise InputError(
            f"chat templates need jinja2 {needed} or newer, and {version} is installed: "
            f"{pip_install('hf')}"
        )

    class Generation(ext.Extension):
        """`{% generation %}` marks what a model says, for training; here it changes nothing."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    made = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols, Generation]
    )
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return made


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is; Jinja's own filter would write <, > and & in another way.

    The options are those of transformers. Others of `json.dumps` would call what they are given.
    """
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise ValueError(message)


def _limit_memory() -> None:
    """What is allocated beyond the limit raises MemoryError, where the system knows such limits
    (Linux; elsewhere the limits of time and of output are all there is)."""
    try:
        resource: Any = importlib.import_module("resource")
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    except (ImportError, OSError, ValueError):
        return


_OVER = f"it takes more than {MEMORY >> 20} MiB of memory"
