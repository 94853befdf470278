"""docker-py, the client that programs use: its high-level objects against the daemon."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator

import docker
import pytest
from docker.errors import APIError, ContainerError, ImageNotFound, NotFound
from docker.types import Healthcheck, Mount

from tests.hosts import Daemon


@pytest.fixture
def client(daemon: Daemon) -> Iterator[docker.DockerClient]:
    client = docker.DockerClient(base_url=daemon.url, timeout=30)
    yield client
    client.close()


def test_run_gives_the_output_and_raises_on_failure(client: docker.DockerClient) -> None:
    assert client.containers.run("busybox", "echo hello", remove=True) == b"hello\n"
    with pytest.raises(ContainerError) as failed:
        client.containers.run("busybox", ["sh", "-c", "echo why >&2; exit 3"], remove=True)
    assert (failed.value.exit_status, failed.value.stderr) == (3, b"why\n")
    assert client.containers.list(all=True) == []


def test_errors_have_dockers_types(client: docker.DockerClient) -> None:
    with pytest.raises(ImageNotFound):
        client.images.get("nosuch")
    with pytest.raises(NotFound):
        client.containers.get("nosuch")
    client.containers.create("busybox", name="taken")
    with pytest.raises(APIError) as conflict:
        client.containers.create("busybox", name="taken")
    assert conflict.value.status_code == 409


def test_a_container_through_its_life(client: docker.DockerClient) -> None:
    container = client.containers.run("busybox", "sleep 60", detach=True, environment={"A": "1"}, labels={"k": "v"})
    assert container.status in ("created", "running")
    assert container.exec_run("sh -c 'echo $A; exit 4'") == (4, b"1\n")
    assert b"sleep 60" in " ".join(container.top()["Processes"][0]).encode()
    assert [c.id for c in client.containers.list(filters={"label": "k=v", "ancestor": "busybox"})] == [container.id]
    container.pause()
    container.reload()
    assert container.status == "paused"
    container.unpause()
    assert container.stats(stream=False)["memory_stats"]["usage"] > 0
    container.kill()
    assert container.wait()["StatusCode"] == 137
    container.remove()


def test_exec_streams_are_told_apart(client: docker.DockerClient) -> None:
    container = client.containers.run("busybox", "sleep 60", detach=True)
    assert container.exec_run(["sh", "-c", "echo out; echo err >&2"], demux=True) == (0, (b"out\n", b"err\n"))
    _, chunks = container.exec_run(["sh", "-c", "echo a; echo b"], stream=True)
    assert b"".join(chunks) == b"a\nb\n"


def test_logs_and_attach(client: docker.DockerClient) -> None:
    container = client.containers.run("busybox", ["sh", "-c", "echo one; echo two"], detach=True)
    container.wait()
    assert container.logs() == b"one\ntwo\n"
    assert container.logs(tail=1) == b"two\n"
    assert list(container.logs(stream=True, follow=True)) == [b"one\n", b"two\n"]


def test_a_socket_into_a_container(client: docker.DockerClient) -> None:
    container = client.containers.create("busybox", "cat", stdin_open=True, tty=True)
    socket = container.attach_socket(params={"stdin": 1, "stdout": 1, "stream": 1})
    container.start()
    socket._sock.sendall(b"ping\n")
    received = b""
    while b"ping\r\nping" not in received:
        received += socket._sock.recv(100)
    socket.close()


def test_files_go_in_and_out(client: docker.DockerClient) -> None:
    container = client.containers.create("busybox", "true")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        member = tarfile.TarInfo("note")
        member.size = 2
        tar.addfile(member, io.BytesIO(b"hi"))
    assert container.put_archive("/tmp", archive.getvalue())
    chunks, stat = container.get_archive("/tmp/note")
    assert (stat["name"], stat["size"]) == ("note", 2)
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as tar:
        content = tar.extractfile("note")
        assert content is not None
        assert content.read() == b"hi"


def test_volumes_and_networks(client: docker.DockerClient) -> None:
    volume = client.volumes.create("data", labels={"k": "v"})
    network = client.networks.create("net1", labels={"k": "v"})
    assert [v.name for v in client.volumes.list(filters={"label": "k"})] == ["data"]
    server = client.containers.run(
        "busybox", "httpd -f -h /srv", detach=True, network="net1", name="web", mounts=[Mount("/srv", "data")]
    )
    server.exec_run(["sh", "-c", "echo page > /srv/index.html"])
    assert client.containers.run("busybox", "wget -q -O - http://web/", network="net1", remove=True) == b"page\n"
    network.reload()
    assert [c.name for c in network.containers] == ["web"]
    network.disconnect(server)
    network.remove()
    server.remove(force=True)
    volume.remove()


def test_health_and_limits(client: docker.DockerClient) -> None:
    container = client.containers.run(
        "busybox", "sleep 60", detach=True, mem_limit="64m", nano_cpus=500_000_000, network_mode="none",
        healthcheck=Healthcheck(test=["CMD", "true"], interval=100_000_000),
    )  # fmt: skip
    host = container.attrs["HostConfig"]
    assert (host["Memory"], host["NanoCpus"]) == (64 << 20, 500_000_000)
    for event in client.events(decode=True, since=0, filters={"container": container.id}):
        if event["Action"].startswith("health_status"):
            break
    container.reload()
    assert container.health == "healthy"


def test_images_are_built_saved_and_loaded(client: docker.DockerClient) -> None:
    image, steps = client.images.build(
        fileobj=io.BytesIO(b"FROM busybox\nRUN echo built > /built\n"), tag="own:1", rm=True
    )
    assert any("Successfully built" in step.get("stream", "") for step in steps)
    assert client.containers.run("own:1", "cat /built", remove=True) == b"built\n"
    archive = b"".join(image.save(named=True))
    client.images.remove("own:1")
    assert client.images.load(archive)[0].tags == ["own:1"]
    assert image.history()[0]["CreatedBy"]
    client.images.remove("own:1")


def test_the_engine_describes_itself(client: docker.DockerClient) -> None:
    assert client.ping()
    assert client.version()["ApiVersion"] == "1.51"
    assert client.info()["OSType"] == "linux"
    assert ["busybox:latest"] in [image["RepoTags"] for image in client.df()["Images"]]
