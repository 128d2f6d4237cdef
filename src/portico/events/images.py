"""Pictures that organisers send: only what browsers draw and nothing can run in, told by its first bytes."""

from __future__ import annotations

from typing import Final

from portico.errors import Invalid

LOGO_LIMIT_BYTES: Final = 200 * 1024


def find_media_type(content: bytes) -> str:
    """Return the media type of a PNG, JPEG or WebP picture (WHATWG MIME Sniffing, 6.1); empty for anything else."""
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if content.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if content[:4] == b"RIFF" and content[8:14] == b"WEBPVP":
        return "image/webp"
    return ""


def check_logo(content: bytes) -> str:
    """Return a logo's media type.

    Raises:
        Invalid: It is too large, or no such picture. SVG is not taken: it is a document that can hold a script.
    """
    if len(content) > LOGO_LIMIT_BYTES:
        raise Invalid(f"A logo has at most {LOGO_LIMIT_BYTES // 1024} KiB.", field="logo")
    media_type = find_media_type(content)
    if not media_type:
        raise Invalid("A logo is a PNG, JPEG or WebP picture.", why="This file is none.", field="logo")
    return media_type
