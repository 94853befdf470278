"""Links between containers on the default network: the environment variables that came before DNS."""

from __future__ import annotations

from seacan.engine.config import ContainerConfig


def link_variables(child: str, alias: str, address: str, target: ContainerConfig) -> list[str]:
    """What container ``child`` is told of the one it knows as ``alias``: its name, ports and environment.

    Source: Docker's "Legacy container links".
    """
    prefix = alias.replace("-", "_").upper()
    variables = [f"{prefix}_NAME=/{child}/{alias}"]
    ports = sorted((_parts(port) for port in target.exposed_ports or {}), key=lambda part: (part[1] != "tcp", part[0]))
    for index, (number, protocol) in enumerate(ports):
        url = f"{protocol}://{address}:{number}"
        if index == 0:
            variables.append(f"{prefix}_PORT={url}")
        name = f"{prefix}_PORT_{number}_{protocol.upper()}"
        variables += [f"{name}={url}", f"{name}_ADDR={address}", f"{name}_PORT={number}", f"{name}_PROTO={protocol}"]
    for variable in target.env or []:
        key, equals, value = variable.partition("=")
        if equals and key not in ("HOME", "PATH"):
            variables.append(f"{prefix}_ENV_{key}={value}")
    return variables


def _parts(port: str) -> tuple[int, str]:
    number, _, protocol = port.partition("/")
    return int(number.partition("-")[0]), protocol or "tcp"
