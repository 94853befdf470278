"""From what a client asks for to what a container is: checks, the image's defaults and the engine's.

Pure functions on Docker's types. What a runtime can or cannot honour is judged in :mod:`seacan.engine.oci`.
"""

from __future__ import annotations

import posixpath
import re

from seacan.engine.config import ContainerConfig, HealthConfig, HostConfig, LogConfig
from seacan.engine.options import EngineOptions
from seacan.engine.signals import parse_signal
from seacan.errors import InvalidParameter
from seacan.images.config import Healthcheck, ImageDefaults

MINIMUM_DURATION = 1_000_000
"""Nanoseconds; shorter health check times are refused, as by dockerd."""
_PORT = re.compile(r"(\d+)(?:-(\d+))?(?:/(tcp|udp|sctp))?", re.IGNORECASE)
LOG_DRIVERS = frozenset({"json-file", "local", "none"})
_LOG_OPTIONS = {
    "json-file": frozenset(
        {
            "max-file",
            "max-size",
            "compress",
            "labels",
            "labels-regex",
            "env",
            "env-regex",
            "tag",
            "mode",
            "max-buffer-size",
        }
    ),
    "local": frozenset({"max-file", "max-size", "compress", "mode", "max-buffer-size"}),
    "none": frozenset({"mode", "max-buffer-size"}),
}


def check_config(config: ContainerConfig) -> None:
    """Refuse a Config that contradicts itself.

    Raises:
        InvalidParameter: in dockerd's words.
    """
    if config.working_dir:
        if not config.working_dir.startswith("/"):
            raise InvalidParameter(
                f"the working directory '{config.working_dir}' is invalid, it needs to be an absolute path"
            )
        config.working_dir = posixpath.normpath(config.working_dir)
    if config.stop_signal:
        parse_signal(config.stop_signal)
    for variable in config.env or []:
        if not variable or variable.startswith("="):
            raise InvalidParameter(f"invalid environment variable: {variable}")
        if "\0" in variable:
            raise InvalidParameter("invalid environment variable: contains a null byte")
    for port in config.exposed_ports or {}:
        check_port(port)
    if config.healthcheck is not None:
        _check_health(config.healthcheck)


def check_host_config(host_config: HostConfig) -> None:
    """Refuse a HostConfig that contradicts itself.

    Raises:
        InvalidParameter: in dockerd's words.
    """
    policy = host_config.restart_policy
    if host_config.auto_remove and policy.name not in ("", "no"):
        raise InvalidParameter("can't create 'AutoRemove' container with restart policy")
    for extra in host_config.extra_hosts or []:
        name, _, address = extra.partition("=") if "=" in extra else extra.partition(":")
        if not name or not address:
            raise InvalidParameter(f'bad format for add-host: "{extra}"')
    for port, bindings in (host_config.port_bindings or {}).items():
        check_port(port)
        for binding in bindings or []:
            if binding.host_port and not re.fullmatch(r"\d+(-\d+)?", binding.host_port):
                raise InvalidParameter(f'invalid port specification: "{binding.host_port}"')
    if policy.name not in ("", "no", "always", "unless-stopped", "on-failure"):
        raise InvalidParameter(
            f"invalid restart policy: unknown policy '{policy.name}'; use one of 'no', 'always', 'on-failure', "
            "or 'unless-stopped'"
        )
    if policy.maximum_retry_count and policy.name != "on-failure":
        raise InvalidParameter(
            "invalid restart policy: maximum retry count can only be used with 'on-failure'"
            + (" and cannot be negative" if policy.maximum_retry_count < 0 else "")
        )
    if policy.maximum_retry_count < 0:
        raise InvalidParameter("invalid restart policy: maximum retry count cannot be negative")
    if host_config.isolation.lower() not in ("", "default"):
        raise InvalidParameter(f"invalid isolation ({host_config.isolation}): linux only supports 'default'")
    if "" in (host_config.annotations or {}):
        raise InvalidParameter("invalid Annotations: the empty string is not permitted as an annotation key")
    _check_log(host_config.log_config)


def check_port(port: str) -> None:
    match = _PORT.fullmatch(port)
    numbers = [int(n) for n in match.groups()[:2] if n] if match else []
    if not match or not all(0 < n < 65536 for n in numbers) or (len(numbers) == 2 and numbers[0] > numbers[1]):
        raise InvalidParameter(f'invalid port specification: "{port}"')


def merge(config: ContainerConfig, image: ImageDefaults) -> None:
    """Fill what ``config`` leaves open from the image's config, by dockerd's rules.

    Raises:
        InvalidParameter: nothing to run.
    """
    config.user = config.user or image.user
    if image.exposed_ports:
        config.exposed_ports = {**image.exposed_ports, **(config.exposed_ports or {})}
    env = list(config.env or [])
    given = {variable.partition("=")[0] for variable in env}
    env += [variable for variable in image.env or [] if variable.partition("=")[0] not in given]
    config.env = env or (None if config.env is None else [])
    if image.labels or config.labels is None:
        config.labels = {**(image.labels or {}), **(config.labels or {})}
    if not config.entrypoint:
        if not config.cmd:
            config.cmd = image.cmd
        if config.entrypoint is None:
            config.entrypoint = image.entrypoint
    if image.healthcheck is not None:
        config.healthcheck = _merged_health(config.healthcheck or HealthConfig(), image.healthcheck)
    config.working_dir = config.working_dir or image.working_dir
    config.volumes = {**(image.volumes or {}), **(config.volumes or {})} or None
    config.stop_signal = config.stop_signal or image.stop_signal
    if config.shell is None:
        config.shell = image.shell
    if config.on_build is None:
        config.on_build = image.on_build


def command(config: ContainerConfig) -> tuple[str, list[str]]:
    """Path and arguments of what is to run.

    Raises:
        InvalidParameter: neither a command nor an entry point.
    """
    if config.entrypoint == [""]:
        config.entrypoint = None
    words = [*(config.entrypoint or []), *(config.cmd or [])]
    if not words:
        raise InvalidParameter("no command specified")
    return words[0], words[1:]


def adapt(host_config: HostConfig, options: EngineOptions, *, cgroup_v2: bool) -> None:
    """Fill what ``host_config`` leaves open with the engine's defaults, as dockerd shows them in an inspect.

    Raises:
        InvalidParameter: what came of it contradicts itself.
    """
    if not host_config.restart_policy.name:
        host_config.restart_policy.name = "no"
    if host_config.network_mode in ("", "default"):
        host_config.network_mode = "bridge"
    if host_config.network_mode == "bridge" and options.bridge == "none":
        host_config.network_mode = "none"
    if host_config.memory > 0 and host_config.memory_swap == 0:
        host_config.memory_swap = host_config.memory * 2
    if host_config.shm_size == 0:
        host_config.shm_size = options.default_shm_size
    if not host_config.ipc_mode:
        host_config.ipc_mode = options.default_ipc_mode
    if not host_config.cgroupns_mode:
        privileged_v1 = host_config.privileged and not cgroup_v2
        default = options.default_cgroupns_mode or ("private" if cgroup_v2 else "host")
        host_config.cgroupns_mode = "host" if privileged_v1 else default
    if host_config.pids_limit is not None and host_config.pids_limit <= 0:
        host_config.pids_limit = None
    if host_config.oom_kill_disable is None:
        host_config.oom_kill_disable = False
    if not host_config.runtime:
        host_config.runtime = options.default_runtime
    log = host_config.log_config
    if not log.type:
        log.type = options.log_driver
    if log.type == options.log_driver:
        log.config = {**options.log_opts, **(log.config or {})}
    if log.config is None:
        log.config = {}
    _check_log(log)


def _check_log(log: LogConfig) -> None:
    if not log.type:
        return
    if log.type not in LOG_DRIVERS:
        raise InvalidParameter(f'error looking up logging plugin {log.type}: plugin "{log.type}" not found')
    for name in log.config or {}:
        if name not in _LOG_OPTIONS[log.type]:
            driver = "log driver local" if log.type == "local" else f"{log.type} log driver"
            raise InvalidParameter(f"unknown log opt '{name}' for {driver}")
    mode = (log.config or {}).get("mode", "")
    if mode not in ("", "blocking", "non-blocking"):
        raise InvalidParameter(f"logger: logging mode not supported: {mode}")
    if "max-buffer-size" in (log.config or {}) and mode != "non-blocking":
        raise InvalidParameter("logger: max-buffer-size option is only supported with 'mode=non-blocking'")


def _check_health(health: HealthConfig) -> None:
    for name, value in (
        ("Interval", health.interval),
        ("Timeout", health.timeout),
        ("StartPeriod", health.start_period),
        ("StartInterval", health.start_interval),
    ):
        if value != 0 and value < MINIMUM_DURATION:
            raise InvalidParameter(f"{name} in Healthcheck cannot be less than 1ms")
    if health.retries < 0:
        raise InvalidParameter("Retries in Healthcheck cannot be negative")


def _merged_health(own: HealthConfig, image: Healthcheck) -> HealthConfig:
    return HealthConfig(
        test=own.test or image.test,
        interval=own.interval or image.interval,
        timeout=own.timeout or image.timeout,
        start_period=own.start_period or image.start_period,
        start_interval=own.start_interval or image.start_interval,
        retries=own.retries or image.retries,
    )
