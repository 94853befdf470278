"""Which platforms' programs this machine runs: its own, and those the kernel has been told an interpreter for.

Source: https://docs.kernel.org/admin-guide/binfmt-misc.html
"""

from __future__ import annotations

import struct
from pathlib import Path

from seacan.build.graph import Vertex
from seacan.errors import Unsupported
from seacan.images.manifest import Platform, host_platform

BINFMT = Path("/proc/sys/fs/binfmt_misc")

_MACHINES = {
    # architecture: ELF class (1: 32 bits, 2: 64), data (1: little endian, 2: big), e_machine
    "386": (1, 1, 3), "amd64": (2, 1, 62), "arm": (1, 1, 40), "arm64": (2, 1, 183), "loong64": (2, 1, 258),
    "mips64": (2, 2, 8), "mips64le": (2, 1, 8), "ppc64le": (2, 1, 21), "riscv64": (2, 1, 243), "s390x": (2, 2, 22),
}  # fmt: skip
_ALSO = {"amd64": ("386",), "arm64": ("arm",)}
"""What a processor runs by itself besides its own."""


def interpreter(architecture: str, registry: Path = BINFMT) -> str:
    """The interpreter that the kernel runs an architecture's programs with in any root ("" for none).

    One that was registered without the flag F is looked for in the container, where it is not.
    """
    return _find(architecture, _registered(registry))


def _registered(registry: Path) -> list[dict[str, str]]:
    """What the kernel has been told, but for what a container would not find."""
    found = []
    try:
        if (registry / "status").read_text().strip() != "enabled":
            return []
        entries = [entry for entry in registry.iterdir() if entry.name not in ("register", "status")]
    except OSError:
        return []
    for entry in entries:
        try:
            lines = entry.read_text().splitlines()
        except OSError:
            continue
        about = {line.partition(" ")[0].rstrip(":"): line.partition(" ")[2].strip() for line in lines}
        if "enabled" in about and "F" in about.get("flags", ""):
            found.append(about)
    return found


def _find(architecture: str, registered: list[dict[str, str]]) -> str:
    header = _elf_header(architecture)
    fitting = (about for about in registered if header and _matches(header, about))
    return next((about.get("interpreter", "") for about in fitting), "")


def _elf_header(architecture: str) -> bytes:
    if architecture not in _MACHINES:
        return b""
    size, order, machine = _MACHINES[architecture]
    end = "<" if order == 1 else ">"
    return b"\x7fELF" + bytes((size, order, 1)) + bytes(9) + struct.pack(f"{end}HHI", 2, machine, 1)


def _matches(header: bytes, about: dict[str, str]) -> bool:
    try:
        magic = bytes.fromhex(about["magic"])
        mask = bytes.fromhex(about["mask"]) if "mask" in about else b"\xff" * len(magic)
        offset = int(about.get("offset", "0"))
    except (KeyError, ValueError):
        return False
    part = header[offset : offset + len(magic)]
    return bool(magic) and len(part) == len(magic) == len(mask) and all(
        (byte ^ wanted) & bits == 0 for byte, wanted, bits in zip(part, magic, mask, strict=True)
    )  # fmt: skip


def platforms() -> list[Platform]:
    """The platforms whose programs run here, this machine's first."""
    here = host_platform().normalised()
    registered = _registered(BINFMT)
    others = [*_ALSO.get(here.architecture, ()), *(each for each in _MACHINES if _find(each, registered))]
    found = [Platform("linux", architecture).normalised() for architecture in dict.fromkeys(others)]
    return [here, *(each for each in found if each.architecture != here.architecture)]


def check_platform(vertex: Vertex) -> None:
    """Refuse to run another platform's programs unless the kernel has been told how.

    :raises Unsupported: it names the platform, and what is to be done.
    """
    wanted, here = vertex.platform, host_platform().normalised()
    if wanted is None or (wanted.os, wanted.architecture) == (here.os, here.architecture):
        return
    if wanted.os == "linux":
        if wanted.architecture in _ALSO.get(here.architecture, ()) or interpreter(wanted.architecture):
            return
        state = "has no interpreter" if (BINFMT / "status").exists() else "is not mounted, so there is no interpreter"
        raise Unsupported(
            f"cannot run a step for platform {wanted} on {here}: binfmt_misc ({BINFMT}) {state} for "
            f"{wanted.architecture} with the flag F; install qemu-user-static, or run the step on this platform "
            "(FROM --platform=$BUILDPLATFORM)"
        )
    raise Unsupported(f"cannot run a step for platform {wanted} on {here}")
