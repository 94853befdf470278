"""System calls by their own names."""

from __future__ import annotations

import errno
import os

import pytest

from seacan.linux import capabilities, sealed
from seacan.linux import syscalls as k


def test_an_error_names_what_it_was_about() -> None:
    with pytest.raises(FileNotFoundError) as failure:
        k.open_tree(k.AT_FDCWD, "/nosuch")
    assert (failure.value.errno, failure.value.filename) == (errno.ENOENT, "/nosuch")


def test_clone3_forks_with_a_pidfd() -> None:
    pid, pidfd = k.clone3(0)
    if pid == 0:
        os._exit(7)
    result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    os.close(pidfd)
    assert result is not None
    assert (result.si_pid, result.si_status) == (pid, 7)


def test_close_range_marks_and_closes() -> None:
    pid = os.fork()
    if pid == 0:
        first = os.open("/", os.O_RDONLY)
        os.set_inheritable(first, True)
        k.close_range(3, flags=k.CLOSE_RANGE_CLOEXEC)
        marked = not os.get_inheritable(first)
        k.close_range(3)
        try:
            os.fstat(first)
            os._exit(1)
        except OSError:
            os._exit(0 if marked else 2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_an_unknown_option_of_a_file_system_is_explained_in_its_words() -> None:
    if os.geteuid() != 0:
        pytest.skip("fsopen needs root")
    fs = k.fsopen("tmpfs")
    try:
        with pytest.raises(OSError, match="nosuchoption"):
            k.fsconfig_string(fs, "nosuchoption", "1")
    finally:
        os.close(fs)


def test_capability_masks_go_both_ways() -> None:
    names = ["CAP_CHOWN", "CAP_CHECKPOINT_RESTORE"]
    assert capabilities.mask(names) == 1 | 1 << 40
    assert capabilities.names(1 | 1 << 40) == names
    assert capabilities.unknown([*names, "CAP_FLY"]) == ["CAP_FLY"]
    assert capabilities.packed(1 << 40, 1, 0)[1] == b"\0\0\0\0\1\0\0\0" + b"\0\0\0\0\0\1\0\0" + b"\0" * 8


def test_a_malformed_seccomp_program_is_refused() -> None:
    with pytest.raises(OSError, match="sock_filter"):
        k.SeccompProgram(b"1234567")


def test_this_interpreter_is_not_sealed_unless_its_file_system_is_read_only() -> None:
    assert sealed.is_sealed() == bool(os.statvfs(os.path.realpath("/proc/self/exe")).f_flag & os.ST_RDONLY)
