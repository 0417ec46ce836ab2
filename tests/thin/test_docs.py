"""docs/factored.md: its table leaves no rule out (that its examples run: tests/test_pages.py)."""

import pathlib
import re

from springroll.thin.rules import RULES

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "factored.md"
ALIASES = {  # names that JAX gives to what the page calls otherwise
    "add_any": "add",
    "all_gather_invariant": "all_gather",
    "closed_call": "jit",
    "copy_p": "copy",
    "core_call": "jit",
    "custom_jvp_call": "custom_jvp",
    "custom_vjp_call": "custom_vjp",
    "custom_vmap_call": "custom_vmap",
    "eval_jaxpr": "jit",
    "mesh_cast": "reshard",
    "name": "checkpoint_name",
    "pcast": "pvary",
    "pjit": "jit",
    "remat2": "remat",
}


def test_every_rule_is_in_the_table():
    table = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    named = set(re.findall(r"`(\w+)`", "\n".join(table)))
    assert {ALIASES.get(name, name) for name in RULES} - named == set()
