"""A small HTTP/1.1 client for the engine's socket, for the command line.

Not http.client: importing it costs 25 ms (it brings the email package), a quarter of what ``seacan ps`` may take; and
attach and exec take the connection over, for which a plain socket is what is wanted. One connection a request.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, Final

from seacan.errors import InvalidParameter, SeacanError, Unavailable

DEFAULT_HOSTS: Final = ("unix:///run/seacan.sock", "unix:///var/run/docker.sock")
_MAX_HEAD = 1 << 20


class APIError(SeacanError):
    """The daemon refused; ``status`` is the HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def default_host(environment: Mapping[str, str] = os.environ) -> str:
    """``$DOCKER_HOST``, or the first default socket that exists."""
    if host := environment.get("DOCKER_HOST"):
        return host
    for host in DEFAULT_HOSTS:
        if os.path.exists(host.removeprefix("unix://")):
            return host
    return DEFAULT_HOSTS[0]


class Response:
    """An answer whose body is read as it comes. Closing it closes the connection."""

    def __init__(self, connection: socket.socket, *, has_body: bool = True) -> None:
        self.connection = connection
        self._file = connection.makefile("rb")
        try:
            status = self._line()
            parts = status.split(" ", 2)
            if len(parts) < 2 or not parts[1].isdigit():
                raise Unavailable(f"the daemon's answer is not HTTP: {status[:80]!r}")
            self.status = int(parts[1])
            self.headers: dict[str, str] = {}
            while line := self._line():
                name, _, value = line.partition(":")
                self.headers[name.strip().lower()] = value.strip()
        except BaseException:
            self.close()
            raise
        length = self.headers.get("content-length")
        self._remaining = int(length) if length is not None else None
        self._chunked = self.headers.get("transfer-encoding", "").lower() == "chunked"
        if not has_body or self.status in (204, 304) or self.status < 200:
            self._remaining, self._chunked = 0, False

    def _line(self) -> str:
        line = self._file.readline(_MAX_HEAD)
        if not line:
            raise Unavailable("the daemon closed the connection without an answer")
        return line.rstrip(b"\r\n").decode("latin-1")

    def chunks(self) -> Iterator[bytes]:
        """The body in pieces, each given as soon as it is there."""
        if self._chunked:
            while size := int(self._line().partition(";")[0], 16):
                while size:
                    piece = self._file.read1(min(size, 1 << 16))
                    if not piece:
                        raise Unavailable("the daemon's answer ended early")
                    size -= len(piece)
                    yield piece
                self._line()
            self._remaining, self._chunked = 0, False
            return
        while self._remaining is None or self._remaining > 0:
            piece = self._file.read1(1 << 16 if self._remaining is None else min(self._remaining, 1 << 16))
            if not piece:
                if self._remaining:
                    raise Unavailable("the daemon's answer ended early")
                return
            if self._remaining is not None:
                self._remaining -= len(piece)
            yield piece

    def read(self) -> bytes:
        return b"".join(self.chunks())

    def json(self) -> Any:
        data = self.read()
        return json.loads(data) if data.strip() else None

    def json_lines(self) -> Iterator[Any]:
        """The JSON values of a stream, one after the other."""
        decoder = json.JSONDecoder()
        pending = ""
        import codecs

        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        for chunk in self.chunks():
            pending += decode(chunk)
            while pending := pending.lstrip():
                try:
                    value, end = decoder.raw_decode(pending)
                except ValueError:
                    break
                yield value
                pending = pending[end:]
        if pending.strip():
            raise Unavailable(f"the daemon's answer is not JSON: {pending[:80]!r}")

    def hijack(self) -> tuple[socket.socket, bytes]:
        """The connection after a 101 answer, and what had already been read from it."""
        pending = self._file.peek() if self._buffered() else b""
        self._file.detach()
        return self.connection, pending

    def _buffered(self) -> bool:
        # peek() would block on an empty buffer: ask the socket not to.
        self.connection.setblocking(False)
        try:
            return bool(self._file.peek())
        except (BlockingIOError, OSError):
            return False
        finally:
            self.connection.setblocking(True)

    def close(self) -> None:
        self._file.close()
        self.connection.close()

    def __enter__(self) -> Response:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Client:
    """The engine at ``host``. Every method raises :class:`APIError` where the daemon refuses, and
    :class:`~seacan.errors.Unavailable` where there is none."""

    def __init__(
        self,
        host: str = "",
        *,
        tls: bool | None = None,
        verify: bool | None = None,
        ca: str = "",
        cert: str = "",
        key: str = "",
    ) -> None:
        self.host = host or default_host()
        self.verify = bool(os.environ.get("DOCKER_TLS_VERIFY")) if verify is None else verify
        self.tls = (self.verify or bool(os.environ.get("DOCKER_TLS"))) if tls is None else (tls or self.verify)
        folder = os.environ.get("DOCKER_CERT_PATH") or os.path.join(os.environ.get("HOME", "/root"), ".docker")
        self.ca = ca or os.path.join(folder, "ca.pem")
        self.cert = cert or os.path.join(folder, "cert.pem")
        self.key = key or os.path.join(folder, "key.pem")

    # --- requests ---------------------------------------------------------------------------------------------------

    def get(self, path: str, **query: Any) -> Any:
        """The JSON answer of a GET."""
        with self.request("GET", path, query) as response:
            return response.json()

    def post(self, path: str, body: Any = None, **query: Any) -> Any:
        """The JSON answer of a POST with a JSON body (None for an empty answer)."""
        with self.request("POST", path, query, json_body=body) as response:
            return response.json()

    def delete(self, path: str, **query: Any) -> Any:
        with self.request("DELETE", path, query) as response:
            return response.json()

    def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        *,
        json_body: Any = None,
        body: bytes | IO[bytes] | Iterable[bytes] | None = None,
        headers: Mapping[str, str | Sequence[str]] | None = None,
        upgrade: bool | str = False,
    ) -> Response:
        """Send a request and read the answer's head. The caller closes the answer.

        ``upgrade`` names the protocol that the connection is to change to (True: "tcp").
        """
        fields: dict[str, str | Sequence[str]] = {"Host": "docker", "User-Agent": "seacan", **(headers or {})}
        if json_body is not None:
            body = json.dumps(json_body).encode()
            fields["Content-Type"] = "application/json"
        if upgrade:
            fields |= {"Connection": "Upgrade", "Upgrade": upgrade if isinstance(upgrade, str) else "tcp"}
        else:
            fields["Connection"] = "close"
        if isinstance(body, bytes):
            fields["Content-Length"] = str(len(body))
        elif body is not None:
            fields["Transfer-Encoding"] = "chunked"
        elif method != "GET":
            fields["Content-Length"] = "0"
        connection = self._connect()
        try:
            head = f"{method} {_target(path, query or {})} HTTP/1.1\r\n"
            for name, values in fields.items():
                head += "".join(f"{name}: {value}\r\n" for value in ([values] if isinstance(values, str) else values))
            try:
                connection.sendall(head.encode("latin-1") + b"\r\n" + (body if isinstance(body, bytes) else b""))
                if body is not None and not isinstance(body, bytes):
                    _send_chunks(connection, body)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the daemon refused before it read everything: its answer says why
            response = Response(connection, has_body=method != "HEAD")
        except BaseException:
            connection.close()
            raise
        if response.status >= 400:
            with response:
                raise _error(response)
        return response

    def _connect(self) -> socket.socket:
        protocol, _, address = self.host.partition("://")
        try:
            if protocol == "unix" and address:
                connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                try:
                    connection.connect(address)
                except BaseException:
                    connection.close()
                    raise
                return connection
            if protocol in ("tcp", "http", "https"):
                name, _, port = address.rstrip("/").rpartition(":")
                connection = socket.create_connection((name.strip("[]"), int(port)))
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return self._wrap(connection, name) if self.tls or protocol == "https" else connection
        except PermissionError as error:
            raise Unavailable(
                f"permission denied while trying to connect to the Docker daemon socket at {self.host}"
            ) from error
        except OSError as error:
            raise Unavailable(
                f"Cannot connect to the Docker daemon at {self.host}. Is the docker daemon running?"
            ) from error
        except ValueError:
            pass
        raise InvalidParameter(f"unable to parse docker host `{self.host}`")

    def _wrap(self, connection: socket.socket, name: str) -> socket.socket:
        import ssl

        from seacan.cli import tls

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self.verify:
            context.load_verify_locations(self.ca)
        else:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if os.path.exists(self.cert) and os.path.exists(self.key):
            context.load_cert_chain(self.cert, self.key)
        try:
            return tls.wrap(connection, context, name.strip("[]"))
        except ssl.SSLError as error:
            connection.close()
            raise Unavailable(f"cannot speak TLS with the daemon at {self.host}: {error.reason or error}") from error


def _target(path: str, query: Mapping[str, Any]) -> str:
    items: list[tuple[str, str]] = []
    for name, value in query.items():
        if value is None or value is False or value == "":
            continue
        values = value if isinstance(value, list) else [value]
        items += [(name, "1" if item is True else item if isinstance(item, str) else _compact(item)) for item in values]
    text = "&".join(f"{_quote(name)}={_quote(value)}" for name, value in items)
    return _quote(path, _PATH) + (f"?{text}" if text else "")


_UNRESERVED: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_PATH: Final = _UNRESERVED | frozenset(b"/:@+%")


def _quote(text: str, safe: frozenset[int] = _UNRESERVED) -> str:
    """Percent-encode, as urllib.parse does, whose import alone costs 7 ms."""
    return "".join(chr(byte) if byte in safe else f"%{byte:02X}" for byte in text.encode())


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":")) if isinstance(value, dict | list) else str(value)


def _send_chunks(connection: socket.socket, body: IO[bytes] | Iterable[bytes]) -> None:
    pieces = iter(lambda: body.read(1 << 18), b"") if hasattr(body, "read") else body
    for piece in pieces:
        if piece:
            connection.sendall(b"%x\r\n" % len(piece) + piece + b"\r\n")
    connection.sendall(b"0\r\n\r\n")


def _error(response: Response) -> APIError:
    text = response.read().decode(errors="replace").strip()
    try:
        message = json.loads(text)["message"]
    except (ValueError, KeyError, TypeError):
        message = text or f"status {response.status}"
    return APIError(str(message), response.status)
