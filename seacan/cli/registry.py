"""``seacan registry``: a registry of one's own, and what its tags have been."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import click


@click.group("registry")
def group() -> None:
    """Run a registry, and look after one."""


@group.command("serve")
@click.option("--root", type=click.Path(path_type=Path), default=Path("/var/lib/seacan-registry"), show_default=True)
@click.option("--listen", default="127.0.0.1:5000", show_default=True, metavar="ADDRESS:PORT")
@click.option("--tls-cert", type=click.Path(exists=True, path_type=Path))
@click.option("--tls-key", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--tls-client-ca",
    type=click.Path(exists=True, path_type=Path),
    help="Let in only clients with a certificate of this authority.",
)
@click.option("--htpasswd", type=click.Path(exists=True, path_type=Path), help="Users and bcrypt hashes.")
@click.option("--token-realm", default="", help="URL of the token service.")
@click.option("--token-service", default="")
@click.option("--token-issuer", default="")
@click.option(
    "--token-keys", type=click.Path(exists=True, path_type=Path), help="Its public keys or certificates, PEM."
)
@click.option("--read-only", is_flag=True, help="Refuse every change.")
@click.option("--no-delete", is_flag=True, help="Refuse deletion alone.")
@click.option("--quota", type=int, help="Bytes that all blobs together may have.")
@click.option("--keep-history", default=10, show_default=True, help="Past states of a tag that stay available.")
@click.option(
    "--collect-every", default=3600.0, show_default=True, help="Seconds between garbage collections; 0: never."
)
@click.option(
    "--engine", type=click.Path(exists=True, path_type=Path), help="Data root of an engine to share blobs on disk with."
)
@click.option("--mirror", default="", metavar="DOMAIN", help="Hold copies of this registry, docker.io for instance.")
@click.option("--mirror-insecure", is_flag=True, help="Reach it without TLS, or with any certificate.")
@click.option("--mirror-username", default="", envvar="SEACAN_MIRROR_USERNAME", show_envvar=True)
@click.option("--mirror-password", default="", envvar="SEACAN_MIRROR_PASSWORD", show_envvar=True)
def serve(root: Path, listen: str, **options: Any) -> None:
    """Serve images to docker, podman, skopeo and every other client of the OCI distribution specification."""
    from seacan.registry.server.serve import Settings
    from seacan.registry.server.serve import serve as run

    address, _, port = listen.rpartition(":")
    if not port.isdigit():
        raise click.BadParameter(f"{listen}: not ADDRESS:PORT")
    settings = Settings(
        root=root,
        address=address.strip("[]") or "0.0.0.0",
        port=int(port),
        certificate=options["tls_cert"],
        key=options["tls_key"],
        client_authority=options["tls_client_ca"],
        htpasswd=options["htpasswd"],
        token_realm=options["token_realm"],
        token_service=options["token_service"],
        token_issuer=options["token_issuer"],
        token_keys=options["token_keys"],
        read_only=options["read_only"],
        delete=not options["no_delete"],
        quota=options["quota"],
        keep_history=options["keep_history"],
        collect_every=options["collect_every"],
        engine=options["engine"],
        mirror=options["mirror"],
        mirror_insecure=options["mirror_insecure"],
        mirror_username=options["mirror_username"],
        mirror_password=options["mirror_password"],
    )
    asyncio.run(run(settings, lambda host, number: click.echo(f"registry: listening on {host}:{number}")))


@group.command("gc")
@click.option("--root", type=click.Path(exists=True, path_type=Path), default=Path("/var/lib/seacan-registry"))
@click.option("--untagged", is_flag=True, help="Also remove manifests that no tag and no kept history reaches.")
@click.option("--grace", default=3600.0, show_default=True, help="Seconds for which new content is left alone.")
@click.option("--dry-run", is_flag=True)
def collect(root: Path, untagged: bool, grace: float, dry_run: bool) -> None:
    """Free what nothing refers to. Safe while the registry runs and receives pushes."""
    from seacan.registry.server.store import Store

    store = Store(root)
    try:
        freed = store.collect(untagged=untagged, grace=grace, dry_run=dry_run)
    finally:
        store.close()
    verb = "would remove" if dry_run else "removed"
    click.echo(f"{verb} {freed.manifests} manifests and {freed.blobs} blobs, {freed.bytes} bytes")


def _split(name: str) -> tuple[str, str, str]:
    """``host:port/repository[:tag]`` as base URL, repository, tag."""
    host, slash, rest = name.partition("/")
    if not slash or not ("." in host or ":" in host or host == "localhost"):
        raise click.BadParameter(f"{name}: say which registry, as in localhost:5000/app:latest")
    repository, _, tag = rest.partition(":")
    bare = host.rpartition(":")[0].strip("[]") or host
    scheme = "http" if bare in ("localhost", "::1") or bare.startswith("127.") else "https"
    return f"{scheme}://{host}", repository, tag


def _ask(url: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310 (https or loopback)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return json.load(answer)
    except urllib.error.HTTPError as error:
        try:
            reason = json.load(error)["errors"][0]["message"]
        except (ValueError, LookupError, TypeError):
            reason = error.reason
        raise click.ClickException(f"{url}: {reason}") from error
    except urllib.error.URLError as error:
        raise click.ClickException(f"{url}: {error.reason}") from error


@group.command("log")
@click.argument("name", metavar="REGISTRY/REPOSITORY[:TAG]")
def history(name: str) -> None:
    """What a tag (or every tag of a repository) has named, the newest first."""
    base, repository, tag = _split(name)
    counts: dict[str, int] = {}
    for change in _ask(f"{base}/v2/{repository}/_seacan/history/{tag}")["changes"]:
        steps = counts.get(change["tag"], 0)
        counts[change["tag"]] = steps + 1
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(change["at"]))
        who = f"  by {change['actor']}" if change["actor"] else ""
        click.echo(f"{change['tag']}~{steps}  {change['digest'] or '(deleted)'}  {when}{who}")


@group.command("rollback")
@click.argument("name", metavar="REGISTRY/REPOSITORY:TAG")
@click.argument("steps", type=click.IntRange(1), default=1)
def rollback(name: str, steps: int) -> None:
    """Point a tag back at what it named STEPS changes ago."""
    base, repository, tag = _split(name)
    if not tag:
        raise click.BadParameter(f"{name}: say which tag")
    answer = _ask(f"{base}/v2/{repository}/_seacan/history/{tag}", {"steps": steps})
    click.echo(f"{repository}:{tag} is {answer['digest']} again")
