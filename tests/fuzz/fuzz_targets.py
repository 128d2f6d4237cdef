"""What is fuzzed: each target takes any bytes, and fails where a parser of the gateway does what it must not do.

A target asks three things: that nothing but the declared exception is raised; that the same is understood however the
bytes are cut, and what an independent implementation understands; that what is kept stays small.
"""

from __future__ import annotations

import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import h11
import slow_parsers as slow
from websockets.exceptions import ProtocolError as WebSocketsError
from websockets.frames import Frame as WebSocketsFrame
from websockets.frames import Opcode
from websockets.protocol import OPEN, Side
from websockets.protocol import Protocol as WebSockets

from portico.gateway import clipboard, filters, forward
from portico.gateway import websocket as ws
from portico.gateway.body import Body, render_chunk
from portico.gateway.fields import Field
from portico.gateway.head import (
    Framing,
    Header,
    Refusal,
    Request,
    find_head_end,
    get_tokens,
    parse_request,
    parse_response,
    render_head,
    render_request,
)
from portico.gateway.lines import LINE_BYTES, Hello, LineReader, NotUnderstood, parse_first

LIMIT_BYTES = 32 * 1024
KEPT_BYTES = 6 * 1024


def cut(data: bytes) -> Iterator[list[bytes]]:
    """Yield ways to cut ``data``: whole, byte by byte, and two that depend on it."""
    yield [data] if data else []
    if len(data) < 3000:
        yield [data[at : at + 1] for at in range(len(data))]
    state = zlib.crc32(data) | 1
    for most in (7, 200):
        at, parts = 0, []
        while at < len(data):
            state = (state * 1103515245 + 12345) & 0x7FFFFFFF
            step = 1 + (state >> 8) % most
            parts.append(data[at : at + step])
            at += step
        yield parts


# HTTP heads


def check_head(data: bytes) -> None:
    """A request's head, as a connection's first bytes."""
    found = {_find_end(parts) for parts in cut(data)}
    assert len(found) == 1, found
    end = found.pop()
    if end <= 0:
        return
    try:
        request = parse_request(data[:end])
    except Refusal as refusal:
        assert 400 <= refusal.status < 500 and refusal.reason.isascii() and len(refusal.reason) < 60
        return
    _compare_with_h11(data[:end], request)
    _check_forwarding(request)
    if any(name.lower() == b"host" for name, _ in request.headers):  # else there is no HTTP/1.1 of it
        again = parse_request(render_request(request.method, request.target, request.headers))
        assert (again.target, again.headers, again.framing) == (request.target, request.headers, request.framing)


def _find_end(parts: list[bytes]) -> int:
    """Return where the head ends; 0 where it has not, -1 where it is refused."""
    buffer = b""
    for part in parts:
        buffer += part
        try:
            if end := find_head_end(buffer, LIMIT_BYTES):
                return end
        except Refusal:
            return -1
    return 0


def _compare_with_h11(head: bytes, request: Request) -> None:
    """What we admit h11 must admit too, and understand in the same way."""
    peer = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    try:
        peer.receive_data(head)
        event = peer.next_event()
    except h11.RemoteProtocolError as error:
        raise AssertionError(f"h11 refuses this: {error}") from error
    assert isinstance(event, h11.Request), event
    assert event.method.decode() == request.method and event.target.decode("latin-1") == request.target
    assert _normalise(request.headers) == list(event.headers)
    length = [value for name, value in event.headers if name == b"content-length"]
    chunked = any(name == b"transfer-encoding" for name, _ in event.headers)
    if chunked:
        assert request.framing is Framing.CHUNKED and not length
    elif length and int(length[0]):
        assert request.framing is Framing.LENGTH and request.length == int(length[0])
    else:
        assert request.framing is Framing.NONE


def _normalise(headers: tuple[Header, ...]) -> list[Header]:
    """Return headers as h11 tells them."""
    lowered = ((name.lower(), value) for name, value in headers)
    return [(name, value.lower() if name == b"transfer-encoding" else value) for name, value in lowered]


def _check_forwarding(request: Request) -> None:
    """What goes on to an app has nothing of ours in it, and can be parsed."""
    headers = _read_lines(forward.render_for_app(request, address="192.0.2.1", scheme="https"))
    parse_request(render_head(b"GET / HTTP/1.1", headers))
    names = [name.lower() for name, _ in headers]
    for name in (b"authorization", b"transfer-encoding", b"content-length", b"te", b"expect", b"proxy-authorization"):
        assert name not in names
    for name in (b"x-forwarded-for", b"x-forwarded-proto", b"host"):
        assert names.count(name) == 1, name
    assert names.count(b"connection") == names.count(b"upgrade") == int(request.upgrade)
    assert not any(name.replace(b"_", b"-").startswith(b"x-portico") for name in names)
    for name, value in headers:
        if name.lower() == b"cookie":
            for pair in value.split(b";"):
                plain = pair.strip().lower().partition(b"=")[0]
                assert not plain.startswith((b"portico", b"__host-portico", b"__secure-portico")), pair
    portals = _read_lines(forward.render_for_portal(request, listener="apps", address="192.0.2.1", scheme="https"))
    assert [value for name, value in portals if name.lower() == b"x-portico-listener"] == [b"apps"]


def _read_lines(lines: bytes) -> list[Header]:
    """Return headers from the lines that go on."""
    assert not lines or lines.endswith(b"\r\n")
    pairs = [line.split(b": ", 1) for line in lines.split(b"\r\n")[:-1]]
    return [(name, value) for name, value in pairs]


def check_answer(data: bytes) -> None:
    """An answer's head."""
    for method in ("GET", "HEAD"):
        try:
            response = parse_response(data, method)
        except Refusal as refusal:
            assert refusal.status == 502
            continue
        assert 100 <= response.status < 600
        kept = _read_lines(forward.render_app_answer(response))
        render_head(b"HTTP/1.1 200 OK", kept)
        _check_kept(response.headers, kept)
        if response.status == 101:
            continue  # h11 asks for a request that proposed it
        peer = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
        peer.send(h11.Request(method=method, target="/", headers=[("Host", "a"), ("Connection", "Upgrade")]))
        peer.receive_data(data)
        event = peer.next_event()
        assert isinstance(event, (h11.Response, h11.InformationalResponse)), event
        assert event.status_code == response.status
        assert _normalise(response.headers) == list(event.headers)


def _check_kept(given: tuple[Field, ...], kept: list[Header]) -> None:
    """What of an app's answer goes back says nothing of the connection, and sets no cookie beyond its own path."""
    for name, value in kept:
        assert name.lower() not in (b"connection", b"transfer-encoding", b"content-length", b"upgrade")
        assert name.lower() not in get_tokens(given, b"connection")
        if name.lower() == b"set-cookie":
            cookie, *attributes = value.split(b";")
            assert b"domain" not in [one.partition(b"=")[0].strip(b" \t").lower() for one in attributes]
            plain = cookie.strip(b" \t").lower()
            assert not plain.startswith((b"portico", b"=", b"__host-portico", b"__secure-portico")) and b"=" in plain


# bodies


def check_body(data: bytes) -> None:
    """A chunked body and what follows it."""
    try:
        expected: tuple[Any, ...] = slow.read_chunks(data)
    except slow.Wrong:
        expected = ("wrong",)
    for parts in cut(data):
        body, payload, behind = Body(Framing.CHUNKED), b"", b""
        try:
            for part in parts:
                got, rest = body.feed(part)
                payload, behind = payload + got, behind + rest
                assert len(body._line) <= KEPT_BYTES
                assert body.done or not rest
        except Refusal as refusal:
            assert refusal.status == 400 and expected == ("wrong",), (expected, refusal)
            continue
        assert expected == (payload, behind if body.done else None), (expected, payload, behind, body.done)
        assert body.received == len(payload)
        if body.done:
            _compare_chunks_with_h11(data[: len(data) - len(behind)], payload)


def _compare_chunks_with_h11(data: bytes, payload: bytes) -> None:
    for said in (data, (render_chunk(payload) if payload else b"") + b"0\r\n\r\n"):
        peer = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        peer.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + said)
        got = b""
        while True:
            event = peer.next_event()
            if isinstance(event, h11.Data):
                got += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                assert isinstance(event, h11.Request), event
        assert got == payload and peer.trailing_data == (b"", False)


# WebSocket frames


def check_frames(data: bytes) -> None:
    """The frames of a client."""
    expected = slow.read_frames(data, ws.FRAME_LIMIT_BYTES)
    for parts in cut(data):
        reader, told = ws.FrameReader(), slow.Told(b"", [])
        try:
            for part in parts:
                for kind, payload in reader.feed(part):
                    if kind == ws.BINARY:
                        told.data += payload
                    else:
                        told.controls.append((kind, payload))
                assert len(reader._pending) <= 131
        except ws.ProtocolError as error:
            told.code = error.code
            assert str(error).isascii()
        assert told == expected, (told, expected)
    if not expected.code and not (expected.controls and expected.controls[-1][0] == ws.CLOSE):
        _compare_with_websockets(data, expected)


def _compare_with_websockets(data: bytes, expected: slow.Told) -> None:
    peer = WebSockets(Side.SERVER, state=OPEN, max_size=None)
    try:
        peer.receive_data(data)
    except WebSocketsError as error:
        raise AssertionError("another implementation refuses this") from error
    assert peer.parser_exc is None, peer.parser_exc
    said, controls = b"", []
    for event in peer.events_received():
        assert isinstance(event, WebSocketsFrame)
        if event.opcode in (Opcode.BINARY, Opcode.CONT):
            said += bytes(event.data)
        else:
            controls.append((int(event.opcode), bytes(event.data)))
    assert expected.data.startswith(said) and controls == expected.controls


# streams

POLICIES = [
    (True, clipboard.ANY),
    *((False, clipboard.Clipboard(*limits)) for limits in itertools.product((None, 0, 9), repeat=2)),
]
HELLO = b"RFB 003.008\n\x01\x00"


def check_rfb(data: bytes) -> None:
    """What a client of a desktop says behind the handshake, under each policy."""
    for view_only, policy in POLICIES:
        limits = (0, 0) if view_only else (policy.in_bytes, policy.out_bytes)
        expected = _filter_slowly(data, view_only, *limits)
        for parts in cut(data):
            one = filters.RfbFilter(view_only, policy)
            one.hear(b"RFB 003.008\n")
            one.feed(HELLO)
            out: bytes | None = b""
            try:
                for part in parts:
                    out = (out or b"") + one.feed(part)
                    assert len(one._rest) <= KEPT_BYTES
                    assert one._provided is None or len(one._provided._kept) <= KEPT_BYTES
            except filters.Refused as refused:
                assert str(refused).isascii()
                out = None
            if expected is None:
                assert out is None, (view_only, policy, out)
            elif out is None:  # told by the beginning of a message that is not there whole
                assert not view_only and _find_rest(data)[:1] == b"\6" and len(_find_rest(data)) >= 12, (
                    policy,
                    expected,
                )
            else:
                assert out.startswith(expected), (view_only, policy, out, expected)
                assert len(out) <= len(expected) + len(_find_rest(data)) + 64  # of a text before its end has come


def _filter_slowly(data: bytes, view_only: bool, limit_in: int | None, limit_out: int | None) -> bytes | None:
    """Return what goes on of whole messages; None where the stream ends."""
    try:
        messages, is_wrong = slow.split_rfb(data), False
    except slow.Wrong as wrong:
        messages, is_wrong = wrong.args[0], True
    out = b""
    try:
        for message in messages:
            out += slow.filter_rfb(message, view_only, limit_in, limit_out)
    except slow.Wrong:
        return None
    return None if is_wrong else out


def _find_rest(data: bytes) -> bytes:
    return data[sum(map(len, slow.split_rfb(data))) :]


def check_rfb_start(data: bytes) -> None:
    """What a client of a desktop says from the first byte, and what a server does."""
    for parts in cut(data):
        one = filters.RfbFilter(True)
        try:
            for number, part in enumerate(parts):
                if number % 2:
                    one.feed(part)
                else:
                    one.hear(part)
                assert len(one._rest) + len(one._heard) <= KEPT_BYTES
        except filters.Refused:
            pass


def check_pty(data: bytes) -> None:
    """What a viewer's client of a terminal says."""
    try:
        expected: bytes | None = slow.read_terminal(data)
    except slow.Wrong:
        expected = None
    for parts in cut(data):
        one, out = filters.PtyViewer(), b""
        try:
            for part in parts:
                out += one.feed(part)
                assert len(one._rest) < 13
        except filters.Refused:
            assert expected is None
            continue
        assert out == expected


def check_relay(data: bytes) -> None:
    """The relay's lines: the same wherever they are cut, never more kept than a line, and a first line is one of two."""
    lines, whole = [], data
    reader = LineReader()
    try:
        while found := reader.take(whole):
            lines.append(found[0])
            whole = found[1]
    except NotUnderstood:
        lines.append(None)  # type: ignore[arg-type]
    again, cut = [], LineReader()
    try:
        for at in range(len(data)):
            assert len(cut._pending) < LINE_BYTES
            rest = data[at : at + 1]
            while found := cut.take(rest):
                again.append(found[0])
                rest = found[1]
    except NotUnderstood:
        again.append(None)  # type: ignore[arg-type]
    assert repr(lines) == repr(again)
    for line, raw in zip(lines, data.split(b"\n"), strict=False):
        if line is None:
            break
        assert repr(json.loads(raw)) == repr(line)
        try:
            first = parse_first(line)
        except NotUnderstood:
            continue
        if isinstance(first, Hello):
            assert re.fullmatch(r"[a-z][a-z0-9]{11}", first.session) and len(first.token) <= 200
            assert first.node.isprintable() and len(first.node) <= 100
        else:
            assert re.fullmatch(r"[0-9a-f]{32}", first)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "head": check_head,
    "answer": check_answer,
    "body": check_body,
    "frames": check_frames,
    "rfb": check_rfb,
    "rfb-start": check_rfb_start,
    "pty": check_pty,
    "relay": check_relay,
}
