"""The command line's HTTP client against a server that answers as it is told."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from seacan.cli.client import APIError, Client, default_host
from seacan.errors import InvalidParameter, Unavailable

Serve = Callable[[bytes], Client]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start a server that gives one answer to whatever it is asked; ``.requests`` of the function holds what was."""
    path = tmp_path / "s"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    requests: list[bytes] = []
    threads: list[threading.Thread] = []

    def start(answer: bytes) -> Client:
        def work() -> None:
            connection, _ = listener.accept()
            with connection:
                head = b""
                while b"\r\n\r\n" not in head:
                    head += connection.recv(65536)
                if b"chunked" in head:
                    while not head.endswith(b"0\r\n\r\n"):
                        head += connection.recv(65536)
                requests.append(head)
                connection.sendall(answer)

        threads.append(threading.Thread(target=work, daemon=True))
        threads[-1].start()
        return Client(f"unix://{path}")

    start.requests = requests  # type: ignore[attr-defined]
    yield start
    listener.close()
    for thread in threads:
        thread.join(5)


def test_json_with_a_length(serve: Serve) -> None:
    client = serve(b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"a": 1}\nX')
    assert client.get("/x", all=True, none=None, off=False, text="a b", map={"k": ["v"]}) == {"a": 1}
    head = serve.requests[0].decode()  # type: ignore[attr-defined]
    assert head.startswith("GET /x?all=1&text=a%20b&map=%7B%22k%22%3A%5B%22v%22%5D%7D HTTP/1.1\r\n")


def test_json_in_chunks(serve: Serve) -> None:
    client = serve(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n{"a"\r\n4;x=y\r\n: 1}\r\n0\r\n\r\n')
    assert client.get("/x") == {"a": 1}


def test_an_answer_until_the_end_of_the_connection(serve: Serve) -> None:
    with serve(b"HTTP/1.1 200 OK\r\n\r\nabc").request("GET", "/") as response:
        assert response.read() == b"abc"


def test_a_stream_of_values(serve: Serve) -> None:
    with serve('HTTP/1.1 200 OK\r\n\r\n{"a":"é"}{"b":\n2}\n'.encode()).request("GET", "/") as response:
        assert list(response.json_lines()) == [{"a": "é"}, {"b": 2}]


def test_a_head_has_no_body(serve: Serve) -> None:
    with serve(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nX-A: b\r\n\r\n").request("HEAD", "/") as response:
        assert (response.read(), response.headers["x-a"]) == (b"", "b")
    with pytest.raises(APIError, match="status 404"):
        serve(b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\n").request("HEAD", "/")


def test_no_content(serve: Serve) -> None:
    assert serve(b"HTTP/1.1 204 No Content\r\n\r\n").post("/x") is None


def test_a_refusal_is_an_error_with_its_message(serve: Serve) -> None:
    with pytest.raises(APIError) as failure:
        serve(b'HTTP/1.1 404 Not Found\r\nContent-Length: 16\r\n\r\n{"message":"no"}').get("/x")
    assert (failure.value.message, failure.value.status) == ("no", 404)


def test_a_refusal_without_json_is_an_error_too(serve: Serve) -> None:
    with pytest.raises(APIError, match="oops"):
        serve(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\noops").get("/x")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc",
        b"HTTP/1.1 200 OK\r\n\r\n{broken",
    ],
)
def test_a_broken_answer_is_an_error(serve: Serve, answer: bytes) -> None:
    client = serve(answer)
    with pytest.raises(Unavailable), client.request("GET", "/") as response:
        list(response.json_lines())


def test_a_body_of_unknown_length_goes_in_chunks(serve: Serve) -> None:
    client = serve(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    client.request("POST", "/x", body=[b"abc", b"", b"de"]).close()
    assert serve.requests[0].endswith(b"\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")  # type: ignore[attr-defined]


def test_a_connection_can_be_taken_over(serve: Serve) -> None:
    client = serve(b"HTTP/1.1 101 UPGRADED\r\nUpgrade: tcp\r\n\r\nhello")
    connection, pending = client.request("POST", "/attach", upgrade=True).hijack()
    with connection:
        assert pending + connection.recv(10) == b"hello" or pending == b"hello"
    assert b"Upgrade: tcp" in serve.requests[0]  # type: ignore[attr-defined]


def test_no_daemon_is_told_in_dockers_words(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="Is the docker daemon running"):
        Client(f"unix://{tmp_path}/none").get("/_ping")


@pytest.mark.parametrize("host", ["nope://x", "tcp://x", "unix"])
def test_a_bad_host_is_refused(host: str) -> None:
    with pytest.raises(InvalidParameter, match="unable to parse docker host"):
        Client(host).get("/_ping")


def test_the_environment_names_the_daemon() -> None:
    assert default_host({"DOCKER_HOST": "tcp://h:1"}) == "tcp://h:1"
    assert default_host({}).startswith("unix://")
