"""A client of registries that speak the OCI distribution specification 1.1 (and so of Docker's).

:class:`Registries` holds connections and tokens for the whole engine; :class:`Repository` is one repository at one
endpoint with one user's credentials. Bodies are streamed; nothing is unpacked, verified against a digest or retried
here except where the method says so.

https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlencode, urljoin, urlsplit

import aiohttp
import msgspec
from yarl import URL

from seacan.errors import InvalidParameter, NotFound, SeacanError, System
from seacan.images import manifest as manifests
from seacan.images.reference import Reference
from seacan.registry.credentials import NONE, Challenge, Credentials, Token, parse_challenges, token_from
from seacan.registry.endpoints import Endpoint, Settings, Trust, endpoints, fingerprint, masked, proxy_for, trust
from seacan.storage import digest as digests
from seacan.storage.blobs import DigestMismatch
from seacan.storage.digest import Digest

log = logging.getLogger(__name__)

MANIFEST_LIMIT = 8 << 20
"""Bytes of a manifest; registries accept 4 MiB."""
_ANSWER_LIMIT = 1 << 20
"""Bytes of an error, a token or a list."""
_REDIRECTS = 8
_STALL = 60.0
"""Seconds without a byte after which a connection is given up."""
_USER_AGENT = "docker/28.5.2 seacan"
ACCEPTED = ", ".join(
    (
        manifests.DOCKER_MANIFEST,
        manifests.DOCKER_LIST,
        manifests.OCI_INDEX,
        manifests.OCI_MANIFEST,
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        "application/json",
    )
)


class RegistryError(SeacanError):
    """A registry refused. ``code`` is the specification's (``MANIFEST_UNKNOWN``, …); ``answer`` its HTTP status."""

    def __init__(self, code: str, message: str, answer: int, retry_after: float | None = None) -> None:
        self.code = code
        self.answer = answer
        self.retry_after = retry_after
        words = code.lower().replace("_", " ")
        super().__init__(f"{words}: {message}" if words and message else message or words)

    @property
    def status(self) -> int:  # type: ignore[override]
        return {401: 401, 403: 403, 404: 404, 429: 429}.get(self.answer, 500)

    @property
    def temporary(self) -> bool:
        """Whether trying again may help."""
        return self.answer in (408, 425, 429) or self.answer >= 500


class Unreachable(System):
    """No answer came: name, connection, TLS, or silence. ``temporary`` once the registry had been reached."""

    def __init__(self, message: str, *, temporary: bool = True) -> None:
        super().__init__(message)
        self.temporary = temporary


class _User:
    """What one set of credentials has got from one endpoint."""

    def __init__(self, credentials: Credentials) -> None:
        self.credentials = credentials
        self.challenge: Challenge | None = None
        self.tokens: dict[tuple[str, str, str], Token] = {}
        self.lock = asyncio.Lock()


class Registries:
    """The engine's connections to registries. Make it in the event loop it is used in; :meth:`close` it."""

    def __init__(self, settings: Callable[[], Settings]) -> None:
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None
        self._trust: dict[Endpoint, tuple[object, Trust]] = {}
        self._users: dict[tuple[Endpoint, Credentials], _User] = {}

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def repositories(
        self, reference: Reference, credentials: Credentials, *, push: bool = False
    ) -> Iterator[Repository]:
        """The ways to a repository, to be tried in order. Mirrors get no credentials of Docker Hub's, and where TLS has
        been answered in, nothing is asked in the clear."""
        answered = set()
        for endpoint in endpoints(reference.domain, self._settings(), push=push):
            if endpoint.scheme == "http" and endpoint.host in answered:
                continue
            repository = Repository(self, endpoint, reference, NONE if endpoint.mirror else credentials, push=push)
            yield repository
            if repository.answered:
                answered.add(endpoint.host)

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, limit_per_host=0, ttl_dns_cache=60),
                timeout=aiohttp.ClientTimeout(total=None, connect=30, sock_connect=30, sock_read=_STALL),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": _USER_AGENT},
                read_bufsize=1 << 20,
            )
        return self._session

    def trust(self, endpoint: Endpoint) -> Trust | None:
        """TLS on the way to an endpoint; read from ``certs.d`` when something changed there. None: as everywhere."""
        if endpoint.scheme != "https":
            return None
        folder = self._settings().certificates
        now = (folder, fingerprint(endpoint, folder))
        known = self._trust.get(endpoint)
        if known is None or known[0] != now:
            known = self._trust[endpoint] = (now, trust(endpoint, folder))
        return known[1]

    def user(self, endpoint: Endpoint, credentials: Credentials) -> _User:
        if len(self._users) > 256:
            self._users.clear()
        return self._users.setdefault((endpoint, credentials), _User(credentials))


class Answer:
    """A response whose body is still to be read; an asynchronous context manager."""

    def __init__(self, response: aiohttp.ClientResponse, what: str) -> None:
        self._response = response
        self._what = what
        self.status = response.status
        self.headers = response.headers

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._response.close()
        self._response.release()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body in pieces. Raises :class:`Unreachable` when the connection breaks or falls silent."""
        loop = asyncio.get_running_loop()
        window, since = 0, loop.time()
        try:
            async for chunk in self._response.content.iter_any():
                window += len(chunk)
                now = loop.time()
                if now - since > _STALL:
                    # A drip keeps a connection from being silent; it does not bring a blob to its end.
                    if window < 16 << 10:
                        raise Unreachable(f"{self._what}: {window} bytes in {_STALL:.0f} seconds")
                    window, since = 0, now
                yield chunk
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            raise Unreachable(f"{self._what}: {cause(error)}") from error

    async def read(self, limit: int) -> bytes:
        """The whole body, which must not exceed ``limit`` bytes."""
        parts: list[bytes] = []
        size = 0
        async for chunk in self.chunks():
            size += len(chunk)
            if size > limit:
                self._response.close()
                raise System(f"{self._what}: the answer is longer than {limit} bytes")
            parts.append(chunk)
        return b"".join(parts)


class Repository:
    """One repository. ``reference``'s tag and digest play no part here."""

    def __init__(
        self,
        registries: Registries,
        endpoint: Endpoint,
        reference: Reference,
        credentials: Credentials,
        *,
        push: bool = False,
    ) -> None:
        self._registries = registries
        self.endpoint = endpoint
        self.reference = reference
        self.path = reference.path
        self.answered = False
        """Whether anything has come back from the registry."""
        self._user = registries.user(endpoint, credentials)
        self._scopes = [f"repository:{self.path}:pull" + (",push" if push else "")]

    def __repr__(self) -> str:
        return f"<Repository {self.endpoint.url}/{self.path}>"

    # --- pulling ----------------------------------------------------------------------------------------------------

    async def ping(self) -> None:
        """See whether anything that speaks the protocol is there, and log in if it asks for that."""
        async with await self.request("GET", f"{self.endpoint.url}/v2/", (200,)):
            pass

    async def log_in(self) -> None:
        """Like :meth:`ping`, but with the credentials even where reading needs none."""
        self._scopes = []
        url = f"{self.endpoint.url}/v2/"
        async with await self.request("GET", url, (200,)):
            pass

    async def fetch_json(self, url: str) -> dict[str, Any]:
        """A small document at the registry that is no part of the specification."""
        async with await self.request("GET", url, (200,)) as answer:
            return _json(await answer.read(16 << 20), _shown(url))

    async def fetch_manifest(self, reference: str) -> tuple[bytes, str, Digest]:
        """Bytes, media type and digest of a manifest or index by tag or digest; a digest is verified."""
        url = f"{self.endpoint.url}/v2/{self.path}/manifests/{quote(reference, safe=':')}"
        async with await self.request("GET", url, (200,), headers={"Accept": ACCEPTED}) as answer:
            content = await answer.read(MANIFEST_LIMIT)
            media_type = answer.headers.get("Content-Type", "").partition(";")[0].strip()
            digest = digests.of(content)
            announced = answer.headers.get("Docker-Content-Digest", "")
        if digests.is_digest(reference) and digest != reference:
            raise DigestMismatch(f"manifest verification failed for digest {reference}")
        if ":" in reference and not digests.is_digest(reference):
            raise InvalidParameter(f"unsupported digest {reference}")
        if not digests.is_digest(reference) and digests.is_digest(announced) and announced != digest:
            raise DigestMismatch(f"manifest verification failed for digest {announced}")
        return content, media_type, digest

    async def manifest(self, reference: str) -> bytes:
        """The manifest's bytes (the shape :mod:`seacan.registry.trust` asks for). Raises :class:`NotFound`."""
        try:
            return (await self.fetch_manifest(reference))[0]
        except RegistryError as error:
            if error.answer == 404:
                raise NotFound(error.message) from error
            raise

    async def blob(self, digest: Digest, limit: int) -> bytes:
        """A small blob, verified."""
        async with await self.open_blob(digest) as answer:
            content = await answer.read(limit)
        if digests.of(content) != digest:
            raise DigestMismatch(f"blob verification failed for digest {digest}")
        return content

    async def open_blob(self, digest: Digest, start: int = 0) -> Answer:
        """A blob's bytes from ``start`` on; ``status`` 206 says that the server really begins there, 200 that it does
        not.

        Unverified. Redirects are followed, without credentials to other hosts.
        """
        headers = {"Range": f"bytes={start}-"} if start else {}
        url = f"{self.endpoint.url}/v2/{self.path}/blobs/{digest}"
        return await self.request("GET", url, (200, 206), headers=headers)

    async def open_url(self, url: str) -> Answer:
        """A foreign layer's own address: no credentials are sent there."""
        if urlsplit(url).scheme not in ("http", "https"):
            raise InvalidParameter(f"layer URL {url[:300]!r} is neither http nor https")
        return await self._follow("GET", url, {}, None, (200,), authorize=False)

    async def tags(self) -> list[str]:
        """Every tag, through all pages."""
        url: str | None = f"{self.endpoint.url}/v2/{self.path}/tags/list"
        found: list[str] = []
        for _ in range(10_000):
            if url is None:
                break
            async with await self.request("GET", url, (200,)) as answer:
                document = _json(await answer.read(16 << 20), f"tags of {self.reference.familiar_name}")
                link = answer.headers.get("Link", "")
            tags = document.get("tags") or []
            if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
                raise System(f"tags of {self.reference.familiar_name}: the registry's list is malformed")
            found += tags
            url = _next_page(url, link)
        return found

    # --- pushing ----------------------------------------------------------------------------------------------------

    async def has_blob(self, digest: Digest) -> bool:
        try:
            url = f"{self.endpoint.url}/v2/{self.path}/blobs/{digest}"
            async with await self.request("HEAD", url, (200,)):
                return True
        except RegistryError as error:
            if error.answer == 404:
                return False
            raise

    async def has_manifest(self, digest: Digest) -> bool:
        try:
            url = f"{self.endpoint.url}/v2/{self.path}/manifests/{digest}"
            async with await self.request("HEAD", url, (200,), headers={"Accept": ACCEPTED}):
                return True
        except RegistryError as error:
            if error.answer == 404:
                return False
            raise

    async def mount(self, digest: Digest, source: str) -> str | None:
        """Take a blob over from the repository ``source`` (a path); None if that worked, or an upload's address."""
        url = f"{self.endpoint.url}/v2/{self.path}/blobs/uploads/?mount={digest}&from={quote(source)}"
        scopes = [*self._scopes, f"repository:{source}:pull"]
        async with await self.request("POST", url, (201, 202), scopes=scopes) as answer:
            if answer.status == 201:
                return None
            return self._location(answer, url)

    async def start_upload(self) -> str:
        url = f"{self.endpoint.url}/v2/{self.path}/blobs/uploads/"
        async with await self.request("POST", url, (202,)) as answer:
            return self._location(answer, url)

    async def upload(self, location: str, digest: Digest, size: int, body: Callable[[], AsyncIterator[bytes]]) -> None:
        """Send a whole blob to an upload's address. ``body`` is called again when the upload has to begin anew."""
        separator = "&" if urlsplit(location).query else "?"
        url = f"{location}{separator}digest={quote(digest, safe='')}"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        async with await self.request("PUT", url, (201, 204), headers=headers, body=body):
            pass

    async def upload_chunks(self, location: str, digest: Digest, chunks: AsyncIterator[bytes]) -> None:
        """Send a blob piece by piece (PATCH), for a server that does not take it whole."""
        offset = 0
        async for chunk in chunks:
            headers = {
                "Content-Type": "application/octet-stream",
                "Content-Length": str(len(chunk)),
                "Content-Range": f"{offset}-{offset + len(chunk) - 1}",
            }
            data = chunk
            async with await self.request(
                "PATCH",
                location,
                (202, 204),
                headers=headers,
                body=lambda data=data: _once(data),  # type: ignore[misc]
            ) as answer:
                location = self._location(answer, location)
            offset += len(chunk)
        separator = "&" if urlsplit(location).query else "?"
        url = f"{location}{separator}digest={quote(digest, safe='')}"
        async with await self.request("PUT", url, (201, 204), headers={"Content-Length": "0"}):
            pass

    async def put_manifest(self, reference: str, media_type: str, content: bytes) -> Digest:
        """Publish a manifest under a tag or digest; the registry must agree on the digest."""
        url = f"{self.endpoint.url}/v2/{self.path}/manifests/{quote(reference, safe=':')}"
        headers = {"Content-Type": media_type, "Content-Length": str(len(content))}
        async with await self.request(
            "PUT", url, (200, 201, 202), headers=headers, body=lambda: _once(content)
        ) as answer:
            told = answer.headers.get("Docker-Content-Digest", "")
        digest = digests.of(content)
        if digests.is_digest(told) and told != digest:
            raise DigestMismatch(f"the registry stored manifest {reference} as {told} and not as {digest}")
        return digest

    def _location(self, answer: Answer, url: str) -> str:
        location = answer.headers.get("Location", "")
        if not location:
            raise System(f"POST {_shown(url)}: the registry gave no upload location")
        return urljoin(url, location)

    # --- requests ---------------------------------------------------------------------------------------------------

    async def request(
        self,
        method: str,
        url: str,
        expected: tuple[int, ...],
        *,
        headers: Mapping[str, str] = {},
        body: Callable[[], AsyncIterator[bytes]] | None = None,
        scopes: list[str] | None = None,
    ) -> Answer:
        """One request with whatever authorization it takes; raises :class:`RegistryError` for any other status."""
        scopes = self._scopes if scopes is None else scopes
        for attempt in range(2):
            try:
                return await self._follow(method, url, headers, body, expected, scopes=scopes)
            except _Unauthorized as refusal:
                if attempt or not await self._authorize(refusal, scopes):
                    raise refusal.error from None
        raise AssertionError("unreachable")

    async def _follow(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Callable[[], AsyncIterator[bytes]] | None,
        expected: tuple[int, ...],
        *,
        scopes: list[str] | None = None,
        authorize: bool = True,
    ) -> Answer:
        """Send, following redirects by hand: credentials stay with the registry's own origin."""
        home = urlsplit(self.endpoint.url)
        for _ in range(_REDIRECTS):
            here = urlsplit(url)
            ours = (here.scheme, here.netloc) == (home.scheme, home.netloc)
            if here.scheme not in ("http", "https"):
                raise System(f"{method} {_shown(url)}: the registry redirects to a {here.scheme!r} address")
            if here.scheme == "http" and home.scheme == "https" and self.endpoint.verify and authorize:
                raise System(f"{method} {_shown(url)}: the registry redirects from https to http")
            sent = dict(headers)
            if authorize and ours and (value := self._authorization(self._scopes if scopes is None else scopes)):
                sent["Authorization"] = value
            answer = await self._send(method, url, sent, body, ours, authorize)
            if answer.status in (301, 302, 303, 307, 308) and method in ("GET", "HEAD", "PUT", "POST", "PATCH"):
                location = answer.headers.get("Location", "")
                async with answer:
                    pass
                if not location:
                    raise System(f"{method} {_shown(url)}: redirected to nowhere")
                url = urljoin(url, location)
                continue
            if answer.status in expected:
                return answer
            await self._refuse(method, url, answer, ours and authorize)
        raise System(f"{method} {_shown(url)}: stopped after {_REDIRECTS} redirects")

    async def _send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Callable[[], AsyncIterator[bytes]] | None,
        ours: bool,
        named: bool = True,
    ) -> Answer:
        """``ours``: to the registry itself; ``named``: or to where it sent us (a foreign layer's host is neither)."""
        trust = self._registries.trust(self.endpoint) if named else None
        proxy = proxy_for(url)
        try:
            response = await self._registries.session.request(
                method,
                URL(url, encoded=True),
                headers=headers,
                data=body() if body is not None else None,
                allow_redirects=False,
                ssl=True if trust is None else trust.home if ours else trust.elsewhere,
                proxy=proxy,
            )
        except (aiohttp.ClientProxyConnectionError, aiohttp.ClientHttpProxyError) as error:
            # Neither error's own text may be used: it can hold the proxy's address with a password in it.
            reason = _proxy_cause(error, proxy)
            raise Unreachable(f'{method.title()} "{_shown(url)}": {reason}', temporary=False) from None
        except aiohttp.ClientConnectorError as error:
            # dockerd begins with a ping, so these are its words.
            place = f"{self.endpoint.url}/v2/" if ours else _shown(url)
            raise Unreachable(f'Get "{place}": {cause(error)}', temporary=False) from error
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise Unreachable(f'{method.title()} "{_shown(url)}": {cause(error)}') from error
        self.answered = self.answered or ours
        return Answer(response, f'{method.title()} "{_shown(url)}"')

    async def _refuse(self, method: str, url: str, answer: Answer, ours: bool) -> None:
        async with answer:
            content = b"" if method == "HEAD" else await _read_some(answer)
        error = _error_from(content, answer, url, method)
        if answer.status == 401 and ours:
            raise _Unauthorized(error, parse_challenges(answer.headers.getall("WWW-Authenticate", [])))
        raise error

    # --- authorization ----------------------------------------------------------------------------------------------

    def _authorization(self, scopes: list[str]) -> str | None:
        user = self._user
        if user.credentials.registry_token:
            return f"Bearer {user.credentials.registry_token}"
        challenge = user.challenge
        if challenge is None:
            return None
        if challenge.scheme == "basic":
            return user.credentials.basic
        token = user.tokens.get(self._token_key(challenge, scopes))
        return f"Bearer {token.value}" if token is not None and token.usable else None

    @staticmethod
    def _token_key(challenge: Challenge, scopes: list[str]) -> tuple[str, str, str]:
        return (challenge.parameters.get("realm", ""), challenge.parameters.get("service", ""), " ".join(scopes))

    async def _authorize(self, refusal: _Unauthorized, scopes: list[str]) -> bool:
        """Answer a challenge; false if nothing more can be done."""
        user = self._user
        for challenge in refusal.challenges:
            if challenge.scheme == "bearer" and challenge.parameters.get("realm"):
                async with user.lock:
                    user.challenge = challenge
                    key = self._token_key(challenge, scopes)
                    user.tokens.pop(key, None)
                    user.tokens[key] = await self._fetch_token(challenge, scopes)
                return True
        for challenge in refusal.challenges:
            if challenge.scheme == "basic":
                if user.credentials.basic is None:
                    raise RegistryError("", "no basic auth credentials", 401)
                first = user.challenge is None
                user.challenge = challenge
                return first
        return False

    async def _fetch_token(self, challenge: Challenge, scopes: list[str]) -> Token:
        realm = challenge.parameters["realm"]
        parts = urlsplit(realm)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise System(f"the registry {self.endpoint.host} names an invalid token service {realm[:300]!r}")
        if parts.scheme == "http" and self.endpoint.scheme == "https" and self.endpoint.verify:
            raise System(f"the registry {self.endpoint.host} wants credentials sent in the clear to {parts.netloc}")
        credentials = self._user.credentials
        service = challenge.parameters.get("service", "")
        headers: dict[str, str] = {}
        if credentials.identity_token:
            encoded = urlencode(
                {
                    "grant_type": "refresh_token",
                    "refresh_token": credentials.identity_token,
                    "service": service,
                    "client_id": "docker",
                    "scope": " ".join(scopes),
                }
            ).encode()
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            headers["Content-Length"] = str(len(encoded))
            answer = await self._send("POST", realm, headers, lambda: _once(encoded), self._is_home(realm))
        else:
            query = [("scope", scope) for scope in scopes]
            if service:
                query.append(("service", service))
            if credentials.basic is not None:
                headers["Authorization"] = credentials.basic
                query += [("account", credentials.username), ("client_id", "docker")]
            url = str(URL(realm).update_query(query))
            answer = await self._send("GET", url, headers, None, self._is_home(realm))
        if answer.status != 200:
            async with answer:
                content = await _read_some(answer)
            error = _error_from(content, answer, realm, "GET")
            if answer.status in (401, 403) and not error.code:
                error = RegistryError("UNAUTHORIZED", "incorrect username or password", answer.status)
            raise error
        async with answer:
            document = _json(await answer.read(_ANSWER_LIMIT), f"token service {parts.netloc}")
        token = token_from(document)
        if token is None:
            raise System(f"the token service {parts.netloc} gave no token")
        return token

    def _is_home(self, url: str) -> bool:
        home, there = urlsplit(self.endpoint.url), urlsplit(url)
        return (home.scheme, home.netloc) == (there.scheme, there.netloc)


class _Unauthorized(Exception):
    def __init__(self, error: RegistryError, challenges: list[Challenge]) -> None:
        self.error = error
        self.challenges = challenges


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def _read_some(answer: Answer) -> bytes:
    """An error's body, or as much of it as is worth reading."""
    parts: list[bytes] = []
    size = 0
    with contextlib.suppress(Unreachable):
        async for chunk in answer.chunks():
            parts.append(chunk)
            size += len(chunk)
            if size > _ANSWER_LIMIT:
                break
    return b"".join(parts)[:_ANSWER_LIMIT]


def _error_from(content: bytes, answer: Answer, url: str, method: str) -> RegistryError:
    retry_after: float | None = None
    with contextlib.suppress(ValueError):
        retry_after = min(max(float(answer.headers.get("Retry-After", "")), 0.0), 300.0)
    try:
        document = msgspec.json.decode(content)
    except (msgspec.DecodeError, RecursionError):
        document = None
    code = message = ""
    if isinstance(document, dict):
        errors = document.get("errors")
        first = errors[0] if isinstance(errors, list) and errors and isinstance(errors[0], dict) else None
        if first is not None:
            code, message = str(first.get("code") or ""), str(first.get("message") or "")
        elif isinstance(document.get("details"), str):
            message = document["details"]
    if not code:
        code = {401: "UNAUTHORIZED", 403: "DENIED", 429: "TOOMANYREQUESTS"}.get(answer.status, "")
        message = message or {
            401: "authentication required",
            403: "requested access to the resource is denied",
        }.get(answer.status, "")
    if not code and not message:
        message = f"unexpected status from {method} request to {_shown(url)}: {answer.status}"
    return RegistryError(code[:100], message[:1000], answer.status, retry_after)


def _json(content: bytes, what: str) -> dict[str, Any]:
    try:
        document = msgspec.json.decode(content)
    except (msgspec.DecodeError, RecursionError) as error:
        raise System(f"{what}: the answer is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise System(f"{what}: the answer is not a JSON object")
    return document


def _next_page(url: str, link: str) -> str | None:
    if 'rel="next"' not in link and "rel=next" not in link:
        return None
    target = link.partition("<")[2].partition(">")[0]
    following = urljoin(url, target)
    same = urlsplit(following)[:2] == urlsplit(url)[:2]
    return following if target and same and following != url else None


def _shown(url: str) -> str:
    """An address for messages: without a query, which may carry a signature."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def _proxy_cause(error: aiohttp.ClientProxyConnectionError | aiohttp.ClientHttpProxyError, proxy: str | None) -> str:
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"proxy {masked(proxy or '')}: {error.message or error.status}"
    return f"proxyconnect tcp: {cause(error)}"


_UNKNOWN_AUTHORITY = (18, 19, 20, 21)
"""OpenSSL's X509_V_ERR_* for a chain that ends at nothing that is trusted."""
_EXPIRED = 10


def _tls_cause(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _UNKNOWN_AUTHORITY:
            reason = "certificate signed by unknown authority"
        elif error.verify_code == _EXPIRED:
            reason = "certificate has expired or is not yet valid"
        else:
            reason = error.verify_message
        return f"tls: failed to verify certificate: x509: {reason}"
    reason = error.reason or str(error)
    if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
        return "http: server gave HTTP response to HTTPS client"
    _, alert, said = reason.partition("_ALERT_")
    return (
        f"remote error: tls: {said.lower().replace('_', ' ')}" if alert else f"tls: {reason.lower().replace('_', ' ')}"
    )


def cause(error: BaseException) -> str:
    """In the words of Go's network errors, where there are such."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        inner = error.certificate_error
        return _tls_cause(inner) if isinstance(inner, ssl.SSLError) else f"tls: failed to verify certificate: {inner}"
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, ssl.SSLError):
        return _tls_cause(error.os_error)
    if isinstance(error, ssl.SSLError) and not isinstance(error, aiohttp.ClientError):
        return _tls_cause(error)
    if isinstance(error, aiohttp.ClientError) and isinstance(error.__cause__, ssl.SSLError):
        return _tls_cause(error.__cause__)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return f"dial tcp: lookup {error.host}: no such host"
    if isinstance(error, aiohttp.ClientConnectorError):
        reason = (error.os_error.strerror or str(error.os_error)).lower()
        if isinstance(error.os_error, ConnectionRefusedError):
            reason = "connection refused"
        return f"dial tcp {error.host}:{error.port}: connect: {reason}"
    if isinstance(error, TimeoutError):
        return "timeout awaiting response"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "EOF"
    return str(error) or type(error).__name__
