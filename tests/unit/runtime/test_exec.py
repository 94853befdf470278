"""Further processes in a running container."""

from __future__ import annotations

import os
import re

import pytest

from seacan.errors import RuntimeFailed
from seacan.linux import capabilities
from seacan.runtime import spec
from seacan.runtime.exec import parse_cpus
from tests.bundles import CAPABILITIES, Bundles, wait


def test_it_is_in_the_containers_namespaces_and_cgroup(bundles: Bundles) -> None:
    container = bundles.start()
    code, output = bundles.exec(container, ["sh", "-c", "hostname; ps -o pid,args; cat /proc/self/cgroup"])
    assert code == 0
    assert output.startswith("box\n")
    assert re.search(r"^ +1 sleep 1000$", output, re.M)
    assert all(line.endswith(":/") for line in output.splitlines() if re.match(r"^\d+:", line))
    for kind in ("net", "mnt", "pid", "ipc", "uts", "cgroup"):
        inside = bundles.exec(container, ["readlink", f"/proc/self/ns/{kind}"])[1].strip()
        assert inside == os.readlink(f"/proc/{container.pid}/ns/{kind}")


def test_user_groups_directory_and_environment(bundles: Bundles) -> None:
    container = bundles.start()
    code, output = bundles.exec(
        container,
        ["sh", "-c", "id; pwd; echo $A $HOME; umask"],
        env=["PATH=/bin", "A=b"],
        cwd="/tmp",
        user=spec.User(uid=1000, gid=1001, additional_gids=[5, 6], umask=0o077),
    )
    assert output == "uid=1000(user) gid=1001 groups=5,6\n/tmp\nb /home/user\n0077\n"
    assert code == 0


@pytest.mark.parametrize(
    ("uid", "ambient", "permitted"),
    [
        (0, [], CAPABILITIES),  # execve by root gives what the bounding set allows (capabilities(7))
        (1000, [], []),
        (1000, ["CAP_CHOWN"], ["CAP_CHOWN"]),
    ],
)
def test_capabilities_are_exactly_those_asked_for(
    bundles: Bundles, uid: int, ambient: list[str], permitted: list[str]
) -> None:
    container = bundles.start()
    sets = spec.Capabilities(
        bounding=CAPABILITIES, effective=CAPABILITIES, permitted=CAPABILITIES, inheritable=ambient, ambient=ambient
    )
    output = bundles.exec(
        container, ["grep", "^Cap", "/proc/self/status"], capabilities=sets, user=spec.User(uid=uid, gid=uid)
    )[1]
    found = {name: int(value, 16) for name, value in (line.split(":\t") for line in output.splitlines())}
    assert found == {
        "CapInh": capabilities.mask(ambient),
        "CapPrm": capabilities.mask(permitted),
        "CapEff": capabilities.mask(permitted),
        "CapBnd": capabilities.mask(CAPABILITIES),
        "CapAmb": capabilities.mask(ambient),
    }


@pytest.mark.parametrize(
    ("process", "message", "exit_code"),
    [
        ({"args": ["nosuch"]}, 'exec: "nosuch": executable file not found in $PATH', 127),
        ({"args": ["/nosuch"]}, 'exec: "/nosuch": stat /nosuch: no such file or directory', 127),
        ({"args": ["/bin"]}, 'exec: "/bin": is a directory', 126),
        ({"args": ["/etc/passwd"]}, 'exec: "/etc/passwd": permission denied', 126),
        (
            {"args": ["true"], "cwd": "/nosuch"},
            'chdir to cwd ("/nosuch") set in config.json failed: no such file or directory',
            127,
        ),
    ],
)
def test_what_cannot_be_executed_fails_in_runcs_words(
    bundles: Bundles, process: dict[str, object], message: str, exit_code: int
) -> None:
    container = bundles.start()
    before = set(os.listdir("/proc/self/fd"))
    args = process.pop("args")
    assert isinstance(args, list)
    with pytest.raises(RuntimeFailed) as failure:
        bundles.exec(container, args, **process)
    assert str(failure.value) == f"unable to start container process: {message}"
    assert failure.value.exit_code == exit_code
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_terminal_is_the_controlling_one_and_has_the_size(bundles: Bundles) -> None:
    container = bundles.start()
    code, output = bundles.exec(
        container,
        ["sh", "-c", "tty; stty size; echo controlling > /dev/tty"],
        terminal=True,
        console_size=spec.Box(height=33, width=99),
    )
    assert (code, output.replace("\r", "")) == (0, "/dev/pts/0\n33 99\ncontrolling\n")


def test_a_stopped_container_takes_no_process(bundles: Bundles) -> None:
    container = bundles.start(["true"])
    wait(container.pidfd)
    with pytest.raises(RuntimeFailed, match="cannot exec in a stopped container"):
        bundles.exec(container, ["true"])


def test_cpu_affinity_is_applied(bundles: Bundles) -> None:
    container = bundles.start()
    output = bundles.exec(
        container,
        ["grep", "Cpus_allowed_list", "/proc/self/status"],
        exec_cpu_affinity=spec.CPUAffinity(initial="0", final="0"),
    )[1]
    assert output.split() == ["Cpus_allowed_list:", "0"]


def test_cpu_lists_are_parsed() -> None:
    assert parse_cpus("0-2,7") == {0, 1, 2, 7}
