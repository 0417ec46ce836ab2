"""What the options of the tasks have in common."""

from springroll.errors import InputError


def prompt_style(style: str, answer: str | None) -> str:
    """Where the answer stands: as asked for, else all of a plain one, after #### of another.

    Raises:
        InputError: `style` is neither "plain" nor "instruct".
    """
    if style not in ("plain", "instruct"):
        raise InputError(f"the prompt style is {style!r}; expected plain or instruct")
    return answer or ("whole" if style == "plain" else "hash")


def option_line(name: str, **options: object) -> str:
    """Name and options in one line, for a run to be recognised by."""
    return " ".join([name, *(f"{key}={value}" for key, value in options.items())])
