"""Protocol buffers, HTTP/2 and gRPC, each against itself and against bytes that are wrong."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seacan.build.buildkit import http2
from seacan.build.buildkit.http2 import Connection
from seacan.build.buildkit.messages import (
    BytesMessage,
    Op,
    Packet,
    Platform,
    SolveRequest,
    SourceOp,
    Stat,
    StatusResponse,
    Vertex,
)
from seacan.build.buildkit.rpc import NOT_FOUND, UNIMPLEMENTED, Call, Channel, Method, Status, server
from seacan.build.buildkit.sync import _decode_stat, _packet, go_mode
from seacan.build.buildkit.wire import WireError


def test_messages_survive_the_wire() -> None:
    request = SolveRequest(ref="r", frontend_attrs={"a": "b", "": "c"}, entitlements=["x", ""], internal=True)
    assert SolveRequest.decode(request.encode()) == request
    op = Op(source=SourceOp("docker-image://x", {"k": "v"}), platform=Platform("amd64", "linux"))
    assert Op.decode(op.encode()) == op


def test_the_bytes_are_those_of_the_specification() -> None:
    assert Packet(type=1, id=150).encode() == b"\x08\x01\x18\x96\x01"
    assert Stat(path="a", size=-1).encode() == b"\x0a\x01a\x28" + b"\xff" * 9 + b"\x01"
    assert StatusResponse(vertexes=[Vertex(name="n")]).encode() == b"\x0a\x03\x1a\x01n"


def test_unknown_fields_are_skipped() -> None:
    assert BytesMessage.decode(b"\x50\x01\x0a\x01x\x5a\x01y\x5d1234\x5912345678").data == b"x"


@given(st.binary(max_size=60))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    for model in (SolveRequest, Packet, StatusResponse):
        try:
            model.decode(data)
        except WireError:
            pass


@given(
    st.builds(
        Stat,
        path=st.text(max_size=20),
        mode=st.integers(0, 2**32 - 1),
        uid=st.integers(0, 2**31),
        size=st.integers(-(2**63), 2**63 - 1),
        mtime=st.integers(-(2**63), 2**63 - 1),
        linkname=st.text(max_size=5),
    )
)
def test_the_quick_way_to_read_a_stat_reads_the_same(described: Stat) -> None:
    assert _decode_stat(memoryview(described.encode())) == Stat.decode(described.encode())
    kind, id, inner, data = _packet(Packet(type=0, stat=described, id=3, data=b"d").encode())
    assert (kind, id, bytes(inner or b""), bytes(data)) == (0, 3, described.encode(), b"d")


def test_modes_become_go_s() -> None:
    assert go_mode(0o040755) == 1 << 31 | 0o755
    assert go_mode(0o104755) == 1 << 23 | 0o755
    assert go_mode(0o120777) == 1 << 27 | 0o777


@asynccontextmanager
async def connected(methods: dict[str, Method]) -> AsyncIterator[Channel]:
    left, right = socket.socketpair()
    ours = Connection(*await asyncio.open_connection(sock=left), client=True)
    theirs = Connection(*await asyncio.open_connection(sock=right), client=False, serve=server(methods))
    running = [asyncio.create_task(ours.run()), asyncio.create_task(theirs.run())]
    try:
        yield Channel(ours)
    finally:
        ours.close()
        theirs.close()
        await asyncio.wait_for(asyncio.gather(*running), 10)


async def test_a_call_is_answered() -> None:
    async def echo(call: Call) -> None:
        message = await call.request(BytesMessage)
        await call.reply(BytesMessage(message.data[::-1]))

    async with connected({"/s/Echo": echo}) as channel:
        answer = await channel.call("/s/Echo", BytesMessage(b"abc"), BytesMessage, {"key": ["value"]})
    assert answer.data == b"cba"


async def test_messages_larger_than_any_window_pass_both_ways() -> None:
    async def echo(call: Call) -> None:
        async for message in call.requests(BytesMessage):
            await call.reply(message)

    big = bytes(range(256)) * (40 << 10)
    async with connected({"/s/Echo": echo}) as channel:
        talk = await channel.open("/s/Echo")
        async with talk:
            sending = asyncio.create_task(talk.send(BytesMessage(big), end=True))
            data = await talk.next()
            await sending
            assert data is not None and BytesMessage.decode(data).data == big
            assert await talk.next() is None


async def test_failures_carry_code_and_words() -> None:
    async def fail(call: Call) -> None:
        raise Status(NOT_FOUND, "no ünicorn\nhere")

    async with connected({"/s/Fail": fail}) as channel:
        with pytest.raises(Status, match="no ünicorn\nhere") as caught:
            await channel.call("/s/Fail", BytesMessage(), BytesMessage)
        assert caught.value.code == NOT_FOUND
        with pytest.raises(Status) as unknown:
            await channel.call("/s/Nope", BytesMessage(), BytesMessage)
        assert unknown.value.code == UNIMPLEMENTED


async def test_many_calls_share_a_connection() -> None:
    async def slow(call: Call) -> None:
        message = await call.request(BytesMessage)
        await asyncio.sleep(0.01)
        await call.reply(message)

    async with connected({"/s/Slow": slow}) as channel:
        answers = await asyncio.gather(
            *(channel.call("/s/Slow", BytesMessage(b"%d" % number), BytesMessage) for number in range(60))
        )
    assert [answer.data for answer in answers] == [b"%d" % number for number in range(60)]


async def test_a_call_given_up_cancels_the_server_s_side() -> None:
    cancelled = asyncio.Event()

    async def wait(call: Call) -> None:
        await call.request(BytesMessage)
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with connected({"/s/Wait": wait}) as channel:
        talk = await channel.open("/s/Wait")
        async with talk:
            await talk.send(BytesMessage(b"x"))
            await asyncio.sleep(0.05)
        await asyncio.wait_for(cancelled.wait(), 5)


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n" + bytes(64),
        http2.PREFACE + b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",
        http2.PREFACE + b"\x00\x00\x04\x01\x04\x00\x00\x00\x02\xff\xff\xff\xff",
        http2.PREFACE + b"\x00\x00\x00\x05\x00\x00\x00\x00\x01",
        http2.PREFACE + b"\x00\x00\x01\x09\x04\x00\x00\x00\x01x",
    ],
)
async def test_a_peer_that_breaks_the_rules_is_let_go(garbage: bytes) -> None:
    left, right = socket.socketpair()
    connection = Connection(*await asyncio.open_connection(sock=left), client=False, serve=server({}))
    running = asyncio.create_task(connection.run())
    right.setblocking(False)
    await asyncio.get_running_loop().sock_sendall(right, garbage)
    right.shutdown(socket.SHUT_WR)
    await asyncio.wait_for(running, 5)
    right.close()


@given(st.binary(max_size=200))
def test_any_bytes_end_a_connection_or_wait_for_more(data: bytes) -> None:
    async def feed() -> None:
        left, right = socket.socketpair()
        connection = Connection(*await asyncio.open_connection(sock=left), client=False, serve=server({}))
        running = asyncio.create_task(connection.run())
        right.sendall(http2.PREFACE + data)
        right.shutdown(socket.SHUT_WR)
        await asyncio.wait_for(running, 5)
        right.close()

    asyncio.run(feed())
