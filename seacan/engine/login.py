"""`docker login`: whether a registry accepts a user, asked as the distribution specification says."""

from __future__ import annotations

import ipaddress
import re
import ssl
from typing import TYPE_CHECKING

import aiohttp

from seacan.engine.config import Model
from seacan.errors import InvalidParameter, System, Unauthorized
from seacan.registry.client import cause

if TYPE_CHECKING:
    from seacan.engine.engine import Engine

_HUB = "index.docker.io"
_TIMEOUT = 15.0
_CHALLENGE = re.compile(r'([a-z_]+)="([^"]*)"', re.IGNORECASE)


class AuthConfig(Model, rename="lower"):
    """Body of POST /auth."""

    username: str = ""
    password: str = ""
    auth: str = ""
    email: str = ""
    serveraddress: str = ""
    identitytoken: str = ""
    registrytoken: str = ""


async def login(engine: Engine, config: AuthConfig) -> dict[str, str]:
    """Docker's answer to POST /auth.

    Raises:
        Unauthorized: the registry refuses. System: it cannot be reached. InvalidParameter: no such address.
    """
    host = _host(config.serveraddress)
    schemes = ["https", "http"] if _insecure(host, engine.options.insecure_registries) else ["https"]
    credentials = aiohttp.BasicAuth(config.username, config.password)
    # A context of its own: the daemon imports aiohttp without the system's CA certificates.
    trust = ssl.create_default_context()
    if len(schemes) > 1:
        trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
    connector = aiohttp.TCPConnector(ssl=trust)
    async with aiohttp.ClientSession(
        connector=connector, timeout=aiohttp.ClientTimeout(total=_TIMEOUT), trust_env=True
    ) as session:
        for scheme in schemes:
            url = f"{scheme}://{host}/v2/"
            try:
                await _check(session, url, config, credentials)
            except (TimeoutError, aiohttp.ClientError, OSError) as error:
                if scheme != schemes[-1]:
                    continue
                raise System(f'Get "{url}": {cause(error)}') from error
            return {"Status": "Login Succeeded", "IdentityToken": ""}
    raise AssertionError("unreachable")


async def _check(session: aiohttp.ClientSession, url: str, config: AuthConfig, credentials: aiohttp.BasicAuth) -> None:
    async with session.get(url) as response:
        if response.status == 200:
            return
        challenge = response.headers.get("WWW-Authenticate", "")
        if response.status != 401:
            raise System(f"login attempt to {url} failed with status: {response.status} {response.reason}")
    scheme, _, rest = challenge.partition(" ")
    if scheme.lower() == "basic":
        target, parameters = url, {}
    elif scheme.lower() == "bearer":
        words = dict(_CHALLENGE.findall(rest))
        target = words.get("realm", "")
        parameters = {"account": config.username, "client_id": "docker", "offline_token": "true"}
        if "service" in words:
            parameters["service"] = words["service"]
    else:
        raise System(f"login attempt to {url}: the registry asks for an unknown way to log in: {scheme}")
    async with session.get(target, params=parameters, auth=credentials) as response:
        if response.status == 401:
            raise Unauthorized(f'Get "{url}": unauthorized: incorrect username or password')
        if response.status != 200:
            raise System(f"login attempt to {url} failed with status: {response.status} {response.reason}")


def _host(address: str) -> str:
    host = re.sub(r"^https?://", "", address).partition("/")[0]
    if not host or host == "docker.io":
        host = _HUB
    if not re.fullmatch(r"[A-Za-z0-9.\-_\[\]:]+", host):
        raise InvalidParameter(f"invalid registry address: {address}")
    return "registry-1.docker.io" if host == _HUB else host


def _insecure(host: str, configured: list[str]) -> bool:
    name = host.rpartition(":")[0] or host
    if host in configured or name in configured or name == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    networks = [ipaddress.ip_network(entry, strict=False) for entry in configured if "/" in entry]
    return address.is_loopback or any(address in network for network in networks)
