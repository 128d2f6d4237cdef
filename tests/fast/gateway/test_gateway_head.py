"""HTTP heads and bodies without I/O: what is refused, what is understood, and that where input is cut changes nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portico.gateway import forward
from portico.gateway.body import LAST_CHUNK, Body, render_chunk
from portico.gateway.fields import KEPT_LINES, FieldBook, Malformed, parse_field
from portico.gateway.head import (
    Framing,
    Refusal,
    find_head_end,
    parse_request,
    parse_request_like,
    parse_response,
    render_head,
    render_request,
)

H = b"Host: a\r\n"

SMUGGLING = {
    "CL and TE": b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
    "TE and CL": b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\n",
    "one length twice": b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\n",
    "a list of lengths": b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 3, 3\r\n\r\n",
    "signed length": b"POST / HTTP/1.1\r\n" + H + b"Content-Length: +3\r\n\r\n",
    "negative length": b"POST / HTTP/1.1\r\n" + H + b"Content-Length: -3\r\n\r\n",
    "hexadecimal length": b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 0x3\r\n\r\n",
    "underscored length": b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 1_0\r\n\r\n",
    "huge length": b"POST / HTTP/1.1\r\n" + H + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n",
    "no length": b"POST / HTTP/1.1\r\n" + H + b"Content-Length:\r\n\r\n",
    "foreign digits": b"POST / HTTP/1.1\r\n" + H + "Content-Length: ٣\r\n\r\n".encode(),
    "two codings": b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
    "coding twice": b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    "coding hidden": b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: xchunked\r\n\r\n",
    "coding quoted": b"POST / HTTP/1.1\r\n" + H + b'Transfer-Encoding: "chunked"\r\n\r\n',
    "coding identity": b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: identity\r\n\r\n",
    "coding with a tab in": b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: chun\tked\r\n\r\n",
    "coding with vertical tab": b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: \x0bchunked\r\n\r\n",
    "coding in 1.0": b"POST / HTTP/1.0\r\n" + H + b"Transfer-Encoding: chunked\r\n\r\n",
    "space before colon": b"POST / HTTP/1.1\r\n" + H + b"Content-Length : 3\r\n\r\n",
    "tab before colon": b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding\t: chunked\r\n\r\n",
    "folded": b"GET / HTTP/1.1\r\n" + H + b"X: a\r\n b\r\n\r\n",
    "folded coding": b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding:\r\n chunked\r\n\r\n",
    "space first": b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
    "no colon": b"GET / HTTP/1.1\r\n" + H + b"Nothing\r\n\r\n",
    "no name": b"GET / HTTP/1.1\r\n" + H + b": x\r\n\r\n",
    "bad name": b"GET / HTTP/1.1\r\n" + H + b"X(): x\r\n\r\n",
    "name not ASCII": b"GET / HTTP/1.1\r\n" + H + b"X\xe9: x\r\n\r\n",
    "NUL in value": b"GET / HTTP/1.1\r\n" + H + b"X: a\0b\r\n\r\n",
    "NUL in name": b"GET / HTTP/1.1\r\n" + H + b"X\0: a\r\n\r\n",
    "bare CR": b"GET / HTTP/1.1\r\n" + H + b"X: a\rb\r\n\r\n",
    "bare LF": b"GET / HTTP/1.1\r\n" + H + b"X: a\nY: b\r\n\r\n",
    "bare LF at the end": b"GET / HTTP/1.1\nHost: a\r\n\r\n",
    "escape in value": b"GET / HTTP/1.1\r\n" + H + b"X: \x1b[2J\r\n\r\n",
    "absolute target": b"GET http://a/ HTTP/1.1\r\n" + H + b"\r\n",
    "authority target": b"GET a:80 HTTP/1.1\r\n" + H + b"\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\n" + H + b"\r\n",
    "two slashes": b"GET //evil/ HTTP/1.1\r\n" + H + b"\r\n",
    "backslash": b"GET \\evil HTTP/1.1\r\n" + H + b"\r\n",
    "fragment": b"GET /a#b HTTP/1.1\r\n" + H + b"\r\n",
    "dots": b"GET /s/x/../y HTTP/1.1\r\n" + H + b"\r\n",
    "encoded dots": b"GET /s/x/%2E%2e/y HTTP/1.1\r\n" + H + b"\r\n",
    "half-encoded dots at the end": b"GET /s/.%2e HTTP/1.1\r\n" + H + b"\r\n",
    "space in target": b"GET /a b HTTP/1.1\r\n" + H + b"\r\n",
    "target not ASCII": b"GET /\xe9 HTTP/1.1\r\n" + H + b"\r\n",
    "two spaces": b"GET  / HTTP/1.1\r\n" + H + b"\r\n",
    "no target": b"GET HTTP/1.1\r\n" + H + b"\r\n",
    "no version": b"GET /\r\n" + H + b"\r\n",
    "HTTP/2.0": b"GET / HTTP/2.0\r\n" + H + b"\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\n" + H + b"\r\n",
    "lower-case version": b"GET / http/1.1\r\n" + H + b"\r\n",
    "no Host": b"GET / HTTP/1.1\r\nX: y\r\n\r\n",
    "two Hosts": b"GET / HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n",
    "two Origins": b"GET / HTTP/1.1\r\n" + H + b"Origin: a\r\nOrigin: b\r\n\r\n",
    "two Authorizations": b"GET / HTTP/1.1\r\n" + H + b"Authorization: a\r\nAuthorization: b\r\n\r\n",
    "more behind the end": b"GET / HTTP/1.1\r\n" + H + b"\r\nGET / HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("name", SMUGGLING)
def test_what_two_parsers_could_read_in_two_ways_is_refused(name: str) -> None:
    with pytest.raises(Refusal) as refused:
        parse_request(SMUGGLING[name])
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"CONNECT a:1 HTTP/1.1\r\n" + H + b"\r\n", 405),
        (b"TRACE / HTTP/1.1\r\n" + H + b"\r\n", 405),
        (b"PROPFIND / HTTP/1.1\r\n" + H + b"\r\n", 405),
        (b"POST / HTTP/1.1\r\n" + H + b"Expect: 200-maybe\r\n\r\n", 417),
        (b"GET / HTTP/1.1\r\n" + H + b"X: y\r\n" * 100 + b"\r\n", 431),
    ],
)
def test_what_is_not_served_has_a_status_of_its_own(head: bytes, status: int) -> None:
    with pytest.raises(Refusal) as refused:
        parse_request(head)
    assert refused.value.status == status


def test_a_request_is_understood() -> None:
    request = parse_request(
        b"POST /a/..b?x=../ HTTP/1.1\r\nhOST: A:1\r\nContent-Length: 007\r\nX:  y\t \r\nX: \xe9\r\nExpect: 100-Continue\r\n\r\n"
    )
    assert (request.method, request.target, request.path, request.get(b"host")) == (
        "POST",
        "/a/..b?x=../",
        "/a/..b",
        "A:1",
    )
    assert (request.framing, request.length, request.keep_alive, request.upgrade) == (Framing.LENGTH, 7, True, False)
    assert request.expects_continue and [value for name, value in request.headers if name == b"X"] == [b"y", b"\xe9"]


@pytest.mark.parametrize(
    ("version", "connection", "kept"),
    [(b"1.1", b"", True), (b"1.1", b"x, Close", False), (b"1.0", b"", False), (b"1.0", b"Keep-Alive", True)],
)
def test_which_connections_are_kept(version: bytes, connection: bytes, kept: bool) -> None:
    head = b"GET / HTTP/" + version + b"\r\n" + H + b"Connection: " + connection + b"\r\n\r\n"
    assert parse_request(head).keep_alive is kept


@given(st.binary(max_size=300))
def test_no_bytes_break_the_parser(data: bytes) -> None:
    for head in (data, b"GET / HTTP/1.1\r\n" + data + b"\r\n\r\n", b"GET /" + data + b" HTTP/1.1\r\nHost: a\r\n\r\n"):
        try:
            request = parse_request(head)
        except Refusal:
            continue
        again = parse_request(render_request(request.method, request.target, request.headers))
        assert (again.target, again.headers, again.framing) == (request.target, request.headers, request.framing)


@given(st.lists(st.tuples(st.sampled_from([b"Host", b"X-A", b"Cookie"]), st.binary(max_size=20)), max_size=4))
def test_no_value_breaks_its_line(headers: list[tuple[bytes, bytes]]) -> None:
    try:
        head = render_head(b"GET / HTTP/1.1", headers)
    except ValueError:
        return
    assert head.count(b"\n") == len(headers) + 2 and head.endswith(b"\r\n\r\n") and b"\0" not in head


def test_where_a_head_ends() -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    for at in range(len(head)):
        assert find_head_end(head[:at], 100) == 0
    assert find_head_end(head + b"rest\n", 100) == len(head)
    for data, status in (
        (b"\x16\x03\x01", 400),
        (b"\r\n", 400),
        (b"GET /\n", 400),
        (b"G" * 100, 431),
        (head + b"x" * 9, 431),
    ):
        with pytest.raises(Refusal) as refused:
            find_head_end(data, 100 if status == 400 or data[1] == 71 else len(head) - 1)
        assert refused.value.status == status


# answers


@pytest.mark.parametrize(
    ("status", "headers", "method", "framing"),
    [
        (b"200 OK", b"Content-Length: 3\r\n", "GET", Framing.LENGTH),
        (b"200 OK", b"Content-Length: 3\r\n", "HEAD", Framing.NONE),
        (b"200", b"Transfer-Encoding: Chunked\r\n", "GET", Framing.CHUNKED),
        (b"200 OK", b"", "GET", Framing.CLOSE),
        (b"204 No", b"Content-Length: 3\r\n", "GET", Framing.NONE),
        (b"304 Not \xe9", b"", "GET", Framing.NONE),
        (b"101 Switching", b"Upgrade: websocket\r\nConnection: Upgrade\r\n", "GET", Framing.NONE),
    ],
)
def test_how_an_answer_ends(status: bytes, headers: bytes, method: str, framing: Framing) -> None:
    assert parse_response(b"HTTP/1.1 " + status + b"\r\n" + headers + b"\r\n", method).framing is framing


@pytest.mark.parametrize(
    "head",
    [b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", b"HTTP/1.1 2000 OK\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nX : y\r\n\r\n", b"ICY 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nSet-Cookie: a\r\n b\r\n\r\n"],
)  # fmt: skip
def test_answers_that_are_refused(head: bytes) -> None:
    with pytest.raises(Refusal) as refused:
        parse_response(head, "GET")
    assert refused.value.status == 502


# bodies


@st.composite
def _pieces(draw: st.DrawFn) -> list[bytes]:
    return draw(st.lists(st.binary(min_size=1, max_size=40), max_size=6))


@given(_pieces(), st.binary(max_size=20), st.integers(1, 30))
def test_chunks_are_the_same_wherever_they_are_cut(pieces: list[bytes], rest: bytes, step: int) -> None:
    data = b"".join(render_chunk(piece) for piece in pieces) + LAST_CHUNK + rest
    body, got, left = Body(Framing.CHUNKED), b"", b""
    for at in range(0, len(data), step):
        payload, behind = body.feed(data[at : at + step])
        got, left = got + payload, left + behind
    assert (got, left, body.done, body.received) == (b"".join(pieces), rest, True, len(got))


@given(st.binary(max_size=100), st.binary(max_size=20))
def test_a_body_with_a_length_ends_there(data: bytes, rest: bytes) -> None:
    body = Body(Framing.LENGTH, len(data))
    got = b""
    for at in range(len(data)):
        payload, behind = body.feed(data[at : at + 1])
        got += payload
        assert not behind
    assert (got, body.done, body.feed(rest)) == (data, True, (b"", rest))


@pytest.mark.parametrize(
    "data",
    [b"\r\n", b"x\r\n", b"-1\r\n", b"+1\r\n", b"0x1\r\n", b" 1\r\n", b"1 \r\nx\r\n0\r\n\r\nz"[:3] + b"\n", b"1\nx\n0\n\n", b"1\r\nxx\r\n",
     b"1\r\nx\r0\r\n\r\n", b"f" * 16 + b"\r\n", b"1;" + b"x" * 5000, b"1;a\0b\r\n", b"0\r\n bad: x\r\n\r\n", b"0\r\nbad\r\n\r\n",
     b"0\r\n" + b"X: y\r\n" * 5000],
)  # fmt: skip
def test_chunks_that_are_refused(data: bytes) -> None:
    for step in (1, len(data)):
        body = Body(Framing.CHUNKED)
        with pytest.raises(Refusal):
            for at in range(0, len(data), step):
                body.feed(data[at : at + step])


@given(st.binary(max_size=200))
def test_no_bytes_break_the_chunks(data: bytes) -> None:
    whole, parts = Body(Framing.CHUNKED), Body(Framing.CHUNKED)

    def feed(body: Body, pieces: list[bytes]) -> tuple[bytes, bool]:
        got = b""
        try:
            for piece in pieces:
                got += body.feed(piece)[0]
        except Refusal:
            return b"", False
        return got, True

    assert feed(whole, [data]) == feed(parts, [data[at : at + 1] for at in range(len(data))])


# headers


def test_cookies_of_ours_do_not_go_on() -> None:
    assert forward.strip_cookies(
        b"a=1;portico=x ;  __Host-portico=x; __SECURE-portico-b=x; Portico-app=x; my-portico=2"
    ) == (b"a=1; my-portico=2")
    assert forward.strip_cookies(b"portico=x") == b""


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (b"a=1; Path=/; HttpOnly", b"a=1; Path=/; HttpOnly"),
        (b"a=1; domain = .example.org; Path=/", b"a=1; Path=/"),
        (b"a=1;DOMAIN", b"a=1"),
        (b"portico=1", None),
        (b" __Host-Portico=1", None),
        (b"portico-app-x=", None),
        (b"=portico=1", None),
        (b"portico", None),
        (b"", None),
    ],
)
def test_cookies_that_an_app_may_set(value: bytes, kept: bytes | None) -> None:
    assert forward.filter_set_cookie(value) == kept


FIELDS = [
    b"Host: a\r\n\r\n",
    b"Host: a\r\nConnection: close\r\n\r\n",
    b"Host: a\r\nCookie: x=y\r\nAccept: */*\r\n\r\n",
    b"Host: a\r\nContent-Length: 0\r\n\r\n",
    b"Host: a\r\nContent-Length: 3\r\n\r\n",
    b"Host: a\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"Host: a\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n",
    b"Host: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    b"\r\n",
]


@given(
    st.one_of(
        st.builds(
            lambda *parts: b"%b %b HTTP/1.%b\r\n" % parts,
            st.sampled_from([b"GET", b"HEAD", b"POST", b"DELETE", b"TRACE", b"CONNECT", b"get", b"PRI", b"G ET"]),
            st.one_of(
                st.sampled_from(
                    [b"/", b"*", b"//x", b"/a/../b", b"/a/%2e%2e/b", b"http://a/", b"/#x", b"/\x00", b"a:1"]
                ),
                st.binary(max_size=12).map(lambda rest: b"/" + rest),
            ),
            st.sampled_from([b"0", b"1", b"2"]),
        ),
        st.binary(max_size=24).map(lambda line: line + b"\r\n"),
    ),
    st.sampled_from(FIELDS),
    st.sampled_from([b"GET / HTTP/1.1\r\n", b"GET /x HTTP/1.0\r\n", b"POST / HTTP/1.1\r\n"]),
)
def test_the_same_fields_again_are_the_same_request(line: bytes, fields: bytes, before: bytes) -> None:
    try:
        like = parse_request(before + fields)
    except Refusal:
        return
    known = parse_request_like(line, like)
    if known is not None:  # else it is parsed whole
        assert known == parse_request(line + fields)


# lines that were read before


def test_a_line_that_is_said_again_is_looked_at_once() -> None:
    book = FieldBook()
    (first,) = book.read([b"Accept: */*"])
    assert book.read([b"Accept: */*", b"Accept:*/*"]) == [first, first]
    assert book.read([b"Accept: */*"])[0] is first and (first, first.key) == ((b"Accept", b"*/*"), b"accept")


def test_no_authorization_and_no_long_line_is_kept() -> None:
    book = FieldBook()
    for line in (b"Authorization: Bearer x", b"X: " + b"x" * 2000):
        assert book.read([line])[0] is not book.read([line])[0]


def test_a_flood_of_lines_is_forgotten_and_those_that_come_again_are_not() -> None:
    book = FieldBook()
    kept = book.read([b"Accept: */*"])[0]
    lines = [b"X: %d" % number for number in range(10 * KEPT_LINES)]
    first = book.read(lines[:1])[0]
    for line in lines:
        assert book.read([b"Accept: */*", line])[0] is kept
    assert book.read(lines[:1])[0] is not first
    assert book.count() <= 2 * KEPT_LINES


@given(
    st.one_of(
        st.binary(max_size=30), st.builds(lambda a, b: a + b":" + b, st.binary(max_size=6), st.binary(max_size=12))
    )
)
def test_a_line_is_read_as_llhttp_reads_it_or_refused(line: bytes) -> None:
    try:
        field = parse_field(line)
    except Malformed:
        return
    name, value = field
    assert line.startswith(name + b":") and line[len(name) + 1 :].strip(b" \t") == value
    assert not set(line) & set(b"\r\n\0") and field.key == name.lower()
