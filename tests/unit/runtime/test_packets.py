"""Packets between daemon, launcher and shims."""

from __future__ import annotations

import socket

from seacan.runtime import packets
from seacan.runtime.protocol import Failed, Start


def test_the_last_words_of_a_peer_that_left_requests_unread_are_heard() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        packets.send(ours, Start(seq=1))
        packets.send(theirs, Failed(seq=0, message="no such program", exit_code=127))
        theirs.close()
        first = packets.receive(ours)
        assert first is not None and b"no such program" in first[0]
        assert packets.receive(ours) is None
