"""The OCI runtime proper: one container, from create to delete. Synchronous; for a single-threaded process.

Used by the shim, which was forked with this module loaded, and by ``seacan-runtime``. Importing has no side effects.
It knows no Docker, no log and no attach: a caller hands in descriptors and puts ``pidfd`` into its own epoll.

::

    stdio = Stdio(stdin=3, stdout=4, stderr=5)        # -1 means /dev/null; ignored when process.terminal is set
    container = Container.create(
        "c0ffee", "/run/seacan/containers/c0ffee", spec,
        root="/run/seacan/containers",               # state.json goes to <root>/<id>/state.json
        stdio=stdio,
        rootfs=OverlayRoot(...) | DirectoryRoot(...) | None,   # None: spec.root.path, as in an OCI bundle
        seccomp=b"..." | None,                       # compiled BPF (struct sock_filter[]); None: no filter
        seccomp_flags=0,                             # SECCOMP_FILTER_FLAG_*
        on_sandbox=lambda container: None,           # called as soon as pid, pidfd, netns and rtnl are there, while
    )                                                # init is still mounting
    container.pid, container.pidfd                   # pid as seen here
    container.netns, container.rtnl                  # int, or None unless a network namespace was created
    container.console                                # the pseudo-terminal's master (the caller owns it), or None
    container.start()                                # returns once execve is certain
    process = container.exec(process, stdio, seccomp=b"...")    # ExecProcess(pid, pidfd, console)
    container.kill(signal.SIGTERM); container.kill(9, everyone=True)
    container.pause(); container.resume(); container.update(resources)
    reap(container.pidfd)                            # -> Ended(exit_code, signal) or None while it runs
    container.release()                              # closes descriptors (grace periods of the namespaces happen here:
                                                     # call it after whoever waits for the exit has been told)
    container.delete(force=False)                    # cgroup, state.json, poststop hooks

``create``, ``start`` and ``exec`` raise :class:`seacan.errors.RuntimeFailed` with runc's own words (``unable to start
container process: …``; the caller puts containerd's and dockerd's prefixes before them) and exit code 127, 126 or 128;
whatever had been made is undone first. After a process of the container was created, descriptors given in ``stdio``
may be closed by the caller: it keeps no copy of its own.
"""
