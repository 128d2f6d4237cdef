"""Files that a VNC viewer opens, for the near end of a tunnel. Pure; no secret and nobody's name is in them."""

from __future__ import annotations

import zlib
from typing import Final

FIRST_PORT: Final = 5910
PORTS: Final = 90


def choose_port(session_id: str) -> int:
    """Return a port for a session's tunnel, always the same one: file and command agree, and two desktops hardly do."""
    return FIRST_PORT + zlib.crc32(session_id.encode()) % PORTS


def render_tigervnc(port: int) -> str:
    """Return a file for TigerVNC (vncviewer(1)). Whoever else listens on that port can't have it ask for a password."""
    return f"TigerVNC Configuration file Version 1.0\n\nServerName=localhost::{port}\nSecurityTypes=None\n"


def render_vnc(port: int) -> str:
    """Return a file for UltraVNC, TightVNC and TurboVNC."""
    return f"[connection]\r\nhost=localhost\r\nport={port}\r\n"
