"""What a shim answers to starts, with a stand-in for the process that makes the container."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from seacan.runtime import maker, packets
from seacan.runtime.bundle import DirectoryRoot, LogConfig, ShimConfig
from seacan.runtime.protocol import Created, Done, Failed, FromShim, Make, Start
from seacan.runtime.shim import Shim


class Stage:
    """A shim whose daemon and maker are the test."""

    def __init__(self, bundle: Path) -> None:
        config = ShimConfig(id="stage", rootfs=DirectoryRoot("/"), log=LogConfig(path=str(bundle / "log")))
        (bundle / "shim.json").write_bytes(msgspec.json.encode(config))
        self.daemon, theirs = packets.pair()
        self.maker, ours = packets.pair()
        self.stand_ins = [fd for _ in range(2) for fd in os.pipe2(os.O_CLOEXEC)]
        self.shim = Shim(theirs, lambda work, birth: (0, -1, ours))
        packets.send(self.daemon, Make(bundle=str(bundle)))
        self.shim.turn()
        packets.send(self.maker, maker.Sandboxed(0), self.stand_ins[:3])
        self.shim.turn()
        packets.send(self.maker, maker.Made(-1))
        self.shim.turn()
        assert isinstance(self.heard(), Created)

    def heard(self) -> FromShim:
        packet = packets.receive(self.daemon)
        assert packet is not None
        packets.close_all(packet[1])
        return msgspec.json.decode(packet[0], type=FromShim)

    def start(self, seq: int) -> None:
        packets.send(self.daemon, Start(seq=seq))
        self.shim.turn()

    def close(self) -> None:
        self.shim.strike()
        self.daemon.close()
        self.maker.close()
        packets.close_all(self.stand_ins)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.close()


def test_a_start_is_answered_when_the_container_has_begun(stage: Stage) -> None:
    stage.start(1)
    with pytest.raises(BlockingIOError):
        stage.heard()
    packets.send(stage.maker, maker.Begun())
    stage.shim.turn()
    assert stage.heard() == Done(seq=1)


def test_a_second_start_is_refused_while_the_maker_still_lingers(stage: Stage) -> None:
    stage.start(1)
    packets.send(stage.maker, maker.Begun())
    stage.shim.turn()
    assert stage.heard() == Done(seq=1)
    stage.start(2)
    answer = stage.heard()
    assert isinstance(answer, Failed)
    assert (answer.seq, answer.message) == (2, "cannot start an already running container")


def test_a_start_during_another_is_refused(stage: Stage) -> None:
    stage.start(1)
    stage.start(2)
    answer = stage.heard()
    assert isinstance(answer, Failed)
    assert answer.seq == 2


def test_room_for_the_record_of_the_exit_is_taken_before_the_container_runs(stage: Stage, tmp_path: Path) -> None:
    assert (tmp_path / "exit.json.tmp").stat().st_size >= 1024
