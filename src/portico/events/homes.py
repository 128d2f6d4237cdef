"""A seat's home as a stream: tar, run by the seat's own agent, whose output goes over a socket that is read here.

No file is opened here and none is unpacked (invariant 1). The archive is never whole anywhere.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable
from typing import Final

from portico.errors import Unavailable
from portico.events.programs import render_archive, run
from portico.sessions import BrokerMachine

ARCHIVE_S: Final = 4 * 3600.0
SILENT_S: Final = 300.0
"""tar writes as soon as 10 KiB are compressed; a file system that does not answer for so long is given up."""
CHUNK_BYTES: Final = 1 << 16


async def stream_home(
    machine: BrokerMachine, name: str, warn: Callable[[str], None] = lambda text: None
) -> AsyncGenerator[bytes, None]:
    """Yield a seat's home, compressed, as fast as it is taken; tar ends when nobody takes it any more.

    Args:
        machine: The agents.
        name: The seat's; the caller has looked who may.
        warn: Told what tar said of files that it could not read, although the rest is there.

    Raises:
        Unavailable: tar failed, or said nothing for long. What was yielded is a part then.
    """
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    loop = asyncio.get_running_loop()
    packing = asyncio.create_task(
        run(machine, name, render_archive(), [theirs.detach()], timeout_s=ARCHIVE_S, stream=True, fine=(0, 1))
    )
    try:
        while True:
            try:
                async with asyncio.timeout(SILENT_S):
                    data = await loop.sock_recv(ours, CHUNK_BYTES)
            except TimeoutError:
                raise Unavailable("It took too long.", why=f"Nothing came for {SILENT_S:g} s.") from None
            if not data:
                break
            yield data
        warn(await packing)  # raises where tar failed
    finally:
        ours.close()  # tar ends with it (EPIPE)
        packing.cancel()
        await asyncio.gather(packing, return_exceptions=True)
