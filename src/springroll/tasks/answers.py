r"""Where in a text the answer stands, and which number it is.

| style | the answer |
|---|---|
| `whole` | the whole text |
| `hash` | what follows the first `####`, up to the end of its line, as in GSM8K |
| `last` | the last number; of expressions the last line |
| `boxed` | what is in the last `\boxed{}`, as in MATH |
| `tag` | what is in the last `<answer> </answer>`, as in most Countdown prompts |

A text that thinks, `... </think> ...`, is read after its last thought; one that begins with a
thought and does not end it has no answer. Of a very long text only the end is read, by searching
for fixed strings and in bounded pieces, so that a megabyte costs no more than a long answer.
"""

import re
from collections.abc import Callable
from fractions import Fraction

from springroll.errors import InputError, expect

MAX_TEXT = 2**17  # characters that are read of a text, its last ones
MAX_ANSWER = 1024  # characters that are searched for a number or taken as an answer

INSTRUCTIONS = {
    "whole": "Reply with the {thing} only.",
    "hash": "Finish with a line that holds #### and then the {thing}.",
    "last": "Finish with the {thing} on a line of its own.",
    "boxed": "Put the {thing} in \\boxed{{}}.",
    "tag": "Put the {thing} between <answer> and </answer>.",
}

# An optional sign that is no minus between two terms, a currency, digits with or without commas, a
# decimal part, a power of ten, and the other half of a fraction. Only the digits 0 to 9 count: a
# number that touches a digit of another script, [^\D0-9], is none.
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w.)\]}])[-+\u2212])?(?:\\?[$€£]\s?(?P<inner>[-\u2212])?)?"
    r"(?<![^\D0-9])(?<!\d[eE])(?<!\d[eE][-+\u2212])"
    r"(?P<number>[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+|(?=\.[0-9]))(?P<decimals>\.[0-9]+)?(?![0-9])"
    r"(?P<power>[eE][-+\u2212]?[0-9]+(?!\w))?(?![eE][-+\u2212]?\d)"
    r"(?![./]?[^\D0-9])(?:\s?/\s?(?P<under>[0-9]+)(?!\.?\d))?"
)
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(-?[0-9]+)\s*\}\s*\{\s*([0-9]+)\s*\}")
_MAX_DIGITS = 64


def instruction(style: str, thing: str) -> str:
    """The sentence that asks for an answer in this style."""
    check_style(style)
    return INSTRUCTIONS[style].format(thing=thing)


def check_style(style: str) -> None:
    expect(isinstance(style, str), "style", style, "text")
    if style not in _FINDERS:
        raise InputError(f"the answer style is {style!r}; expected one of {', '.join(_FINDERS)}")


def find_answer(text: str, style: str) -> str | None:
    r"""The piece of the text that holds the answer, stripped; None where there is none.

    >>> find_answer("He has 3 + 4 apples.\n#### 7\n", "hash")
    '7'
    >>> find_answer(r"so \boxed{\frac{1}{2}}", "boxed")
    '\\frac{1}{2}'
    """
    check_style(style)
    reply = _after_thought(text)
    answer = None if reply is None else _FINDERS[style](reply)
    return answer.strip() or None if answer is not None and len(answer) <= MAX_ANSWER else None


def find_number(text: str, style: str) -> Fraction | None:
    """The number that a text answers, exactly; None where there is none.

    Commas, signs, currencies, units after the number, decimals, fractions and powers of ten (`1e2`
    is 100) are understood; digits are 0 to 9, not those of other scripts. Of an equation the right
    side counts. With `last` it is the last number, else the first of the answer;
    with `whole` there must be nothing but the number.

    >>> find_number("#### $1,234.50 per year", "hash")
    Fraction(2469, 2)
    """
    if style == "last":
        return last_number((_after_thought(text) or "")[-MAX_ANSWER:])
    answer = find_answer(text, style)
    if answer is None:
        return None
    if style == "whole":
        match = _NUMBER.fullmatch(answer)
        return _fraction(match) if match else None
    return first_number(answer.rpartition("=")[2])


def first_number(text: str) -> Fraction | None:
    """The first number of a short text."""
    text = _plain_fractions(text)
    match = _NUMBER.search(text)
    return _fraction(match) if match else None


def last_number(text: str) -> Fraction | None:
    """The last number of a short text."""
    matches = list(_NUMBER.finditer(_plain_fractions(text)))
    return _fraction(matches[-1]) if matches else None


def _fraction(match: re.Match[str]) -> Fraction | None:
    if len(match.group()) > _MAX_DIGITS:
        return None
    integer, decimals = match["number"].replace(",", ""), match["decimals"] or ""
    power = int((match["power"] or "e0")[1:].replace("\u2212", "-"))
    if abs(power) > _MAX_DIGITS:
        return None
    value = Fraction(f"{integer or 0}{decimals}") * Fraction(10) ** power
    if match["under"]:
        if int(match["under"]) == 0:
            return None
        value /= int(match["under"])
    negative = (match["sign"] or "+") != "+" or match["inner"]
    return -value if negative else value


def _plain_fractions(text: str) -> str:
    return _LATEX_FRACTION.sub(r"\1/\2", text)


def _after_thought(text: str) -> str | None:
    expect(isinstance(text, str), "text", text, "text")
    thinks = "<think>" in text[:MAX_ANSWER]
    text = text[-MAX_TEXT:]
    end = text.rfind("</think>")
    if end >= 0:
        return text[end + len("</think>") :]
    return None if thinks else text


def _whole(text: str) -> str | None:
    return text


def _after_hash(text: str) -> str | None:
    start = text.find("####")
    if start < 0:
        return None
    end = text.find("\n", start)
    return text[start + 4 : end if end >= 0 else None]


def _last_line(text: str) -> str | None:
    return text[-2 * MAX_ANSWER :].rstrip().rpartition("\n")[2]


def _boxed(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    inside, depth = start + len("\\boxed{"), 1
    for place in range(inside, min(len(text), inside + MAX_ANSWER + 1)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[inside:place]
    return None


def _tagged(text: str) -> str | None:
    start = text.rfind("<answer>")
    end = text.find("</answer>", start)
    return text[start + len("<answer>") : end] if 0 <= start < end else None


_FINDERS: dict[str, Callable[[str], str | None]] = {
    "whole": _whole,
    "hash": _after_hash,
    "last": _last_line,
    "boxed": _boxed,
    "tag": _tagged,
}
