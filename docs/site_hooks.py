"""The hooks of mkdocs.yml: the site's navigation is the index, and links to files outside docs/ become their paths.

Source of the hooks' form: https://www.mkdocs.org/dev-guide/plugins/#events.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

log = logging.getLogger("mkdocs.hooks.site")
"""Below ``mkdocs``, whose warnings fail a strict build."""
INDEX = "README.md"
_SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
_PAGE = re.compile(r"\]\(([\w./-]+\.md)\)")
_OUTSIDE = re.compile(r"\[([^]\n]+)\]\(((?:\.\./)+[^)\s#]+)(?:#[^)\s]*)?\)")


def on_config(config: Any, **_: Any) -> Any:
    """Make each section of the index a section of the navigation, with its pages in their order, each page once."""
    docs = Path(config.docs_dir)
    sections = _SECTION.split((docs / INDEX).read_text())[1:]
    nav: list[str | dict[str, list[str]]] = [INDEX]
    seen = {INDEX}
    for title, text in zip(sections[::2], sections[1::2], strict=True):
        pages = [page for page in dict.fromkeys(_PAGE.findall(text)) if not page.startswith("../") and page not in seen]
        seen.update(pages)
        if pages:
            nav.append({title: pages})
    config.nav = nav
    return config


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Replace links that leave docs/ by the paths of their files. Warn where there is no such file."""
    docs = Path(config.docs_dir).resolve()
    folder = Path(page.file.abs_src_path).resolve().parent

    def path_of(link: re.Match[str]) -> str:
        text, target = link.groups()
        found = (folder / target).resolve()
        if found.is_relative_to(docs):
            return link[0]
        if not found.exists():
            log.warning("%s contains a link to %s, which is not there", page.file.src_uri, target)
        path = f"`{found.relative_to(docs.parent)}`" if found.is_relative_to(docs.parent) else f"`{target}`"
        return path if text.strip("`") == path.strip("`") else f"{text} ({path})"

    return _OUTSIDE.sub(path_of, markdown)
