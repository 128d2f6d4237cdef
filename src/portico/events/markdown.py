"""Markdown of organisers as HTML that can do nothing: no raw HTML, no image, no link but http, https and mailto.

CommonMark by markdown-it-py; the Content-Security-Policy of the pages is the second wall, not the first.
"""

from __future__ import annotations

import re
from typing import Any, Final

from markdown_it import MarkdownIt

_LINK: Final = re.compile(r"(https?://|mailto:|/(?![/\\]))", re.IGNORECASE)


class _Safe(MarkdownIt):
    def validateLink(self, url: str) -> bool:
        return _LINK.match(url.strip()) is not None


def _make() -> MarkdownIt:
    parser = _Safe("commonmark", {"html": False}).enable("table").disable("image")

    def open_link(renderer: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
        tokens[index].attrSet("rel", "noopener noreferrer nofollow")
        return str(renderer.renderToken(tokens, index, options, env))

    parser.add_render_rule("link_open", open_link)
    return parser


_parser: Final = _make()


def render_markdown(text: str) -> str:
    """Return HTML, which is safe to stand in a page as it is."""
    return str(_parser.render(text))
