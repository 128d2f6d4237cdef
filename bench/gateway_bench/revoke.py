"""Part ``revoke``: from the portal's cut until the client has a close frame, and until its connection is closed.

The client is a browser's equal: it answers the close frame at once, and leaves closing the connection to the gateway
(RFC 6455, 7.1.1). Behind the close frame nothing more of the app can come.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Iterator
from typing import Final, NamedTuple

from gateway_bench import client, real, rfb
from gateway_bench.bridges import Bridge, app_started, portico
from gateway_bench.figures import PORTICO, Figure, find_percentile
from gateway_bench.fleet import Fleet, Member
from gateway_bench.portal import EVERYBODY
from gateway_bench.run import Run
from portico import wire

STREAMS: Final = 1_000
ONES: Final = 20
LIMIT_MS: Final = 1_000.0
WAIT_S: Final = 10.0


@contextlib.contextmanager
def control(run: Run) -> Iterator[socket.socket]:
    """Connect to the portal's control."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(WAIT_S)
        sock.connect(str(run.place.folder / "control.sock"))
        yield sock


class Cut(NamedTuple):
    """How a stream has ended, in milliseconds from the cut."""

    told_ms: float
    closed_ms: float


def cut(sock: socket.socket, fleet: Fleet, tag: str, members: list[Member]) -> list[Cut]:
    """Cut what has the tag; return when each of ``members`` learnt of it.

    Raises:
        RuntimeError: One didn't, or another number of streams was cut.
    """
    wire.send(sock, {"id": 1, "op": "cut", "args": {"tags": [tag]}})
    fleet.pump(lambda: all(member.closed_at_s for member in members), WAIT_S)
    packet = wire.receive(sock)
    assert packet
    answer = packet.body["ok"]
    if answer["streams"] != len(members) or not all(one.told_at_s and one.closed_at_s for one in members):
        raise RuntimeError(f"of {len(members)} streams {answer['streams']} were cut, or some are still open")
    at_s = answer["at_s"]
    return [Cut((one.told_at_s - at_s) * 1000, (one.closed_at_s - at_s) * 1000) for one in members]


def measure_alone(bridge: Bridge, sock: socket.socket, times: int) -> list[Cut]:
    """Open a stream and cut it, again and again."""
    found = []
    for number in range(times):
        with Fleet(bridge) as fleet:
            fleet.open(1, first=number)
            found += cut(sock, fleet, f"session:k{number}", fleet.members)
    return found


def measure_sign_out(run: Run, times: int) -> list[Cut]:
    """Let a person with an open desktop sign out; the time begins with the request for that."""
    if reason := real.find_reason_to_skip():
        run.notes.append(f"revoke: a whole Portico was left out: {reason}.")
        return []
    found = []
    with real.started(run.place.folder) as scene:
        for _ in range(times):
            sock = client.connect(scene.portal)
            stream = client.WebSocketClient(
                sock, f"localhost:{scene.portal[1]}", scene.stream_path, scene.make_stream_headers()
            )
            rfb.shake_hands(stream.say, stream.read)
            member = Member(stream, websocket=True)
            at_s = time.monotonic()
            leaving = threading.Thread(target=scene.sign_out)
            leaving.start()
            while not member.closed_at_s and time.monotonic() < at_s + WAIT_S:
                select.select([sock], [], [], WAIT_S)
                member.hear()
            leaving.join()
            found.append(Cut((member.told_at_s - at_s) * 1000, (member.closed_at_s - at_s) * 1000))
            scene.sign_in()
    return found


def measure(run: Run) -> list[Figure]:
    """Measure Portico; a peer has no such thing."""
    one: list[Cut] = []
    everybody: list[Cut] = []
    with app_started(run.place), portico(run.place) as bridges:
        bridge = next(one for one in bridges if not one.tls and not one.tcp)
        with control(run) as sock:
            alone = measure_alone(bridge, sock, 20 if run.quick else 100)
            for _ in range(1 if run.quick else 3):
                with Fleet(bridge) as fleet:
                    fleet.open(STREAMS)
                    for number in range(ONES):
                        one += cut(sock, fleet, f"session:k{number}", fleet.members[number : number + 1])
                    everybody += cut(sock, fleet, EVERYBODY, fleet.members[ONES:])
    signed_out = measure_sign_out(run, 5 if run.quick else 20)
    cuts = {
        "the only stream is cut": alone,
        f"one of {STREAMS:,} is cut": one,
        f"all of {STREAMS - ONES:,} are cut at once": everybody,
        "whole Portico, the person signs out": signed_out,
    }
    return [
        Figure("revoke", f"{what}: {end}, p{percent}", "ms", {PORTICO: [find_percentile(times, percent)]}, digits=1,
               limit=LIMIT_MS if end == "closed" else None)
        for what, found in cuts.items()
        if found
        for end, times in (("told", [one.told_ms for one in found]), ("closed", [one.closed_ms for one in found]))
        for percent in (50, 99)
    ]  # fmt: skip
