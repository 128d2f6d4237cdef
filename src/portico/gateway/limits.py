"""Security limits of the gateway: each is there because a peer could otherwise make us hold something for ever."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from typing import Final

_DESCRIPTORS_PER_CONNECTION: Final = 2  # the client's and the app's


@dataclass(frozen=True)
class Limits:
    """Sizes are bytes, times are seconds.

    Args:
        head_s: From a request's first byte until its head is complete.
        idle_s: Between two requests of a connection.
        body_stall_s: Without a byte of a request's body.
        portal_body_bytes: Largest request body towards the portal. Towards an app there is none, only back-pressure.
        portal_answer_s: Until the portal's answer begins.
        app_answer_s: The same for an app, where a person may wait for a computation.
        ping_s: Between two pings of a stream.
        dead_s: A stream's client that was silent for so long is gone; a client that takes no byte for so long too.
        drain_s: What live streams get when a newer gateway has taken over.
        next_request_s: What a connection without a request gets for one when the gateway drains.
        close_s: What requests in flight get at the end.
        streams_per_tag: Live streams that one tag of a kind may carry: ``session`` for ``session:…``.
        app_connections: To one session's app at once; a request beyond it is refused.

    """

    head_bytes: int = 32 * 1024
    head_s: float = 10.0
    idle_s: float = 75.0
    body_stall_s: float = 120.0
    portal_body_bytes: int = 16 * 1024 * 1024
    portal_answer_s: float = 120.0
    app_answer_s: float = 900.0
    connections: int = 20_000
    connections_per_address: int = 512
    ping_s: float = 25.0
    dead_s: float = 75.0
    drain_s: float = 12 * 3600.0
    next_request_s: float = 5.0
    close_s: float = 3.0
    streams_per_tag: tuple[tuple[str, int], ...] = (("session", 256), ("user", 512))
    app_connections: int = 256
    decisions: int = 10_000


def raise_descriptor_limit(wanted_connections: int) -> int:
    """Raise RLIMIT_NOFILE to its hard limit; return how many connections fit, at most ``wanted_connections``."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = 1 << 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return max(16, min(wanted_connections, (hard - 128) // _DESCRIPTORS_PER_CONNECTION))
