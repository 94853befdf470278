"""Tables, words for sizes and times, and the rows of the commands."""

from __future__ import annotations

import time
from typing import Any

import pytest

from seacan.cli.container import ports_text, ps_row, stats_row
from seacan.cli.image import image_rows, split_reference
from seacan.cli.output import (
    binary_size,
    ellipsis,
    human_size,
    tabulate,
    unix_time,
    write_inspect,
    write_rows,
)
from seacan.cli.system import df_rows, event_line, info_lines
from seacan.cli.template import TemplateError
from seacan.engine.times import human_duration

HEADERS = {"ID": "CONTAINER ID", "Names": "NAMES"}
ROWS = [{"ID": "aaaa", "Names": "web", "Label": lambda name: f"<{name}>"}, {"ID": "b", "Names": "a-long-name-here"}]
TABLE = r"table {{.ID}}\t{{.Names}}"


def written(capsys: pytest.CaptureFixture[str], form: str, **options: Any) -> str:
    write_rows(ROWS, form, TABLE, HEADERS, quiet="{{.ID}}", **options)
    return capsys.readouterr().out


def test_columns_are_aligned_as_docker_aligns_them() -> None:
    assert tabulate([["A", "B"], ["long-long-long", "x"]]) == "A                B\nlong-long-long   x\n"
    assert tabulate([["A", "B"]]) == "A         B\n"
    assert tabulate([]) == ""


def test_the_default_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert written(capsys, "") == "CONTAINER ID   NAMES\naaaa           web\nb              a-long-name-here\n"
    assert written(capsys, "table") == written(capsys, "")


def test_quiet_prints_ids_unless_a_format_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert written(capsys, "", is_quiet=True) == "aaaa\nb\n"
    assert written(capsys, "{{.Names}}", is_quiet=True) == "web\na-long-name-here\n"


def test_a_template_is_written_for_each_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert written(capsys, r"{{.ID}}\t{{upper .Names}}") == "aaaa\tWEB\nb\tA-LONG-NAME-HERE\n"


def test_a_table_of_ones_own_has_headers(capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(ROWS[:1], r'table {{upper .Names}}\t{{.Label "com.my-key"}}', TABLE, HEADERS)
    assert capsys.readouterr().out == "NAMES     my key\nWEB       <com.my-key>\n"


def test_json_has_the_columns_and_no_methods(capsys: pytest.CaptureFixture[str]) -> None:
    expected = '{"ID":"aaaa","Names":"web"}\n{"ID":"b","Names":"a-long-name-here"}\n'
    assert written(capsys, "json") == expected
    assert written(capsys, "{{json .}}") == expected


def test_an_unknown_column_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TemplateError):
        written(capsys, "{{.Nope}}")


def test_inspect_prints_an_array_or_a_template_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    write_inspect([{"A": 1}], "")
    assert capsys.readouterr().out == '[\n    {\n        "A": 1\n    }\n]\n'
    write_inspect([{"A": 1}, {"A": 2}], "{{.A}}")
    assert capsys.readouterr().out == "1\n2\n"
    with pytest.raises(TemplateError, match=r"template parsing error: template: .*no entry"):
        write_inspect([{"A": 1}], "{{.B}}")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.5, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (60, "About a minute"),
        (119, "About a minute"),
        (120, "2 minutes"),
        (3600, "About an hour"),
        (7200, "2 hours"),
        (2 * 86400, "2 days"),
        (15 * 86400, "2 weeks"),
        (70 * 86400, "2 months"),
        (800 * 86400, "2 years"),
    ],
)
def test_durations_are_told_in_dockers_words(seconds: float, text: str) -> None:
    assert human_duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0B"), (999, "999B"), (1000, "1kB"), (4_490_000, "4.49MB"), (128_000_000, "128MB"), (1e9, "1GB")],
)
def test_sizes_are_told_in_dockers_words(size: float, text: str) -> None:
    assert human_size(size) == text


def test_memory_is_told_in_binary_units() -> None:
    assert binary_size(4 << 30) == "4GiB"
    assert binary_size(1_288_490_188) == "1.2GiB"
    assert binary_size(500) == "500B"


def test_long_text_ends_in_an_ellipsis() -> None:
    assert ellipsis("abcdef", 6) == "abcdef"
    assert ellipsis("abcdefg", 6) == "abcde…"


def test_times_are_read_with_nanoseconds_and_zones() -> None:
    assert unix_time("1970-01-01T00:00:01.5Z") == 1.5
    assert unix_time("1970-01-01T01:00:00.123456789+01:00") == pytest.approx(0.123456789)
    assert unix_time("nonsense") == 0.0


def port(private: int, public: int = 0, ip: str = "", kind: str = "tcp") -> dict[str, Any]:
    return {"PrivatePort": private, "Type": kind, **({"IP": ip, "PublicPort": public} if ip else {})}


@pytest.mark.parametrize(
    ("ports", "text"),
    [
        ([], ""),
        ([port(80)], "80/tcp"),
        ([port(80), port(81), port(83)], "80-81/tcp, 83/tcp"),
        ([port(80, 80, "0.0.0.0"), port(81, 81, "0.0.0.0")], "0.0.0.0:80-81->80-81/tcp"),
        ([port(80, 8080, "0.0.0.0"), port(80, 8080, "::")], "0.0.0.0:8080->80/tcp, [::]:8080->80/tcp"),
        ([port(53, kind="udp"), port(53)], "53/tcp, 53/udp"),
    ],
)
def test_ports_are_grouped_as_docker_groups_them(ports: list[dict[str, Any]], text: str) -> None:
    assert ports_text(ports) == text


def test_a_container_is_shown_as_docker_shows_it() -> None:
    item = {
        "Id": "0123456789abcdef" * 4,
        "Names": ["/other/web", "/web"],
        "Image": "busybox@sha256:" + "a" * 64,
        "ImageID": "sha256:" + "b" * 64,
        "Command": 'sh -c "a very long command line"',
        "Created": time.time() - 7200,
        "Status": "Up 2 hours",
        "State": "running",
        "Labels": {"b": "2", "a": "1"},
        "Mounts": [{"Name": "a-rather-long-volume-name", "Driver": "local"}, {"Source": "/x"}],
        "NetworkSettings": {"Networks": {"bridge": {}}},
        "SizeRw": 12,
        "SizeRootFs": 2_000_000,
    }
    row = ps_row(item, truncate=True)
    assert row["ID"] == "0123456789ab"
    assert row["Names"] == "web"
    assert row["Image"] == "busybox"
    assert row["Command"] == '"sh -c \\"a very long …"'
    assert row["RunningFor"] == "2 hours ago"
    assert row["Labels"] == "a=1,b=2" and row["Label"]("b") == "2" and row["Label"]("c") == ""
    assert row["Mounts"] == "a-rather-long-…,/x" and row["LocalVolumes"] == "1"
    assert row["Size"] == "12B (virtual 2MB)"
    whole = ps_row(item, truncate=False)
    assert whole["ID"] == item["Id"] and whole["Names"] == "other/web,web" and whole["Image"] == item["Image"]


def test_an_image_has_a_row_for_each_tag_and_digest() -> None:
    digest = "sha256:" + "d" * 64
    item = {
        "Id": "sha256:" + "a" * 64,
        "Created": 0,
        "Size": 1_000_000,
        "RepoTags": ["busybox:latest", "busybox:1", "r.example:5000/x/y:z"],
        "RepoDigests": [f"busybox@{digest}", f"other@{digest}"],
    }
    rows = [(row["Repository"], row["Tag"], row["Digest"]) for row in image_rows(item, truncate=True, digests=False)]
    assert rows == [
        ("busybox", "latest", "<none>"),
        ("busybox", "1", "<none>"),
        ("r.example:5000/x/y", "z", "<none>"),
        ("other", "<none>", ""),
    ]
    rows = [(row["Repository"], row["Digest"]) for row in image_rows(item, truncate=True, digests=True)]
    assert rows == [("busybox", digest), ("busybox", digest), ("r.example:5000/x/y", "<none>"), ("other", digest)]
    dangling = image_rows({**item, "RepoTags": [], "RepoDigests": []}, truncate=True, digests=False)
    assert (dangling[0]["Repository"], dangling[0]["CreatedSince"]) == ("<none>", "")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a", ("a", "")),
        ("a:b", ("a", "b")),
        ("h:5000/a", ("h:5000/a", "")),
        ("h:5000/a:b", ("h:5000/a", "b")),
        ("a@sha256:x", ("a", "sha256:x")),
        ("h:1/a:b@sha256:x", ("h:1/a", "sha256:x")),
    ],
)
def test_references_are_split(text: str, parts: tuple[str, str]) -> None:
    assert split_reference(text) == parts


def test_statistics_are_reckoned_as_docker_reckons_them() -> None:
    sample = {
        "id": "a" * 64,
        "name": "/web",
        "cpu_stats": {"cpu_usage": {"total_usage": 300}, "system_cpu_usage": 2000, "online_cpus": 2},
        "precpu_stats": {"cpu_usage": {"total_usage": 100}, "system_cpu_usage": 1000},
        "memory_stats": {"usage": 3 << 20, "limit": 8 << 20, "stats": {"inactive_file": 1 << 20}},
        "networks": {"eth0": {"rx_bytes": 1000, "tx_bytes": 2000}},
        "blkio_stats": {"io_service_bytes_recursive": [{"op": "Read", "value": 5}, {"op": "write", "value": 6}]},
        "pids_stats": {"current": 3},
    }
    row = stats_row("web", sample, truncate=True)
    assert (row["ID"], row["Name"], row["CPUPerc"]) == ("a" * 12, "web", "40.00%")
    assert (row["MemUsage"], row["MemPerc"]) == ("2MiB / 8MiB", "25.00%")
    assert (row["NetIO"], row["BlockIO"], row["PIDs"]) == ("1kB / 2kB", "5B / 6B", "3")
    assert stats_row("web", None, truncate=True)["MemUsage"] == "-- / --"


def test_events_are_printed_on_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    event = {
        "Type": "container",
        "Action": "start",
        "Actor": {"ID": "abc", "Attributes": {"name": "web", "image": "busybox"}},
        "time": 1,
        "timeNano": 1_000_000_005,
    }
    assert event_line(event) == "1970-01-01T00:00:01.000000005Z container start abc (image=busybox, name=web)"


def test_disk_usage_sums_up() -> None:
    usage = {
        "LayersSize": 100,
        "Images": [{"Size": 80, "SharedSize": 30, "Containers": 1}, {"Size": 50, "SharedSize": 30, "Containers": 0}],
        "Containers": [{"State": "running", "SizeRw": 10}, {"State": "exited", "SizeRw": 5}],
        "Volumes": [{"UsageData": {"Size": 7, "RefCount": 0}}, {"UsageData": {"Size": 3, "RefCount": 1}}],
        "BuildCache": [{"Size": 4, "InUse": False, "Shared": False}],
    }
    rows = [(row["TotalCount"], row["Active"], row["Size"], row["Reclaimable"]) for row in df_rows(usage)]
    assert rows == [
        ("2", "1", "100B", "50B (50%)"),
        ("2", "1", "15B", "5B (33%)"),
        ("2", "1", "10B", "7B (70%)"),
        ("1", "0", "4B", "4B"),
    ]


def test_info_shows_what_the_daemon_says() -> None:
    found = {
        **dict.fromkeys(("Containers", "ContainersRunning", "ContainersPaused", "ContainersStopped", "Images"), 1),
        "Driver": "overlay2",
        "DriverStatus": [["Backing Filesystem", "extfs"]],
        "SecurityOptions": ["name=seccomp,profile=builtin"],
        "NCPU": 2,
        "MemTotal": 1 << 30,
        "DockerRootDir": "/d",
        "Labels": ["a=b"],
        "CDISpecDirs": ["/etc/cdi"],
        "DiscoveredDevices": [{"Source": "cdi", "ID": "vendor.com/net=x"}],
    }
    lines = info_lines(found)
    assert lines[lines.index(" CDI spec directories:") + 1] == "  /etc/cdi"
    assert lines[lines.index(" Discovered Devices:") + 1] == "  cdi: vendor.com/net=x"
    assert "  Backing Filesystem: extfs" in lines
    assert lines[lines.index("  seccomp") + 1] == "   Profile: builtin"
    assert " Total Memory: 1GiB" in lines
    assert lines[lines.index(" Labels:") + 1] == "  a=b"
