"""The Dockerfile front end's own parameters, and the texts it answers questions with (``--check``, ``--call``).

Parameters are those that buildx, Compose and bake send: https://github.com/moby/buildkit/tree/master/frontend/dockerfile
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from seacan.build.buildkit import messages as pb
from seacan.build.cacheconfig import Entry
from seacan.build.dockerfile.convert import Options, Target
from seacan.build.dockerfile.instructions import Arg, csv_fields, parse_stages
from seacan.build.dockerfile.lint import Checks, Finding
from seacan.build.dockerfile.parser import Range, parse
from seacan.build.graph import Limits
from seacan.build.ignore import clean
from seacan.build.provenance import Wanted, attributes
from seacan.build.scan import Scanner
from seacan.errors import InvalidParameter, SeacanError, Unsupported
from seacan.images.manifest import Platform, parse_platform

_SYNTAX = re.compile(r"(?:docker\.io/)?(?:docker|dockerfile)/dockerfile(?:-upstream)?(?:[:@].*)?")


def check_syntax(image: str) -> None:
    """Refuse a front end that would be another program than the one built in.

    :raises Unsupported: ``# syntax=`` names one.
    """
    name = image.partition(" ")[0].strip()
    if name and _SYNTAX.fullmatch(name) is None:
        raise Unsupported(f"frontend image {name} is not supported: only docker/dockerfile, which is built in")


@dataclass(frozen=True)
class SourceText:
    """A Dockerfile and its name."""

    filename: str
    data: bytes

    @property
    def text(self) -> str:
        return self.data.decode("utf-8", "replace")

    def message(self) -> pb.SourceInfo:
        return pb.SourceInfo(self.filename, self.data, "Dockerfile")

    def excerpt(self, start: int, end: int) -> str:
        """The lines around a place, the place itself marked, as BuildKit prints them."""
        lines = self.text.split("\n")
        if not 1 <= start <= len(lines):
            return ""
        padding = 2 if end - start < 1 else 1
        first, last = max(1, start - padding), min(len(lines), end + padding)
        shown = [f"{self.filename}:{start}", "-" * 20]
        for number in range(first, last + 1):
            mark = ">>>" if start <= number <= end else "   "
            shown.append(f" {number:>3} | {mark} {lines[number - 1]}")
        shown.append("-" * 20)
        return "\n".join(shown) + "\n"


def _boolean(name: str, text: str) -> bool:
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise InvalidParameter(f"invalid boolean value for {name}: {text}")


def _integer(name: str, text: str) -> int:
    if not text:
        return 0
    if not re.fullmatch(r"-?\d{1,18}", text):
        raise InvalidParameter(f"invalid value for {name}: {text}")
    return int(text)


@dataclass(frozen=True)
class Settings:
    """What a client asks of the front end."""

    filename: str
    context: str
    context_key: str
    dockerfile_key: str
    local_dockerfile: bool
    target: str
    platforms: tuple[Platform, ...]
    multi_platform: bool
    pull: bool
    contexts: Mapping[str, str]
    checks: Checks | None
    caches: tuple[Entry, ...] = ()
    provenance: Wanted | None = None
    scanner: Scanner | None = None
    base: Options = field(default_factory=Options)

    @classmethod
    def read(cls, attrs: Mapping[str, str]) -> Settings:
        """:raises InvalidParameter: a value is malformed."""

        def prefixed(prefix: str) -> dict[str, str]:
            return {key[len(prefix) :]: value for key, value in attrs.items() if key.startswith(prefix)}

        arguments = prefixed("build-arg:")
        platforms = tuple(parse_platform(each.strip()) for each in attrs.get("platform", "").split(",") if each.strip())
        multi = attrs.get("multi-platform") or arguments.get("BUILDKIT_MULTI_PLATFORM", "")
        multi_platform = _boolean("multi-platform", multi) if multi else len(platforms) > 1
        if len(platforms) > 1 and not multi_platform:
            raise InvalidParameter("conflicting config: returning multiple target platforms is not allowed")
        no_cache: frozenset[str] = frozenset()
        if "no-cache" in attrs:
            no_cache = frozenset(attrs["no-cache"].split(",")) if attrs["no-cache"] else frozenset(("",))
        network = attrs.get("force-network-mode", "")
        if network not in ("", "default", "none", "host", "sandbox"):
            raise InvalidParameter(f"invalid netmode {network}")
        checks = arguments.get("BUILDKIT_DOCKERFILE_CHECK")
        attests = {key.lower(): value for key, value in prefixed("build-arg:BUILDKIT_ATTEST_").items()}
        attests |= {key.lower(): value for key, value in prefixed("attest:").items()}
        for kind in attests:
            if kind not in ("provenance", "sbom"):
                raise InvalidParameter(f'unknown attestation type "{kind}"')
        base = Options(
            build_args=arguments,
            target=attrs.get("target", ""),
            labels=prefixed("label:"),
            multi_platform=multi_platform,
            no_cache=no_cache,
            network={"": "default", "sandbox": "default"}.get(network, network),
            hosts=_hosts(attrs.get("add-hosts", "")),
            hostname=arguments.get("BUILDKIT_SANDBOX_HOSTNAME", attrs.get("hostname", "")),
            shm_size=_integer("shm-size", attrs.get("shm-size", "")),
            ulimits=_ulimits(attrs.get("ulimit", "")),
            limits=Limits(
                _integer("memory", attrs.get("memory", "")),
                _integer("memswap", attrs.get("memswap", "")),
                _integer("cpushares", attrs.get("cpushares", "")),
                _integer("cpuperiod", attrs.get("cpuperiod", "")),
                _integer("cpuquota", attrs.get("cpuquota", "")),
                attrs.get("cpusetcpus", ""),
                attrs.get("cpusetmems", ""),
            ),
            cgroup_parent=attrs.get("cgroup-parent", ""),
            cache_namespace=arguments.get("BUILDKIT_CACHE_MOUNT_NS", ""),
        )
        return cls(
            filename=clean("/" + attrs.get("filename", "Dockerfile")).lstrip("/"),
            context=attrs.get(attrs.get("contextkey", "context"), ""),
            context_key="context",
            dockerfile_key=attrs.get("dockerfilekey", "dockerfile"),
            local_dockerfile="dockerfilekey" in attrs,
            target=attrs.get("target", ""),
            platforms=platforms,
            multi_platform=multi_platform,
            pull=attrs.get("image-resolve-mode", "") == "pull",
            contexts=prefixed("context:"),
            checks=Checks.parse(checks) if checks is not None else None,
            caches=_caches(attrs.get("cache-imports", ""), attrs.get("cache-from", "")),
            provenance=Wanted.read(attests["provenance"]) if "provenance" in attests else None,
            scanner=Scanner.read(attributes(attests["sbom"])) if "sbom" in attests else None,
            base=base,
        )

    def options(self, platform: Platform | None, ignore: tuple[str, ...]) -> Options:
        """The options of the build for one platform (None: the builder's own)."""
        checks = replace(self.checks, findings=[]) if self.checks is not None else None
        return replace(self.base, platform=platform, ignore=ignore, checks=checks)


class _CacheImport(msgspec.Struct, rename="pascal"):
    type: str = ""
    attrs: dict[str, str] = {}


def _caches(described: str, names: str) -> tuple[Entry, ...]:
    """``cache-imports`` (JSON), or the older ``cache-from`` (references)."""
    if described:
        try:
            found = msgspec.json.decode(described, type=list[_CacheImport])
        except msgspec.DecodeError as error:
            raise InvalidParameter(f"failed to unmarshal cache-imports: {error}") from None
        return tuple(Entry(each.type, each.attrs) for each in found)
    return tuple(Entry("registry", {"ref": name}) for name in names.split(",") if name)


def _hosts(text: str) -> tuple[tuple[str, str], ...]:
    hosts: list[tuple[str, str]] = []
    for part in csv_fields(text) if text else ():
        name, equals, address = part.lower().partition("=")
        if not equals:
            raise InvalidParameter(f"failed to parse additional hosts: invalid key-value pair {part}")
        if address != "host-gateway":
            try:
                ipaddress.ip_address(address)
            except ValueError:
                raise InvalidParameter(f"failed to parse additional hosts: failed to parse IP {address}") from None
        hosts.append((name, address))
    return tuple(hosts)


def _ulimits(text: str) -> tuple[tuple[str, int, int], ...]:
    limits: list[tuple[str, int, int]] = []
    for part in csv_fields(text) if text else ():
        name, _, values = part.partition("=")
        soft, _, hard = values.partition(":")
        limits.append((name, _integer("ulimit", soft), _integer("ulimit", hard or soft)))
    return tuple(limits)


# --- answers to questions ---------------------------------------------------------------------------------------


def _json(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2)


def _location(location: Range | None) -> dict[str, object]:
    if location is None:
        return {}
    return {
        "ranges": [
            {"start": {"line": line}, "end": {"line": line}}
            for line in range(location.start, min(location.end, location.start + 200) + 1)
        ]
    }


def lint_result(source: SourceText, findings: Sequence[Finding], failure: SeacanError | None) -> dict[str, bytes]:
    """What ``--check`` shows."""
    ordered = sorted(findings, key=lambda finding: finding.location.start)
    document: dict[str, object] = {
        "warnings": [
            {
                "ruleName": finding.rule.name,
                "description": finding.rule.description,
                **({"url": finding.rule.url} if finding.rule.url else {}),
                "detail": finding.message,
                "location": _location(finding.location),
            }
            for finding in findings
        ]
        or None,
        "sources": [
            {
                "filename": source.filename,
                "data": base64.b64encode(source.data).decode(),
                "language": "Dockerfile",
            }
        ],
    }
    if failure is not None:
        document["buildError"] = {"message": str(failure), "location": _location(getattr(failure, "location", None))}
    text = "".join(
        f"\nWARNING: {finding.rule.name}{f' - {finding.rule.url}' if finding.rule.url else ''}\n{finding.message}\n"
        + source.excerpt(finding.location.start, finding.location.end)
        for finding in ordered
    )
    return {
        "result.json": _json(document),
        "result.txt": text.encode(),
        "result.statuscode": b"1" if findings or failure is not None else b"0",
        "version": b"1.0.0",
    }


def targets_result(source: SourceText, targets: Sequence[Target]) -> dict[str, bytes]:
    """What ``--call=targets`` shows."""
    rows = [
        {
            **({"name": target.name} if target.name else {}),
            **({"default": True} if target.default else {}),
            **({"description": target.description} if target.description else {}),
            "base": target.base,
            **({"platform": target.platform} if target.platform else {}),
            "location": _location(target.location),
        }
        for target in targets
    ]
    shown = [("TARGET", "DESCRIPTION")]
    for target in targets:
        name = target.name
        if target.default:
            name = f"{name} (default)" if name else "(default)"
        shown.append((name, target.description))
    width = max(len(name) for name, _ in shown) + 1
    text = "".join(f"{name:<{width}}{description}\n" for name, description in shown)
    document = {"targets": rows, "sources": [base64.b64encode(source.data).decode()]}
    return {"result.json": _json(document), "result.txt": text.encode(), "version": b"1.0.0"}


def outline_result(source: SourceText, target: str) -> dict[str, bytes]:
    """What ``--call=outline`` shows: the target and the arguments it takes."""
    stages, arguments = parse_stages(parse(source.data), Checks())
    stage = next((each for each in stages if each.name == target.lower()), stages[-1]) if target else stages[-1]
    known = [*arguments, *(each for each in stage.instructions if isinstance(each, Arg))]
    rows = [
        {
            "name": argument.key,
            **({"description": argument.description} if argument.description else {}),
            **({"value": argument.default} if argument.default is not None else {}),
            "location": _location(instruction.location),
        }
        for instruction in known
        for argument in instruction.arguments
    ]
    document = {
        **({"name": stage.name} if stage.name else {}),
        **({"description": stage.description} if stage.description else {}),
        "args": rows,
        "sources": [base64.b64encode(source.data).decode()],
    }
    lines = []
    if stage.name:
        lines.append(f"TARGET:      {stage.name}\n")
    if stage.description:
        lines.append(f"DESCRIPTION: {stage.description}\n")
    if rows:
        lines.append("\nBUILD ARG    VALUE    DESCRIPTION\n")
        lines += [f"{row['name']:<12} {row.get('value', '')!s:<8} {row.get('description', '')}\n" for row in rows]
    return {"result.json": _json(document), "result.txt": "".join(lines).encode(), "version": b"1.0.0"}


def describe_result() -> dict[str, bytes]:
    """The questions that can be asked."""
    names = (
        ("frontend.lint", "Lint a Dockerfile", ("result.json", "result.txt", "result.statuscode")),
        ("frontend.outline", "List all parameters current build target supports", ("result.json", "result.txt")),
        ("frontend.targets", "List all targets current build supports", ("result.json", "result.txt")),
        ("frontend.subrequests.describe", "List available subrequest types", ("result.json", "result.txt")),
    )
    document = [
        {
            "name": name,
            "version": "1.0.0",
            "type": "rpc",
            "description": description,
            "metadata": [{"name": each} for each in metadata],
        }
        for name, description, metadata in names
    ]
    text = "NAME                          VERSION DESCRIPTION\n" + "".join(
        f"{name:<29} 1.0.0   {description}\n" for name, description, _ in names
    )
    return {"result.json": _json(document), "result.txt": text.encode(), "version": b"1.0.0"}
