"""The site's hooks: its anchors and links are those that the pages have on a forge."""

from __future__ import annotations

import posixpath
import re
from typing import Any

_LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")


def on_config(config: Any) -> Any:
    """Make anchors as GitHub and GitLab do."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = _slug
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Show links to files outside of docs/, which are no part of the site, as their text."""
    folder = posixpath.dirname(page.file.src_uri)

    def shown(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[2]))
        return link[1] if target.startswith("../") else link[0]

    return _LINK.sub(shown, markdown)


def _slug(title: str, separator: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", separator)
