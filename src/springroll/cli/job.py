"""`springroll JOB ...`: options to a run, a run to its report."""

from collections import Counter
from collections.abc import Sequence

from springroll.cli.jobs import job_of
from springroll.cli.options import parse, taken
from springroll.cluster.crew import Ended
from springroll.cluster.watch import Watched, is_watched, watch
from springroll.errors import InputError, suggestion
from springroll.run.job import C, CommandLine, Job, run_job
from springroll.run.join import launch_for

MANY = 3  # recipes whose names have one ending


def run(name: str, argv: Sequence[str]) -> int:
    """Train; the exit code is 0 when the budget was spent, 130 after Ctrl-C."""
    job = job_of(name)

    for flag, instead in job.flags.items():
        if flag in argv:
            rest = [token for token in argv if token != flag]
            return instead(CommandLine(rest, lambda argv: config_of(job, argv), taken))
    config = config_of(job, argv)
    if launch_for(config) is not None and not is_watched():
        return watch([Watched([name, *argv])])

    from rich.console import Console
    from rich.table import Table

    try:
        result = run_job(job, config, Console(stderr=True))
    except Ended as ended:  # the process that leads says why
        return ended.exit_code
    if result is None:
        return 0
    if result.signal is None:
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column()
        table.add_column(overflow="fold")  # paths are to be whole
        for row in job.report(config.out, result.summary):
            table.add_row(*row)
        Console().print(table)
    return result.exit_code


def config_of(job: Job[C], argv: Sequence[str]) -> C:
    """The config of a command line: a recipe's or the defaults, with the given options.

    Args:
        job: whose options and recipes they are.
        argv: the arguments, without the name of the command.

    Raises:
        InputError: an unknown recipe, and as `parse`.
    """
    name, rest = taken(argv, "--recipe")
    if name is not None and name not in job.recipes:
        there = f"there are {', '.join(job.recipes)}"
        hint = suggestion(name, job.recipes, otherwise=there)
        raise InputError(f"unknown recipe {name!r}{hint}")
    return parse(
        job.config,
        rest,
        prog=f"springroll {job.name}",
        default=None if name is None else job.recipes[name](),
        description=job.description,
        others=["--recipe"],
        epilog=recipe_list(job),
    )


def recipe_list(job: Job[C]) -> str:
    """The recipes of a job, for --help: a name, its variants, what it is."""
    recipes = job.recipes
    variants = {name: [x for x in recipes if x.startswith(f"{name}-")] for name in recipes}
    # Endings that many names have are shown in brackets, as those recipes differ in one thing only.
    endings = Counter(x.removeprefix(name) for name, others in variants.items() for x in others)
    common = [ending for ending, count in endings.items() if count >= MANY]
    joined = {name: [end for end in common if name + end in recipes] for name in recipes}
    hidden = {name + ending for name, found in joined.items() for ending in found}
    lines = ["recipes (--recipe NAME sets all options; those given beside it override it):"]
    for name, make in recipes.items():
        if name not in hidden:
            brackets = f"[{'|'.join(joined[name])}]" if joined[name] else ""
            lines.append(f"  {name}{brackets}: {(make.__doc__ or '').partition(chr(10))[0]}")
    return "\n".join(lines) if recipes else ""
