"""Where a registry is reached, and how far it is trusted: mirrors, insecure registries, ``certs.d``, proxies."""

from __future__ import annotations

import ipaddress
import os
import socket
import ssl
import urllib.request
from collections.abc import Sequence
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


def tls_context(endpoint: Endpoint, certificates: Path) -> ssl.SSLContext:
    """How TLS is done with an endpoint: ``certs.d/<host>/*.crt`` are trusted, ``*.cert`` and ``*.key`` shown.

    Raises :class:`InvalidParameter` when a file there cannot be used.
    """
    context = ssl.create_default_context()
    if not endpoint.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    folder = certificates / endpoint.host
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return context
    for name in names:
        path = folder / name
        try:
            if name.endswith(".crt"):
                context.load_verify_locations(cafile=path)
            elif name.endswith(".cert"):
                key = path.with_suffix(".key")
                if not key.exists():
                    raise InvalidParameter(f"missing key {key.name} for client certificate {name}")
                context.load_cert_chain(path, key)
            elif name.endswith(".key") and not path.with_suffix(".cert").exists():
                raise InvalidParameter(f"missing client certificate {path.with_suffix('.cert').name} for key {name}")
        except (OSError, ssl.SSLError) as error:
            raise InvalidParameter(f"certificate {path}: {error}") from error
    return context


def proxy_for(url: str) -> str | None:
    """The proxy of the environment for ``url``; never one for this machine itself, as in Go."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if host == "localhost":
        return None
    try:
        if ipaddress.ip_address(host).is_loopback:
            return None
    except ValueError:
        pass
    if urllib.request.proxy_bypass(parts.netloc):
        return None
    return urllib.request.getproxies().get(parts.scheme)
