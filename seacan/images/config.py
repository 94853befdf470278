"""The image configuration: what an image says about itself. Its bytes' digest is the image's ID.

The OCI image specification's ``config.md`` with the fields Docker adds (health check, on-build, shell, and
the container it was committed from). Documents are read leniently, as Go does: unknown fields are kept in the bytes
and otherwise passed over, null is the same as absent.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import field

from seacan.errors import InvalidParameter
from seacan.storage.digest import DiffID, is_digest

LAYER_LIMIT = 1024
"""More layers than this in one image are hostile (dockerd stops at 125, the kernel's overlay at 500)."""


class Healthcheck(msgspec.Struct, rename="pascal", omit_defaults=True, frozen=True, kw_only=True):
    """Times are nanoseconds."""

    test: list[str] | None = None
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


class ImageDefaults(msgspec.Struct, rename="pascal", omit_defaults=True, frozen=True, kw_only=True):
    """What a container made from the image gets unless it is told otherwise (``config`` in the document)."""

    hostname: str = ""
    domainname: str = ""
    user: str = ""
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    exposed_ports: dict[str, dict[str, Any]] | None = None
    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False
    env: list[str] | None = None
    cmd: list[str] | None = None
    healthcheck: Healthcheck | None = None
    args_escaped: bool = False
    image: str = ""
    volumes: dict[str, dict[str, Any]] | None = None
    working_dir: str = ""
    entrypoint: list[str] | None = None
    network_disabled: bool = False
    mac_address: str = ""
    on_build: list[str] | None = None
    labels: dict[str, str] | None = None
    stop_signal: str = ""
    stop_timeout: int | None = None
    shell: list[str] | None = None


class History(msgspec.Struct, omit_defaults=True, frozen=True, kw_only=True):
    created: str | None = None
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False


class RootFS(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "layers"
    diff_ids: list[DiffID] = []


class ImageConfig(msgspec.Struct, omit_defaults=True, frozen=True, kw_only=True):
    """The document. ``created`` is RFC 3339; ``config`` what containers inherit."""

    architecture: str = ""
    author: str = ""
    comment: str = ""
    config: ImageDefaults | None = None
    container: str = ""
    container_config: ImageDefaults | None = None
    created: str | None = None
    docker_version: str = ""
    history: list[History] = []
    id: str = ""
    os: str = ""
    os_version: str = field(default="", name="os.version")
    os_features: list[str] = field(default=[], name="os.features")
    parent: str = ""
    rootfs: RootFS = RootFS()
    variant: str = ""

    @property
    def defaults(self) -> ImageDefaults:
        """``config``, empty where the image says nothing."""
        return self.config or ImageDefaults()

    @property
    def created_ns(self) -> int:
        """Nanoseconds since 1970; 0 if unknown."""
        return parse_time(self.created) if self.created else 0


def decode(content: bytes, what: str = "image configuration") -> ImageConfig:
    """Read a configuration. Raises :class:`InvalidParameter`, naming ``what``, when it is not one."""
    try:
        document = msgspec.json.decode(content)
        if not isinstance(document, dict):
            raise InvalidParameter(f"{what} is not a JSON object")
        config = msgspec.convert(_tolerant(document), ImageConfig)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidParameter(f"{what} is malformed: {error}") from error
    if len(config.rootfs.diff_ids) > LAYER_LIMIT:
        raise InvalidParameter(f"{what} has {len(config.rootfs.diff_ids)} layers; the limit is {LAYER_LIMIT}")
    for diff_id in config.rootfs.diff_ids:
        if not is_digest(diff_id):
            raise InvalidParameter(f"{what}: invalid diff ID {diff_id[:100]!r}")
    return config


def encode(config: ImageConfig) -> bytes:
    """The bytes of a new configuration, keys in a fixed order, so that the same image has the same ID."""
    return msgspec.json.encode(config, order="sorted")


def _tolerant(document: dict[str, Any]) -> dict[str, Any]:
    """What Go's decoder forgives: null, and a command given as one string."""
    result = {key: value for key, value in document.items() if value is not None}
    for part in ("config", "container_config"):
        inner = result.get(part)
        if isinstance(inner, dict):
            inner = {key: value for key, value in inner.items() if value is not None}
            for key in ("Cmd", "Entrypoint"):
                if isinstance(inner.get(key), str):
                    inner[key] = [inner[key]]
            for key in ("ExposedPorts", "Volumes"):
                if isinstance(inner.get(key), dict):
                    inner[key] = {name: value or {} for name, value in inner[key].items()}
            health = inner.get("Healthcheck")
            if isinstance(health, dict):
                inner["Healthcheck"] = {key: value for key, value in health.items() if value is not None}
            result[part] = inner
    if isinstance(result.get("history"), list):
        result["history"] = [
            {key: value for key, value in item.items() if value is not None} if isinstance(item, dict) else item
            for item in result["history"]
        ]
    if isinstance(result.get("rootfs"), dict):
        result["rootfs"] = {key: value for key, value in result["rootfs"].items() if value is not None}
    return result


_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,18}))?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def parse_time(text: str) -> int:
    """RFC 3339 to nanoseconds since 1970 (negative before). Raises :class:`InvalidParameter`."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise InvalidParameter(f"invalid time {text[:64]!r}")
    day, clock, fraction, zone = match.groups()
    try:
        moment = datetime.fromisoformat(f"{day}T{clock}{'+00:00' if zone in 'Zz' else zone}")
    except ValueError as error:
        raise InvalidParameter(f"invalid time {text[:64]!r}: {error}") from error
    delta = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86400 + delta.seconds) * 1_000_000_000 + int((fraction or "0")[:9].ljust(9, "0"))


def format_time(nanoseconds: int) -> str:
    """Nanoseconds since 1970 as Go prints a UTC time: no trailing zeros."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f"{rest:09d}".rstrip("0")
    return f"{text}.{fraction}Z" if fraction else f"{text}Z"
