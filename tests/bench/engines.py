"""An engine of ours and a dockerd to compare it with, each on a host of its own, both with the image busybox."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from seacan.images.bootstrap import busybox_archive
from tests.bench.measure import in_memory
from tests.bench.peers import Dockerd
from tests.bench.peers import dockerd as start_dockerd
from tests.hosts import Daemon, Host, scratch


@contextlib.contextmanager
def engine() -> Iterator[tuple[Path, Daemon, Path]]:
    """A scratch folder, our daemon, and the image's archive, for the time of the block."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(scratch("bench"))
        archive = folder / "busybox.tar"
        busybox_archive(archive)
        host = Host()
        stack.callback(host.close)
        stack.enter_context(in_memory(folder / "ours" / "exec"))
        ours = Daemon(folder / "ours", host).start()
        stack.callback(ours.close)
        ours.docker("load", "-i", str(archive))
        yield folder, ours, archive


@contextlib.contextmanager
def engines() -> Iterator[tuple[Path, Daemon, Dockerd | None]]:
    """A scratch folder, our daemon, and dockerd or None (then it is printed why), for the time of the block."""
    with contextlib.ExitStack() as stack:
        folder, ours, archive = stack.enter_context(engine())
        peer: Dockerd | None = None
        try:
            peer = stack.enter_context(start_dockerd())
            peer.docker("load", "-i", str(archive))
        except RuntimeError as reason:
            print(f"dockerd is not measured: {reason}")
        yield folder, ours, peer
