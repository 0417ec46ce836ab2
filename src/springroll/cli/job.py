"""`springroll JOB ...`: options to a run, a run to its report."""

from collections.abc import Sequence

from springroll.cli.jobs import job_of
from springroll.cli.options import taken
from springroll.cli.recipe import config_of
from springroll.run.config import RunConfig
from springroll.run.job import CommandLine, run_job


def run(name: str, argv: Sequence[str]) -> int:
    """Train; the exit code is 0 when the budget was spent, 130 after Ctrl-C."""
    job = job_of(name)

    def parse(argv: Sequence[str]) -> RunConfig:
        return config_of(job.config, argv, job.description)

    for flag, instead in job.flags.items():
        if flag in argv:
            rest = [token for token in argv if token != flag]
            return instead(CommandLine(rest, parse, taken))
    config = parse(argv)

    from rich.console import Console
    from rich.table import Table

    result = run_job(job, config, Console(stderr=True))
    if result.signal is None:
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column()
        table.add_column(overflow="fold")  # paths are to be whole
        for row in job.report(config.out, result.summary):
            table.add_row(*row)
        Console().print(table)
    return result.exit_code
