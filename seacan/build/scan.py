"""Software bills of materials: a scanner's image run on a build's result, by BuildKit's protocol.

The scanner finds the result in ``BUILDKIT_SCAN_SOURCE`` and leaves in-toto statements in
``BUILDKIT_SCAN_DESTINATION``. It runs as a step like any other, but without a network: it sees all of the result.
Protocol: https://github.com/moby/buildkit/blob/master/docs/attestations/sbom-protocol.md
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from seacan.build.dockerfile.convert import ResolvedImage
from seacan.build.graph import Exec, FileMount, Files, ImageSource, MakeDirectory, Vertex
from seacan.errors import InvalidParameter
from seacan.images.manifest import Platform, host_platform
from seacan.linux.syscalls import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2

DEFAULT = "docker/buildkit-syft-scanner:stable-1"
"""The scanner that BuildKit takes where none is named."""

_SOURCE = "/run/src/core/sbom"
_DESTINATION = "/run/out"
_LIMIT = 40 << 20
"""Bytes of one statement."""
_COUNT = 100


@dataclass(frozen=True)
class Scanner:
    """An image that scans. ``settings`` are told to it as ``BUILDKIT_SCAN_<name>``."""

    image: str = DEFAULT
    settings: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, attributes: Mapping[str, str]) -> Scanner:
        rest = {key: value for key, value in attributes.items() if key != "generator"}
        return cls(attributes.get("generator") or DEFAULT, rest)


@dataclass(frozen=True)
class Scan:
    """A statement that a scanner has made: the type of its predicate, and the predicate as JSON."""

    predicate_type: str
    predicate: bytes


class _Statement(msgspec.Struct, rename={"predicate_type": "predicateType"}):
    predicate_type: str
    predicate: msgspec.Raw


def scanning(scanner: Scanner, image: ResolvedImage, target: Vertex, platform: Platform | None) -> Vertex:
    """The step that scans ``target``. :raises InvalidParameter: the image is no scanner."""
    defaults = image.config.defaults
    arguments = (*(defaults.entrypoint or ()), *(defaults.cmd or ()))
    if not arguments:
        raise InvalidParameter(f"scanner {scanner.image} does not have cmd")
    environment = [
        *(defaults.env or ()),
        f"BUILDKIT_SCAN_DESTINATION={_DESTINATION}/",
        f"BUILDKIT_SCAN_SOURCE={_SOURCE}",
        *(f"BUILDKIT_SCAN_{key}={value}" for key, value in sorted(scanner.settings.items())),
    ]
    base = Vertex(
        ImageSource(image.pinned or scanner.image, image.chain_id, image.digest),
        name=f"[internal] load {scanner.image}",
        platform=host_platform().normalised(),
        internal=True,
    )
    ready = Vertex(Files((MakeDirectory(_DESTINATION),)), (base,), name="[internal] prepare the scanner", internal=True)
    return Vertex(
        Exec(
            arguments,
            tuple(environment),
            defaults.working_dir or "/",
            defaults.user or "",
            (FileMount("bind", _SOURCE, 1, read_only=True), FileMount("tmpfs", "/tmp")),
            network="none",
        ),
        (ready, target),
        name=f"[{platform or host_platform().normalised()}] generating sbom using {image.pinned or scanner.image}",
        platform=host_platform().normalised(),
    )


def read_scans(layer: str, scanner: str) -> tuple[Scan, ...]:
    """The statements in a layer that a scanner has written; its content is hostile.

    :raises InvalidParameter: there are none, or they are none.
    """
    resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
    found: list[Scan] = []
    with contextlib.ExitStack() as opened:

        def descend(parent: int, name: str, flags: int) -> int:
            descriptor = openat2(parent, name, flags | os.O_CLOEXEC, resolve=resolve)
            opened.callback(os.close, descriptor)
            return descriptor

        root = os.open(layer, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        opened.callback(os.close, root)
        try:
            folder = descend(root, _DESTINATION.strip("/"), os.O_RDONLY | os.O_DIRECTORY)
            names = sorted(os.listdir(folder))
        except OSError:
            names = []
        for name in names[:_COUNT]:
            if not name.endswith(".json"):
                continue
            try:
                descriptor = descend(folder, name, os.O_RDONLY | os.O_NONBLOCK)
                info = os.fstat(descriptor)
                if not stat.S_ISREG(info.st_mode) or info.st_size > _LIMIT:
                    raise InvalidParameter(f"scanner {scanner}: {name} is no file of at most {_LIMIT} bytes")
                with open(descriptor, "rb", closefd=False) as file:
                    stated = msgspec.json.decode(file.read(_LIMIT + 1), type=_Statement)
            except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
                raise InvalidParameter(f"scanner {scanner}: {name} is no in-toto statement: {error}") from error
            found.append(Scan(stated.predicate_type, bytes(stated.predicate)))
    if not found:
        raise InvalidParameter(f"scanner {scanner} has left no statement in {_DESTINATION}")
    return tuple(found)
