"""docs/streaming.md: its examples run."""

import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "streaming.md").read_text()


def test_the_examples_run(capsys):
    names = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "streaming.md", "exec"), names)
    assert "Traffic(sends=" in capsys.readouterr().out
    assert names["fitness"].shape == (8,)
