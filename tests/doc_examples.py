"""What README.md and docs/ say: the commands, links and make targets in them, the files and programs that they show."""

import re
import shlex
from pathlib import Path

from support import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_SHOWN = re.compile(r'^```\w+ title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_TARGET = re.compile(r"\bmake ([a-z][a-z-]*)")
_COMMAND = "python -m convrec_r1"


def commands(page: Path) -> list[list[str]]:
    """Return the arguments of every `python -m convrec_r1` of a page, in blocks and within lines. Comments are left out.

    Usage such as `KEY=VALUE ...` is no command.
    """
    text = page.read_text(encoding="utf-8")
    blocks = [line.strip() for line in text.splitlines() if re.match(rf"(    )?(\.venv/bin/)?{_COMMAND}", line)]
    inline = re.findall(rf"`({_COMMAND}[^`]*)`", text)
    found = [shlex.split(line, comments=True)[3:] for line in [*blocks, *inline]]
    return [arguments for arguments in found if "KEY=VALUE" not in arguments]


def links(page: Path) -> list[str]:
    """Return the links of a page that lead to files, relative to the page, without their anchors."""
    found = [link.partition("#")[0] for link in _LINK.findall(_without_code(page)) if "://" not in link]
    return [link for link in found if link]


def anchors(page: Path) -> list[tuple[Path, str]]:
    """Return page and heading of every link to a heading."""
    pairs = [link.partition("#")[::2] for link in _LINK.findall(_without_code(page)) if "://" not in link]
    return [((page.parent / name).resolve() if name else page, anchor) for name, anchor in pairs if anchor]


def headings(page: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", _without_code(page), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


def make_targets(page: Path) -> set[str]:
    """Return the targets that a page names in code."""
    text = page.read_text(encoding="utf-8")
    code = re.findall(r"`[^`\n]+`", text) + re.findall(r"^    .*$", text, re.MULTILINE)
    return {target for part in code for target in _TARGET.findall(part)}


def shown() -> dict[str, str]:
    """Return name -> text of the files that docs/extend.md shows."""
    return dict(_SHOWN.findall((ROOT / "docs" / "extend.md").read_text(encoding="utf-8")))


def tutorial() -> list[tuple[str, str]]:
    """Return the steps of docs/tutorial.md in order: (name of a file, text), ("bash", script), ("python",
    program) or ("", command)."""
    fenced = r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$'
    step = re.compile(rf"{fenced}|^    ({_COMMAND} [^\n]*)$", re.MULTILINE | re.DOTALL)
    found = step.findall((ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8"))
    return [("", command) if command else (name or kind, text) for kind, name, text, command in found]


def write_tutorial_files(home: Path) -> None:
    """Write the files that docs/tutorial.md shows."""
    for name, text in tutorial():
        if "." in name:
            (home / name).write_text(text, encoding="utf-8")


def write_examples(home: Path) -> None:
    """Write the files that docs/extend.md shows: my_recs/ (a package), my_conf/ and data."""
    for name, text in shown().items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text, encoding="utf-8")
    (home / "my_recs" / "__init__.py").touch()


def _without_code(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    """Return the blocks of code in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
