"""The sockets the daemon listens on: unix, tcp, and those that systemd passes (``fd://``)."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from seacan.errors import InvalidParameter, System

if TYPE_CHECKING:
    import ssl

    from seacan.cli.configuration import Configuration

log = logging.getLogger(__name__)

DEFAULT_GROUP = "docker"
_FIRST_PASSED = 3
"""SD_LISTEN_FDS_START of sd_listen_fds(3)."""
_UNSAFE = (
    "Binding to IP address without --tlsverify is insecure and gives root access on this machine to everyone who has "
    "access to your network."
)


@dataclass(frozen=True, slots=True)
class Listener:
    """One listening socket; ``path`` and ``inode`` where a unix socket of ours has to be removed at the end."""

    socket: socket.socket
    address: str
    tls: bool = False
    path: str = ""
    inode: int = 0

    def close(self) -> None:
        self.socket.close()
        if self.path:
            with contextlib.suppress(FileNotFoundError):
                if os.stat(self.path).st_ino == self.inode:
                    os.unlink(self.path)


def listen(configuration: Configuration, environment: MutableMapping[str, str] = os.environ) -> list[Listener]:
    """Open every socket of the configuration, or none."""
    with contextlib.ExitStack() as undo:
        listeners: list[Listener] = []
        for host in configuration.hosts:
            protocol, _, address = host.partition("://")
            for listener in _open(protocol, address, host, configuration, environment):
                undo.callback(listener.close)
                listeners.append(listener)
        undo.pop_all()
        return listeners


def _open(
    protocol: str,
    address: str,
    host: str,
    configuration: Configuration,
    environment: MutableMapping[str, str],
) -> Iterator[Listener]:
    if protocol == "unix":
        yield _unix(address, configuration.group)
    elif protocol == "fd":
        tls = bool(configuration.tls)
        for passed in _passed(address, environment):
            is_tcp = passed.family != socket.AF_UNIX
            yield Listener(passed, host, tls=tls and is_tcp)
    else:
        _check_tcp(host, configuration)
        yield Listener(_tcp(address), address, tls=bool(configuration.tls))


def _check_tcp(host: str, configuration: Configuration) -> None:
    """dockerd 28 warns, waits and goes on when nobody said that TCP without client certificates is meant; we refuse."""
    if configuration.tls and configuration.tlsverify:
        return
    if configuration.tls is None:
        raise InvalidParameter(
            f"{host}: {_UNSAFE} You can override this by explicitly specifying '--tls=false' or '--tlsverify=false'"
        )
    log.warning(_UNSAFE, extra={"fields": {"host": host}})
    log.warning(
        "Binding to an IP address, even on localhost, can also give access to scripts run in a browser. "
        "Be safe out there!",
        extra={"fields": {"host": host}},
    )


def _tcp(address: str) -> socket.socket:
    name, _, port = address.rpartition(":")
    try:
        candidates = socket.getaddrinfo(
            name.strip("[]") or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise System(f"listen tcp {address}: {error.strerror or error}") from None
    family, kind, protocol, _, target = candidates[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(target)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise System(f"listen tcp {address}: bind: {(error.strerror or str(error)).lower()}") from None
    return listener


def _unix(path: str, group: str) -> Listener:
    gid = _gid(path, group)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        _remove_stale(path)
        # Nobody may connect before owner and mode are right.
        umask = os.umask(0o777)
        try:
            listener.bind(path)
        finally:
            os.umask(umask)
        os.chown(path, 0 if os.geteuid() == 0 else -1, gid)
        os.chmod(path, 0o660)
        listener.listen(1024)
        return Listener(listener, path, path=path, inode=os.stat(path).st_ino)
    except OSError as error:
        listener.close()
        raise System(f"can't create unix socket {path}: {(error.strerror or str(error)).lower()}") from None
    except BaseException:
        listener.close()
        raise


def _remove_stale(path: str) -> None:
    """Remove a socket that nobody listens on. dockerd takes over whatever is there; an engine in use stays ours to
    leave alone."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in (errno.ECONNREFUSED, errno.ENOTSOCK):
                raise
        else:
            raise System(f"can't create unix socket {path}: another daemon is listening on it")
    os.unlink(path)


def _gid(path: str, group: str) -> int:
    if not group:
        return os.getgid()
    import grp

    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        if group.isdecimal():
            return int(group)
        if group != DEFAULT_GROUP:
            raise InvalidParameter(f"group {group} not found") from None
        log.warning("could not change group %s to %s: group %s not found", path, DEFAULT_GROUP, DEFAULT_GROUP)
        return os.getgid()


def _passed(address: str, environment: MutableMapping[str, str]) -> list[socket.socket]:
    """The sockets of sd_listen_fds(3): all of them, or the one whose number ``address`` is."""
    count = 0
    if environment.get("LISTEN_PID") == str(os.getpid()):
        count = int(environment.get("LISTEN_FDS", "0"))
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        environment.pop(name, None)
    if count == 0:
        raise InvalidParameter("no sockets found via socket activation: make sure the service was started by systemd")
    numbers = range(_FIRST_PASSED, _FIRST_PASSED + count)
    if address not in ("", "*"):
        if not address.isdecimal():
            raise InvalidParameter(f"failed to parse systemd fd address: should be a number: {address}")
        if int(address) not in numbers:
            raise InvalidParameter("too few socket activated files passed in by systemd")
        for number in numbers:
            if number != int(address):
                os.close(number)
        numbers = range(int(address), int(address) + 1)
    sockets = []
    for number in numbers:
        os.set_inheritable(number, False)
        sockets.append(socket.socket(fileno=number))
    return sockets


def server_tls(configuration: Configuration) -> ssl.SSLContext | None:
    """The daemon's TLS context: with ``--tlsverify``, clients must show a certificate of the CA."""
    if not configuration.tls:
        return None
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(configuration.tlscert, configuration.tlskey)
    except OSError as error:
        raise InvalidParameter(
            f"invalid TLS configuration: could not load X509 key pair (cert: {configuration.tlscert!r}, "
            f"key: {configuration.tlskey!r}): {error.strerror or error}. Make sure the key is not encrypted"
        ) from None
    if configuration.tlsverify:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(configuration.tlscacert)
        except OSError as error:
            raise InvalidParameter(
                f"invalid TLS configuration: could not read CA certificate {configuration.tlscacert!r}: "
                f"{error.strerror or error}"
            ) from None
    return context
