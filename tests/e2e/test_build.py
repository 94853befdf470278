"""`docker build` through the classic API and through BuildKit's, with the real clients."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hosts import DOCKER, Daemon

Build = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("a\n")
    (folder / "sub/b.txt").write_text("b\n")
    (folder / "noise.log").write_text("noise\n")
    (folder / ".dockerignore").write_text("*.log\n")
    return folder


def _runner(daemon: Daemon, context: Path, **environment: str) -> Build:
    def build(dockerfile: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        (context / "Dockerfile").write_text(dockerfile)
        done = subprocess.run(
            [str(DOCKER), "build", *arguments, str(context)],
            env={**daemon.environment(), **environment},
            capture_output=True,
            text=True,
            timeout=100,
        )
        if check and done.returncode:
            raise AssertionError(f"docker build: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    return build


@pytest.fixture
def classic(daemon: Daemon, context: Path) -> Build:
    return _runner(daemon, context, DOCKER_BUILDKIT="0")


@pytest.fixture
def buildx(daemon: Daemon, context: Path, buildx_environment: dict[str, str]) -> Build:
    return _runner(daemon, context, **buildx_environment)


@pytest.fixture(params=["classic", "buildx"])
def build(request: pytest.FixtureRequest) -> Build:
    found: Build = request.getfixturevalue(request.param)
    return found


def run(daemon: Daemon, image: str, *command: str) -> str:
    return daemon.out("run", "--rm", "--network", "none", image, *command)


def test_an_image_is_built_and_runs(daemon: Daemon, build: Build) -> None:
    build(
        "FROM busybox\nENV WHO=world\nWORKDIR /w\nCOPY . .\nRUN echo made for $WHO > made\n"
        'LABEL a=b\nCMD ["sh", "-c", "cat a.txt sub/b.txt made; ls"]\n',
        "-t", "built",
    )  # fmt: skip
    assert run(daemon, "built").split() == ["a", "b", "made", "for", "world", "Dockerfile", "a.txt", "made", "sub"]
    assert json.loads(daemon.out("image", "inspect", "built"))[0]["Config"]["Labels"] == {"a": "b"}


def test_the_second_build_is_all_cache_and_the_same_image(daemon: Daemon, build: Build) -> None:
    dockerfile = "FROM busybox\nCOPY a.txt /\nRUN cat /proc/sys/kernel/random/uuid > /now\n"
    build(dockerfile, "-t", "one")
    build(dockerfile, "-t", "two")
    assert daemon.inspect("one", "image")["Id"] == daemon.inspect("two", "image")["Id"]
    build(dockerfile, "-t", "three", "--no-cache")
    assert daemon.inspect("three", "image")["Id"] != daemon.inspect("one", "image")["Id"]


def test_the_cache_looks_at_content_and_not_at_times(daemon: Daemon, build: Build, context: Path) -> None:
    dockerfile = "FROM busybox\nCOPY a.txt /\nRUN cat /proc/sys/kernel/random/uuid > /now\n"
    build(dockerfile, "-t", "one")
    os.utime(context / "a.txt", (1, 1))
    (context / "other").write_text("not copied")
    build(dockerfile, "-t", "two")
    assert run(daemon, "one", "cat", "/now") == run(daemon, "two", "cat", "/now")
    (context / "a.txt").write_text("changed")
    build(dockerfile, "-t", "three")
    assert run(daemon, "three", "cat", "/a.txt") == "changed"
    assert run(daemon, "three", "cat", "/now") != run(daemon, "one", "cat", "/now")


def test_stages_targets_and_arguments(daemon: Daemon, build: Build) -> None:
    dockerfile = (
        "ARG V=1\nFROM busybox AS one\nARG V\nRUN echo $V > /v\n"
        "FROM busybox AS unused\nRUN exit 1\nFROM busybox AS two\nCOPY --from=one /v /copied\n"
    )
    build(dockerfile, "-t", "two")
    build(dockerfile, "-t", "one", "--target", "one", "--build-arg", "V=7")
    assert run(daemon, "two", "cat", "/copied") == "1"
    assert run(daemon, "one", "cat", "/v") == "7"


def test_a_failing_step_says_what_and_leaves_nothing(daemon: Daemon, classic: Build, buildx: Build) -> None:
    dockerfile = "FROM busybox\nRUN echo before; exit 3\n"
    done = classic(dockerfile, check=False)
    assert done.returncode == 3
    assert "The command '/bin/sh -c echo before; exit 3' returned a non-zero code: 3" in done.stderr
    done = buildx(dockerfile, check=False)
    assert done.returncode == 1
    assert 'process "/bin/sh -c echo before; exit 3" did not complete successfully: exit code: 3' in done.stderr
    assert "Dockerfile:2" in done.stderr and ">>> RUN echo before; exit 3" in done.stderr
    assert _left(daemon) == []


def test_what_a_classic_step_says_on_its_standard_error_is_red(classic: Build) -> None:
    output = classic("FROM busybox\nRUN echo out; sleep 0.2; echo err >&2\n").stdout
    assert "\nout\n\x1b[91merr\n\x1b[0m" in output


def test_an_image_that_is_here_is_not_looked_for_elsewhere_as_a_cache(daemon: Daemon, classic: Build) -> None:
    dockerfile = "FROM busybox\nRUN date > /when\n"
    classic(dockerfile, "-t", "one")
    output = classic(dockerfile, "-t", "two", "--cache-from", "one").stdout
    assert " ---> Using cache" in output
    assert "Warning" not in output


def test_classic_settings_say_whether_the_cache_has_them(classic: Build) -> None:
    dockerfile = 'FROM busybox\nENV A={}\nLABEL l=1\nRUN date > /when\nWORKDIR /w\nCMD ["true"]\n'
    first = classic(dockerfile.format(1)).stdout
    assert first.count(" ---> Running in ") == first.count(" ---> Removed intermediate container ") == 5
    assert classic(dockerfile.format(1)).stdout.count(" ---> Using cache\n") == 5
    assert " ---> Using cache\n" not in classic(dockerfile.format(1), "--no-cache").stdout
    assert " ---> Using cache\n" not in classic(dockerfile.format(2)).stdout


def test_with_cache_from_only_the_named_images_count(classic: Build) -> None:
    dockerfile = "FROM busybox\nENV FOO=bar\nRUN date > /baz\nRUN date > /bax\n"
    classic(dockerfile, "-t", "one")
    part = dockerfile.rpartition("RUN")[0]
    assert classic(part, "-t", "part", "--cache-from", "one").stdout.count(" ---> Using cache\n") == 2
    assert classic(dockerfile, "--cache-from", "one").stdout.count(" ---> Using cache\n") == 3
    assert classic(dockerfile, "--cache-from", "part").stdout.count(" ---> Using cache\n") == 2
    assert classic(dockerfile, "--cache-from", "127.0.0.1:1/nosuch").stdout.count(" ---> Using cache\n") == 0


def _left(daemon: Daemon) -> list[str]:
    """What a build that is over must not leave."""
    left = [str(path) for path in (daemon.exec_root / "build").iterdir()]
    left += [str(path) for path in (daemon.data_root / "build/work").iterdir()]
    cgroups = Path("/sys/fs/cgroup").glob(f"*{daemon.cgroup_parent}/*")
    return left + [str(path) for path in cgroups if path.is_dir()]


def test_errors_of_the_dockerfile_suggest_and_point(classic: Build, buildx: Build) -> None:
    assert "unknown instruction: RUNN (did you mean RUN?)" in classic("FROM busybox\nRUNN a\n", check=False).stderr
    done = buildx("FROM busybox\nRUNN a\n", check=False)
    assert "dockerfile parse error on line 2: unknown instruction: RUNN (did you mean RUN?)" in done.stderr
    assert ">>> RUNN a" in done.stderr


@pytest.mark.parametrize(
    ("dockerfile", "message"),
    [
        ("FROM busybox\nCOPY ../../../etc/passwd /x\n", "passwd"),
        ("FROM busybox\nCOPY nosuch /x\n", "nosuch"),
        ("FROM busybox AS a\nCOPY --from=b / /\nFROM busybox AS b\nCOPY --from=a / /\n", "circular dependency"),
        ("FROM busybox\nRUN " + "a" * 70000, "line greater than max allowed size"),
    ],
)
def test_hostile_dockerfiles_are_refused(build: Build, dockerfile: str, message: str) -> None:
    done = build(dockerfile, check=False)
    assert done.returncode
    assert message in done.stderr + done.stdout


def test_links_of_the_context_do_not_reach_the_host(build: Build, context: Path) -> None:
    (context / "passwd").symlink_to("/etc/passwd")
    (context / "up").symlink_to("../../../../../../etc")
    for source in ("passwd", "up/passwd"):
        assert build(f"FROM busybox\nCOPY {source} /stolen\n", check=False).returncode


def test_a_step_sees_neither_host_nor_network_it_was_not_given(daemon: Daemon, build: Build) -> None:
    done = build("FROM busybox\nRUN cat /proc/self/status | grep CapEff; ls /proc | grep -c '^[0-9]'; hostname\n")
    output = done.stdout + done.stderr
    assert "00000000a80425fb" in output  # Docker's default capabilities


def test_an_archive_from_standard_input_is_a_context(daemon: Daemon) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        # What leads out of the context ends at its root, as with dockerd.
        dockerfile = b"FROM busybox\nCOPY f g h /\n"
        for name, content in (("Dockerfile", dockerfile), ("f", b"from stdin"), ("../g", b"+"), ("a/../../h", b"+")):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    subprocess.run(
        [str(DOCKER), "build", "-q", "-t", "piped", "-"],
        input=archive.getvalue(), check=True, capture_output=True, timeout=60,
        env={**daemon.environment(), "DOCKER_BUILDKIT": "0"},
    )  # fmt: skip
    assert run(daemon, "piped", "cat", "/f", "/g", "/h") == "from stdin++"


def test_a_cancelled_build_leaves_nothing(daemon: Daemon, context: Path, build: Build) -> None:
    (context / "Dockerfile").write_text("FROM busybox\nRUN echo started; sleep 600\n")
    client = subprocess.Popen(
        [str(DOCKER), "build", str(context)], env={**daemon.environment(), "DOCKER_BUILDKIT": "0"},
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert client.stdout is not None
    for line in client.stdout:
        if "started" in line and "RUN" not in line:
            break
    client.send_signal(signal.SIGINT)
    client.wait(20)
    client.stdout.close()
    deadline = time.monotonic() + 20
    while _left(daemon) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _left(daemon) == []


def test_a_killed_daemon_s_build_is_rolled_back(new_daemon: Callable[..., Daemon], context: Path) -> None:
    daemon = new_daemon()
    (context / "Dockerfile").write_text("FROM busybox\nRUN echo started; sleep 600\n")
    client = subprocess.Popen(
        [str(DOCKER), "build", str(context)], env={**daemon.environment(), "DOCKER_BUILDKIT": "0"},
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert client.stdout is not None
    for line in client.stdout:
        if "started" in line and "RUN" not in line:
            break
    assert _left(daemon)
    daemon.kill()
    client.wait(20)
    client.stdout.close()
    daemon.start()
    daemon.docker("build", "-q", "-t", "after", "-f", "-", str(context), input="FROM busybox\nRUN true\n")
    assert _left(daemon) == []


def test_two_builds_of_the_same_step_do_it_once(daemon: Daemon, context: Path) -> None:
    (context / "Dockerfile").write_text("FROM busybox\nRUN sleep 1; cat /proc/sys/kernel/random/uuid > /now\n")
    clients = [
        subprocess.Popen(
            [str(DOCKER), "build", "-q", "-t", f"same{number}", str(context)],
            env={**daemon.environment(), "DOCKER_BUILDKIT": "0"}, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for number in range(3)
    ]  # fmt: skip
    assert [client.wait(60) for client in clients] == [0, 0, 0]
    assert len({run(daemon, f"same{number}", "cat", "/now") for number in range(3)}) == 1


def test_the_dockerfile_may_come_from_stdin(daemon: Daemon, context: Path) -> None:
    # The client's archive ends with the last file's content then, without padding or end.
    daemon.docker("build", "-t", "stdin", "-f", "-", str(context), input="FROM busybox\nCOPY . /here\n")
    assert run(daemon, "stdin", "ls", "/here").split() == ["a.txt", "sub"]


def test_squash_makes_one_layer(daemon: Daemon) -> None:
    # docker's client wants an experimental daemon for --squash, so the API is asked itself.
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as archive:
        text = b"FROM busybox\nRUN echo 1 > /a\nRUN rm /a; echo 2 > /b; rm -r /home\n"
        member = tarfile.TarInfo("Dockerfile")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text))
    connection = http.client.HTTPConnection("localhost", timeout=60)
    with contextlib.closing(connection):
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(daemon.socket))
        connection.request(
            "POST", "/build?squash=1&t=squashed", context.getvalue(), {"Content-Type": "application/x-tar"}
        )
        assert "Successfully tagged squashed:latest" in connection.getresponse().read().decode()
    base = len(daemon.inspect("busybox", "image")["RootFS"]["Layers"])
    assert len(daemon.inspect("squashed", "image")["RootFS"]["Layers"]) == base + 1
    assert run(daemon, "squashed", "sh", "-c", "ls / | grep -x -e a -e b -e home") == "b"


def test_the_epoch_makes_builds_reproducible(daemon: Daemon, buildx: Build) -> None:
    dockerfile = "FROM busybox\nRUN mkdir -p /x/y && echo z > /x/y/z\nCOPY a.txt /\nWORKDIR /made\n"
    ids = []
    for _ in range(2):
        buildx(dockerfile, "--no-cache", "--build-arg", "SOURCE_DATE_EPOCH=1000000000", "-t", "epoch")
        ids.append(daemon.inspect("epoch", "image")["Id"])
    assert ids[0] == ids[1]


def test_secrets_reach_their_step_and_nothing_else(daemon: Daemon, buildx: Build, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    digest = hashlib.md5(b"hunter2").hexdigest()
    buildx(
        f"FROM busybox\nRUN --mount=type=secret,id=s md5sum /run/secrets/s | grep {digest}\n"
        f"RUN --mount=type=secret,id=s,env=S echo -n $S | md5sum | grep {digest}\nRUN test ! -e /run/secrets/s\n",
        "--secret", f"id=s,src={secret}", "-t", "secretive",
    )  # fmt: skip
    saved = subprocess.run(
        [str(DOCKER), "save", "secretive"], env=daemon.environment(), capture_output=True, check=True, timeout=60
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(saved)) as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is None:
                continue
            content = file.read()
            if content[:2] == b"\x1f\x8b":
                content = gzip.decompress(content)
            assert b"hunter2" not in content, member.name
    database = b"".join(path.read_bytes() for path in daemon.data_root.glob("seacan.db*"))
    assert b"hunter2" not in database


def test_mounts_of_a_step(daemon: Daemon, buildx: Build) -> None:
    for number in range(2):
        buildx(
            "FROM busybox AS other\nRUN mkdir -p /deep/er; echo d > /deep/er/d\nFROM busybox\n"
            "RUN --mount=type=cache,target=/cache echo x >> /cache/log; wc -l < /cache/log > /count\n"
            f"RUN --mount=type=bind,from=other,source=/deep,target=/d cat /d/er/d > /copied # {number}\n"
            "RUN --mount=type=bind,target=/ctx cat /ctx/a.txt >> /copied; touch /ctx/x || true\n"
            "RUN --mount=type=tmpfs,target=/scratch echo x > /scratch/x\n"
            "RUN --mount=type=bind,source=a.txt,target=/a,rw echo y > /a\n"
            "RUN ls -A / > /left\n",
            "-t", "mounted", "--no-cache",
        )  # fmt: skip
    assert run(daemon, "mounted", "cat", "/count", "/copied").split() == ["2", "d", "a"]
    left = run(daemon, "mounted", "cat", "/left").split()
    assert not {"cache", "d", "ctx", "scratch", "a"} & set(left)


def test_checks_targets_and_outputs(buildx: Build, tmp_path: Path) -> None:
    dockerfile = "# base the base\nFROM busybox AS base\nRUN echo x > /x\nFROM base AS last\nCMD echo hi\n"
    done = buildx(dockerfile, "--check", check=False)
    assert done.returncode == 1
    assert "JSONArgsRecommended" in done.stdout and ">>> CMD echo hi" in done.stdout
    assert "last (default)" in buildx(dockerfile, "--call=targets").stdout
    buildx(dockerfile, "-o", str(tmp_path / "files"))
    assert (tmp_path / "files/x").read_text() == "x\n"
    buildx(dockerfile, "-o", f"type=tar,dest={tmp_path / 'files.tar'}")
    with tarfile.open(tmp_path / "files.tar") as archive:
        assert "x" in archive.getnames()
    buildx(dockerfile, "-o", f"type=docker,name=exported,dest={tmp_path / 'image.tar'}")
    with tarfile.open(tmp_path / "image.tar") as archive:
        assert "manifest.json" in archive.getnames()


def test_only_what_changed_of_a_context_is_sent_again(buildx: Build, context: Path) -> None:
    (context / "big").write_bytes(os.urandom(8 << 20))
    dockerfile = "FROM busybox\nCOPY . /c/\n"
    buildx(dockerfile)
    (context / "a.txt").write_text("changed\n")
    done = buildx(dockerfile)
    sent = [line for line in done.stderr.splitlines() if "transferring context:" in line and line.endswith("done")]
    assert sent and "MB" not in sent[-1]


def test_the_cache_is_listed_and_pruned(daemon: Daemon, classic: Build) -> None:
    classic("FROM busybox\nRUN echo cached > /c\n", "-t", "kept")
    daemon.docker("rmi", "kept")
    assert "Build Cache" in daemon.out("system", "df")
    daemon.docker("builder", "prune", "-af")
    assert list((daemon.data_root / "build/layers").iterdir()) == []


@pytest.fixture(autouse=True)
def _prune(daemon: Daemon) -> Iterator[None]:
    yield
    subprocess.run(
        [str(DOCKER), "builder", "prune", "-af"], env=daemon.environment(), capture_output=True, timeout=60, check=False
    )


def test_the_cache_is_kept_within_its_limits(new_daemon: Callable[..., Daemon], busybox: Path) -> None:
    daemon = new_daemon(start=False)
    gc = {"defaultReservedSpace": "1MB", "defaultMaxUsedSpace": "5MB", "defaultMinFreeSpace": "0"}
    (daemon.folder / "daemon.json").write_text(json.dumps({"builder": {"gc": gc}}))
    daemon.start()
    daemon.docker("load", "-i", str(busybox))
    step = "FROM busybox\nRUN head -c 4000000 /dev/urandom > /file && echo %d\n"
    for number in range(4):
        daemon.docker("build", "-t", "same", "-", input=step % number)
    daemon.docker("rmi", "same")
    daemon.docker("build", "-t", "last", "-", input=step % 9)
    deadline = time.monotonic() + 20
    while True:
        usage = json.loads(daemon.out("system", "df", "-v", "--format", "json"))["BuildCache"]
        private = [item["Size"] for item in usage if item["Shared"] == "false"]
        if len([size for size in private if size.startswith("4")]) <= 1:
            break
        assert time.monotonic() < deadline, usage
        time.sleep(0.2)
    assert daemon.out("run", "--rm", "last", "wc", "-c", "/file") == "4000000 /file"
