"""The house: a room imports only from rooms above it, no files import each other in a circle, and
every room hands out its public names."""

import ast
import graphlib
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import springroll

SOURCE = Path(springroll.__file__).parent
GROUND = (
    *(
        "errors",
        "ranges",
        "typed_call",
        "deprecation",
        "memory",
        "bounded",
        "atomic",
        "markdown",
        "compat",
        "cpu",
    ),
    *("program", "trees", "safetensors_map", "gguf", "hub", "keeper", "worker", "cluster"),
)
ROOMS = (
    *("tokens", "noise", "thin", "quant", "models", "evolve", "subspace", "stream", "planner"),
    *("generate", "tasks", "envs", "run", "pretrain", "train", "finetune", "rl"),
    *("bench", "cli"),
)
ORDER = {name: i for i, name in enumerate((*GROUND, *ROOMS))}
PUBLIC = [room for room in ROOMS if room not in ("bench", "cli")]  # these are programs


def modules():
    """Every file by its dotted name."""
    dotted = lambda path: ".".join(("springroll", *path.relative_to(SOURCE).with_suffix("").parts))
    return {dotted(path).removesuffix(".__init__"): path for path in SOURCE.rglob("*.py")}


def imports():
    """What each file imports of the others, wherever in the file that stands."""
    files = modules()
    found = {}
    for name, path in files.items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("springroll"):
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    found[name].add(inner if inner in files else node.module)
            elif isinstance(node, ast.Import):
                found[name] |= {a.name for a in node.names if a.name in files}
        found[name].discard(name)
    return found


def room(module):
    return module.split(".")[1]


def test_a_room_imports_only_from_rooms_above_it():
    upward = [
        f"{name} -> {other}"
        for name, others in imports().items()
        if name not in ("springroll", "springroll.__main__")
        for other in others
        if other != "springroll" and ORDER[room(other)] > ORDER[room(name)]
    ]
    assert not upward


def test_no_files_import_each_other_in_a_circle():
    packages = {name for name, path in modules().items() if path.name == "__init__.py"}
    graph = {name: others - packages for name, others in imports().items() if name not in packages}
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the files


def test_no_room_or_file_at_the_top_is_named_like_a_public_name():
    assert not {path.stem for path in SOURCE.iterdir()} & set(springroll.__all__)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_room_hands_out_its_public_names(name):
    module = importlib.import_module(f"springroll.{name}")
    assert module.__doc__
    assert module.__all__
    for public in module.__all__:
        value = getattr(module, public)
        assert type(value) is not type(module), f"{public} of {name} is a module"


def test_names_of_a_room_do_not_depend_on_what_was_imported_first():
    """A file may bear the name of what it defines; the room still hands out the thing."""
    code = """
import importlib, pkgutil, sys, types
import springroll
for info in pkgutil.walk_packages(springroll.__path__, "springroll."):
    room = info.name.split(".")[1]
    if info.ispkg or room in ("cli", "bench", "__main__") or info.name.count(".") < 2:
        continue
    try:
        importlib.import_module(info.name)
    except ImportError as error:  # a suite or a compiler that is not installed
        assert "springroll" not in str(error.name), error
rooms = [m for n, m in sys.modules.items() if n.count(".") == 1 and n.startswith("springroll.")]
print([f"{m.__name__}.{n}" for m in rooms for n in getattr(m, "__all__", ())
       if isinstance(getattr(m, n), types.ModuleType)])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "[]", found.stderr


def test_every_folder_is_a_package():
    folders = {path.parent for path in SOURCE.rglob("*.py")}
    assert all((folder / "__init__.py").exists() for folder in folders)
