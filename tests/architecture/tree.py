"""Writes the tree of the source, each file with the first line of its docstring, into ARCHITECTURE.md.

`make tree` runs this; test_tree.py fails while the two differ.
"""

from __future__ import annotations

from pathlib import Path

from .source import ROOT, SOURCE, first_line

PAGE = ROOT / "ARCHITECTURE.md"
BEGIN = "<!-- tree: written by `make tree` -->\n"
END = "<!-- end of tree -->"


def tree() -> str:
    """The package's folders and modules, ground first, as the text of a code fence."""
    files = [file for file in SOURCE.iterdir() if file.suffix == ".py" and file.name != "__init__.py"]
    folders = [folder for folder in SOURCE.iterdir() if (folder / "__init__.py").is_file()]
    lines = [_line("src/leveret/", SOURCE / "__init__.py")]
    lines += [_line(f"  {file.name}", file) for file in sorted(files)]
    for folder in sorted(folders):
        lines += _folder_lines(folder, "  ")
    return "```text\n" + "\n".join(lines) + "\n```\n"


def page_with_tree(page: str) -> str:
    """`page` with the present tree between its two marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + tree() + END + after


def _folder_lines(folder: Path, indent: str) -> list[str]:
    lines = [_line(f"{indent}{folder.name}/", folder / "__init__.py")]
    for entry in sorted(folder.iterdir()):
        if (entry / "__init__.py").is_file():
            lines += _folder_lines(entry, indent + "  ")
        elif entry.suffix == ".py" and entry.name != "__init__.py":
            lines.append(_line(f"{indent}  {entry.name}", entry))
    return lines


def _line(name: str, file: Path) -> str:
    return f"{name:28} {first_line(file)}".rstrip()


if __name__ == "__main__":
    PAGE.write_text(page_with_tree(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
