"""Containers' files as a whole: export, what has changed, and commit to an image."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from seacan.api.http import check_json, json_response, query_bool
from seacan.api.images import repository_and_tag, stream_archive
from seacan.engine import config as docker
from seacan.engine.config import ContainerConfig
from seacan.engine.version import SERVER_VERSION
from seacan.errors import Conflict, InvalidParameter, NotFound, SeacanError, System
from seacan.images.commit import commit
from seacan.images.config import ImageDefaults
from seacan.images.export import export

if TYPE_CHECKING:
    from seacan.engine.engine import Engine


def routes(engine: Engine) -> list[web.RouteDef]:
    async def export_(request: web.Request) -> web.StreamResponse:
        container = engine.containers.get(request.match_info["id"])
        if container.state.dead or container.state.removing:
            raise Conflict(f"You cannot export container {container.id} which is being removed")
        rootfs = engine.snapshots.rootfs(container.id, read_only=True)
        pid = container.state.pid if container.is_live else 0
        response = await stream_archive(request, export(engine.launcher, rootfs, pid))
        engine.containers.emit(container, "export")
        return response

    async def changes(request: web.Request) -> web.StreamResponse:
        container = engine.containers.get(request.match_info["id"])
        try:
            found = await asyncio.to_thread(engine.snapshots.changes, container.id)
        except OSError as error:
            raise System(f"cannot compare container {container.id}: {error.strerror}") from error
        return json_response([{"Path": change.path, "Kind": int(change.kind)} for change in found] or None)

    async def commit_(request: web.Request) -> web.StreamResponse:
        query = request.query
        reference = repository_and_tag(query.get("repo", ""), query.get("tag", ""))
        body = await request.read() if request.can_read_body else b""
        if body.strip():
            check_json(request)
            asked = docker.decode(body, ContainerConfig)
        else:
            asked = ContainerConfig()
        container = engine.containers.get(query.get("container", ""))
        if container.state.dead or container.state.removing:
            raise Conflict(f"You cannot commit container {container.id} which is {container.state.status}")
        parent = None
        if container.record.image:
            with contextlib.suppress(NotFound):
                parent = engine.images.get(container.record.image)
            if parent is None:
                raise InvalidParameter(f"image {container.record.image} of container {container.name} has been removed")
        paused = False
        if query_bool(request, "pause", True) and container.state.running and not container.state.paused:
            # One that has ended meanwhile needs no pause.
            with contextlib.suppress(Conflict):
                await engine.lifecycle.pause(container.id)
                paused = True
        try:
            image = await commit(
                engine.images,
                container.id,
                merged(_defaults(asked), _defaults(container.config)),
                parent=parent,
                container=container.id,
                container_config=_defaults(container.config),
                author=query.get("author", ""),
                comment=query.get("comment", ""),
                changes=[line for text in query.getall("changes", []) for line in text.splitlines()],
                reference=reference,
                docker_version=SERVER_VERSION,
            )
        finally:
            if paused:
                with contextlib.suppress(SeacanError):
                    await engine.lifecycle.unpause(container.id)
        named = {"imageRef": reference.with_default_tag().familiar} if reference else {}
        engine.containers.emit(container, "commit", comment=query.get("comment", ""), imageID=image.id, **named)
        return json_response({"Id": image.id}, 201)

    return [
        web.get("/containers/{id}/export", export_),
        web.get("/containers/{id}/changes", changes),
        web.post("/commit", commit_),
    ]


def _defaults(config: ContainerConfig) -> ImageDefaults:
    """The part of a container's configuration that images carry too."""
    document = {name: value for name, value in docker.encode(config).items() if value is not None}
    return msgspec.convert(document, ImageDefaults, strict=False)


def merged(asked: ImageDefaults, inherited: ImageDefaults) -> ImageDefaults:
    """``asked`` filled up with what the container has, by dockerd's rules for commit."""
    changes: dict[str, object] = {}
    if not asked.user:
        changes["user"] = inherited.user
    changes["exposed_ports"] = {**(inherited.exposed_ports or {}), **(asked.exposed_ports or {})} or None
    names = {item.partition("=")[0] for item in asked.env or ()}
    environment = [*(asked.env or ()), *(item for item in inherited.env or () if item.partition("=")[0] not in names)]
    changes["env"] = environment or None
    changes["labels"] = {**(inherited.labels or {}), **(asked.labels or {})} or None
    if not asked.entrypoint:
        if not asked.cmd:
            changes["cmd"] = inherited.cmd
        if asked.entrypoint is None:
            changes["entrypoint"] = inherited.entrypoint
    if asked.healthcheck is None:
        changes["healthcheck"] = inherited.healthcheck
    for name in ("working_dir", "stop_signal", "hostname", "domainname", "image"):
        if not getattr(asked, name):
            changes[name] = getattr(inherited, name)
    changes["volumes"] = {**(inherited.volumes or {}), **(asked.volumes or {})} or None
    for name in ("shell", "on_build", "stop_timeout"):
        if getattr(asked, name) is None:
            changes[name] = getattr(inherited, name)
    return msgspec.structs.replace(asked, **changes)
