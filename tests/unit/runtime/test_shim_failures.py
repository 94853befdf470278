"""What a shim makes of failures of its own: no exit, no answer and no container is lost to one."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from seacan.runtime import maker, packets, shim, spec
from seacan.runtime.bundle import DirectoryRoot, LogConfig, ShimConfig
from seacan.runtime.protocol import Created, Describe, Description, Exec, Exited, Failed, FromShim, Make
from seacan.runtime.shim import SOCKET, Shim


def full(*arguments: Any, **named: Any) -> Any:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


class Stage:
    """A shim in this process whose daemon and maker are the test."""

    def __init__(self, bundle: Path) -> None:
        self.bundle = bundle
        config = ShimConfig(id="stage", rootfs=DirectoryRoot("/"), log=LogConfig(path=str(bundle / "log")))
        (bundle / "shim.json").write_bytes(msgspec.json.encode(config))
        self.daemon, theirs = packets.pair()
        self.channels = [self.daemon]
        self.children: list[subprocess.Popen[bytes]] = []
        self.forks: list[Any] = []
        """The channel of each process that the shim forked, and before it those errors that a fork is to end with."""
        self.refusals: list[OSError] = []
        self.init = self.child()
        self.shim = Shim(theirs, self.fork)
        packets.send(self.daemon, Make(bundle=str(bundle)))
        self.shim.turn()
        (self.maker,) = self.forks
        self.stand_ins = [fd for _ in range(2) for fd in os.pipe2(os.O_CLOEXEC)]
        packets.send(self.maker, maker.Sandboxed(self.init.pid), self.stand_ins[:3])
        self.shim.turn()
        assert isinstance(self.heard(), Created)

    def child(self) -> subprocess.Popen[bytes]:
        self.children.append(subprocess.Popen(["sleep", "1000"]))
        return self.children[-1]

    def fork(self, work: Callable[[Any], None], birth: maker.Birth | None) -> tuple[int, int, Any]:
        if self.refusals:
            raise self.refusals.pop()
        ours, theirs = packets.pair()
        self.forks.append(theirs)
        return self.child().pid, -1, ours

    def make(self, own_pids: bool = True) -> None:
        packets.send(self.maker, maker.Made(self.init.pid, own_pids=own_pids))
        self.shim.turn()

    def heard(self, channel: Any = None) -> FromShim | None:
        packet = packets.receive(channel or self.daemon)
        if packet is None:
            return None
        packets.close_all(packet[1])
        return msgspec.json.decode(packet[0], type=FromShim)

    def close(self) -> None:
        self.shim.strike()
        for channel in (*self.channels, *self.forks):
            channel.close()
        packets.close_all(self.stand_ins)
        for child in self.children:
            child.kill()
            child.wait()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.close()


def test_an_exit_is_told_though_the_rest_of_the_container_cannot_be_killed_yet(stage: Stage) -> None:
    stage.make(own_pids=False)
    stage.refusals = [OSError(errno.EAGAIN, "no process left")]
    stage.shim._reaped(stage.init.pid, signal.SIGKILL, True)
    answer = stage.heard()
    assert isinstance(answer, Exited)
    assert answer.exit.signal == signal.SIGKILL
    assert len(stage.forks) == 1
    stage.shim.turn()
    assert len(stage.forks) == 2, "it was not tried again"


def test_streams_that_cannot_be_read_fail_the_creation_and_undo_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed = []
    monkeypatch.setattr(maker, "remove", lambda bundle, config: removed.append(bundle))
    monkeypatch.setattr(shim, "Streams", full)
    stage.make()
    answer = stage.heard()
    assert isinstance(answer, Failed)
    assert (answer.seq, answer.exit_code) == (0, 128)
    assert "Too many open files" in answer.message
    assert stage.heard() is None
    assert removed == [str(stage.bundle)]
    assert not (stage.bundle / SOCKET).exists()


def test_a_request_that_is_none_costs_the_connection_and_nothing_else(stage: Stage) -> None:
    stage.make()
    reader, writer = os.pipe2(os.O_CLOEXEC)
    packets.send(stage.daemon, maker.Refused("what is this", 1), [writer])
    os.close(writer)
    stage.shim.turn()
    assert stage.heard() is None
    assert os.read(reader, 1) == b"", "the descriptor that came along is still open"
    os.close(reader)
    again = packets.connect(str(stage.bundle), SOCKET)
    stage.channels.append(again)
    packets.send(again, Describe(seq=1))
    stage.shim.turn()
    stage.shim.turn()
    assert isinstance(stage.heard(again), Description)


def test_a_daemon_that_is_behind_is_let_go_where_there_are_no_descriptors_to_keep_for_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.make()
    monkeypatch.setattr(os, "dup", full)
    with pytest.raises(BrokenPipeError):
        for _ in range(100_000):
            packets.send(stage.daemon, Describe(seq=1))
            stage.shim.turn()
    while stage.heard() is not None:
        pass


def test_an_exec_whose_streams_cannot_be_read_is_answered_and_killed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.make()
    (stage.bundle / "exec-one.json").write_bytes(spec.encode(spec.Process(args=["true"], cwd="/")))
    packets.send(stage.daemon, Exec(seq=7, exec_id="one", stdout=True))
    stage.shim.turn()
    process = stage.child()
    monkeypatch.setattr(shim, "Streams", full)
    packets.send(stage.forks[-1], maker.Made(process.pid))
    stage.shim.turn()
    answer = stage.heard()
    assert isinstance(answer, Failed)
    assert (answer.seq, answer.exit_code) == (7, 128)
    assert process.wait(5) == -signal.SIGKILL
    packets.send(stage.daemon, Describe(seq=8))
    stage.shim.turn()
    described = stage.heard()
    assert isinstance(described, Description)
    assert described.execs == {}
