"""What the log drivers write: dockerd's formats to the byte, its lines, its rotation."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import re
import resource
import signal
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seacan.runtime.bundle import LogConfig
from seacan.runtime.logs import json_file, local
from seacan.runtime.logs.clock import Clock
from seacan.runtime.logs.lines import MAX_LINE
from seacan.runtime.logs.writer import LogWriter


def write(config: LogConfig, *chunks: bytes, stream: int = 1) -> LogWriter:
    writer = LogWriter(config)
    for chunk in chunks:
        writer.write(stream, chunk)
        while writer.file.compressor:
            os.waitpid(writer.file.compressor, 0)
            writer.compressed()
    writer.finish(stream)
    writer.close(lambda pid: os.waitpid(pid, 0) and None)
    return writer


def records(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- json-file --------------------------------------------------------------------------------------------------


def test_a_line_is_as_dockerd_writes_it(tmp_path: Path) -> None:
    write(LogConfig(path=str(tmp_path / "log")), b"hello world\n")
    text = (tmp_path / "log").read_bytes()
    assert re.fullmatch(
        rb'\{"log":"hello world\\n","stream":"stdout","time":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z"\}\n', text
    )


def test_streams_keep_their_own_lines_apart(tmp_path: Path) -> None:
    writer = LogWriter(LogConfig(path=str(tmp_path / "log")))
    writer.write(1, b"out 1")
    writer.write(2, b"err\n")
    writer.write(1, b" out 2\n")
    writer.close(lambda pid: None)
    assert [(record["stream"], record["log"]) for record in records(tmp_path / "log")] == [
        ("stderr", "err\n"),
        ("stdout", "out 1 out 2\n"),
    ]


def test_attributes_come_before_the_time_sorted_by_name(tmp_path: Path) -> None:
    write(LogConfig(path=str(tmp_path / "log"), attributes={"tag": "a<b", "app": 'x"y'}), b"l\n")
    assert b'"stream":"stdout","attrs":{"app":"x\\"y","tag":"a\\u003cb"},"time":"' in (tmp_path / "log").read_bytes()


@pytest.mark.parametrize(
    ("written", "logged"),
    [
        (b'say "hi"\\', rb"say \"hi\"\\"),
        (b"<a>&amp;", rb"\u003ca\u003e\u0026amp;"),
        (b"tab\there\r", rb"tab\u0009here\r"),
        (b"\x00\x1b[0m\x7f", b"\\u0000\\u001b[0m\x7f"),
        ("größe €".encode(), "größe €".encode()),
        ("\U0001f433".encode(), "\U0001f433".encode()),
        ("a\u2028b\u2029c".encode(), rb"a\u2028b\u2029c"),
        (b"bad \xff\xfe", rb"bad \ufffd\ufffd"),
        (b"cut \xe2\x82", rb"cut \ufffd\ufffd"),
        (b"cut \xf0\x9f\x90x", rb"cut \ufffd\ufffd\ufffdx"),
        (b"\xed\xa0\x80 surrogate", rb"\ufffd\ufffd\ufffd surrogate"),
        (b"\xc0\xaf overlong", rb"\ufffd\ufffd overlong"),
        ("a genuine \ufffd".encode(), "a genuine \ufffd".encode()),
        (b"\xff<\xff", rb"\ufffd\u003c\ufffd"),
    ],
)
def test_characters_are_escaped_as_by_dockerds_encoder(written: bytes, logged: bytes) -> None:
    assert json_file.escape(written) == logged


@given(st.binary())
def test_whatever_is_written_the_log_is_json_that_says_it(data: bytes) -> None:
    text = data.replace(b"\n", b"")
    decoded = json.loads(b'"' + json_file.escape(text) + b'"')
    try:
        assert decoded == text.decode()
    except UnicodeDecodeError:
        assert "\ufffd" in decoded


def test_a_last_line_without_its_end_is_logged_without_one(tmp_path: Path) -> None:
    write(LogConfig(path=str(tmp_path / "log")), b"one\ntwo")
    assert [record["log"] for record in records(tmp_path / "log")] == ["one\n", "two"]


def test_an_empty_line_is_a_line(tmp_path: Path) -> None:
    write(LogConfig(path=str(tmp_path / "log")), b"\n\na\n\n")
    assert [record["log"] for record in records(tmp_path / "log")] == ["\n", "\n", "a\n", "\n"]


@pytest.mark.parametrize("size", [MAX_LINE - 1, MAX_LINE, MAX_LINE + 1, 3 * MAX_LINE, 100_000])
@pytest.mark.parametrize("step", [2048, 5000, 65536])
def test_long_lines_are_split_at_16_kib(tmp_path: Path, size: int, step: int) -> None:
    path = tmp_path / "log"
    data = b"before\n" + b"x" * size + b"\nafter\n"
    write(LogConfig(path=str(path)), *(data[at : at + step] for at in range(0, len(data), step)))
    logged = records(path)
    assert [record["log"] for record in (logged[0], logged[-1])] == ["before\n", "after\n"]
    parts = [str(record["log"]) for record in logged[1:-1]]
    assert [len(part) for part in parts[:-1]] == [MAX_LINE] * (size // MAX_LINE)
    assert "".join(parts) == "x" * size + "\n"
    assert all(not part.endswith("\n") for part in parts[:-1])
    assert len({record["time"] for record in logged[1:-1]}) == 1


@given(st.lists(st.binary(max_size=60000), max_size=6))
def test_no_byte_is_lost_whatever_the_reads(tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    ascii_chunks = [bytes(byte % 64 + 10 for byte in chunk) for chunk in chunks]
    write(LogConfig(path=str(path)), *ascii_chunks)
    assert "".join(str(record["log"]) for record in records(path)) == b"".join(ascii_chunks).decode()


def test_times_rise_strictly_and_never_end_in_zero(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write(LogConfig(path=str(path)), b"y\n" * 20000, b"z\n" * 3)
    times = [str(record["time"]) for record in records(path)]
    assert times == sorted(set(times))
    assert all(len(time) == 30 and time[-2] != "0" for time in times)


def test_the_clock_gives_no_microsecond_twice() -> None:
    clock = Clock()
    taken = [clock.microseconds(3) for _ in range(100)]
    assert all(later - earlier >= 3 for earlier, later in itertools.pairwise(taken))


# --- local ------------------------------------------------------------------------------------------------------


def entries(path: Path) -> list[local.Entry]:
    data, at, found = path.read_bytes(), 0, []
    while at < len(data):
        (size,) = struct.unpack_from(">I", data, at)
        found.append(local.decode(data[at + 4 : at + 4 + size]))
        assert struct.unpack_from(">I", data, at + 4 + size) == (size,)
        at += size + 8
    return found


def test_local_entries_are_framed_protocol_buffers(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write(LogConfig(driver="local", path=str(path), attributes={"k": "v"}), b"hello\n\nraw \xff\n")
    data = path.read_bytes()
    (size,) = struct.unpack(">I", data[:4])
    assert data[4:14] == b"\x0a\x06stdout\x10" + data[13:14]
    assert data[22:29] == b"\x1a\x05hello"
    assert data[29 : 4 + size] == b"\x32\x06\x0a\x01k\x12\x01v"
    assert [(entry.source, entry.line, entry.attrs) for entry in entries(path)] == [
        (b"stdout", b"hello", {"k": "v"}),
        (b"stdout", b"", {"k": "v"}),
        (b"stdout", b"raw \xff", {"k": "v"}),
    ]


def test_local_entries_have_rising_times_and_parts_say_so(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write(LogConfig(driver="local", path=str(path)), b"y\n" * 1000 + b"x" * 20000 + b"\n", stream=2)
    found = entries(path)
    times = [entry.time for entry in found[:1000]]
    assert times == sorted(set(times))
    assert [(len(entry.line), entry.complete) for entry in found[1000:]] == [(MAX_LINE, False), (3616, True)]
    assert {entry.source for entry in found} == {b"stderr"}


# --- rotation ---------------------------------------------------------------------------------------------------


def test_without_a_limit_one_file_grows(tmp_path: Path) -> None:
    write(LogConfig(path=str(tmp_path / "log")), *[b"line\n" * 1000] * 20)
    assert os.listdir(tmp_path) == ["log"]


@pytest.mark.parametrize("driver", ["json-file", "local"])
def test_a_full_file_is_rotated_after_the_entry_that_filled_it(tmp_path: Path, driver: str) -> None:
    path = tmp_path / "log"
    config = LogConfig(driver=driver, path=str(path), max_size=1000, max_file=3)  # type: ignore[arg-type]
    write(config, b"".join(b"line %03d\n" % number for number in range(100)))
    assert sorted(os.listdir(tmp_path)) == ["log", "log.1", "log.2"]
    for full in ("log.1", "log.2"):
        assert 1000 <= (tmp_path / full).stat().st_size < 1100
    assert (path.stat().st_mode & 0o777) == 0o640


def test_with_one_file_the_old_entries_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write(LogConfig(path=str(path), max_size=1000), b"".join(b"%d\n" % number for number in range(100)))
    assert os.listdir(tmp_path) == ["log"]
    assert records(path)[-1]["log"] == "99\n"


@pytest.mark.parametrize("driver", ["json-file", "local"])
def test_rotated_files_are_compressed_and_nothing_is_lost(tmp_path: Path, driver: str) -> None:
    path = tmp_path / "log"
    config = LogConfig(driver=driver, path=str(path), max_size=3000, max_file=50, compress=True)  # type: ignore[arg-type]
    write(config, *(b"line %04d\n" % number for number in range(500)))
    names = sorted(os.listdir(tmp_path))
    assert "log.1.gz" in names
    assert all(name == "log" or name.endswith(".gz") for name in names)
    whole = b""
    for number in range(len(names) - 1, 0, -1):
        whole += gzip.decompress((tmp_path / f"log.{number}.gz").read_bytes())
    whole += path.read_bytes()
    assert re.findall(rb"line (\d{4})", whole) == [b"%04d" % number for number in range(500)]


def test_while_a_file_is_being_compressed_the_container_waits(tmp_path: Path) -> None:
    writer = LogWriter(LogConfig(path=str(tmp_path / "log"), max_size=500, max_file=9, compress=True))
    writer.write(1, b"".join(b"%d\n" % number for number in range(100)))
    assert writer.busy
    writer.close(lambda pid: os.waitpid(pid, 0) and None)
    assert records(tmp_path / "log")[-1]["log"] == "99\n"
    assert sorted(os.listdir(tmp_path)) == ["log", *(f"log.{number}.gz" for number in range(1, 9))]


def test_in_non_blocking_mode_the_newest_are_dropped_instead(tmp_path: Path) -> None:
    config = LogConfig(
        path=str(tmp_path / "log"), max_size=500, max_file=9, compress=True, non_blocking=True, max_buffer_size=2000
    )
    writer = LogWriter(config)
    for number in range(1000):
        writer.write(1, b"%d\n" % number)
    assert not writer.busy
    assert len(writer._waiting) <= 2000
    writer.close(lambda pid: os.waitpid(pid, 0) and None)


def test_a_log_goes_on_where_the_last_run_of_the_container_left_it(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write(LogConfig(path=str(path)), b"first\n")
    write(LogConfig(path=str(path)), b"second\n")
    assert [record["log"] for record in records(path)] == ["first\n", "second\n"]


def test_a_full_disk_costs_entries_not_the_container(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log"
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = LogWriter(LogConfig(path=str(path)))
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        writer.write(1, b"".join(b"line %d\n" % number for number in range(100)))
        writer.write(1, b"lost\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    writer.write(1, b"after\n")
    writer.close(lambda pid: None)
    logged = [record["log"] for record in records(path)]
    assert logged[0] == "line 0\n"
    assert logged[-1] == "after\n"
    assert capfd.readouterr().err.count("Failed to log message") == 1
