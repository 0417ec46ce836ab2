"""Tests of the adapters of suites, with the suites themselves: `make test-suites` installs them.

Kinetix cannot be in the extra (its metadata asks for an older jax). Its tests are in one file that
is collected where it is installed; the header says whether it is.
"""

import pytest

from springroll.envs.suites import KINETIX, SUITES, installed

collect_ignore = [] if installed("kinetix") else ["test_kinetix_levels.py"]


def pytest_report_header() -> str:
    missing = [suite for suite in SUITES if not installed(suite) and suite != "kinetix"]
    if missing:
        raise pytest.UsageError(f"not installed: {', '.join(missing)}; {SUITES[missing[0]]}")
    if installed("kinetix"):
        return "kinetix: its tests are run"
    return f"kinetix: NOT INSTALLED, test_kinetix_levels.py is left out; {KINETIX}"
