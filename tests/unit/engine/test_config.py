"""Docker's JSON read as leniently as Go reads it, and printed as dockerd prints it."""

from __future__ import annotations

import msgspec
import pytest

from seacan.api.networks import ConnectRequest
from seacan.engine.config import ContainerConfig, ContainerCreateRequest, HostConfig, copy, decode, encode
from seacan.errors import InvalidParameter
from seacan.network.creation import NetworkCreateRequest


def test_null_leaves_the_zero_value() -> None:
    request = decode(
        b'{"Hostname": null, "Tty": null, "HostConfig": {"Memory": null, "Binds": null}}', ContainerCreateRequest
    )
    assert (request.hostname, request.tty) == ("", False)
    assert request.host_config is not None
    assert (request.host_config.memory, request.host_config.binds) == (0, None)


def test_names_match_whatever_their_case() -> None:
    request = decode(b'{"image": "a", "hostconfig": {"NETWORKMODE": "none"}}', ContainerCreateRequest)
    assert request.image == "a"
    assert request.host_config is not None
    assert request.host_config.network_mode == "none"


def test_unknown_names_are_passed_over() -> None:
    assert decode(b'{"Foo": {"Bar": [1]}}', ContainerConfig) == ContainerConfig()


@pytest.mark.parametrize("field", ["Cmd", "Entrypoint", "Shell"])
def test_a_command_may_be_one_string(field: str) -> None:
    config = decode(f'{{"{field}": "echo"}}'.encode(), ContainerConfig)
    assert getattr(config, field.lower()) == ["echo"]


def test_nulls_inside_maps_and_lists() -> None:
    body = b'{"Env": ["A=1", null], "ExposedPorts": {"80/tcp": null}, "HostConfig": {"PortBindings": {"80/tcp": null}}}'
    request = decode(body, ContainerCreateRequest)
    assert request.env == ["A=1", ""]
    assert request.exposed_ports == {"80/tcp": {}}
    assert request.host_config is not None
    assert request.host_config.port_bindings == {"80/tcp": None}


def test_a_null_endpoint_is_one_without_settings() -> None:
    request = decode(b'{"NetworkingConfig": {"EndpointsConfig": {"net": null}}}', ContainerCreateRequest)
    assert request.networking_config is not None
    assert request.networking_config.endpoints_config == {"net": None}


_INTO = "invalid JSON: json: cannot unmarshal {}"


@pytest.mark.parametrize(
    ("model", "body", "words"),
    [
        (NetworkCreateRequest, b'{"Name": 5}', "number into Go struct field CreateRequest.Name of type string"),
        (NetworkCreateRequest, b"[]", "array into Go value of type network.CreateRequest"),
        (
            NetworkCreateRequest,
            b'{"Internal": true, "ipam": {"Config": [{"Subnet": "10.0.0.0/8"}, {"Subnet": 1.5}]}, "Name": 3}',
            "number into Go struct field IPAMConfig.CreateOptions.IPAM.Config.Subnet of type string",
        ),
        (
            NetworkCreateRequest,
            b'{"Options": ["a"]}',
            "array into Go struct field CreateRequest.CreateOptions.Options of type map[string]string",
        ),
        (
            NetworkCreateRequest,
            b'{"Options": {"a": true}}',
            "bool into Go struct field CreateRequest.CreateOptions.Options of type string",
        ),
        (
            NetworkCreateRequest,
            b'{"EnableIPv6": "true"}',
            "string into Go struct field CreateRequest.CreateOptions.EnableIPv6 of type bool",
        ),
        (
            ConnectRequest,
            b'{"EndpointConfig": {"GwPriority": 1.5}}',
            "number 1.5 into Go struct field EndpointSettings.EndpointConfig.GwPriority of type int",
        ),
        (
            ConnectRequest,
            b'{"EndpointConfig": "x"}',
            "string into Go struct field ConnectOptions.EndpointConfig of type network.EndpointSettings",
        ),
        (
            ContainerCreateRequest,
            b'{"HostConfig": {"Memory": "1g"}}',
            "string into Go struct field HostConfig.HostConfig.Resources.Memory of type int64",
        ),
        (
            ContainerCreateRequest,
            b'{"HostConfig": {"Memory": 9223372036854775808}}',
            "number 9223372036854775808 into Go struct field HostConfig.HostConfig.Resources.Memory of type int64",
        ),
        (
            ContainerCreateRequest,
            b'{"HostConfig": {"PortBindings": {"80/tcp": {}}}}',
            "object into Go struct field HostConfig.HostConfig.PortBindings of type []nat.PortBinding",
        ),
        (
            ContainerCreateRequest,
            b'{"HostConfig": {"PortBindings": {"80/tcp": [{"HostPort": 80}]}}}',
            "number into Go struct field PortBinding.HostConfig.PortBindings.HostPort of type string",
        ),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_in_the_words_of_go(
    model: type[msgspec.Struct], body: bytes, words: str
) -> None:
    with pytest.raises(InvalidParameter) as caught:
        decode(body, model)
    assert str(caught.value) == _INTO.format(words)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"Cmd": 5}', b'{"Env": "x"}', b'{"HostConfig": {"Memory": "1g"}}', b"\xff"]
)
def test_what_is_not_the_type_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidParameter, match="invalid JSON"):
        decode(body, ContainerCreateRequest)


def test_deep_nesting_is_refused_not_followed() -> None:
    with pytest.raises(InvalidParameter):
        decode(b'{"Labels":' + b"[" * 100_000, ContainerConfig)


def test_empty_fields_are_printed_as_dockerd_prints_them() -> None:
    plain = encode(ContainerConfig())
    assert plain["Env"] is None
    assert plain["Labels"] is None
    assert not plain.keys() & {"ExposedPorts", "Healthcheck", "StopTimeout", "StopSignal", "Shell", "MacAddress"}
    plain = encode(HostConfig())
    assert plain["Binds"] is None
    assert plain["ConsoleSize"] == [0, 0]
    assert not plain.keys() & {"Init", "Mounts", "Tmpfs", "Sysctls", "Runtime", "Annotations"}


def test_pointers_are_printed_when_they_are_set_to_zero() -> None:
    assert encode(ContainerConfig(stop_timeout=0))["StopTimeout"] == 0
    assert encode(HostConfig(init=False))["Init"] is False


def test_a_copy_shares_nothing() -> None:
    one = HostConfig(binds=["/a:/b"])
    other = copy(one)
    assert other.binds is not None
    other.binds.append("/c:/d")
    assert one.binds == ["/a:/b"]
