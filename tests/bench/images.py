"""Images on their way: load, save, push and pull, ours and dockerd's, from one registry on a host of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from uuid import uuid4

from seacan.images.bootstrap import busybox_archive
from tests.bench.measure import Row, Table
from tests.bench.peers import dockerd as start_dockerd
from tests.hosts import DOCKER, REPOSITORY, Daemon, Host, scratch

RUNS = 3
LAYERS, FILES, BYTES = 6, 22_000, 320_000_000
BIG = 1_000_000_000
NETWORK = "10.213.0.0/16"
IMAGE = "bench-image"


class Side:
    """An engine, and the address by which it reaches the registry."""

    def __init__(self, environment: Mapping[str, str], registry: str) -> None:
        self.environment = dict(environment)
        self.registry = registry

    def docker(self, *argv: str, **options: object) -> float:
        """Seconds that a docker command takes."""
        begun = time.perf_counter()
        subprocess.run(  # type: ignore[call-overload]
            [str(DOCKER), *argv], env=self.environment, check=True, capture_output="stdout" not in options, **options
        )
        return time.perf_counter() - begun


def measure() -> list[Table]:
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(scratch("bench"))
        shop = Host("registry")
        stack.callback(shop.close)
        host = Host()
        stack.callback(host.close)
        shop.wire(host, "10.213.1.1/24", "10.213.1.2/24", name="ours")
        daemon = Daemon(folder / "ours", host, [f"--insecure-registry={NETWORK}"]).start()
        stack.callback(daemon.close)
        sides = [Side(daemon.environment(), "10.213.1.1:5000")]
        try:
            peer = stack.enter_context(start_dockerd(f"--insecure-registry={NETWORK}"))
            shop.wire(peer.host, "10.213.2.1/24", "10.213.2.2/24", name="theirs")
            sides.append(Side(peer.environment(), "10.213.2.1:5000"))
        except RuntimeError as reason:
            print(f"dockerd is not measured: {reason}")
        archive = _image(folder, daemon)
        table = Table("Images")
        table.rows += _load_and_save(folder, archive, sides)
        table.rows += _push_and_pull(folder, shop, sides)
        table.rows.append(_peak(folder, shop, daemon, sides[0]))
        return [table]


@contextlib.contextmanager
def _registry(shop: Host, root: Path) -> Iterator[None]:
    """An empty registry, gone afterwards."""
    serve = ["registry", "serve", "--root", str(root), "--listen", "0.0.0.0:5000"]
    process = subprocess.Popen(
        shop.command(sys.executable, "-m", "seacan.cli.main", *serve), stdout=subprocess.PIPE, cwd=REPOSITORY
    )
    assert process.stdout is not None
    try:
        assert b"listening" in process.stdout.readline()
        yield
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()
        shutil.rmtree(root, ignore_errors=True)


def _image(folder: Path, daemon: Daemon) -> Path:
    """A saved image of some layers with what a Python installation consists of; the engine keeps nothing of it."""
    busybox = folder / "busybox.tar"
    busybox_archive(busybox)
    daemon.docker("load", "-i", str(busybox))
    context = folder / "context"
    files = size = 0
    for parent, folders, names in os.walk(sys.base_prefix):
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name)
            if files >= FILES or size >= BYTES or path.is_symlink() or not path.is_file():
                continue
            target = context / f"part{files * LAYERS // FILES}" / path.relative_to(sys.base_prefix)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            files, size = files + 1, size + path.stat().st_size
    print(f"the image has {files:,} files of {size / 1e6:.0f} MB")
    lines = ["FROM busybox", *(f"COPY {part.name} /usr" for part in sorted(context.iterdir()))]
    daemon.docker("build", "-q", "-t", IMAGE, "-f", "-", str(context), input="\n".join(lines), timeout=300)
    archive = folder / "image.tar"
    daemon.docker("save", "-o", str(archive), IMAGE, timeout=300)
    _forget(Side(daemon.environment(), ""), IMAGE, "busybox")
    daemon.docker("builder", "prune", "-af")
    shutil.rmtree(context)
    return archive


def _forget(side: Side, *names: str) -> None:
    for name in names:
        subprocess.run([str(DOCKER), "rmi", "-f", name], env=side.environment, capture_output=True, check=False)


def _turns(sides: list[Side], one: Callable[[Side], float]) -> list[float]:
    times: list[list[float]] = [[] for _ in sides]
    for _ in range(RUNS):
        for index, side in enumerate(sides):
            times[index].append(one(side))
    return [median(series) for series in times]


def _row(what: str, times: list[float]) -> Row:
    peer = times[1] if len(times) > 1 else None
    return Row(what, times[0], "s", peer, "dockerd", "≤ 0.7 × dockerd", times[0] <= 0.7 * peer if peer else None)


def _load_and_save(folder: Path, archive: Path, sides: list[Side]) -> list[Row]:
    def load(side: Side) -> float:
        _forget(side, IMAGE)
        return side.docker("load", "-i", str(archive))

    def save(side: Side) -> float:
        with open(folder / "saved.tar", "wb") as file:
            return side.docker("save", IMAGE, stdout=file)

    return [_row("`docker load` of it", _turns(sides, load)), _row("`docker save` of it", _turns(sides, save))]


def _push_and_pull(folder: Path, shop: Host, sides: list[Side]) -> list[Row]:
    def push(side: Side) -> float:
        name = f"{side.registry}/{uuid4().hex[:8]}"
        side.docker("tag", IMAGE, name)
        with _registry(shop, folder / "registry"):
            seconds = side.docker("push", "-q", name)
        _forget(side, name)
        return seconds

    def pull(side: Side) -> float:
        name = f"{side.registry}/image"
        _forget(side, name)
        return side.docker("pull", "-q", name)

    rows = [_row("`docker push` of it to an empty registry", _turns(sides, push))]
    with _registry(shop, folder / "registry"):
        sides[0].docker("tag", IMAGE, f"{sides[0].registry}/image")
        sides[0].docker("push", "-q", f"{sides[0].registry}/image")
        for side in sides:
            _forget(side, IMAGE)
        rows.insert(
            0, _row(f"`docker pull` of an image of {LAYERS + 1} layers and {FILES:,} files", _turns(sides, pull))
        )
    return rows


def _peak(folder: Path, shop: Host, daemon: Daemon, side: Side) -> Row:
    """Memory of the daemon at its highest while it pulls a layer of a gigabyte."""
    name = f"{side.registry}/big"
    daemon.docker("load", "-i", str(folder / "busybox.tar"))
    step = f"FROM busybox\nRUN head -c {BIG} /dev/urandom > /big\n"
    daemon.docker("build", "-q", "-t", name, "-", input=step, timeout=300)
    with _registry(shop, folder / "registry"):
        side.docker("push", "-q", name)
        _forget(side, name)
        daemon.docker("builder", "prune", "-af")
        Path(f"/proc/{daemon.pid}/clear_refs").write_text("5")
        side.docker("pull", "-q", name)
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6
    what = f"peak memory of the daemon while it pulls a layer of {BIG / 1e9:.0f} GB"
    return Row(what, peak, "MB", target="≤ 150 MB", met=peak <= 150)
