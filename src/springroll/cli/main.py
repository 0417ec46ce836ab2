"""`springroll COMMAND ...`: finds the command, and turns what the user got wrong into one line.

Adding a command is a file with `run(argv) -> int` and a line in `COMMANDS`; adding a job is a room
and a line in `JOBS` of `jobs.py`.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from springroll.cli.faults import BAD_INPUT, quiet_output, told
from springroll.cli.jobs import JOBS
from springroll.errors import InputError, one_line, suggestion


class Command(NamedTuple):
    """The file of a command, and what it does in a few words."""

    module: str
    summary: str


COMMANDS: dict[str, Command] = {
    **{name: Command("springroll.cli.job", summary) for name, summary in JOBS.items()},
    "plan": Command("springroll.cli.plan", "what a machine can train, and how fast, beforehand"),
    "eval": Command("springroll.cli.eval", "bits per byte of a run, beside the lines to beat"),
    "sample": Command("springroll.cli.sample", "let a run write text"),
    "replay": Command("springroll.cli.replay", "rebuild a run's weights from its journal"),
    "export": Command("springroll.cli.export", "a run's weights as a Hugging Face folder"),
    "explain": Command("springroll.cli.explain", "how each parameter of a model is perturbed"),
    "launch": Command("springroll.cli.launch", "start a command in several processes here"),
    "doctor": Command("springroll.cli.doctor", "devices, versions, extras, and a self-test"),
    "bench": Command("springroll.cli.bench", "measure one of the claims on this machine"),
}

INTERRUPTED = 130  # exit code


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0, 1 (a check failed), 2 (bad input, disk or memory), 3 (another process of
        the run is gone), 70 (a fault of ours), 130 (Ctrl-C) or 141 (whoever read the output
        stopped).
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        code = dispatch(argv)
        sys.stdout.flush()  # a full disk behind it is told below
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        quiet_output()
        line, code = told(error, argv)
        if line is not None:
            print(f"springroll: {one_line(line)}", file=sys.stderr)
        return code


def dispatch(argv: list[str]) -> int:
    """The command named first, with the rest as its arguments."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if argv else BAD_INPUT
    if argv[0] == "--version":
        from springroll import __version__

        print(f"springroll {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        there = f"there are {', '.join(COMMANDS)}"
        hint = suggestion(argv[0], COMMANDS, otherwise=there, quoted=True)
        raise InputError(f"unknown command {argv[0]!r}{hint}")
    name, *rest = argv
    module = importlib.import_module(COMMANDS[name].module)
    return module.run(name, rest) if name in JOBS else module.run(rest)


def usage() -> str:
    """What `springroll --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: springroll COMMAND [OPTIONS]",
            "",
            "Train models past the memory wall, in JAX, with or without gradients.",
            "",
            *lines,
            "",
            "springroll COMMAND --help lists the options of a command.",
            "Begin with: springroll pretrain --recipe demo",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
