"""Write `src/springroll/envs/catalog.json`: the tasks of every suite that is installed, beside
those the file has of others. Run by hand, with the newest versions, after a suite changed:

    python tests/golden/make_catalog.py [SUITE ...]
"""

import json
import sys
from pathlib import Path

from springroll.envs.suites import SUITES, _adapter, installed

TABLE = Path(__file__).parents[2] / "src/springroll/envs/catalog.json"


def main(suites: list[str]) -> None:
    table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    for suite in suites:
        adapter = _adapter(suite)
        rows = []
        for name in adapter.names():
            env = adapter.build(name)
            rows.append([name, env.observation_size, str(env.actions), env.max_steps])
            print(suite, *rows[-1], flush=True)
        table[suite] = sorted(rows)
        lines = (
            f'"{suite}": [\n' + ",\n".join(f"  {json.dumps(row)}" for row in rows) + "\n]"
            for suite, rows in sorted(table.items())
        )
        TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(sys.argv[1:] or [suite for suite in SUITES if installed(suite)])
