"""Two ends after an upgrade that an app has accepted: bytes both ways, looked at by nobody, until they end."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from portico.gateway.end import End
from portico.gateway.flow import Flow

if TYPE_CHECKING:
    from portico.gateway.server import Gateway

HALF_CLOSED_S: Final = 60.0


class Tunnel:
    """A tunnel.

    Args:
        tags: What it lives by.
        household: Whom its connection counts for.
    """

    is_stream = True
    is_idle = False
    kind = "tunnel"

    def __init__(self, gateway: Gateway, client: End, app: End, tags: frozenset[str], household: str) -> None:
        self._gateway = gateway
        self.tags, self.household = tags, household
        self.deadline = math.inf
        self._client, self._app = client, app
        self._in, self._out = Flow(gateway.plane, client, app), Flow(gateway.plane, app, client)
        client.owner = app.owner = self

    def start(self) -> None:
        """Carry what is there already."""
        self._gateway.metrics.open(self.kind)
        self._gateway.routes.add(self)
        for end in (self._client, self._app):
            end.readable = True
            if not end.closed:
                self.on_readable(end)

    def end(self, code: int, reason: str) -> None:
        """End it at once. What is inside is not ours to know, so there is no close frame and no code."""
        self.close()

    def on_deadline(self) -> None:
        """Give up waiting for the other half."""
        self.close()

    def on_readable(self, end: End) -> None:
        """Carry on."""
        if end is self._client and end.is_broken and (self._in.is_over or self._app.out is not None):
            self.close()  # nothing is read now
            return
        self._carry(self._in if end is self._client else self._out)

    def on_writable(self, end: End) -> None:
        """Carry on what waited for this end to take it."""
        self._carry(self._out if end is self._client else self._in)

    def on_broken(self, end: End) -> None:
        """End it."""
        self.close()

    def _carry(self, flow: Flow) -> None:
        metrics = self._gateway.metrics
        try:
            moved = flow.move()
        except OSError:
            self.close()
            return
        if flow is self._in:
            metrics.in_bytes += moved
        else:
            metrics.out_bytes += moved
        if flow.is_over:
            goes_on = flow.target.shutdown_write()
            if not goes_on or (self._in.is_over and self._out.is_over):
                self.close()
            else:
                self.deadline = self._gateway.plane.now + HALF_CLOSED_S

    def close(self) -> None:
        """Close at once."""
        if not (self._client.closed and self._app.closed):
            self._app.close()
            self._client.close()
            self._gateway.metrics.close(self.kind)
            self._gateway.routes.remove(self)
            self._gateway.forget(self)
