"""Base images made from the distribution's own packages, because a newcomer may have no registry.

Needs no daemon: each recipe writes an archive that ``docker load`` (ours or dockerd's) understands. The same packages
give the same bytes: names are sorted, times come from the package, and nothing depends on the machine's clock.
What this is not: a package manager. ``mmdebstrap``, ``apt-get`` and ``dpkg-deb`` do that work.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import platform
import re
import shutil
import struct
import subprocess
import tarfile
import tempfile
from collections import deque
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import msgspec

from seacan.errors import InvalidParameter, System, Unsupported

_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386", "s390x": "s390x"}

Tell = Callable[[str], None]
"""What is told of a recipe's progress, a line at a time."""


def busybox_archive(destination: Path, *, tag: str = "busybox:latest") -> None:
    """Write a loadable image of busybox to ``destination``: every applet linked, ``sh`` as the command.

    Uses the installed static busybox, or else takes the ``busybox-static`` package from apt without installing it.
    """
    with tempfile.TemporaryDirectory(prefix="seacan-bootstrap-") as scratch:
        binary = _static_busybox(Path(scratch))
        listing = subprocess.run([binary, "--list"], check=True, capture_output=True, text=True).stdout.split()
        mtime = int(binary.stat().st_mtime)
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w", format=tarfile.PAX_FORMAT) as tree:
            _write_busybox_tree(tree, binary, listing, mtime)
        with destination.open("wb") as archive:
            _write_archive(archive, layer.getvalue(), {"Cmd": ["sh"], "Env": [_PATH]}, mtime, [tag], "busybox")


def debian_archive(
    destination: Path, suite: str = "", *, mirror: str = "", tag: str | None = None, tell: Tell = lambda line: None
) -> None:
    """Write a loadable image of a minimal Debian (mmdebstrap's ``essential`` set plus apt) to ``destination``.

    ``suite`` is the host's own where none is given and the host is a Debian, else ``stable``; the image is called
    ``debian:latest`` then. ``mirror`` is an address to take the packages from, else Debian's. Documentation,
    translations and package lists are left out, as in Debian's own container images.
    """
    tag = tag or f"debian:{suite or 'latest'}"
    suite = suite or _own_suite()
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", suite):
        raise InvalidParameter(f"invalid suite name: {suite!r}")
    if mirror.startswith("-"):
        raise InvalidParameter(f"invalid mirror: {mirror!r}")
    mmdebstrap = shutil.which("mmdebstrap")
    if mmdebstrap is None:
        raise Unsupported("mmdebstrap is not installed: apt-get install mmdebstrap")
    options = [
        "--variant=essential",
        "--include=apt,ca-certificates",
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/info/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        "--dpkgopt=path-include=/usr/share/locale/locale.alias",
        '--aptopt=Acquire::Languages "none"',
        '--aptopt=APT::Install-Recommends "false"',
        '--customize-hook=rm -rf "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/* "$1"/var/log/*.log "$1"/var/log/apt',
        '--customize-hook=rm -f "$1"/etc/hostname "$1"/etc/resolv.conf "$1"/etc/machine-id; : > "$1"/etc/machine-id',
    ]
    # Without it mmdebstrap stamps files with the time of the run; the day is the granularity that stays stable.
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH", int(datetime.now(UTC).timestamp()) // 86400 * 86400))
    with tempfile.TemporaryDirectory(prefix="seacan-bootstrap-") as scratch:
        tree = Path(scratch) / "root.tar"
        env = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch), "LC_ALL": "C"}
        _run([mmdebstrap, *options, suite, str(tree), *([mirror] if mirror else [])], f"mmdebstrap {suite}", env, tell)
        with destination.open("wb") as archive:
            _write_archive(archive, tree, {"Cmd": ["bash"], "Env": [_PATH]}, epoch, [tag], f"debian {suite}")


def _own_suite() -> str:
    with contextlib.suppress(OSError):
        release = platform.freedesktop_os_release()
        if release.get("ID") == "debian" and "VERSION_CODENAME" in release:
            return release["VERSION_CODENAME"]
    return "stable"


def _run(command: list[str], what: str, env: dict[str, str], tell: Tell) -> None:
    """Run ``command``, telling the steps that mmdebstrap announces (``I: …``); its last words are in the error."""
    process = subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    last: deque[str] = deque(maxlen=8)
    try:
        with process.stderr as lines:
            for line in lines:
                last.append(line.strip())
                if line.startswith("I: "):
                    tell(line[3:].strip())
    except BaseException:
        process.terminate()
        raise
    finally:
        status = process.wait()
    if status != 0:
        reason = "\n".join(last)
        raise System(f"{what} failed with status {status}: {reason}")


def bootstrap(name: str, destination: Path, *, mirror: str = "", tell: Tell = lambda line: None) -> None:
    """Write the base image called ``name`` (``busybox``, ``debian``, ``debian:bookworm``) to ``destination``."""
    recipe, _, variant = name.partition(":")
    if recipe == "busybox":
        busybox_archive(destination, tag=f"busybox:{variant or 'latest'}")
    elif recipe == "debian":
        debian_archive(destination, variant, mirror=mirror, tell=tell)
    else:
        raise InvalidParameter(f"no recipe for base image {name!r}: choose busybox or debian")


def _static_busybox(scratch: Path) -> Path:
    for candidate in ("/bin/busybox", "/usr/bin/busybox"):
        path = Path(candidate)
        if path.is_file() and _is_static(path):
            return path
    apt, dpkg = shutil.which("apt-get"), shutil.which("dpkg-deb")
    if apt is None or dpkg is None:
        raise Unsupported("no static busybox on this machine, and no apt-get and dpkg-deb to fetch busybox-static with")
    done = subprocess.run([apt, "download", "busybox-static"], cwd=scratch, capture_output=True, text=True)
    packages = list(scratch.glob("busybox-static_*.deb"))
    if done.returncode != 0 or not packages:
        raise System(f"apt-get download busybox-static failed: {done.stderr.strip()}")
    subprocess.run([dpkg, "-x", str(packages[0]), str(scratch / "tree")], check=True, capture_output=True)
    for candidate in ("usr/bin/busybox", "bin/busybox"):
        if (scratch / "tree" / candidate).is_file():
            return scratch / "tree" / candidate
    raise System(f"{packages[0].name} holds no busybox")


def _is_static(path: Path) -> bool:
    """Whether a 64- or 32-bit ELF file has no program interpreter (``PT_INTERP``)."""
    with path.open("rb") as file:
        header = file.read(64)
        if header[:4] != b"\x7fELF":
            return False
        order = "<" if header[5] == 1 else ">"
        if header[4] == 2:
            offset, size, count = (
                struct.unpack_from(f"{order}Q", header, 32)[0],
                *struct.unpack_from(f"{order}HH", header, 54),
            )
        else:
            offset, size, count = (
                struct.unpack_from(f"{order}I", header, 28)[0],
                *struct.unpack_from(f"{order}HH", header, 42),
            )
        file.seek(offset)
        table = file.read(size * count)
    return all(struct.unpack_from(f"{order}I", table, index * size)[0] != 3 for index in range(count))


def _write_busybox_tree(tree: tarfile.TarFile, binary: Path, applets: Iterable[str], mtime: int) -> None:
    def entry(
        name: str, kind: bytes = tarfile.REGTYPE, mode: int = 0o644, link: str = "", content: bytes = b""
    ) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.mtime, info.linkname, info.size = kind, mode, mtime, link, len(content)
        tree.addfile(info, io.BytesIO(content))

    for name, mode in (
        ("bin/", 0o755), ("dev/", 0o755), ("etc/", 0o755), ("home/", 0o755), ("proc/", 0o755), ("root/", 0o700),
        ("sbin/", 0o755), ("sys/", 0o755), ("tmp/", 0o1777), ("usr/", 0o755), ("usr/bin/", 0o755), ("usr/sbin/", 0o755),
        ("var/", 0o755), ("var/spool/", 0o755), ("var/spool/mail/", 0o755), ("var/tmp/", 0o1777), ("var/www/", 0o755),
    ):  # fmt: skip
        entry(name, tarfile.DIRTYPE, mode)
    entry("bin/busybox", mode=0o755, content=binary.read_bytes())
    for applet in sorted(set(applets) - {"busybox"}):
        entry(f"bin/{applet}", tarfile.LNKTYPE, 0o755, "bin/busybox")
    entry("usr/bin/env", tarfile.SYMTYPE, 0o777, "../../bin/env")
    users = (
        "root:x:0:0:root:/root:/bin/sh",
        "daemon:x:1:1:daemon:/usr/sbin:/bin/false",
        "bin:x:2:2:bin:/bin:/bin/false",
        "sys:x:3:3:sys:/dev:/bin/false",
        "sync:x:4:100:sync:/bin:/bin/sync",
        "mail:x:8:8:mail:/var/spool/mail:/bin/false",
        "www-data:x:33:33:www-data:/var/www:/bin/false",
        "operator:x:37:37:Operator:/var:/bin/false",
        "nobody:x:65534:65534:nobody:/home:/bin/false",
    )
    groups = (
        "root:x:0:", "daemon:x:1:", "bin:x:2:", "sys:x:3:", "adm:x:4:", "tty:x:5:", "disk:x:6:", "wheel:x:10:root",
        "mail:x:8:", "utmp:x:43:", "www-data:x:33:", "users:x:100:", "nogroup:x:65534:",
    )  # fmt: skip
    entry("etc/passwd", content=("\n".join(users) + "\n").encode())
    entry("etc/group", content=("\n".join(groups) + "\n").encode())
    entry("etc/shadow", mode=0o640, content="".join(f"{user.split(':')[0]}:*:::::::\n" for user in users).encode())
    # A static glibc would otherwise try to load its name service modules, which the image does not have.
    entry("etc/nsswitch.conf", content=b"passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n")


class _Descriptor(msgspec.Struct, rename="camel"):
    media_type: str
    digest: str
    size: int


def _write_archive(
    archive: BinaryIO,
    layer: bytes | Path,
    config: dict[str, object],
    created: int,
    tags: list[str],
    what: str,
) -> None:
    """A one-layer image as ``docker save`` has written it since version 25: docker-archive and OCI layout in one."""
    layer_digest, layer_size = _digest(layer)
    moment = datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    image = msgspec.json.encode(
        {
            "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
            "config": config,
            "created": moment,
            "history": [{"created": moment, "created_by": f"seacan image bootstrap {what}"}],
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_digest}"]},
        }
    )
    config_digest = hashlib.sha256(image).hexdigest()
    manifest = msgspec.json.encode(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _Descriptor("application/vnd.oci.image.config.v1+json", f"sha256:{config_digest}", len(image)),
            "layers": [_Descriptor("application/vnd.oci.image.layer.v1.tar", f"sha256:{layer_digest}", layer_size)],
        }
    )
    manifest_digest = hashlib.sha256(manifest).hexdigest()
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [
            {
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": f"sha256:{manifest_digest}",
                "size": len(manifest),
                "annotations": {
                    "io.containerd.image.name": f"docker.io/library/{tag}",
                    "org.opencontainers.image.ref.name": tag.rpartition(":")[2],
                },
            }
            for tag in tags
        ],
    }
    listing = [
        {
            "Config": f"blobs/sha256/{config_digest}",
            "RepoTags": tags,
            "Layers": [f"blobs/sha256/{layer_digest}"],
        }
    ]
    files: list[tuple[str, bytes | Path]] = [
        (f"blobs/sha256/{manifest_digest}", manifest),
        (f"blobs/sha256/{config_digest}", image),
        (f"blobs/sha256/{layer_digest}", layer),
        ("index.json", msgspec.json.encode(index)),
        ("manifest.json", msgspec.json.encode(listing)),
        ("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'),
    ]
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tree:
        for name in ("blobs", "blobs/sha256"):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode, directory.mtime = tarfile.DIRTYPE, 0o755, created
            tree.addfile(directory)
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.mode, info.mtime = 0o644, created
            if isinstance(content, Path):
                info.size = content.stat().st_size
                with content.open("rb") as file:
                    tree.addfile(info, file)
            else:
                info.size = len(content)
                tree.addfile(info, io.BytesIO(content))


def _digest(content: bytes | Path) -> tuple[str, int]:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest(), len(content)
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), content.stat().st_size
