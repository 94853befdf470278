"""Running the registry: listen, answer until a signal, and look after garbage meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from seacan.errors import InvalidParameter
from seacan.registry.server.access import Access, Anyone, Htpasswd, Token
from seacan.registry.server.application import application
from seacan.registry.server.store import Store
from seacan.storage.blobs import Blobs

if TYPE_CHECKING:
    from seacan.registry.server.mirror import Mirror

log = logging.getLogger(__name__)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What ``seacan registry serve`` is told.

    ``client_authority`` (PEM): only clients with a certificate of it are let in.

    ``quota`` is bytes; ``collect_every`` seconds (0: never by itself); ``engine`` is the data root of an engine whose
    blobs are shared on disk. ``mirror`` is the registry to hold copies of (``docker.io``); it makes this one read-only.
    """

    root: Path
    address: str = "127.0.0.1"
    port: int = 5000
    certificate: Path | None = None
    key: Path | None = None
    client_authority: Path | None = None
    htpasswd: Path | None = None
    token_realm: str = ""
    token_service: str = ""
    token_issuer: str = ""
    token_keys: Path | None = None
    read_only: bool = False
    delete: bool = True
    quota: int | None = None
    keep_history: int = 10
    collect_every: float = 3600.0
    engine: Path | None = None
    mirror: str = ""
    mirror_insecure: bool = False
    mirror_username: str = ""
    mirror_password: str = ""


def access(settings: Settings) -> Access:
    """Who may come in; raises :class:`InvalidParameter` for half of a configuration."""
    if settings.token_realm or settings.token_keys:
        if settings.htpasswd:
            raise InvalidParameter("a registry asks for passwords or for tokens, not for both")
        if not (settings.token_realm and settings.token_service and settings.token_issuer and settings.token_keys):
            raise InvalidParameter("token authentication needs a realm, a service, an issuer and keys")
        return Token(
            realm=settings.token_realm,
            service=settings.token_service,
            issuer=settings.token_issuer,
            keys=settings.token_keys,
        )
    return Htpasswd(settings.htpasswd) if settings.htpasswd else Anyone()


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if settings.certificate is None and settings.key is None:
        if settings.client_authority is not None:
            raise InvalidParameter("client certificates need TLS: a certificate and its key")
        return None
    if settings.certificate is None or settings.key is None:
        raise InvalidParameter("TLS needs both a certificate and its key")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.certificate, settings.key)
    except (OSError, ssl.SSLError) as error:
        raise InvalidParameter(f"certificate {settings.certificate} with key {settings.key}: {error}") from error
    if settings.client_authority is not None:
        try:
            context.load_verify_locations(settings.client_authority)
        except (OSError, ssl.SSLError) as error:
            raise InvalidParameter(f"client authority {settings.client_authority}: {error}") from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _mirror(store: Store, settings: Settings) -> Mirror | None:
    if not settings.mirror:
        return None
    from seacan.registry.client import Registries
    from seacan.registry.credentials import Credentials
    from seacan.registry.endpoints import Settings as Client
    from seacan.registry.server.mirror import Mirror

    client = Client(insecure=(settings.mirror,) if settings.mirror_insecure else ())
    credentials = Credentials(username=settings.mirror_username, password=settings.mirror_password)
    return Mirror(store, Registries(lambda: client), settings.mirror, credentials)


async def serve(settings: Settings, ready: Callable[[str, int], None] | None = None) -> None:
    """Answer until SIGTERM or SIGINT. ``ready`` is told the address and port once they are open."""
    store = Store(
        settings.root,
        shared=Blobs(settings.engine / "blobs") if settings.engine else None,
        quota=settings.quota,
        keep_history=settings.keep_history,
    )
    mirror = _mirror(store, settings)
    app = application(store, access(settings), read_only=settings.read_only, delete=settings.delete, upstream=mirror)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=10, auto_decompress=False)
    await runner.setup()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(store.close)
        if mirror is not None:
            stack.push_async_callback(mirror.close)
        stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, settings.address, settings.port, ssl_context=_tls(settings), backlog=1024)
        await site.start()
        if ready is not None:
            address, port = runner.addresses[0][:2]
            ready(address, port)
        while not stop.is_set():
            try:
                await asyncio.wait_for(stop.wait(), settings.collect_every or None)
            except TimeoutError:
                freed = store.collect()
                log.info("garbage collection: %d blobs, %d bytes", freed.blobs, freed.bytes)
