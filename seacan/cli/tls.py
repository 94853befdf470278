"""TLS for the command line's client: a thread carries bytes between the daemon and a socket pair.

So whoever talks to the daemon has a plain socket: one that can be polled, and closed in one direction while the other
goes on, which Python's own TLS sockets cannot.
"""

from __future__ import annotations

import select
import socket
import ssl
import threading

_SIZE = 64 << 10


def wrap(raw: socket.socket, context: ssl.SSLContext, name: str) -> socket.socket:
    """Shake hands on the connected socket ``raw``, and give the clear end. Raises ssl.SSLError or OSError."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
    while True:
        try:
            tls.do_handshake()
            break
        except ssl.SSLWantReadError:
            raw.sendall(outgoing.read())
            data = raw.recv(_SIZE)
            if not data:
                raise ssl.SSLError("the daemon closed the connection during the handshake") from None
            incoming.write(data)
    raw.sendall(outgoing.read())
    ours, theirs = socket.socketpair()
    carrier = _Carrier(raw, theirs, tls, incoming, outgoing)
    threading.Thread(target=carrier.run, name="tls", daemon=True).start()
    return ours


class _Carrier:
    def __init__(
        self,
        raw: socket.socket,
        clear: socket.socket,
        tls: ssl.SSLObject,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
    ) -> None:
        self.raw, self.clear, self.tls, self.incoming, self.outgoing = raw, clear, tls, incoming, outgoing

    def run(self) -> None:
        with self.raw, self.clear:
            try:
                self._carry()
            except OSError:
                pass  # one side has gone: closing both tells the other

    def _carry(self) -> None:
        poller = select.poll()
        poller.register(self.raw, select.POLLIN)
        poller.register(self.clear, select.POLLIN)
        while not self._decrypt():
            for descriptor, _ in poller.poll():
                if descriptor == self.raw.fileno():
                    data = self.raw.recv(_SIZE)
                    if data:
                        self.incoming.write(data)
                    else:
                        self.incoming.write_eof()
                    continue
                typed = self.clear.recv(_SIZE)
                if typed:
                    self.tls.write(typed)
                else:
                    # Only this direction ends: the close_notify says so, and the daemon goes on.
                    poller.unregister(self.clear)
                    self._farewell()
                self.raw.sendall(self.outgoing.read())

    def _farewell(self) -> None:
        try:
            self.tls.unwrap()
        except ssl.SSLError:
            pass  # the daemon's farewell comes in its own time

    def _decrypt(self) -> bool:
        """Pass on what has come; True when nothing more will."""
        while True:
            try:
                data = self.tls.read(_SIZE)
            except ssl.SSLWantReadError:
                return False
            except ssl.SSLError:
                data = b""
            if not data:
                self.clear.shutdown(socket.SHUT_WR)
                return True
            self.clear.sendall(data)
