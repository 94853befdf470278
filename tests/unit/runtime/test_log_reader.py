"""Reading logs back: options as of ``docker logs``, rotated files, and logs that grow."""

from __future__ import annotations

import asyncio
import os
import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from seacan.errors import Unsupported
from seacan.runtime.bundle import LogConfig
from seacan.runtime.logs import ReadOptions, read
from seacan.runtime.logs.writer import LogWriter

DRIVERS = ["json-file", "local"]


class Log:
    """A log that is written by the real writer."""

    def __init__(self, path: Path, driver: str, **config: Any) -> None:
        self.config = LogConfig(driver=driver, path=str(path / "log"), **config)  # type: ignore[arg-type]
        self.writer = LogWriter(self.config)

    def write(self, data: bytes, stream: int = 1) -> None:
        self.writer.write(stream, data)
        while self.writer.file.compressor:
            os.waitpid(self.writer.file.compressor, 0)
            self.writer.compressed()

    def reader(self, ended: asyncio.Future[object] | None = None, **options: Any) -> AsyncIterator[bytes]:
        return read(self.config, ReadOptions(**{"multiplexed": False, **options}), ended)

    async def read(self, **options: Any) -> bytes:
        async with asyncio.timeout(20):
            return b"".join([chunk async for chunk in self.reader(**options)])


@pytest.fixture(params=DRIVERS)
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Log:
    return Log(tmp_path, request.param)


def numbered(first: int, last: int) -> bytes:
    return b"".join(b"line %d\n" % number for number in range(first, last + 1))


async def test_everything_comes_back_as_it_was_written(log: Log) -> None:
    data = b'tab\t "quoted" <&> \\ \xc3\xbc\n\n' + b"x" * 40000 + b"\n" + numbered(1, 5000) + b"no end"
    log.write(data)
    log.writer.finish(1)
    assert await log.read() == data


@pytest.mark.parametrize("follow", [False, True])
async def test_what_is_removed_once_reading_has_begun_is_read_all_the_same(log: Log, follow: bool) -> None:
    log.write(numbered(1, 3))
    ended: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    reader = log.reader(ended, follow=follow)
    assert await anext(reader) == b""
    os.unlink(log.config.path)
    ended.set_result(None)
    assert b"".join([chunk async for chunk in reader]) == numbered(1, 3)


async def test_entries_are_multiplexed_by_stream(log: Log) -> None:
    log.write(b"out\n")
    log.write(b"err\n", 2)
    assert (
        await log.read(multiplexed=True)
        == struct.pack(">BxxxL", 1, 4) + b"out\n" + struct.pack(">BxxxL", 2, 4) + b"err\n"
    )
    assert await log.read(stderr=False) == b"out\n"
    assert await log.read(stdout=False) == b"err\n"


async def test_timestamps_have_nine_digits(log: Log) -> None:
    log.write(b"a\nb\n")
    lines = (await log.read(timestamps=True)).splitlines()
    assert all(len(line.split(b" ")[0]) == 30 and line.split(b" ")[0].endswith(b"Z") for line in lines)


async def test_details_are_the_attributes_url_encoded_and_sorted(tmp_path: Path) -> None:
    for driver in DRIVERS:
        (tmp_path / driver).mkdir()
        log = Log(tmp_path / driver, driver, attributes={"b": "x y", "a": "1,=~"})
        log.write(b"text\n")
        assert await log.read(details=True) == b"a=1%2C%3D~,b=x+y text\n"
        stamped = await log.read(details=True, timestamps=True)
        assert stamped[30:] == b" a=1%2C%3D~,b=x+y text\n"


@pytest.mark.parametrize("tail", [0, 1, 3, 100, 4999, 5000, 6000])
async def test_tail_counts_entries_from_the_end(log: Log, tail: int) -> None:
    log.write(numbered(1, 5000))
    assert await log.read(tail=tail) == numbered(max(1, 5001 - tail), 5000)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("tail", [-1, 7, 150, 400])
async def test_rotated_files_are_read_too(tmp_path: Path, driver: str, compress: bool, tail: int) -> None:
    log = Log(tmp_path, driver, max_size=4000, max_file=20, compress=compress)
    for number in range(1, 401):
        log.write(b"line %d\n" % number)
    assert len(os.listdir(tmp_path)) >= 4
    assert await log.read(tail=tail) == numbered(1 if tail < 0 else 401 - tail, 400)


async def test_since_and_until(log: Log) -> None:
    log.write(b"early\n")
    time.sleep(0.01)
    first = time.time_ns()
    time.sleep(0.01)
    log.write(b"middle\n")
    time.sleep(0.01)
    second = time.time_ns()
    time.sleep(0.01)
    log.write(b"late\n")
    assert await log.read(since=first) == b"middle\nlate\n"
    assert await log.read(until=second) == b"early\nmiddle\n"
    assert await log.read(since=first, until=second) == b"middle\n"
    assert await log.read(since=time.time_ns()) == b""


async def test_times_with_fewer_digits_are_understood(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(
        '{"log":"a\\n","stream":"stdout","time":"2024-05-01T10:00:00Z"}\n'
        '{"log":"b\\n","stream":"stdout","time":"2024-05-01T10:00:00.5Z"}\n'
        '{"log":"c\\n","stream":"stdout","time":"2024-05-01T12:00:00.25+02:00"}\n'
    )
    config = LogConfig(path=str(tmp_path / "log"))
    options = ReadOptions(timestamps=True, multiplexed=False)
    assert b"".join([chunk async for chunk in read(config, options)]).splitlines() == [
        b"2024-05-01T10:00:00.000000000Z a",
        b"2024-05-01T10:00:00.500000000Z b",
        b"2024-05-01T10:00:00.250000000Z c",
    ]


async def test_damage_costs_only_the_damaged_entries(tmp_path: Path) -> None:
    log = Log(tmp_path, "json-file")
    log.write(b"one\n")
    with open(log.config.path, "ab") as file:
        file.write(b'{"log":"tor\n\x00\x00\x00\n[]\n')
    log.write(b"two\n")
    assert await log.read() == b"one\ntwo\n"


async def test_a_cut_off_local_log_ends_with_the_last_whole_entry(tmp_path: Path) -> None:
    log = Log(tmp_path, "local")
    log.write(b"one\ntwo\n")
    os.truncate(log.config.path, os.path.getsize(log.config.path) - 3)
    assert await log.read() == b"one\n"


async def test_no_log_yet_is_an_empty_one(tmp_path: Path) -> None:
    config = LogConfig(path=str(tmp_path / "log"))
    assert [chunk async for chunk in read(config, ReadOptions())] == [b""]


async def test_the_none_driver_cannot_be_read() -> None:
    with pytest.raises(Unsupported, match="does not support reading"):
        [chunk async for chunk in read(LogConfig(driver="none"), ReadOptions())]


# --- following --------------------------------------------------------------------------------------------------


class Follower:
    def __init__(self, log: Log, **options: Any) -> None:
        self.ended: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._stream = log.reader(self.ended, follow=True, **options)
        self.seen = b""
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for chunk in self._stream:
            self.seen += chunk

    async def until(self, text: bytes) -> None:
        async with asyncio.timeout(20):
            while not self.seen.endswith(text):
                await asyncio.sleep(0.001)

    async def end(self) -> bytes:
        self.ended.set_result(None)
        async with asyncio.timeout(20):
            await self._reading
        return self.seen


async def test_following_shows_what_is_there_and_what_comes(log: Log) -> None:
    log.write(b"before\n")
    follower = Follower(log)
    await follower.until(b"before\n")
    log.write(b"after\n")
    await follower.until(b"after\n")
    log.write(b"last\n")
    assert await follower.end() == b"before\nafter\nlast\n"


async def test_following_from_the_end_shows_only_what_comes(log: Log) -> None:
    log.write(b"before\n")
    follower = Follower(log, tail=0)
    await asyncio.sleep(0.1)
    log.write(b"after\n")
    await follower.until(b"after\n")
    assert await follower.end() == b"after\n"


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(("max_file", "compress"), [(1, False), (5, False), (5, True)])
async def test_following_survives_rotation(tmp_path: Path, driver: str, max_file: int, compress: bool) -> None:
    log = Log(tmp_path, driver, max_size=1500, max_file=max_file, compress=compress)
    follower = Follower(log)
    await asyncio.sleep(0.05)
    for number in range(1, 91):
        log.write(b"line %d\n" % number)
        await follower.until(b"line %d\n" % number)
    assert await follower.end() == numbered(1, 90)


async def test_a_follower_that_falls_behind_catches_up_through_rotated_files(tmp_path: Path) -> None:
    log = Log(tmp_path, "json-file", max_size=2000, max_file=50)
    follower = Follower(log)
    await asyncio.sleep(0.05)
    for number in range(1, 501):  # without giving it a turn
        log.write(b"line %d\n" % number)
    await follower.until(b"line 500\n")
    assert await follower.end() == numbered(1, 500)


async def test_following_keeps_no_descriptor_of_files_it_has_left(tmp_path: Path) -> None:
    log = Log(tmp_path, "json-file", max_size=200, max_file=3)
    follower = Follower(log)
    await asyncio.sleep(0.05)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(1, 101):
        log.write(b"line %d\n" % number)
        await follower.until(b"line %d\n" % number)
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    await follower.end()


async def test_following_until_a_time_ends_then(log: Log) -> None:
    log.write(b"now\n")
    assert await log.read(follow=True, until=time.time_ns() + 300_000_000) == b"now\n"


async def test_a_container_that_has_ended_has_nothing_to_follow(log: Log) -> None:
    log.write(b"all\n")
    follower = Follower(log)
    assert await follower.end() == b"all\n"
