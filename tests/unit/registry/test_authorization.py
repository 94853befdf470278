"""Credentials: how they are used, and where they never go."""

from __future__ import annotations

import base64
import json
import logging
import ssl
from pathlib import Path

import pytest
from aiohttp import web

from seacan.engine.options import EngineOptions
from seacan.errors import InvalidParameter, SeacanError, Unauthorized
from seacan.images.store import Images
from seacan.registry.credentials import Credentials, decode_header, parse_challenges
from seacan.registry.distribution import Distribution
from seacan.registry.endpoints import Settings, endpoints, is_insecure, masked, proxy_for
from tests.certificates import Authority
from tests.unit.images.archives import layer
from tests.unit.registry.fake import FakeRegistry, basic
from tests.unit.registry.test_pull import pull
from tests.unit.storage.archives import Entry

ONE = layer(Entry("one", b"1"))
USER = Credentials(username="me", password="s3cret-word")


def demands(registry: FakeRegistry, *, expires: bool = False) -> None:
    """Bearer tokens, of the registry's own token service."""

    def authorize(request: web.Request) -> web.Response | None:
        if request.headers.get("Authorization") == "Bearer let-me-in":
            return None
        challenge = (
            f'Bearer realm="{registry.scheme}://{registry.host}/token",service="the registry",scope="repository:a:pull"'
        )
        return web.json_response(
            {"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]},
            status=401,
            headers={"WWW-Authenticate": challenge},
        )

    registry.authorize = authorize


async def test_a_token_is_fetched_once_with_the_credentials(distribution: Distribution, registry: FakeRegistry) -> None:
    registry.add("a", "1", [ONE, layer(Entry("two"))])
    demands(registry)
    await pull(distribution, registry, "a:1", credentials=USER)
    (asked,) = registry.token_requests
    assert asked.headers["Authorization"] == basic("me", "s3cret-word")
    assert asked.query["service"] == "the registry" and asked.query["scope"] == "repository:a:pull"
    assert asked.query["account"] == "me"


async def test_tokens_are_for_anonymous_users_too(distribution: Distribution, registry: FakeRegistry) -> None:
    registry.add("a", "1", [ONE])
    demands(registry)
    await pull(distribution, registry, "a:1")
    assert "Authorization" not in registry.token_requests[0].headers


async def test_an_identity_token_is_exchanged(distribution: Distribution, registry: FakeRegistry) -> None:
    registry.add("a", "1", [ONE])
    demands(registry)
    await pull(distribution, registry, "a:1", credentials=Credentials(identity_token="refresh-me"))
    assert registry.token_requests[0].method == "POST"
    assert "Authorization" not in registry.token_requests[0].headers


async def test_basic_credentials(distribution: Distribution, registry: FakeRegistry) -> None:
    registry.add("a", "1", [ONE])

    def authorize(request: web.Request) -> web.Response | None:
        if request.headers.get("Authorization") == basic("me", "s3cret-word"):
            return None
        return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="r"'})

    registry.authorize = authorize
    with pytest.raises(SeacanError, match="no basic auth credentials"):
        await pull(distribution, registry, "a:1")
    await pull(distribution, registry, "a:1", credentials=USER)
    with pytest.raises(SeacanError, match="unauthorized"):
        await pull(distribution, registry, "a:1", credentials=Credentials(username="me", password="wrong"))


async def test_credentials_do_not_follow_a_redirect_to_another_host(
    distribution: Distribution, registry: FakeRegistry
) -> None:
    _, layers = registry.add("a", "1", [ONE])
    demands(registry)
    other = FakeRegistry()
    await other.start()
    other.blobs = dict(registry.blobs)

    async def elsewhere(request: web.Request, content: bytes) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": f"http://{other.host}/v2/a/blobs/{layers[0]}?signature=x"})

    registry.blob_behaviours[layers[0]] = [elsewhere]
    await pull(distribution, registry, "a:1", credentials=USER)
    assert other.asked("GET", layers[0]) == 1
    assert not any("Authorization" in headers for _, _, headers in other.requests)
    await other.close()


async def test_endless_redirects_are_given_up(distribution: Distribution, registry: FakeRegistry) -> None:
    _, layers = registry.add("a", "1", [ONE])

    async def again(request: web.Request, content: bytes) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": request.path})

    registry.blob_behaviours[layers[0]] = [again] * 100
    with pytest.raises(SeacanError, match="stopped after 8 redirects"):
        await pull(distribution, registry, "a:1")


async def test_a_login_is_tried_at_the_registry(distribution: Distribution, registry: FakeRegistry) -> None:
    demands(registry)
    credentials = Credentials(username="me", password="s3cret-word", server_address=registry.host)
    assert await distribution.login(credentials) == "Login Succeeded"
    registry.token = lambda _request: web.Response(status=401)  # type: ignore[method-assign]
    wrong = Credentials(username="me", password="other", server_address=registry.host)
    with pytest.raises(Unauthorized, match="unauthorized: authentication required"):
        await distribution.login(wrong)


async def test_no_credential_in_errors_logs_or_representations(
    distribution: Distribution, registry: FakeRegistry, images: Images, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    registry.add("a", "1", [ONE])
    registry.authorize = lambda _request: web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="r"'})
    with pytest.raises(SeacanError) as failure:
        await pull(distribution, registry, "a:1", credentials=USER)
    for text in (str(failure.value), repr(USER), str(USER), f"{USER}", caplog.text):
        assert "s3cret" not in text and base64.b64encode(b"me:s3cret-word").decode() not in text


def test_the_header_of_the_api() -> None:
    value = base64.urlsafe_b64encode(json.dumps({"username": "u", "password": "p", "email": None}).encode()).decode()
    assert decode_header(value) == Credentials(username="u", password="p")
    assert decode_header(value.rstrip("=")).username == "u"
    assert decode_header("").empty
    with pytest.raises(InvalidParameter, match=r"^invalid X-Registry-Auth header$"):
        decode_header("!!!")


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (
            'Bearer realm="https://a/b",service="c d",scope="x:y,z"',
            [("bearer", {"realm": "https://a/b", "service": "c d", "scope": "x:y,z"})],
        ),
        ('Basic realm="r", Bearer realm=https://a', [("basic", {"realm": "r"}), ("bearer", {"realm": "https://a"})]),
        ('Bearer realm="a\\"b"', [("bearer", {"realm": 'a"b'})]),
        ("Negotiate", [("negotiate", {})]),
        ("", []),
        (",,,", []),
    ],
)
def test_challenges(header: str, expected: list[tuple[str, dict[str, str]]]) -> None:
    assert [(found.scheme, found.parameters) for found in parse_challenges([header])] == expected


def test_where_registries_are_reached() -> None:
    settings = Settings(
        mirrors=["https://mirror.example/base", "http://127.0.0.1:5000"], insecure=["plain.example:80", "10.0.0.0/8"]
    )
    hub = endpoints("docker.io", settings)
    assert [item.url for item in hub] == [
        "https://mirror.example/base",
        "http://127.0.0.1:5000",
        "https://registry-1.docker.io",
    ]
    assert [item.mirror for item in hub] == [True, True, False]
    assert [item.url for item in endpoints("docker.io", settings, push=True)] == ["https://registry-1.docker.io"]
    assert [item.url for item in endpoints("r.example", settings)] == ["https://r.example"]
    assert [(item.scheme, item.verify) for item in endpoints("plain.example:80", settings)] == [
        ("https", False),
        ("http", False),
    ]


@pytest.mark.parametrize(
    ("host", "insecure"),
    [
        ("localhost:5000", True),
        ("127.3.2.1", True),
        ("[::1]:5000", True),
        ("10.1.2.3:5000", True),
        ("11.1.2.3", False),
        ("a.example", True),
        ("b.example", False),
    ],
)
def test_who_may_be_spoken_to_without_tls(host: str, insecure: bool) -> None:
    assert is_insecure(host, ["10.0.0.0/8", "a.example"]) is insecure


@pytest.mark.parametrize(
    ("no_proxy", "direct", "proxied"),
    [
        ("", ["http://localhost:5", "https://127.0.0.9", "https://[::1]:1"], ["https://a.test", "https://10.0.0.1"]),
        ("a.test", ["https://a.test", "https://b.a.test:5000", "https://A.TEST"], ["https://ba.test", "https://a.tes"]),
        (".a.test, *.b.test", ["https://x.a.test", "https://x.b.test"], ["https://a.test", "https://b.test"]),
        ("a.test:5000", ["https://a.test:5000", "https://b.a.test:5000"], ["https://a.test", "https://a.test:5001"]),
        ("10.0.0.0/8,::2/127", ["https://10.9.8.7:5000", "https://[::3]"], ["https://11.0.0.1", "https://[::4]"]),
        ("10.0.0.1,[::2]:443", ["https://10.0.0.1:9", "https://[::2]"], ["https://10.0.0.2", "https://[::2]:444"]),
        ("*", ["https://a.test"], []),
    ],
)
def test_what_goes_past_the_proxy(
    no_proxy: str, direct: list[str], proxied: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "proxy.test:3128")
    monkeypatch.setenv("https_proxy", "http://lower.test")
    monkeypatch.setenv("http_proxy", "http://plain.test")
    monkeypatch.setenv("no_proxy", no_proxy)
    assert [proxy_for(url) for url in direct] == [None] * len(direct)
    assert [proxy_for(url) for url in proxied] == ["http://proxy.test:3128"] * len(proxied)


def test_an_address_is_shown_without_its_password() -> None:
    assert masked("http://me:p@ss/word@proxy.test:3128") == "http://xxxxx:xxxxx@proxy.test:3128"
    assert masked("me:word@proxy.test") == "xxxxx:xxxxx@proxy.test"
    assert masked("http://proxy.test:3128") == "http://proxy.test:3128"


async def test_client_certificates_are_shown_to_the_registry_alone(
    images: Images, options: EngineOptions, tmp_path: Path
) -> None:
    """Where the registry keeps its blobs learns neither the certificate nor the password."""
    authority = Authority(tmp_path)
    server, client = authority.issue("server", "127.0.0.1"), authority.issue("client")
    registry, other = FakeRegistry(), FakeRegistry()
    for one in (registry, other):
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.certificate))
        context.load_cert_chain(*server)
        context.verify_mode = ssl.CERT_OPTIONAL
        await one.start(context)
    folder = tmp_path / "certs.d" / registry.host
    folder.mkdir(parents=True)
    (folder / "ca.crt").write_bytes(authority.certificate.read_bytes())
    for path in client:
        (folder / path.name).write_bytes(path.read_bytes())
    _, layers = registry.add("a", "1", [ONE])
    demands(registry)
    other.blobs = dict(registry.blobs)

    async def elsewhere(request: web.Request, content: bytes) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": f"https://{other.host}/v2/a/blobs/{layers[0]}"})

    registry.blob_behaviours[layers[0]] = [elsewhere]
    options.certs_dir = str(tmp_path / "certs.d")
    distribution = Distribution(images, options)
    try:
        await pull(distribution, registry, "a:1", credentials=USER)
    finally:
        await distribution.close()
        await registry.close()
        await other.close()
    assert "client" in registry.certificates and other.certificates == {""}
    assert other.asked("GET", layers[0]) == 1
    assert not any("Authorization" in headers for _, _, headers in other.requests)
