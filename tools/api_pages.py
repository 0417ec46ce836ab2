"""Writes docs/api/: a page per package with the names of its `__all__`, and one of public names.

    python tools/api_pages.py [FOLDER]

Sources are read and not imported, so that a package whose extra is not installed has its page too.
"""

import ast
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"


class Definition(NamedTuple):
    """Where a name is defined, and its node there."""

    module: str
    name: str
    node: ast.AST

    @property
    def path(self) -> str:
        return f"{self.module}.{self.name}"


def main(folder: Path) -> None:
    """Write all pages anew; a package that is not in the navigation is an error."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.md"):
        old.unlink()
    found = rooms()
    navigation = (ROOT / "mkdocs.yml").read_text()
    lost = [room for room in found if f"api/{room}.md" not in navigation]
    if lost:
        sys.exit(f"mkdocs.yml does not name api/{lost[0]}.md in its navigation; add a line")
    (folder / "index.md").write_text(face(found))
    for room in found:
        (folder / f"{room}.md").write_text(page(f"springroll.{room}"))


def rooms() -> list[str]:
    """Packages of springroll that hand out names."""
    found = sorted(path.parent.name for path in (SOURCE / "springroll").glob("*/__init__.py"))
    return [room for room in found if exported(f"springroll.{room}")]


def page(package: str) -> str:
    """What a package is for, then each of its names."""
    lines = [f"# {package}", "", f"::: {package}", "    options: {members: false}", ""]
    for name in exported(package):
        lines += [f"::: {definition(package, name).path}"]
        lines += ["    options: {show_root_heading: true}", ""]
    return "\n".join(lines)


def face(found: list[str]) -> str:
    """A table of the public names: name, and the first line of its docstring; then the packages."""
    described = {
        definition(f"springroll.{room}", name).path
        for room in found
        for name in exported(f"springroll.{room}")
    }
    lines = ["# springroll", "", "```python", "import springroll as sr", "```", ""]
    lines += ["| name | what it is |", "|---|---|"]
    rest = []
    for name in sorted(exported("springroll"), key=str.lower):
        where = definition("springroll", name)
        lines.append(f"| [`sr.{name}`][{where.path}] | {summary(where.node)} |")
        rest += [where.path] if where.path not in described else []
    lines += ["", "## Packages", "", "| package | what it is for |", "|---|---|"]
    for room in found:
        about = summary(ast.parse((SOURCE / "springroll" / room / "__init__.py").read_text()))
        lines.append(f"| [`springroll.{room}`]({room}.md) | {about} |")
    for path in rest:
        lines += ["", f"::: {path}", "    options: {show_root_heading: true}"]
    return "\n".join(lines) + "\n"


def exported(package: str) -> list[str]:
    """`__all__` of a package; where names are loaded lazily, what its `__init__.pyi` imports."""
    if file_of(package).suffix == ".pyi":
        return list(imports(package))
    for node in tree(package).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(node, ast.Assign) and isinstance(target, ast.Name) and target.id == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def definition(module: str, name: str) -> Definition:
    """Follow imports from a module to where a name is defined."""
    for node in reversed(tree(module).body):  # what stands last: an implementation, no overload
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return Definition(module, name, node)
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(each, ast.Name) and each.id == name for each in targets):
            return Definition(module, name, node)
    if name not in imports(module):
        sys.exit(f"{module} exports {name}, which it neither defines nor imports")
    return definition(*imports(module)[name])


def imports(module: str) -> dict[str, tuple[str, str]]:
    """name -> (module, name there), of what a module imports from springroll."""
    found = {}
    for node in ast.walk(tree(module)):
        if not isinstance(node, ast.ImportFrom):
            continue
        source = f"{module}.{node.module}" if node.level else node.module or ""
        if source.startswith("springroll"):
            found |= {each.asname or each.name: (source, each.name) for each in node.names}
    return found


def tree(module: str) -> ast.Module:
    return ast.parse(file_of(module).read_text())


def file_of(module: str) -> Path:
    """The source of a module; of a package that loads lazily the stub that lists its names."""
    path = SOURCE.joinpath(*module.split("."))
    if not path.is_dir():
        return path.with_suffix(".py")
    stub = path / "__init__.pyi"
    return stub if stub.exists() else path / "__init__.py"


def summary(node: ast.AST) -> str:
    """The first line of a docstring, in a cell of a table."""
    documented = isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module)
    text = (ast.get_docstring(node) if documented else None) or ""
    return text.partition("\n")[0].replace("|", "\\|")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "api")
