"""Layers that a manifest says are elsewhere: the other host learns nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiohttp import web

from seacan.errors import InvalidParameter, SeacanError
from seacan.images.reference import parse
from seacan.registry.client import Registries
from seacan.registry.credentials import Credentials
from seacan.registry.endpoints import Settings

USER = Credentials(username="me", password="s3cret-word")


@pytest.fixture
async def asked(tmp_path: Path):  # type: ignore[no-untyped-def]
    """A host that asks whoever comes for credentials, and the requests it got."""
    requests: list[tuple[str, dict[str, str]]] = []

    async def answer(request: web.Request) -> web.Response:
        requests.append((request.path, dict(request.headers)))
        host = f"http://{request.host}"
        challenges = {"bearer": f'Bearer realm="{host}/token",service="x"', "basic": 'Basic realm="x"'}
        challenge = challenges[request.query.get("kind", "basic")]
        return web.Response(status=401, headers={"WWW-Authenticate": challenge})

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}", requests
    await runner.cleanup()


@pytest.mark.parametrize("kind", ["basic", "bearer"])
async def test_its_demand_for_credentials_is_not_met(asked, kind: str) -> None:  # type: ignore[no-untyped-def]
    """CVE-2020-15157."""
    url, requests = asked
    registries = Registries(lambda: Settings(insecure=["127.0.0.0/8"]))
    try:
        (repository, *_) = registries.repositories(parse("127.0.0.1:1/a"), USER)
        with pytest.raises(SeacanError):
            async with await repository.open_url(f"{url}/layer?kind={kind}"):
                pass
    finally:
        await registries.close()
    assert [path for path, _ in requests] == ["/layer"]
    assert not any("Authorization" in headers for _, headers in requests)


@pytest.mark.parametrize(
    "url", ["file:///etc/shadow", "ftp://a/b", "unix:///run/seacan.sock", "/etc/shadow", "gopher://a"]
)
async def test_only_http_is_spoken(url: str) -> None:
    registries = Registries(Settings)
    try:
        (repository, *_) = registries.repositories(parse("127.0.0.1:1/a"), USER)
        with pytest.raises(InvalidParameter, match="neither http nor https"):
            await repository.open_url(url)
    finally:
        await registries.close()
