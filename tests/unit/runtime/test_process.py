"""What a process is given: limits, priorities, filters, identity."""

from __future__ import annotations

import os
import resource
import socket
import struct
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from seacan.errors import InvalidParameter, RuntimeFailed
from seacan.linux import syscalls as k
from seacan.runtime import process, spec
from tests.bundles import Bundles, wait

ALLOW, ERRNO_EPERM, NOTIFY = 0x7FFF0000, 0x00050001, 0x7FC00000
MKDIR = {"x86_64": 83, "aarch64": 34}[os.uname().machine]


def filter_for(number: int, action: int) -> bytes:
    """BPF: one system call answered with ``action``, the rest allowed."""
    return b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in ((0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, action), (0x06, 0, 0, ALLOW))
    )


def test_rlimits_are_set(bundles: Bundles) -> None:
    limits = [spec.Rlimit("RLIMIT_NOFILE", 200, 100), spec.Rlimit("RLIMIT_CORE", 0, 0)]
    code, output = bundles.run(bundles.spec(["sh", "-c", "ulimit -n; ulimit -Hn; ulimit -c"], rlimits=limits))
    assert (code, output) == (0, "100\n200\n0\n")


def test_a_limit_too_small_for_the_runtime_itself_is_no_obstacle(bundles: Bundles) -> None:
    limits = [spec.Rlimit("RLIMIT_NOFILE", 3, 3), spec.Rlimit("RLIMIT_AS", 1 << 23, 1 << 23)]
    assert bundles.run(bundles.spec(["sh", "-c", "ulimit -n"], rlimits=limits)) == (0, "3\n")


def test_a_limit_without_the_privilege_to_raise_it_is_refused_in_runcs_words(bundles: Bundles) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limits = [spec.Rlimit("RLIMIT_NOFILE", hard + 1, hard + 1)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard + 1))
    except (OSError, ValueError):
        with pytest.raises(RuntimeFailed, match="error setting rlimit type 7: operation not permitted"):
            bundles.run(bundles.spec(["true"], rlimits=limits))
    else:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        assert bundles.run(bundles.spec(["sh", "-c", "ulimit -n"], rlimits=limits))[1] == f"{hard + 1}\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"args": []}, "args must not be empty"),
        ({"cwd": ""}, "Cwd property must not be empty"),
        ({"cwd": "relative"}, "Cwd must be an absolute path"),
        ({"rlimits": [spec.Rlimit("RLIMIT_FOO", 1, 1)]}, "invalid rlimit type: RLIMIT_FOO"),
        ({"rlimits": [spec.Rlimit("RLIM_INFINITY", 1, 1)]}, "invalid rlimit type: RLIM_INFINITY"),
        ({"rlimits": [spec.Rlimit("RLIMIT_CORE", 1, 2)]}, "soft limit above the hard limit"),
        ({"scheduler": spec.Scheduler("SCHED_FOO")}, "invalid scheduler policy"),
        ({"io_priority": spec.IOPriority("IOPRIO_CLASS_BE", 8)}, "invalid ioPriority.Priority: 8"),
        ({"env": ["novalue"]}, "invalid environment variable"),
    ],
)
def test_a_process_that_cannot_be_is_refused(changes: dict[str, object], message: str) -> None:
    good = spec.Process(args=["true"])
    with pytest.raises(InvalidParameter, match=message):
        process.plan(msgspec.structs.replace(good, **changes), id="x")


def test_no_new_privileges(bundles: Bundles) -> None:
    command = ["grep", "NoNewPrivs", "/proc/self/status"]
    assert bundles.run(bundles.spec(command, no_new_privileges=True))[1].split()[1] == "1"
    assert bundles.run(bundles.spec(command))[1].split()[1] == "0"


@pytest.mark.parametrize("no_new_privileges", [True, False])
@pytest.mark.parametrize("uid", [0, 1000])
def test_a_seccomp_filter_is_loaded(bundles: Bundles, no_new_privileges: bool, uid: int) -> None:
    program = filter_for(MKDIR, ERRNO_EPERM)
    command = ["sh", "-c", "grep -E '^(Seccomp|CapEff):' /proc/self/status; mkdir /tmp/x"]
    effective = "0" * 16 if uid else "00000000a80425fb"
    expected = f"CapEff:\t{effective}\nSeccomp:\t2\nmkdir: can't create directory '/tmp/x': Operation not permitted\n"
    user = spec.User(uid=uid)
    configuration = bundles.spec(command, no_new_privileges=no_new_privileges, user=user)
    assert bundles.run(configuration, seccomp=program) == (1, expected)
    container = bundles.start()
    sets = configuration.process.capabilities if configuration.process else None
    assert bundles.exec(
        container, command, user=user, no_new_privileges=no_new_privileges, capabilities=sets, seccomp=program
    ) == (1, expected)


def test_a_seccomp_listener_is_handed_to_its_agent(bundles: Bundles) -> None:
    path = str(bundles.folder / "agent.sock")
    configuration = bundles.spec(["true"])
    assert configuration.linux is not None
    configuration.linux.seccomp = spec.LinuxSeccomp("SCMP_ACT_ALLOW", listener_path=path, listener_metadata="meta")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
        agent.bind(path)
        agent.listen(1)
        container = bundles.create(
            configuration,
            seccomp=filter_for(MKDIR, NOTIFY),
            seccomp_flags=k.SECCOMP_FILTER_FLAG_NEW_LISTENER,
        )
        container.start()
        connection, _ = agent.accept()
        with connection:
            data, fds, _, _ = socket.recv_fds(connection, 65536, 4)
    told = msgspec.json.decode(data, type=spec.ContainerProcessState)
    assert (told.fds, told.pid, told.metadata, told.state.id) == (["seccompFd"], container.pid, "meta", container.id)
    assert "seccomp" in os.readlink(f"/proc/self/fd/{fds[0]}")
    os.close(fds[0])
    assert wait(container.pidfd).exit_code == 0


def test_scheduler_io_priority_and_personality(bundles: Bundles) -> None:
    configuration = bundles.spec(
        ["sh", "-c", "cat /proc/self/personality; stat -c x /proc/self; awk '{print $19}' /proc/self/stat"],
        scheduler=spec.Scheduler("SCHED_BATCH", nice=7),
        io_priority=spec.IOPriority("IOPRIO_CLASS_IDLE", 0),
    )
    assert configuration.linux is not None
    configuration.linux.personality = spec.LinuxPersonality("LINUX32")
    assert bundles.run(configuration) == (0, "00000008\nx\n7\n")


def test_oom_score_adj_is_raised(bundles: Bundles) -> None:
    assert bundles.run(bundles.spec(["cat", "/proc/self/oom_score_adj"], oom_score_adj=500)) == (0, "500\n")


def test_home_comes_from_the_containers_passwd(bundles: Bundles) -> None:
    configuration = bundles.spec(["sh", "-c", "echo $HOME"], user=spec.User(uid=1000))
    assert bundles.run(configuration) == (0, "/home/user\n")
    configuration = bundles.spec(["sh", "-c", "echo $HOME"], user=spec.User(uid=4242))
    assert bundles.run(configuration) == (0, "/\n")


def test_a_missing_working_directory_is_made(bundles: Bundles) -> None:
    assert bundles.run(bundles.spec(["pwd"], cwd="/some/where")) == (0, "/some/where\n")


def test_a_working_directory_that_is_a_file_is_refused(bundles: Bundles) -> None:
    with pytest.raises(RuntimeFailed, match="mkdir /etc/passwd: not a directory"):
        bundles.run(bundles.spec(["pwd"], cwd="/etc/passwd"))


def test_a_terminal_is_stdio_and_console(bundles: Bundles) -> None:
    configuration = bundles.spec(
        ["sh", "-c", "tty; stty size; readlink /proc/self/fd/2; test -c /dev/console && echo yes; echo x > /dev/tty"],
        terminal=True,
        console_size=spec.Box(height=11, width=22),
    )
    code, output = bundles.run(configuration)
    assert (code, output.split()) == (0, ["/dev/pts/0", "11", "22", "/dev/pts/0", "yes", "x"])


def test_signal_dispositions_and_mask_are_the_defaults(bundles: Bundles) -> None:
    output = bundles.run(["grep", "-E", "^Sig(Ign|Blk)", "/proc/self/status"])[1]
    assert [int(line.split()[1], 16) for line in output.splitlines()] == [0, 0]


def test_preserved_descriptors_follow_stdio(bundles: Bundles) -> None:
    (bundles.folder / "file").write_text("content")
    pid = os.fork()
    if pid == 0:
        fd = os.open(bundles.folder / "file", os.O_RDONLY)
        os.dup2(fd, 3, inheritable=True)
        os.closerange(4, 200)
        code = 9
        try:
            configuration = bundles.spec(["sh", "-c", 'test "$(cat <&3)" = content && test ! -e /proc/self/fd/4'])
            container = bundles.create(configuration, preserve_fds=1)
            container.start()
            code = wait(container.pidfd).exit_code
            container.delete()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_stdio_belongs_to_the_user(bundles: Bundles) -> None:
    configuration = bundles.spec(["sh", "-c", "echo x > /dev/stdout"], user=spec.User(uid=1000))
    assert bundles.run(configuration) == (0, "x\n")


def test_the_state_on_disk_is_private(bundles: Bundles) -> None:
    container = bundles.start()
    assert Path(container.folder).stat().st_mode & 0o777 == 0o700
    assert Path(container.folder, "state.json").stat().st_mode & 0o777 == 0o600


def test_signals_of_the_c_library_are_not_left_ignored() -> None:
    """A caller may ignore 32 and 33 by the bare system call; no function of the C library would undo it."""
    program = (
        "import ctypes, os, sys; libc = ctypes.CDLL(None)\n"
        "action = (1).to_bytes(8, 'little') + bytes(24)\n"
        "assert libc.syscall(ctypes.c_long(k.NUMBERS['rt_sigaction']), 32, action, None, 8) == 0\n"
        "k.default_signal(32) if sys.argv[1] == 'reset' else None\n"
        "print(int([x for x in open('/proc/self/status') if x.startswith('SigIgn')][0].split()[1], 16) >> 31 & 1)\n"
    )
    prelude = "from seacan.linux import syscalls as k\n"
    for how, ignored in (("keep", "1"), ("reset", "0")):
        done = subprocess.run(
            [sys.executable, "-c", prelude + program, how], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == ignored
