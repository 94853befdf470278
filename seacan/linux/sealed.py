"""Run the interpreter from a file that nobody can write to through us (CVE-2019-5736).

/proc/<pid>/exe of a process that becomes a container's is a way to the interpreter on the host, and a container with
CAP_SYS_PTRACE may follow it even into a process that is not dumpable. Executed through a read-only copy of its mount,
which is in no namespace and so can be remounted by nobody, the file behind that link cannot be opened for writing.
"""

from __future__ import annotations

import os
import sys

from seacan.linux import syscalls as k


def is_sealed() -> bool:
    """Whether this interpreter runs from a read-only mount."""
    return bool(os.statvfs("/proc/self/exe").f_flag & os.ST_RDONLY)


def reexec() -> None:
    """Execute this program anew from a read-only mount; returns at once if it already is, or if the kernel has no
    detached mounts (before Linux 5.12), or we lack the privilege to make one."""
    if is_sealed():
        return
    try:
        interpreter = k.open_tree(k.AT_FDCWD, os.path.realpath("/proc/self/exe"), k.OPEN_TREE_CLONE)
    except OSError:
        return
    try:
        k.mount_setattr(interpreter, set=k.MOUNT_ATTR_RDONLY)
        if os.statvfs(interpreter).f_flag & os.ST_RDONLY:  # else executing it would never end
            os.execve(interpreter, sys.orig_argv, os.environ)  # noqa: S606
    except OSError:
        pass
    os.close(interpreter)
