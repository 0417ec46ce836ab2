"""Lets the tests of this folder import the slow obvious versions in `tests/reference`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "reference"))
