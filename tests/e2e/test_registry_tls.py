"""Registries behind TLS, mirrors and proxies, each on a host of its own, through the real docker client."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import bcrypt
import pytest

from tests.certificates import Authority
from tests.hosts import REPOSITORY, Daemon, Host

SITE = "10.98.0.2"
TLS, MUTUAL, PLAIN, HUB = f"{SITE}:5443", f"{SITE}:5444", f"{SITE}:5000", f"{SITE}:443"
PASSWORD = "s3cret-word"


@contextlib.contextmanager
def running(host: Host, *module_and_arguments: str) -> Iterator[None]:
    """A Python program on ``host`` that says when it listens."""
    process = subprocess.Popen(
        host.command(sys.executable, "-m", *module_and_arguments),
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert process.stdout is not None
    try:
        assert "listening" in process.stdout.readline()
        yield
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


class Site:
    """A host with registries, and the daemon's host, one wire away."""

    def __init__(self, folder: Path, here: Host, there: Host) -> None:
        self.folder = folder
        self.here = here
        self.there = there
        self.authority = Authority(folder)
        self.server = self.authority.issue("server", SITE, "registry-1.docker.io", "registry.test")
        self.client = self.authority.issue("client")
        self.certs = folder / "certs.d"
        self.stack = contextlib.ExitStack()

    def registry(self, address: str, *arguments: str, store: str = "store") -> None:
        root = str(self.folder / store)
        serve = ("seacan.cli.main", "registry", "serve", "--root", root, "--listen", address, *arguments)
        self.stack.enter_context(running(self.there, *serve))

    @property
    def tls(self) -> tuple[str, ...]:
        return ("--tls-cert", str(self.server[0]), "--tls-key", str(self.server[1]))

    def trusted(self, address: str) -> Path:
        """Write ``certs.d/<address>/ca.crt``; gives the folder."""
        folder = self.certs / address
        folder.mkdir(parents=True)
        (folder / "ca.crt").write_bytes(self.authority.certificate.read_bytes())
        return folder


@pytest.fixture
def site(tmp_path: Path, new_host: Callable[..., Host]) -> Iterator[Site]:
    here, there = new_host(), new_host()
    there.wire(here, f"{SITE}/24", "10.98.0.1/24")
    site = Site(tmp_path, here, there)
    with site.stack:
        yield site


Make = Callable[..., Daemon]


def push(daemon: Daemon, name: str) -> str:
    daemon.docker("tag", "busybox", name)
    return daemon.out("push", name)


def refusal(daemon: Daemon, *command: str) -> str:
    done = daemon.docker(*command, check=False)
    assert done.returncode == 1, done.stdout
    return done.stderr


def test_a_private_authority_is_trusted_as_soon_as_certs_d_has_it(site: Site, new_daemon: Make) -> None:
    site.registry(TLS, *site.tls)
    daemon = new_daemon(f"--certs-dir={site.certs}", on=site.here)
    daemon.docker("tag", "busybox", f"{TLS}/app")
    unknown = (
        f'Get "https://{TLS}/v2/": tls: failed to verify certificate: x509: certificate signed by unknown authority'
    )
    assert unknown in refusal(daemon, "push", f"{TLS}/app")
    assert unknown in refusal(daemon, "login", "-u", "ann", "-p", PASSWORD, TLS)
    folder = site.trusted(TLS)
    daemon.docker("push", f"{TLS}/app")
    daemon.docker("rmi", f"{TLS}/app")
    assert daemon.out("run", "--rm", "--network", "none", f"{TLS}/app", "echo", "hi") == "hi"
    (folder / "ca.crt").write_bytes(Authority(site.folder, "other").certificate.read_bytes())
    assert unknown in refusal(daemon, "pull", f"{TLS}/app")


def test_a_certificate_for_another_host_is_refused(site: Site, new_daemon: Make) -> None:
    certificate, key = site.authority.issue("elsewhere", "elsewhere.test")
    site.registry(TLS, "--tls-cert", str(certificate), "--tls-key", str(key))
    site.trusted(TLS)
    daemon = new_daemon(f"--certs-dir={site.certs}", on=site.here, image=False)
    assert "tls: failed to verify certificate: x509: IP address mismatch" in refusal(daemon, "pull", f"{TLS}/app")


def test_client_certificates_are_shown(site: Site, new_daemon: Make) -> None:
    site.registry(MUTUAL, *site.tls, "--tls-client-ca", str(site.authority.certificate))
    folder = site.trusted(MUTUAL)
    daemon = new_daemon(f"--certs-dir={site.certs}", on=site.here)
    daemon.docker("tag", "busybox", f"{MUTUAL}/app")
    refusal(daemon, "push", f"{MUTUAL}/app")
    certificate, key = (path.read_bytes() for path in site.client)
    (folder / "me.cert").write_bytes(certificate)
    assert "missing key me.key for client certificate me.cert" in refusal(daemon, "push", f"{MUTUAL}/app")
    (folder / "me.key").write_bytes(key)
    daemon.docker("push", f"{MUTUAL}/app")
    daemon.docker("rmi", f"{MUTUAL}/app")
    daemon.docker("pull", f"{MUTUAL}/app")
    (folder / "me.cert").unlink()
    assert "missing client certificate me.cert for key me.key" in refusal(daemon, "pull", f"{MUTUAL}/app")


def test_a_server_that_wants_a_certificate_is_quoted(site: Site, new_daemon: Make) -> None:
    certificate, key = site.server
    serve = ("openssl", "s_server", "-accept", f"{SITE}:5445", "-cert", str(certificate), "-key", str(key), "-quiet")
    demand = ("-Verify", "1", "-verify_return_error", "-CAfile", str(site.authority.certificate), "-www")
    site.trusted(f"{SITE}:5445")
    daemon = new_daemon(f"--certs-dir={site.certs}", on=site.here, image=False)
    server = subprocess.Popen(site.there.command(*serve, *demand), stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while ":5445" not in site.there.run("ss", "-ltn").stdout:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert "remote error: tls: certificate required" in refusal(
            daemon, "login", "-u", "a", "-p", "b", f"{SITE}:5445"
        )
    finally:
        server.kill()
        server.communicate()


def test_insecure_registries_need_neither_authority_nor_tls(site: Site, new_daemon: Make) -> None:
    site.registry(TLS, *site.tls)
    site.registry(PLAIN, store="plain")
    daemon = new_daemon(on=site.here, start=False)
    config = daemon.folder / "daemon.json"
    daemon.start()
    assert "http: server gave HTTP response to HTTPS client" in refusal(daemon, "pull", f"{PLAIN}/app")
    assert "unknown authority" in refusal(daemon, "pull", f"{TLS}/app")
    config.write_text(f'{{"insecure-registries": ["{PLAIN}", "10.98.0.0/24"]}}')
    os.kill(daemon.pid, signal.SIGHUP)
    deadline = time.monotonic() + 20
    while "10.98.0.0/24" not in daemon.out("info", "-f", "{{.RegistryConfig.InsecureRegistryCIDRs}}"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for address in (PLAIN, TLS):
        assert "repository name not known to registry" in refusal(daemon, "pull", f"{address}/app")


def test_mirrors_are_asked_first_and_the_next_where_one_fails(site: Site, new_daemon: Make) -> None:
    site.registry(TLS, *site.tls)
    site.registry(MUTUAL, *site.tls, store="broken")
    site.registry(HUB, *site.tls, store="hub")
    site.trusted(TLS)
    site.trusted(MUTUAL)
    site.trusted("registry-1.docker.io")
    down = "https://10.98.0.2:9"
    daemon = new_daemon(
        f"--certs-dir={site.certs}",
        *(f"--registry-mirror={mirror}" for mirror in (down, f"https://{MUTUAL}", f"https://{TLS}")),
        on=site.here,
    )
    for address in (TLS, MUTUAL):
        push(daemon, f"{address}/library/tool:1")
    for blob in (site.folder / "broken/blobs/sha256").glob("*"):
        if blob.stat().st_size > 1 << 16:
            blob.write_bytes(bytes(blob.stat().st_size))
    daemon.docker("rmi", f"{TLS}/library/tool:1", f"{MUTUAL}/library/tool:1", "busybox")
    assert "Status: Downloaded newer image for tool:1" in daemon.out("pull", "tool:1")
    log = daemon.log.read_text()
    assert "Attempting next endpoint for pull after error" in log and "connection refused" in log
    # What is nowhere is told in the words of the last endpoint, the registry's own (which cannot be reached here).
    assert "registry-1.docker.io" in refusal(daemon, "pull", "other:1")


@pytest.mark.parametrize("where", ["environment", "daemon.json"])
def test_a_proxy_carries_pulls_and_pushes(
    site: Site,
    new_host: Callable[..., Host],
    new_daemon: Make,
    where: str,
    busybox: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The daemon's host reaches nothing but the proxy's."""
    alone = new_host()
    site.here.wire(alone, "10.99.0.2/24", "10.99.0.1/24", name="eth1")
    site.registry(TLS, *site.tls)
    site.registry(PLAIN, store="plain")
    site.registry(HUB, *site.tls, store="hub")
    for name in ("registry.test:5443", "registry-1.docker.io"):
        site.trusted(name)
    log = site.folder / "proxy.log"
    places = [
        f"registry.test:5443={TLS}", f"registry.test:5000={PLAIN}", f"registry-1.docker.io:443={HUB}"
    ]  # fmt: skip
    proxy = running(site.here, "tests.proxy", "10.99.0.2:3128", str(log), f"me:{PASSWORD}", *places)
    site.stack.enter_context(proxy)
    daemon = new_daemon(f"--certs-dir={site.certs}", "-D", on=alone, start=False)
    url = f"http://me:{PASSWORD}@10.99.0.2:3128"
    insecure = '"insecure-registries": ["registry.test:5000"]'
    if where == "environment":
        monkeypatch.setenv("HTTPS_PROXY", url)
        monkeypatch.setenv("http_proxy", url)
        monkeypatch.setenv("NO_PROXY", "direct.test,10.98.0.0/24")
        (daemon.folder / "daemon.json").write_text(f"{{{insecure}}}")
    else:
        proxies = f'{{"http-proxy": "{url}", "https-proxy": "{url}", "no-proxy": "direct.test,10.98.0.0/24"}}'
        (daemon.folder / "daemon.json").write_text(f'{{"proxies": {proxies}, {insecure}}}')
    daemon.start()
    monkeypatch.undo()
    daemon.docker("load", "-i", str(busybox))
    for name in ("registry.test:5443/app", "registry.test:5000/app"):
        push(daemon, name)
        daemon.docker("rmi", name)
        daemon.docker("pull", name)
    asked = log.read_text()
    assert "CONNECT registry.test:5443" in asked and "GET http://registry.test:5000/v2/" in asked
    assert "repository name not known to registry" in refusal(daemon, "pull", "nothing:1")
    assert "CONNECT registry-1.docker.io:443" in log.read_text()
    for direct in (TLS, "direct.test"):
        assert "proxyconnect" not in refusal(daemon, "pull", f"{direct}/app")
        assert direct not in log.read_text()
    told = daemon.out("info", "-f", "{{.HTTPProxy}} {{.HTTPSProxy}} {{.NoProxy}}")
    assert told == "http://xxxxx:xxxxx@10.99.0.2:3128 http://xxxxx:xxxxx@10.99.0.2:3128 direct.test,10.98.0.0/24"
    assert PASSWORD not in daemon.log.read_text()


def test_a_proxy_that_refuses_is_named_without_its_password(
    site: Site, new_daemon: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = site.folder / "proxy.log"
    site.stack.enter_context(running(site.there, "tests.proxy", f"{SITE}:3128", str(log), "me:other"))
    for port, words in (("3128", "Proxy Authentication Required"), ("3129", "connection refused")):
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:{PASSWORD}@{SITE}:{port}")
        daemon = new_daemon("-D", on=site.here, image=False)
        told = refusal(daemon, "pull", "registry.test/app")
        assert words in told and PASSWORD not in told
        assert PASSWORD not in daemon.log.read_text()
        daemon.stop()


def test_a_password_is_in_no_log(site: Site, new_daemon: Make) -> None:
    users = site.folder / "htpasswd"
    users.write_text(f"ann:{bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()}\n")
    site.registry(TLS, *site.tls, "--htpasswd", str(users))
    site.trusted(TLS)
    daemon = new_daemon(f"--certs-dir={site.certs}", "-D", on=site.here)
    daemon.docker("tag", "busybox", f"{TLS}/app")
    assert "no basic auth credentials" in refusal(daemon, "push", f"{TLS}/app")
    assert "unauthorized" in refusal(daemon, "login", "-u", "bob", "-p", PASSWORD, TLS)
    daemon.docker("login", "-u", "ann", "--password-stdin", TLS, input=PASSWORD)
    daemon.docker("push", f"{TLS}/app")
    daemon.docker("rmi", f"{TLS}/app")
    daemon.docker("pull", f"{TLS}/app")
    assert PASSWORD not in daemon.log.read_text()
    assert PASSWORD not in daemon.out("events", "--since", "1h", "--until", "0s")
