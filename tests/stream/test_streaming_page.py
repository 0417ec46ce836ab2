"""docs/streaming.md: its example runs."""

import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "streaming.md").read_text()


def test_the_example_runs(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(block, "streaming.md", "exec"), {})
    assert "Traffic(sends=" in capsys.readouterr().out
