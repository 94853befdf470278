"""The raw API: versions, errors, headers, and connections that become streams."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from tests.e2e.test_crash import Client, call
from tests.hosts import Daemon


def get(daemon: Daemon, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    with contextlib.closing(Client(daemon.socket)) as client:
        client.request(method, path)
        response = client.getresponse()
        return response.status, dict(response.getheaders()), response.read()


def test_ping_says_which_api_this_is(daemon: Daemon) -> None:
    for method, body in (("GET", b"OK"), ("HEAD", b"")):
        status, headers, data = get(daemon, "/_ping", method)
        assert (status, data) == (200, body)
        assert headers["Api-Version"] == "1.51"
        assert headers["Ostype"] == "linux"
        assert headers["Swarm"] == "inactive"
        assert headers["Cache-Control"] == "no-cache, no-store, must-revalidate"


@pytest.mark.parametrize("version", ["", "/v1.24", "/v1.40", "/v1.51"])
def test_every_version_between_is_answered(daemon: Daemon, version: str) -> None:
    status, _, data = get(daemon, f"{version}/version")
    assert status == 200
    assert json.loads(data)["ApiVersion"] == "1.51"


def test_versions_too_old_and_too_new_are_refused_in_dockerds_words(daemon: Daemon) -> None:
    status, _, data = get(daemon, "/v1.23/version")
    assert status == 400
    assert b"client version 1.23 is too old. Minimum supported API version is 1.24" in data
    status, _, data = get(daemon, "/v1.99/version")
    assert (status, json.loads(data)) == (
        400,
        {"message": "client version 1.99 is too new. Maximum supported API version is 1.51"},
    )


@pytest.mark.parametrize("path", ["/nowhere", "/v1.51/containers/x/nothing", "/v1.51/"])
def test_unknown_paths(daemon: Daemon, path: str) -> None:
    status, _, data = get(daemon, path)
    assert (status, json.loads(data)) == (404, {"message": "page not found"})


def test_a_request_without_a_body_has_nothing_in_it(daemon: Daemon) -> None:
    for path, status, words in (
        ("/networks/create", 400, b"invalid name: name is empty"),
        ("/containers/nosuch/exec", 400, b"No exec command specified"),
        ("/networks/bridge/connect", 400, b"invalid name or ID supplied"),
    ):
        answer, _, data = get(daemon, path, "POST")
        assert (answer, words in data) == (status, True), data


def test_an_inspected_network_may_be_asked_for_by_its_scope(daemon: Daemon) -> None:
    assert get(daemon, "/networks/bridge?scope=local&verbose=true")[0] == 200
    assert get(daemon, "/networks/bridge?scope=swarm")[0] == 404
    status, _, data = get(daemon, "/networks/bridge?verbose=maybe")
    assert (status, b'strconv.ParseBool: parsing \\"maybe\\"' in data) == (400, True), data


def test_swarm_is_not_here(daemon: Daemon) -> None:
    for path in ("/v1.51/services", "/v1.51/nodes", "/v1.51/swarm", "/v1.51/secrets/x"):
        status, _, data = get(daemon, path)
        assert status == 503
        assert json.loads(data)["message"].startswith("This node is not a swarm manager.")


def test_info_and_disk_usage_have_what_clients_read(daemon: Daemon) -> None:
    info = call(daemon, "GET", "/info")
    assert {
        "ID",
        "Containers",
        "Driver",
        "CgroupVersion",
        "SecurityOptions",
        "Runtimes",
        "Swarm",
        "Plugins",
    } <= info.keys()
    usage = call(daemon, "GET", "/system/df")
    assert {"LayersSize", "Images", "Containers", "Volumes", "BuildCache"} <= usage.keys()


# --- streams --------------------------------------------------------------------------------------------------------


@pytest.fixture
def cat(daemon: Daemon) -> Iterator[str]:
    body = {
        "Image": "busybox", "Cmd": ["cat"], "OpenStdin": True, "StdinOnce": True, "AttachStdin": True,
        "HostConfig": {"NetworkMode": "none"},
    }  # fmt: skip
    yield call(daemon, "POST", "/containers/create", body)["Id"]


def connect(daemon: Daemon) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20)
    client.connect(str(daemon.socket))
    return client


def request(id: str, *headers: str, version: str = "1.51") -> bytes:
    lines = [
        f"POST /v{version}/containers/{id}/attach?stream=1&stdin=1&stdout=1&stderr=1 HTTP/1.1",
        "Host: d",
        *headers,
    ]
    return ("\r\n".join([*lines, "Content-Length: 0"]) + "\r\n\r\n").encode()


def read_head(client: socket.socket) -> str:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = client.recv(1)
        assert byte, head
        head += byte
    return head.decode()


def read_all(client: socket.socket) -> bytes:
    data = b""
    while chunk := client.recv(65536):
        data += chunk
    return data


def frame(text: bytes, stream: int = 1) -> bytes:
    return struct.pack(">BxxxI", stream, len(text)) + text


@pytest.mark.parametrize(
    ("headers", "version", "answer"),
    [
        (
            ("Upgrade: tcp", "Connection: Upgrade"),
            "1.51",
            "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.multiplexed-stream\r\n"
            "Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n",
        ),
        (
            ("Upgrade: tcp", "Connection: Upgrade"),
            "1.41",
            "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\n"
            "Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n",
        ),
        ((), "1.51", "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n"),
    ],
)
def test_attach_answers_by_upgrade_and_version(
    daemon: Daemon, cat: str, headers: tuple[str, ...], version: str, answer: str
) -> None:
    with connect(daemon) as client:
        client.sendall(request(cat, *headers, version=version))
        assert read_head(client) == answer
        call(daemon, "POST", f"/containers/{cat}/start")
        client.sendall(b"hello\n")
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == frame(b"hello\n")
    assert call(daemon, "POST", f"/containers/{cat}/wait")["StatusCode"] == 0


def test_input_sent_right_behind_the_request_is_not_lost(daemon: Daemon, cat: str) -> None:
    with connect(daemon) as client:
        client.sendall(request(cat, "Upgrade: tcp", "Connection: Upgrade") + b"GET / HTTP/1.1\r\n\r\n")
        assert read_head(client).startswith("HTTP/1.1 101 ")
        call(daemon, "POST", f"/containers/{cat}/start")
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == frame(b"GET / HTTP/1.1\r\n\r\n")


def test_a_refused_attach_is_plain_http_and_the_connection_goes_on(daemon: Daemon) -> None:
    with connect(daemon) as client:
        client.sendall(request("nosuch", "Upgrade: tcp", "Connection: Upgrade"))
        assert read_head(client).startswith("HTTP/1.1 404 ")


def test_two_clients_see_the_same_output(daemon: Daemon) -> None:
    body = {"Image": "busybox", "Cmd": ["echo", "once"], "HostConfig": {"NetworkMode": "none"}}
    id = call(daemon, "POST", "/containers/create", body)["Id"]
    with connect(daemon) as one, connect(daemon) as other:
        for client in (one, other):
            client.sendall(request(id, "Upgrade: tcp", "Connection: Upgrade"))
            read_head(client)
        call(daemon, "POST", f"/containers/{id}/start")
        assert read_all(one) == read_all(other) == frame(b"once\n")


def test_a_client_that_does_not_read_holds_up_only_its_own_container(daemon: Daemon) -> None:
    body = {"Image": "busybox", "Cmd": ["yes"], "HostConfig": {"NetworkMode": "none"}}
    id = call(daemon, "POST", "/containers/create", body)["Id"]
    with connect(daemon) as idle:
        idle.sendall(request(id, "Upgrade: tcp", "Connection: Upgrade"))
        read_head(idle)
        call(daemon, "POST", f"/containers/{id}/start")
        assert daemon.out("run", "--rm", "--network", "none", "busybox", "echo", "quick") == "quick"
        call(daemon, "POST", f"/containers/{id}/kill")


def test_attach_through_a_websocket(daemon: Daemon, cat: str) -> None:
    import aiohttp

    async def talk() -> bytes:
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(daemon.socket))) as session,
            session.ws_connect(f"http://d/v1.51/containers/{cat}/attach/ws?stream=1") as websocket,
        ):
            await asyncio.to_thread(call, daemon, "POST", f"/containers/{cat}/start")
            await websocket.send_bytes(b"through\n")
            message = await websocket.receive(10)
            return bytes(message.data)

    assert asyncio.run(talk()) == b"through\n"


def test_wait_answers_its_head_before_the_container_ends(daemon: Daemon, cat: str) -> None:
    with connect(daemon) as client:
        client.sendall(f"POST /v1.51/containers/{cat}/wait?condition=next-exit HTTP/1.1\r\nHost: d\r\n\r\n".encode())
        assert read_head(client).startswith("HTTP/1.1 200 ")
        call(daemon, "POST", f"/containers/{cat}/start")
        threading.Timer(0.1, call, (daemon, "POST", f"/containers/{cat}/kill")).start()
        answer = b""
        while b"}" not in answer:
            answer += client.recv(4096)
        assert b'{"StatusCode":137}' in answer
