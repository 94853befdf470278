"""Conversations over a hijacked connection: frames, detach keys."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seacan.cli.terminal import Detached, _Escape, parse_detach_keys
from seacan.engine.frames import Demultiplexer
from seacan.errors import InvalidParameter

frames = st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(min_size=1, max_size=40)), max_size=8)


@given(frames, st.integers(1, 9))
def test_frames_come_apart_however_they_arrive(sent: list[tuple[int, bytes]], size: int) -> None:
    stream = b"".join(struct.pack(">BxxxL", number, len(data)) + data for number, data in sent)
    demultiplexer = Demultiplexer()
    got = {1: b"", 2: b""}
    for start in range(0, len(stream), size):
        for number, payload in demultiplexer.feed(stream[start : start + size]):
            got[number] += payload
    for number in (1, 2):
        assert got[number] == b"".join(data for stream_, data in sent if stream_ == number)


def test_detach_keys_are_parsed() -> None:
    assert parse_detach_keys("ctrl-p,ctrl-q") == b"\x10\x11"
    assert parse_detach_keys("ctrl-@,x,ctrl-[") == b"\x00x\x1b"
    assert parse_detach_keys("") == b""
    for text in ("ctrl-1", "xy", "ctrl-p,", "é"):
        with pytest.raises(InvalidParameter):
            parse_detach_keys(text)


def test_detach_keys_are_held_back_until_they_are_complete() -> None:
    escape = _Escape(b"\x10\x11")
    assert escape.feed(b"ab\x10") == b"ab"
    assert escape.feed(b"c") == b"\x10c"
    assert escape.feed(b"\x10\x10") == b"\x10"
    with pytest.raises(Detached):
        escape.feed(b"\x11")


@given(st.binary(max_size=30))
def test_typing_without_the_keys_arrives_whole(typed: bytes) -> None:
    escape = _Escape(b"\x10\x11")
    if b"\x10\x11" in typed:
        return
    assert escape.feed(typed + b"!") == typed + b"!"


def test_a_conversation_ends_with_the_other_side_and_passes_everything() -> None:
    ours, theirs = socket.socketpair()
    script = (
        "import socket, sys\n"
        "from seacan.cli.terminal import converse\n"
        "converse(socket.socket(fileno=int(sys.argv[1])), b'', stdin=True, terminal=False)\n"
    )
    with ours, theirs:
        child = subprocess.Popen(
            [sys.executable, "-c", script, str(theirs.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": os.getcwd()},
        )
        theirs.close()
        assert child.stdin is not None and child.stdout is not None and child.stderr is not None
        child.stdin.write(b"typed")
        child.stdin.close()
        got = b""
        while piece := ours.recv(100):
            got += piece
        assert got == b"typed"
        for stream, data in ((1, b"out"), (2, b"err")):
            ours.sendall(struct.pack(">BxxxL", stream, len(data)) + data)
        ours.shutdown(socket.SHUT_WR)
        assert child.wait(20) == 0
        assert (child.stdout.read(), child.stderr.read()) == (b"out", b"err")
        child.stdout.close()
        child.stderr.close()
