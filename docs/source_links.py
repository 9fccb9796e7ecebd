"""MkDocs hook: links from a page to a file outside docs/ (`../convrec_r1/...`) lead to a copy of that file in the site.

The same links work in a checkout. Text is copied as `.txt`, which browsers show; images keep their names. A missing file ends a
strict build.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

LINK = re.compile(r"\]\(\.\./([^)#\s]+)\)")
IMAGES = (".png", ".svg")


def on_files(files: Files, config) -> Files:
    root = Path(config.config_file_path).parent
    pages = [file for file in files.documentation_pages() if file.abs_src_path]
    named = {name for page in pages for name in LINK.findall(Path(page.abs_src_path).read_text(encoding="utf-8"))}
    for name in sorted(named):
        if not (root / name).is_file():
            raise PluginError(f"docs/ links to {name}, which is not a file")
        files.append(File.generated(config, _place(name), content=(root / name).read_bytes()))
    return files


def on_page_markdown(markdown: str, page, **_) -> str:
    return LINK.sub(lambda link: f"]({_place(link[1])})", markdown)


def _place(name: str) -> str:
    """Where a file of the checkout stands in the site."""
    return posixpath.join("source", name if name.endswith(IMAGES) else f"{name}.txt")
