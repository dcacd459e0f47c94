"""The source tree as the architecture tests see it: files, parsed modules, docstrings."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "leveret"


def python_files() -> list[Path]:
    """Every module of the package."""
    return sorted(SOURCE.rglob("*.py"))


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def module_name(file: Path) -> str:
    """`src/leveret/model/init.py` -> `leveret.model.init`."""
    parts = file.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def first_line(file: Path) -> str:
    """The first line of a module's docstring, "" when there is none."""
    return (ast.get_docstring(parsed(file)) or "").partition("\n")[0].strip()


def imports(file: Path) -> Iterator[tuple[str, int]]:
    """(full name of what is imported, line), those in functions and under TYPE_CHECKING included."""
    package = module_name(file).split(".")
    if file.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def type_checking_lines(file: Path) -> set[int]:
    """The lines that only a type checker reads."""
    blocks = [node for node in ast.walk(parsed(file)) if isinstance(node, ast.If)]
    return {
        line
        for block in blocks
        if ast.unparse(block.test) == "TYPE_CHECKING"
        for line in range(block.lineno, (block.body[-1].end_lineno or block.lineno) + 1)
    }
