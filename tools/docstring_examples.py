"""An extension of griffe, which reads docstrings for the API reference: examples are code.

A docstring's `>>>` lines stand in its text. Markdown would join them, and take `p["w"][None]` in
them for a link.
"""

from typing import Any

import griffe


def fenced(text: str) -> str:
    """Fences around every paragraph that begins with `>>>`."""
    lines, inside = [], False
    for line in text.splitlines():
        begins = line.lstrip().startswith(">>>") and not inside
        ends = inside and not line.strip()
        if begins or ends:
            lines.append(indent(line if begins else lines[-1]) + ("```pycon" if begins else "```"))
            inside = begins
        lines.append(line)
    if inside:
        lines.append(indent(lines[-1]) + "```")
    return "\n".join(lines)


def indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


class DocstringExamples(griffe.Extension):
    """Applies `fenced` to the docstring of everything that is read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)
