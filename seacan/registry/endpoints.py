"""Where a registry is reached, and how far it is trusted: mirrors, insecure registries, ``certs.d``, proxies."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from seacan.errors import InvalidParameter
from seacan.images.reference import DEFAULT_DOMAIN

CERTIFICATES = Path("/etc/docker/certs.d")
_HUB = "registry-1.docker.io"
_LOOPBACK = ("127.0.0.0/8", "::1/128")


class Endpoint(msgspec.Struct, frozen=True):
    """One way to a registry. ``host`` is ``name[:port]``; ``verify`` says whether TLS certificates are checked."""

    scheme: str
    host: str
    verify: bool = True
    mirror: bool = False
    base: str = ""
    """A path before ``/v2/`` (mirrors may have one)."""

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}{self.base}"


class Settings(msgspec.Struct):
    """The daemon's options that matter here; read anew for each operation, because they can be reloaded."""

    mirrors: Sequence[str] = ()
    insecure: Sequence[str] = ()
    """Hosts (``host[:port]``) or networks in CIDR notation."""
    certificates: Path = CERTIFICATES


def endpoints(domain: str, settings: Settings, *, push: bool = False) -> list[Endpoint]:
    """The ways to the registry of ``domain``, best first. Mirrors are for Docker Hub alone, and never written to."""
    found: list[Endpoint] = []
    if domain == DEFAULT_DOMAIN:
        if not push:
            for mirror in settings.mirrors:
                parts = urlsplit(mirror if "://" in mirror else f"https://{mirror}")
                if parts.scheme not in ("http", "https") or not parts.netloc:
                    raise InvalidParameter(f"invalid mirror: {mirror!r}")
                found.append(
                    Endpoint(
                        parts.scheme,
                        parts.netloc,
                        verify=not is_insecure(parts.netloc, settings.insecure),
                        mirror=True,
                        base=parts.path.rstrip("/"),
                    )
                )
        return [*found, Endpoint("https", _HUB)]
    if is_insecure(domain, settings.insecure):
        return [Endpoint("https", domain, verify=False), Endpoint("http", domain, verify=False)]
    return [Endpoint("https", domain)]


def is_insecure(host: str, insecure: Sequence[str]) -> bool:
    """Whether ``host[:port]`` may be reached without TLS or with any certificate: loopback, and what the user named."""
    networks = []
    for entry in (*_LOOPBACK, *insecure):
        try:
            networks.append(ipaddress.ip_network(entry, strict=False))
        except ValueError:
            if entry.removeprefix("http://").removeprefix("https://").rstrip("/") == host:
                return True
    name = urlsplit(f"//{host}").hostname or host
    if name == "localhost":
        return True
    try:
        addresses = [ipaddress.ip_address(name)]
    except ValueError:
        if len(networks) == len(_LOOPBACK):
            return False
        try:
            addresses = [ipaddress.ip_address(item[4][0]) for item in socket.getaddrinfo(name, None)]
        except (OSError, UnicodeError):
            return False
    return any(
        address in network for address in addresses for network in networks if address.version == network.version
    )


class Trust(msgspec.Struct, frozen=True):
    """What is believed and shown in TLS on the way to a registry."""

    home: ssl.SSLContext
    """For the registry itself: shows the client certificates."""
    elsewhere: ssl.SSLContext
    """For the hosts that it sends its clients to (token service, storage): believes the same, shows nothing."""


def trust(endpoint: Endpoint, certificates: Path) -> Trust:
    """How TLS is done with an endpoint: ``certs.d/<host>/*.crt`` are trusted besides the system's authorities, and
    each ``*.cert`` is shown with the ``*.key`` of its name.

    Raises :class:`InvalidParameter` when a file there cannot be used.
    """
    contexts = Trust(ssl.create_default_context(), ssl.create_default_context())
    if not endpoint.verify:
        for context in (contexts.home, contexts.elsewhere):
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
    for path in _files(certificates / endpoint.host):
        try:
            if path.suffix == ".crt":
                for context in (contexts.home, contexts.elsewhere):
                    context.load_verify_locations(cafile=path)
            elif path.suffix == ".cert":
                key = path.with_suffix(".key")
                if not key.exists():
                    raise InvalidParameter(
                        f"missing key {key.name} for client certificate {path.name}. CA certificates must use the "
                        "extension .crt"
                    )
                contexts.home.load_cert_chain(path, key, password=_no_password(key))
            elif path.suffix == ".key" and not path.with_suffix(".cert").exists():
                raise InvalidParameter(
                    f"missing client certificate {path.with_suffix('.cert').name} for key {path.name}"
                )
        except (OSError, ssl.SSLError) as error:
            raise InvalidParameter(f"certificate {path}: {error}") from error
    return contexts


def fingerprint(endpoint: Endpoint, certificates: Path) -> tuple[tuple[str, int, int], ...]:
    """Changes whenever what :func:`trust` reads does: certificates are renewed while the daemon runs."""
    found = []
    for path in _files(certificates / endpoint.host):
        try:
            status = path.stat()
        except OSError:
            continue
        found.append((path.name, status.st_mtime_ns, status.st_size))
    return tuple(found)


def _files(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in sorted(os.listdir(folder)) if name.endswith((".crt", ".cert", ".key"))]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InvalidParameter(f"certificates {folder}: {error.strerror}") from error


def _no_password(key: Path) -> Callable[[], str]:
    """Without this OpenSSL would ask for the password of an encrypted key at the daemon's terminal."""

    def refuse() -> str:
        raise InvalidParameter(
            f"certificate key {key}: it is encrypted, and nobody is here to be asked for the password"
        )

    return refuse


def proxy_for(url: str) -> str | None:
    """The proxy of the environment for ``url``, by the rules of golang.org/x/net/http/httpproxy: capital names
    first, never for this machine itself, ``NO_PROXY`` with hosts, domains, networks and ports."""
    parts = urlsplit(url)
    proxy = environment_proxy(f"{parts.scheme}_proxy")
    if not proxy or _goes_direct(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def environment_proxy(name: str) -> str:
    """A variable such as ``https_proxy``, as Go looks for it."""
    return os.environ.get(name.upper()) or os.environ.get(name) or ""


def masked(url: str) -> str:
    """An address without the name and password in it, as dockerd shows them."""
    head, slashes, rest = url.rpartition("://")
    _, at, host = rest.rpartition("@")
    return f"{head}{slashes}xxxxx:xxxxx@{host}" if at else url


def _goes_direct(host: str, port: int) -> bool:
    host = host.lower().rstrip(".")
    address: ipaddress.IPv4Address | ipaddress.IPv6Address | None = None
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        if address.is_loopback:
            return True
    for entry in environment_proxy("no_proxy").lower().split(","):
        entry = entry.strip()
        if entry == "*":
            return True
        if not entry:
            continue
        with contextlib.suppress(ValueError):
            if "/" in entry:
                if address is not None and address in ipaddress.ip_network(entry, strict=False):
                    return True
                continue
        name, ported = _split_port(entry)
        if ported is not None and ported != port:
            continue
        with contextlib.suppress(ValueError):
            if ipaddress.ip_address(name) == address:
                return True
            continue
        domain = name.removeprefix("*")
        if (domain.startswith(".") and host.endswith(domain)) or host == domain or host.endswith(f".{domain}"):
            return True
    return False


def _split_port(entry: str) -> tuple[str, int | None]:
    """``host``, ``host:port``, ``[v6]:port`` or a bare IPv6 address."""
    name, colon, port = entry.rpartition(":")
    if colon and port.isdecimal() and (":" not in name or name.startswith("[")):
        return name.strip("[]"), int(port)
    return entry.strip("[]"), None
