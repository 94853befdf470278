"""What ``seacan daemon`` is told, by flags and by daemon.json, and how that becomes :class:`EngineOptions`.

Flags and keys are dockerd's, with dockerd's rules: a key given in both places is an error, so is a key nobody knows,
and SIGHUP takes over only what is :data:`~seacan.engine.options.LIVE`. Flags of dockerd that ask for something Seacan
does not do are refused by name; those that only tune a part which Seacan does not have are accepted with a warning.
Nothing here touches the system: :mod:`seacan.cli.daemon` does.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from seacan.cli.flags import (
    Flag,
    FlagError,
    go_format,
    invalid,
    pairs,
    parse,
    parse_bool,
    parse_bytes,
    parse_duration,
    parse_integer,
    parse_label,
    parse_ulimit,
)
from seacan.engine.config import Ulimit
from seacan.engine.options import LIVE, AddressPool, CacheLimits, CachePolicy, EngineOptions, RuntimeOption
from seacan.errors import InvalidParameter, Unsupported
from seacan.registry.endpoints import masked

DEFAULT_CONFIG_FILE: Final = "/etc/seacan/daemon.json"
DEFAULT_HOST: Final = "unix:///run/seacan.sock"
"""Not docker.sock: a dockerd on the same machine keeps its own."""


class Setting(msgspec.Struct, frozen=True):
    """One flag of the daemon, and its key in daemon.json."""

    flag: str
    kind: str
    help: str
    key: str = ""
    """The key in daemon.json where it differs from the flag ("" the same, "-" none)."""
    short: str = ""
    option: str = ""
    """The field of :class:`EngineOptions` that it sets; "": a field of :class:`Configuration` named like the flag."""

    @property
    def name(self) -> str:
        return self.key or self.flag

    @property
    def parser_flag(self) -> Flag:
        return Flag(self.flag, self.short, boolean=self.kind == "bool")


def _engine(flag: str, kind: str, help: str, *, key: str = "", short: str = "", option: str = "") -> Setting:
    return Setting(flag, kind, help, key, short, option or (key or flag).replace("-", "_"))


SETTINGS: Final[tuple[Setting, ...]] = (
    _engine("add-runtime", "runtimes", "Register an additional OCI runtime (name=path)", key="runtimes"),
    _engine("allow-direct-routing", "bool", "Allow remote access to published ports on container addresses"),
    _engine("bip", "str", "IPv4 address for the default bridge"),
    _engine("bip6", "str", "IPv6 address for the default bridge"),
    _engine("bridge", "str", "Attach containers to a network bridge", short="b"),
    _engine("cgroup-parent", "str", "Parent cgroup of all containers"),
    _engine("cdi-spec-dir", "list", "CDI specification directories to use", key="cdi-spec-dirs"),
    _engine("certs-dir", "str", 'Folder of registries\' certificates (default "/etc/docker/certs.d")'),
    Setting("config-file", "str", f'Daemon configuration file (default "{DEFAULT_CONFIG_FILE}")', key="-"),
    _engine("data-root", "str", "Folder for what must survive a reboot"),
    _engine("debug", "bool", "Enable debug mode", short="D"),
    _engine(
        "default-address-pool",
        "pools",
        "Address pool for networks (base=CIDR,size=BITS)",
        key="default-address-pools",
    ),
    _engine("default-cgroupns-mode", "str", 'Default cgroup namespace of containers ("host" | "private")'),
    _engine("default-gateway", "ip", "Default gateway IPv4 address for the default bridge network"),
    _engine("default-gateway-v6", "ip", "Default gateway IPv6 address for the default bridge network"),
    _engine("default-ipc-mode", "str", 'Default IPC mode of containers ("shareable" | "private")'),
    _engine(
        "default-network-opt",
        "mapmap",
        "Default options of new networks (driver=option=value)",
        key="default-network-opts",
    ),
    _engine("default-runtime", "str", "Default OCI runtime for containers"),
    _engine("default-shm-size", "bytes", "Default size of /dev/shm in containers"),
    _engine(
        "default-ulimit",
        "ulimits",
        "Default ulimits for containers (name=soft[:hard])",
        key="default-ulimits",
    ),
    _engine("dns", "ips", "DNS server to use"),
    _engine("dns-opt", "list", "DNS options to use", key="dns-opts", option="dns_options"),
    _engine("dns-search", "list", "DNS search domains to use"),
    Setting("exec-opt", "list", "Runtime execution options (native.cgroupdriver=cgroupfs)", key="exec-opts"),
    _engine("exec-root", "str", "Folder for what is meaningless after a reboot"),
    _engine("experimental", "bool", "Enable experimental features"),
    _engine("feature", "features", "Enable a feature in the daemon (name=true)", key="features"),
    _engine("fixed-cidr", "str", "IPv4 subnet for the default bridge network"),
    _engine("fixed-cidr-v6", "str", "IPv6 subnet for the default bridge network"),
    Setting("group", "str", 'Group for the unix socket (default "docker")', short="G"),
    Setting("host", "list", f'Daemon socket(s) to listen on (default "{DEFAULT_HOST}")', key="hosts", short="H"),
    _engine("host-gateway-ip", "ips", "Addresses that host-gateway in --add-host resolves to", key="host-gateway-ips"),
    Setting("http-proxy", "str", "HTTP proxy URL to use for outgoing traffic"),
    Setting("https-proxy", "str", "HTTPS proxy URL to use for outgoing traffic"),
    _engine("icc", "bool", "Let containers of the default bridge network talk to each other (default true)"),
    _engine("init", "bool", "Run an init in containers that forwards signals and reaps processes"),
    _engine("init-path", "str", "Path to the docker-init binary"),
    _engine("insecure-registry", "list", "Registry to reach without TLS verification", key="insecure-registries"),
    _engine("ip", "ip", "Host address for publishing ports (default 0.0.0.0)"),
    _engine("ip-forward", "bool", "Enable IP forwarding in the kernel (default true)"),
    Setting("ip-forward-no-drop", "bool", "Accepted for dockerd's sake: no other table's policy is ever changed"),
    _engine("ip-masq", "bool", "Masquerade the default bridge network (default true)"),
    _engine("ip6tables", "bool", "Write firewall rules for IPv6 (default true)"),
    _engine("iptables", "bool", "Write firewall rules (default true)"),
    _engine("ipv6", "bool", "Enable IPv6 for the default bridge network"),
    _engine("label", "labels", "Set key=value labels on the daemon", key="labels"),
    _engine("live-restore", "bool", "Leave containers running when the daemon stops (default true)"),
    _engine("log-driver", "str", 'Default driver for container logs (default "json-file")'),
    Setting("log-format", "str", 'Logging format ("text" | "json") (default "text")'),
    Setting("log-level", "str", 'Logging level ("debug" | "info" | "warn" | "error" | "fatal")', short="l"),
    _engine("log-opt", "map", "Default log driver options for containers", key="log-opts"),
    _engine("max-concurrent-downloads", "int", "Most downloads at a time (default 3)"),
    _engine("max-concurrent-uploads", "int", "Most uploads at a time (default 5)"),
    _engine("max-download-attempts", "int", "Most attempts at a download (default 5)"),
    _engine("mtu", "int", "MTU of the default bridge network (default 1500)"),
    _engine("no-new-privileges", "bool", "Set no-new-privileges for new containers"),
    Setting("no-proxy", "str", "Hosts for which the proxy is skipped, separated by commas"),
    Setting("pidfile", "str", 'PID file of the daemon (default "/run/seacan.pid")', short="p"),
    Setting("raw-logs", "bool", "Accepted for dockerd's sake: logs never have colours"),
    _engine("registry-mirror", "mirrors", "Preferred registry mirror", key="registry-mirrors"),
    _engine("seccomp-profile", "str", 'Path of a seccomp profile, "builtin" or "unconfined"'),
    _engine("selinux-enabled", "bool", "Enable SELinux support"),
    _engine("shutdown-timeout", "int", "Seconds a container gets to end on shutdown (default 15)"),
    _engine("signature-policy", "str", "File that says whose signatures pulled images must have"),
    _engine("storage-driver", "str", "Storage driver to use (overlay2, vfs)", short="s"),
    _engine("storage-opt", "list", "Storage driver options", key="storage-opts"),
    Setting("tls", "bool", "Use TLS; implied by --tlsverify"),
    Setting("tlscacert", "str", "Trust certificates signed only by this CA"),
    Setting("tlscert", "str", "TLS certificate file"),
    Setting("tlskey", "str", "TLS key file"),
    Setting("tlsverify", "bool", "Use TLS and verify the remote"),
    _engine("userland-proxy", "bool", "Serve published ports on loopback addresses too (default true)"),
    _engine(
        "userns-remap", "str", 'User/Group setting for user namespaces ("default", user, uid, user:group, uid:gid)'
    ),
    Setting("validate", "bool", "Check the configuration and exit", key="-"),
    Setting("version", "bool", "Print the version and exit", key="-", short="v"),
)

TUNES_WHAT_IS_NOT_THERE: Final[Mapping[str, str]] = {
    "containerd": "there is no containerd",
    "containerd-namespace": "there is no containerd",
    "containerd-plugins-namespace": "there is no containerd",
    "network-control-plane-mtu": "there is no overlay control plane",
    "userland-proxy-path": "there is no docker-proxy program",
}
"""dockerd's settings that change nothing a container or a client can see: accepted, with a warning."""

NOT_SUPPORTED: Final[Mapping[str, tuple[str, str]]] = {
    # flag → (key in daemon.json, what is missing)
    "authorization-plugin": ("authorization-plugins", "authorization plugins are not supported"),
    "cpu-rt-period": ("cpu-rt-period", "real-time scheduling of the parent cgroup is not supported"),
    "cpu-rt-runtime": ("cpu-rt-runtime", "real-time scheduling of the parent cgroup is not supported"),
    "cri-containerd": ("cri-containerd", "there is no containerd to serve the CRI"),
    "metrics-addr": ("metrics-addr", "the Prometheus endpoint is not supported"),
    "network-diagnostic-port": ("network-diagnostic-port", "the network diagnostic server is not supported"),
    "node-generic-resource": ("node-generic-resources", "swarm mode is not supported"),
    "rootless": ("rootless", "rootless mode is not supported"),
    "swarm-default-advertise-addr": ("swarm-default-advertise-addr", "swarm mode is not supported"),
}
_NOT_SUPPORTED_BOOLEANS = frozenset({"cri-containerd", "rootless"})
_IGNORED_KEYS = frozenset({"deprecated-key-path", "allow-nondistributable-artifacts"})
_FLAT_KEYS = frozenset(
    {"cluster-store-opts", "default-network-opts", "log-opts", "runtimes", "default-ulimits", "features", "builder"}
)
_LEVELS = ("panic", "fatal", "error", "warn", "info", "debug", "trace")


class Configuration(msgspec.Struct, frozen=True):
    """Everything the daemon was told. ``engine`` is what the engine gets; the rest concerns the process."""

    engine: EngineOptions
    hosts: tuple[str, ...] = (DEFAULT_HOST,)
    group: str = "docker"
    pidfile: str = "/run/seacan.pid"
    config_file: str = DEFAULT_CONFIG_FILE
    log_level: str = "info"
    log_format: str = "text"
    tls: bool | None = None
    """None: nobody said anything about TLS."""
    tlsverify: bool | None = None
    tlscacert: str = ""
    tlscert: str = ""
    tlskey: str = ""
    http_proxy: str = ""
    https_proxy: str = ""
    no_proxy: str = ""
    validate: bool = False
    version: bool = False
    warnings: tuple[str, ...] = ()
    in_file: frozenset[str] = frozenset()
    """The keys that daemon.json sets."""


# --- builder ---------------------------------------------------------------------------------------------------------

_CACHE_KEYS = {
    "defaultKeepStorage": "reserved",
    "defaultReservedSpace": "reserved",
    "defaultMaxUsedSpace": "most",
    "defaultMinFreeSpace": "free",
}


def _cache_limits(builder: Any) -> CacheLimits:
    """``"builder": {"gc": {"enabled": true, "defaultReservedSpace": "20GB", …}}``.

    Raises:
        InvalidParameter: it is not of that form.
    """
    gc = builder.get("gc", {}) if isinstance(builder, dict) else None
    if not isinstance(gc, dict):
        raise InvalidParameter('builder: must be of the form {"gc": {…}}')
    unknown = [f"builder.{key}" for key in builder if key != "gc"]
    unknown += [f"builder.gc.{key}" for key in gc if key not in {"enabled", "policy", *_CACHE_KEYS}]
    if unknown:
        raise InvalidParameter(f"the following directives don't match any configuration option: {', '.join(unknown)}")
    if not isinstance(gc.get("enabled", True), bool):
        raise InvalidParameter("builder.gc.enabled: must be true or false")
    sizes: dict[str, int] = {}
    for key, name in _CACHE_KEYS.items():
        if gc.get(key):
            sizes[name] = parse_bytes(str(gc[key]))
    policy = gc.get("policy") or []
    if not isinstance(policy, list):
        raise InvalidParameter("builder.gc.policy: must be a list")
    return CacheLimits(enabled=gc.get("enabled", True), policy=tuple(map(_cache_policy, policy)), **sizes)


_POLICY_KEYS = {
    "keepStorage": "reserved",
    "reservedSpace": "reserved",
    "maxUsedSpace": "most",
    "minFreeSpace": "free",
}


def _cache_policy(rule: Any) -> CachePolicy:
    """``{"reservedSpace": "5GB", "filter": ["unused-for=48h", "type=source.local"], "all": false}``"""
    if not isinstance(rule, dict) or not isinstance(rule.get("all", False), bool):
        raise InvalidParameter('builder.gc.policy: each must be of the form {"filter": […], "maxUsedSpace": "5GB", …}')
    unknown = [f"builder.gc.policy.{key}" for key in rule if key not in {"all", "filter", *_POLICY_KEYS}]
    if unknown:
        raise InvalidParameter(f"the following directives don't match any configuration option: {', '.join(unknown)}")
    sizes = {name: parse_bytes(str(rule[key])) for key, name in _POLICY_KEYS.items() if rule.get(key)}
    kinds: list[str] = []
    unused_for = 0
    filters = rule.get("filter") or []
    for text in filters if isinstance(filters, list) else [filters]:
        key, _, value = str(text).replace("==", "=").partition("=")
        if key in ("unused-for", "until"):
            unused_for = parse_duration(value)
        elif key == "type":
            kinds.append(value)
        else:
            raise InvalidParameter(f"builder.gc.policy.filter: {text!r} is neither unused-for=DURATION nor type=KIND")
    return CachePolicy(all=rule.get("all", False), unused_for=unused_for, kinds=tuple(kinds), **sizes)


# --- values --------------------------------------------------------------------------------------------------------


def _pool(text: str) -> AddressPool:
    given = pairs(text.split(","))
    unknown = set(given) - {"base", "size"}
    if unknown or not given.get("base"):
        raise InvalidParameter(f"invalid default address pool: {text} (want base=CIDR,size=BITS)")
    return _checked_pool(given["base"], parse_integer(given.get("size", "")))


def _checked_pool(base: str, size: int) -> AddressPool:
    from ipaddress import ip_network

    try:
        network = ip_network(base)
    except ValueError as error:
        raise InvalidParameter(f"invalid default address pool {base}: {error}") from None
    if not network.prefixlen <= size <= network.max_prefixlen:
        raise InvalidParameter(f"invalid default address pool {base}: size {size} does not fit")
    return AddressPool(base=base, size=size)


def _address(text: str) -> str:
    from ipaddress import ip_address

    try:
        return str(ip_address(text.strip()))
    except ValueError:
        raise InvalidParameter(f"invalid IP address: {text}") from None


def _mirror(text: str) -> str:
    from urllib.parse import urlsplit

    url = urlsplit(text)
    if url.scheme not in ("http", "https") or not url.netloc:
        raise InvalidParameter(f'invalid mirror: unsupported scheme "{url.scheme}" in "{text}"')
    if url.username or url.password:
        raise InvalidParameter(f'invalid mirror: username/password not allowed in URI "{masked(text)}"')
    if url.query or url.fragment:
        raise InvalidParameter(f'invalid mirror: path, query, or fragment at end of the URI "{text}"')
    return text.rstrip("/") + "/"


def _runtime(text: str) -> tuple[str, RuntimeOption]:
    name, equals, path = text.partition("=")
    name, path = name.strip(), path.strip()
    if not equals or not name or not path:
        raise InvalidParameter(f"invalid runtime argument: {text} (want name=path)")
    return name, RuntimeOption(path=path)


_ONE: Mapping[str, Callable[[str], object]] = {
    "str": str,
    "bool": parse_bool,
    "int": parse_integer,
    "bytes": parse_bytes,
    "ip": _address,
}
_MANY: Mapping[str, Callable[[str], object]] = {
    "list": str,
    "labels": parse_label,
    "ips": _address,
    "mirrors": _mirror,
    "pools": _pool,
}


def _from_flags(setting: Setting, given: Sequence[str]) -> Any:
    """The typed value of the texts that a flag was given."""
    kind = setting.kind
    text = given[-1]
    try:
        if kind in _ONE:
            return _ONE[kind](text)
        if kind in _MANY:
            values = []
            for text in given:
                values += [_MANY[kind](part) for part in (text.split(",") if kind == "ips" else [text])]
            return values
        mapping: dict[str, Any] = {}
        for text in given:
            if kind == "map":
                mapping.update(pairs([text]))
            elif kind == "features":
                name, _, value = text.partition("=")
                mapping[name] = parse_bool(value or "true")
            elif kind == "ulimits":
                name, soft, hard = parse_ulimit(text)
                mapping[name] = Ulimit(name=name, soft=soft, hard=hard)
            elif kind == "runtimes":
                name, runtime = _runtime(text)
                if name in mapping:
                    raise InvalidParameter(f"runtime '{name}' is already registered")
                mapping[name] = runtime
            else:
                driver, _, option = text.partition("=")
                mapping.setdefault(driver, {}).update(pairs([option]))
        return mapping
    except InvalidParameter as error:
        raise invalid(setting.parser_flag, text, error.message) from None


_GO_TYPES = {"str": "string", "ip": "string", "bool": "bool", "int": "int", "bytes": "opts.MemBytes"}


def _from_file(setting: Setting, value: Any) -> Any:
    """The typed value of what daemon.json holds."""
    kind, key = setting.kind, setting.name
    match kind, value:
        case "bool", bool():
            return value
        case "str", str():
            return value
        case "ip", str():
            return _address(value)
        case "int", int() if not isinstance(value, bool):
            return value
        case "bytes", int() if not isinstance(value, bool):
            return value
        case "bytes", str():
            return parse_bytes(value)
        case (("list" | "labels" | "ips" | "mirrors"), list()):
            if all(isinstance(item, str) for item in value):
                return [_MANY[kind](item) for item in value]
        case "pools", list():
            if all(isinstance(item, dict) for item in value):
                return [_checked_pool(str(item.get("base", "")), int(item.get("size", 0))) for item in value]
        case "map", dict():
            if all(isinstance(item, str) for item in value.values()):
                return dict(value)
        case "features", dict():
            if all(isinstance(item, bool) for item in value.values()):
                return dict(value)
        case "mapmap", dict():
            if all(isinstance(item, dict) for item in value.values()):
                return {driver: {str(k): str(v) for k, v in options.items()} for driver, options in value.items()}
        case "ulimits", dict():
            limits = {}
            for name, limit in value.items():
                if not isinstance(limit, dict) or limit.get("Name", name) != name:
                    break
                soft = int(limit.get("Soft", 0))
                limits[name] = Ulimit(name=name, soft=soft, hard=int(limit.get("Hard", soft)))
            else:
                return limits
        case "runtimes", dict():
            return {name: _file_runtime(name, entry) for name, entry in value.items()}
    raise InvalidParameter(
        f"json: cannot unmarshal {_json_type(value)} into Go struct field Config.{key} of type "
        f"{_GO_TYPES.get(kind, kind)}"
    )


def _file_runtime(name: str, entry: Any) -> RuntimeOption:
    if not isinstance(entry, dict):
        raise InvalidParameter(f"json: cannot unmarshal {_json_type(entry)} into Go struct field Config.runtimes")
    path, kind = entry.get("path", ""), entry.get("runtimeType", "")
    if not path and not kind:
        raise InvalidParameter(f"runtime {name}: either a runtimeType or a path must be configured")
    if kind:
        raise Unsupported(f"runtime {name}: containerd runtime types are not supported, configure a path ({kind})")
    return RuntimeOption(path=path, arguments=tuple(entry.get("runtimeArgs") or ()))


def _json_type(value: Any) -> str:
    match value:
        case bool():
            return "bool"
        case str():
            return "string"
        case int() | float():
            return "number"
        case list():
            return "array"
        case dict():
            return "object"
        case _:
            return "null"


# --- flags ---------------------------------------------------------------------------------------------------------


def parser_flags() -> list[Flag]:
    """Every flag the command line may hold, dockerd's unsupported ones and --help included."""
    known = [setting.parser_flag for setting in SETTINGS]
    known += [Flag(name) for name in TUNES_WHAT_IS_NOT_THERE]
    known += [Flag(name, boolean=name in _NOT_SUPPORTED_BOOLEANS) for name in NOT_SUPPORTED]
    return [*known, Flag("help", boolean=True)]


class Given(msgspec.Struct, frozen=True):
    """The flags of a command line, by name, with their texts."""

    texts: Mapping[str, tuple[str, ...]]

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Given:
        found, positional = parse(arguments, parser_flags())
        if positional:
            raise FlagError(f'"seacan daemon" accepts no arguments: {" ".join(positional)}')
        texts: dict[str, tuple[str, ...]] = {}
        for flag, value in found:
            texts[flag.name] = (*texts.get(flag.name, ()), value)
        return cls(texts)


# --- daemon.json ---------------------------------------------------------------------------------------------------


def _read(path: str, *, required: bool) -> dict[str, Any]:
    """The flattened contents of daemon.json."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        if required:
            raise InvalidParameter(f"open {path}: no such file or directory") from None
        return {}
    except OSError as error:
        raise InvalidParameter(f"open {path}: {(error.strerror or str(error)).lower()}") from None
    try:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise InvalidParameter(f"failed to decode configuration JSON at offset {error.start}") from None
    if not text:
        return {}
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidParameter(f"invalid JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    if not isinstance(parsed, dict):
        raise InvalidParameter(
            f"json: cannot unmarshal {_json_type(parsed)} into Go value of type map[string]interface {{}}"
        )
    flat: dict[str, Any] = {}
    for key, value in parsed.items():
        if isinstance(value, dict) and key not in _FLAT_KEYS:
            flat.update(value)
        else:
            flat[key] = value
    return flat


def _check_conflicts(values: Mapping[str, Any], given: Given) -> None:
    known = {setting.name for setting in SETTINGS} - {"-"}
    # dockerd looks keys up among its flags as well as among their names in the file.
    known |= {setting.flag for setting in SETTINGS if not setting.key}
    known |= set(TUNES_WHAT_IS_NOT_THERE) | {key for key, _ in NOT_SUPPORTED.values()}
    known |= _IGNORED_KEYS | {"builder", "host-gateway-ip"}
    if "api-cors-header" in values:
        raise InvalidParameter(
            'DEPRECATED: The "api-cors-header" config parameter and the dockerd "--api-cors-header" option have been '
            "removed; use a reverse proxy if you need CORS headers"
        )
    unknown = [key for key in values if key not in known]
    if unknown:
        raise InvalidParameter(f"the following directives don't match any configuration option: {', '.join(unknown)}")
    problems = []
    if "host-gateway-ip" in values and "host-gateway-ips" in values:
        problems.append("host-gateway-ip and host-gateway-ips must not both be specified in the config file")
    conflicts = []
    for setting in SETTINGS:
        texts = given.texts.get(setting.flag)
        keys = [setting.name] + (["host-gateway-ip"] if setting.flag == "host-gateway-ip" else [])
        for key in keys:
            if texts is None or key not in values or key == "runtimes":
                continue
            shown: object = texts[-1] if setting.kind in _ONE else list(texts)
            ours, theirs = go_format(shown), go_format(values[key])
            if key.endswith("-proxy"):
                ours, theirs = masked(ours), masked(theirs)
            conflicts.append(f"{key}: (from flag: {ours}, from file: {theirs})")
    if conflicts:
        problems.append(
            "the following directives are specified both as a flag and in the configuration file: "
            + ", ".join(conflicts)
        )
    if problems:
        raise InvalidParameter("\n".join(problems))


# --- putting it together -------------------------------------------------------------------------------------------


def load(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Configuration:
    """The configuration that a command line and its daemon.json make.

    Raises :class:`FlagError` for the command line, and InvalidParameter or Unsupported for the file or for values that
    do not go together.
    """
    given = Given.parse(arguments)
    if given.texts.get("version") or given.texts.get("help"):
        return Configuration(EngineOptions(), version="version" in given.texts)
    path = given.texts.get("config-file", (DEFAULT_CONFIG_FILE,))[-1]
    try:
        values = _read(path, required="config-file" in given.texts) if path else {}
        _check_conflicts(values, given)
        return _merge(given, values, path, environment)
    except FlagError:
        raise
    except (InvalidParameter, Unsupported) as error:
        if "config-file" in given.texts or _exists(path):
            raise type(error)(f"unable to configure the Docker daemon with file {path}: {error.message}") from None
        raise


def _exists(path: str) -> bool:
    return bool(path) and os.path.exists(path)


def _merge(given: Given, values: Mapping[str, Any], path: str, environment: Mapping[str, str]) -> Configuration:
    warnings = _refuse_unsupported(given, values)
    engine: dict[str, Any] = {}
    process: dict[str, Any] = {}
    if "host-gateway-ip" in values:
        values = {**values, "host-gateway-ips": [values["host-gateway-ip"]]}
    for setting in SETTINGS:
        texts = given.texts.get(setting.flag)
        target = engine if setting.option else process
        name = setting.option or setting.flag.replace("-", "_")
        if setting.name in values and values[setting.name] is not None:
            target[name] = _from_file(setting, values[setting.name])
        if texts is not None:
            value = _from_flags(setting, texts)
            target[name] = {**target.get(name, {}), **value} if setting.kind == "runtimes" else value
    _check_exec_opts(process.pop("exec_opt", []))
    for accepted in ("ip_forward_no_drop", "raw_logs"):
        process.pop(accepted, None)
    if values.get("builder"):
        engine["build_cache"] = _cache_limits(values["builder"])
    hosts = tuple(process.pop("host", ())) or ("",)
    process.pop("config_file", None)
    configuration = Configuration(
        replace(EngineOptions(), **engine),
        config_file=path,
        warnings=tuple(warnings),
        in_file=frozenset(values),
        **process,
    )
    configuration = _with_tls(configuration, given, environment)
    configuration = replace(
        configuration,
        hosts=tuple(sorted({parse_host(host, tls=bool(configuration.tls)) for host in hosts})),
    )
    configuration.engine.hosts = [host.partition("://")[2] for host in configuration.hosts]
    configuration.engine.tls = bool(configuration.tls)
    _validate(configuration)
    return configuration


def _refuse_unsupported(given: Given, values: Mapping[str, Any]) -> list[str]:
    for flag, (key, reason) in NOT_SUPPORTED.items():
        text = given.texts.get(flag, ("",))[-1]
        if text not in ("", "0", "false"):
            raise Unsupported(f"--{flag}={text}: {reason}")
        if values.get(key):
            raise Unsupported(f"{key}: {reason}")
    return [
        f"{name} has no effect: {reason}"
        for name, reason in TUNES_WHAT_IS_NOT_THERE.items()
        if name in given.texts or name in values
    ]


def _check_exec_opts(options: Sequence[str]) -> None:
    for option in options:
        name, equals, value = option.partition("=")
        name, value = name.strip().lower(), value.strip()
        if not equals or not name or not value:
            raise InvalidParameter(f"invalid exec-opt ({option}): must be formatted 'opt=value'")
        if name == "isolation":
            raise InvalidParameter(f"invalid exec-opt ({option}): option 'isolation' is only supported on windows")
        if name != "native.cgroupdriver":
            raise InvalidParameter(f"invalid exec-opt ({option}): unknown option: '{name}'")
        if value == "systemd":
            raise Unsupported("native.cgroupdriver=systemd is not supported: Seacan writes to cgroups itself")
        if value != "cgroupfs":
            raise InvalidParameter(
                f"native.cgroupdriver option {value} is either invalid or not supported. Valid options are: cgroupfs"
            )


def _with_tls(configuration: Configuration, given: Given, environment: Mapping[str, str]) -> Configuration:
    tls, verify = configuration.tls, configuration.tlsverify
    if verify is None and environment.get("DOCKER_TLS_VERIFY"):
        verify = True
    if verify is not None:
        tls = True  # whatever it says about verification, --tlsverify speaks of TLS
    if verify is None and tls is not None:
        verify = tls
    if not tls:
        return replace(configuration, tls=tls, tlsverify=verify)
    folder = environment.get("DOCKER_CERT_PATH") or environment.get("DOCKER_CONFIG")
    folder = folder or os.path.join(environment.get("HOME", "/root"), ".docker")
    paths = {
        name: getattr(configuration, name) or os.path.join(folder, default)
        for name, default in (("tlscacert", "ca.pem"), ("tlscert", "cert.pem"), ("tlskey", "key.pem"))
    }
    return replace(
        configuration,
        tls=tls,
        tlsverify=verify,
        tlscacert=paths["tlscacert"],
        tlscert=paths["tlscert"],
        tlskey=paths["tlskey"],
    )


def parse_host(text: str, *, tls: bool) -> str:
    """A ``-H`` value with its defaults filled in (``tcp://`` → ``tcp://localhost:2375``), as dockerd does."""
    host = text.strip()
    if not host:
        return "tcp://localhost:2376" if tls else DEFAULT_HOST
    protocol, separator, address = host.partition("://")
    if not separator:
        protocol, address = "tcp", host
    match protocol:
        case "fd":
            return host
        case "unix":
            if "://" in address:
                raise InvalidParameter(f"invalid bind address ({host}): invalid unix address: {address}")
            return f"unix://{address or DEFAULT_HOST.removeprefix('unix://')}"
        case "tcp":
            return f"tcp://{_tcp_address(host, address, 2376 if tls else 2375)}"
        case _:
            raise InvalidParameter(f"invalid bind address ({host}): unsupported proto '{protocol}'")


def _tcp_address(host: str, address: str, default_port: int) -> str:
    if "/" in address:
        raise InvalidParameter(f"invalid bind address ({host}): should not contain a path element")
    match = re.fullmatch(r"(\[[^\]]*\]|[^:\[\]]*)(?::(\d*))?", address)
    if match is None:
        raise InvalidParameter(f"invalid bind address ({host}): invalid address")
    port = match[2] or str(default_port)
    if not 0 < int(port) < 65536:
        raise InvalidParameter(f"invalid bind address ({host}): invalid port: {port}")
    return f"{match[1] or 'localhost'}:{port}"


def _validate(configuration: Configuration) -> None:
    engine = configuration.engine
    if configuration.log_level.lower() not in _LEVELS:
        raise InvalidParameter(f"invalid logging level: {configuration.log_level}")
    if configuration.log_format not in ("text", "json"):
        raise InvalidParameter(f"invalid log format: {configuration.log_format}")
    if engine.mtu < 0:
        raise InvalidParameter(f"invalid default MTU: {engine.mtu}")
    for name, count in (
        ("max concurrent downloads", engine.max_concurrent_downloads),
        ("max concurrent uploads", engine.max_concurrent_uploads),
        ("max download attempts", engine.max_download_attempts),
    ):
        if count < 0:
            raise InvalidParameter(f"invalid {name}: {count}")
    _check_labels(engine.labels)
    _check_networks(engine)
    if engine.default_ipc_mode not in ("", "private", "shareable"):
        raise InvalidParameter(
            f'IPC mode "{engine.default_ipc_mode}" is not supported as default value; use "shareable" or "private"'
            if engine.default_ipc_mode in ("none", "host")
            else f'default IPC mode setting ({engine.default_ipc_mode}) is invalid; use "shareable" or "private"'
        )
    if engine.default_cgroupns_mode not in ("", "host", "private"):
        raise InvalidParameter(
            f'invalid default cgroup namespace ({engine.default_cgroupns_mode}): use "host" or "private"'
        )
    for domain in engine.dns_search:
        if domain != "." and not re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_-]*\.?)*", domain.strip()):
            raise InvalidParameter(f"{domain} is not a valid domain")
    if "seacan" in engine.runtimes:
        raise InvalidParameter("runtime name 'seacan' is reserved")
    _check_default_runtime(engine)


def _check_default_runtime(engine: EngineOptions) -> None:
    if engine.default_runtime in ("", "runc") and engine.default_runtime not in engine.runtimes:
        engine.default_runtime = "seacan"  # where dockerd has its stock runtime, we have ours
    if engine.default_runtime not in ("seacan", "io.containerd.runc.v2", *engine.runtimes):
        raise InvalidParameter(f"specified default runtime '{engine.default_runtime}' does not exist")


def _check_labels(labels: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for label in labels:
        parse_label(label)
        key, equals, value = label.partition("=")
        if equals and seen.setdefault(key, value) != value:
            raise InvalidParameter(f"conflict labels for {key}={value} and {key}={seen[key]}")


def _check_networks(engine: EngineOptions) -> None:
    from ipaddress import ip_interface, ip_network

    for name, address in (("--bip", engine.bip), ("--bip6", engine.bip6)):
        if engine.bridge and address:
            raise InvalidParameter(f"You specified -b & {name}, mutually exclusive options. Please specify only one")
        if address:
            try:
                interface = ip_interface(address)
            except ValueError as error:
                raise InvalidParameter(f"invalid {name[2:]}: {error}") from None
            if interface.version != (6 if name == "--bip6" else 4) or "/" not in address:
                raise InvalidParameter(f"invalid {name[2:]}: invalid CIDR address: {address}")
    for name, subnet, version in (("fixed-cidr", engine.fixed_cidr, 4), ("fixed-cidr-v6", engine.fixed_cidr_v6, 6)):
        if not subnet:
            continue
        try:
            valid = ip_network(subnet, strict=False).version == version and "/" in subnet
        except ValueError:
            valid = False
        if not valid:
            raise InvalidParameter(f"invalid {name}: invalid CIDR address: {subnet}")


# --- reload --------------------------------------------------------------------------------------------------------

_RESET_WITHOUT_KEY = frozenset({"max_concurrent_downloads", "max_concurrent_uploads", "max_download_attempts"})


def reload(
    running: EngineOptions, arguments: Sequence[str], environment: Mapping[str, str] = os.environ
) -> EngineOptions:
    """The options after SIGHUP: the running ones with what daemon.json now says about :data:`LIVE` settings.

    As in dockerd, a key that is not in the file leaves its setting alone, except for the numbers of downloads and
    uploads, which go back to their defaults (or the flags'), and the features, which are replaced as a whole.
    """
    fresh = load(arguments, environment)
    changes: dict[str, Any] = {}
    for setting in SETTINGS:
        option = setting.option
        if option not in LIVE:
            continue
        if setting.name in fresh.in_file or option in _RESET_WITHOUT_KEY or option == "features":
            changes[option] = getattr(fresh.engine, option)
    updated = replace(running, **changes)
    _check_default_runtime(updated)
    return updated
