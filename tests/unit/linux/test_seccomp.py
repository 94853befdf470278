"""Profiles compiled through libseccomp, and what the kernel then answers."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from seacan.engine.profiles import CAPABILITIES
from seacan.engine.profiles import seccomp as profiles
from seacan.errors import InvalidParameter
from seacan.linux import seccomp, syscalls
from seacan.runtime.spec import LinuxSeccomp, LinuxSeccompArg, LinuxSyscall

pytestmark = pytest.mark.skipif(not seccomp.available(), reason="libseccomp is not installed")


def profile(default: str = "SCMP_ACT_ALLOW", *rules: LinuxSyscall, **more: object) -> LinuxSeccomp:
    return LinuxSeccomp(default_action=default, syscalls=list(rules), **more)  # type: ignore[arg-type]


def under(made: seccomp.Filter, test: Callable[[], int]) -> int:
    """What ``test`` returns (an errno, say) in a process with the filter."""
    pid = os.fork()
    if pid == 0:
        try:
            syscalls.prctl(38, 1)  # PR_SET_NO_NEW_PRIVS
            syscalls.SeccompProgram(made.program).load(made.flags)
            os._exit(test())
        except BaseException:
            os._exit(199)
    status = os.waitpid(pid, 0)[1]
    return os.waitstatus_to_exitcode(status)


def call(name: str, *arguments: int) -> Callable[[], int]:
    """Make a system call by name; gives its errno, 0 for success."""
    libc = ctypes.CDLL(None, use_errno=True)
    library = ctypes.CDLL("libseccomp.so.2")
    number = library.seccomp_syscall_resolve_name(name.encode())
    longs = [ctypes.c_long(argument) for argument in arguments]

    def make() -> int:
        ctypes.set_errno(0)
        return ctypes.get_errno() if libc.syscall(ctypes.c_long(number), *longs) < 0 else 0

    return make


def test_an_error_is_the_profiles_own() -> None:
    made = seccomp.compile(profile("SCMP_ACT_ALLOW", LinuxSyscall(["mkdir"], "SCMP_ACT_ERRNO", errno.EDOM)))
    assert under(made, call("mkdir", 0, 0)) in (errno.EDOM, errno.ENOSYS)
    assert under(made, call("getpid")) == 0


def test_what_a_filter_answers_is_known_without_asking_the_kernel() -> None:
    made = seccomp.compile(
        profile(
            "SCMP_ACT_ERRNO",
            LinuxSyscall(["mkdir"], "SCMP_ACT_ALLOW"),
            LinuxSyscall(["personality"], "SCMP_ACT_ALLOW", args=[LinuxSeccompArg(0, 8, "SCMP_CMP_EQ")]),
            LinuxSyscall(["clone"], "SCMP_ACT_ALLOW", args=[LinuxSeccompArg(0, 0x7E020000, "SCMP_CMP_MASKED_EQ", 0)]),
        )
    )
    library = ctypes.CDLL("libseccomp.so.2")

    def answers(name: str, *arguments: int) -> int:
        return seccomp.verdict(made.program, library.seccomp_syscall_resolve_name(name.encode()), arguments)

    allow, refuse = 0x7FFF0000, 0x00050000 | errno.EPERM
    assert (answers("mkdir"), answers("rmdir")) == (allow, refuse)
    assert (answers("personality", 8), answers("personality", 9)) == (allow, refuse)
    assert (answers("clone", 0x4111), answers("clone", 0x10000000 | 17)) == (allow, refuse)
    assert seccomp.verdict(made.program, 4000) == 0x00050000 | errno.ENOSYS


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (profiles.default(frozenset()), True),
        (profile("SCMP_ACT_ALLOW", LinuxSyscall(["execve"], "SCMP_ACT_ERRNO")), False),
        (profile("SCMP_ACT_ALLOW", LinuxSyscall(["clone"], "SCMP_ACT_KILL_PROCESS")), False),
        (profile("SCMP_ACT_ALLOW", LinuxSyscall(["clone3"], "SCMP_ACT_ERRNO")), False),
        (profile("SCMP_ACT_ALLOW", LinuxSyscall(["mkdir"], "SCMP_ACT_KILL_PROCESS")), True),
    ],
)
def test_whether_a_process_can_spawn_under_it_is_in_its_name(
    made: LinuxSeccomp, expected: bool, tmp_path: Path
) -> None:
    path = seccomp.compiled(made, str(tmp_path))
    assert path.endswith(seccomp.SPAWN) is expected
    assert seccomp.load(path).flags == 0

    def spawn() -> int:
        try:
            return os.waitstatus_to_exitcode(os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)[1])
        except OSError:
            return 1

    if expected:
        assert under(seccomp.load(path), spawn) == 0


def test_an_argument_decides() -> None:
    rule = LinuxSyscall(
        ["personality"], "SCMP_ACT_ERRNO", errno.EXDEV, [LinuxSeccompArg(index=0, value=8, op="SCMP_CMP_EQ")]
    )
    made = seccomp.compile(profile("SCMP_ACT_ALLOW", rule))
    assert under(made, call("personality", 8)) == errno.EXDEV
    assert under(made, call("personality", 0xFFFFFFFF)) == 0


def test_several_conditions_on_one_argument_are_alternatives() -> None:
    either = [LinuxSeccompArg(index=0, value=value, op="SCMP_CMP_EQ") for value in (8, 9)]
    made = seccomp.compile(profile("SCMP_ACT_ALLOW", LinuxSyscall(["personality"], "SCMP_ACT_ERRNO", 5, either)))
    assert [under(made, call("personality", value)) for value in (8, 9, 0xFFFFFFFF)] == [5, 5, 0]


def test_killing_kills() -> None:
    made = seccomp.compile(profile("SCMP_ACT_ALLOW", LinuxSyscall(["getppid"], "SCMP_ACT_KILL_PROCESS")))
    assert under(made, call("getppid")) == -31  # SIGSYS


def test_what_is_newer_than_the_profile_does_not_exist() -> None:
    """So that a C library falls back, rather than fails with the profile's EPERM."""
    made = seccomp.compile(profiles.default(CAPABILITIES))
    libc = ctypes.CDLL(None, use_errno=True)

    def newer() -> int:
        ctypes.set_errno(0)
        libc.syscall(ctypes.c_long(900))
        return ctypes.get_errno()

    assert under(made, newer) == errno.ENOSYS
    assert under(made, call("add_key", 0, 0, 0, 0, 0)) == errno.EPERM


@pytest.mark.parametrize(
    ("name", "arguments", "answer"),
    [
        ("mount", (0, 0, 0, 0, 0), errno.EPERM),
        ("unshare", (0x10000000,), errno.EPERM),
        ("clone3", (0, 0), errno.ENOSYS),
        ("bpf", (0, 0, 0), errno.EPERM),
        ("keyctl", (0, 0, 0, 0, 0), errno.EPERM),
        ("open_by_handle_at", (0, 0, 0), errno.EPERM),
        ("kexec_load", (0, 0, 0, 0), errno.EPERM),
        ("socket", (40, 1, 0), errno.EPERM),
        ("socket", (38, 5, 0), errno.EPERM),
        ("io_uring_setup", (0, 0), errno.EPERM),
        ("getpid", (), 0),
    ],
)
def test_the_default_profile_refuses_what_dockers_does(name: str, arguments: tuple[int, ...], answer: int) -> None:
    assert under(seccomp.compile(profiles.default(CAPABILITIES)), call(name, *arguments)) == answer


def test_a_compiled_profile_is_kept_by_content(tmp_path: Path) -> None:
    first = seccomp.compiled(profile("SCMP_ACT_ALLOW", flags=["SECCOMP_FILTER_FLAG_LOG"]), str(tmp_path))
    again = seccomp.compiled(profile("SCMP_ACT_ALLOW", flags=["SECCOMP_FILTER_FLAG_LOG"]), str(tmp_path))
    other = seccomp.compiled(profile("SCMP_ACT_LOG"), str(tmp_path))
    assert first == again != other
    assert seccomp.load(first).flags == seccomp.FILTER_FLAG_LOG
    assert sorted(entry.suffix for entry in tmp_path.iterdir()) == [".bpf", ".bpf"]


def test_a_damaged_file_is_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "x-0.bpf").write_bytes(b"12345")
    with pytest.raises(InvalidParameter, match="no compiled seccomp filter"):
        seccomp.load(str(tmp_path / "x-0.bpf"))


def test_notification_needs_a_listener() -> None:
    made = seccomp.compile(profile("SCMP_ACT_ALLOW", LinuxSyscall(["mkdir"], "SCMP_ACT_NOTIFY")))
    assert made.listener


@pytest.mark.parametrize(
    "wrong",
    [
        profile("SCMP_ACT_NOTIFY"),
        profile("SCMP_ACT_FOO"),
        profile("SCMP_ACT_ALLOW", flags=["SECCOMP_FILTER_FLAG_FOO"]),
        profile("SCMP_ACT_ALLOW", architectures=["SCMP_ARCH_FOO"]),
        profile("SCMP_ACT_ALLOW", LinuxSyscall(["write"], "SCMP_ACT_NOTIFY")),
        profile("SCMP_ACT_ALLOW", LinuxSyscall(["read"], "SCMP_ACT_ALLOW", 5)),
        profile(
            "SCMP_ACT_ALLOW", LinuxSyscall(["read"], "SCMP_ACT_KILL", None, [LinuxSeccompArg(6, 0, "SCMP_CMP_EQ")])
        ),
        profile("SCMP_ACT_ALLOW", LinuxSyscall(["read"], "SCMP_ACT_KILL", None, [LinuxSeccompArg(0, 0, "SCMP_CMP_X")])),
    ],
)
def test_what_is_no_profile_is_refused(wrong: LinuxSeccomp) -> None:
    with pytest.raises(InvalidParameter):
        seccomp.compile(wrong)


def test_a_system_call_nobody_knows_is_skipped() -> None:
    assert seccomp.compile(profile("SCMP_ACT_ALLOW", LinuxSyscall(["no_such_call"], "SCMP_ACT_ERRNO"))).program
