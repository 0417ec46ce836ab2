"""`python -m springroll` is the command `springroll`."""

import sys

from springroll.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
