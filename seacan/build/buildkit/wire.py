"""Protocol buffers, as much of them as BuildKit's messages need: proto3, unknown fields skipped.

A message is a dataclass whose fields say their number and kind. https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, TypeVar

from seacan.errors import InvalidParameter

Kind = Literal["int", "bool", "string", "bytes", "message"]

_DEPTH = 100
_MASK = (1 << 64) - 1


class WireError(InvalidParameter):
    """The bytes are no such message."""


@dataclass(frozen=True)
class _Field:
    number: int
    kind: Kind
    message: Callable[[], type[Message]] | None
    repeated: bool
    key: Kind | None
    name: str = ""


def scalar(number: int, kind: Kind) -> Any:
    """A field of a plain kind; absent is zero or empty."""
    default: Any = {"int": 0, "bool": False, "string": "", "bytes": b""}[kind]
    return dataclasses.field(default=default, metadata={"wire": _Field(number, kind, None, False, None)})


def many(number: int, kind: Kind, message: Callable[[], type[Message]] | None = None) -> Any:
    """A repeated field."""
    return dataclasses.field(default_factory=list, metadata={"wire": _Field(number, kind, message, True, None)})


def mapping(
    number: int, kind: Kind, message: Callable[[], type[Message]] | None = None, *, key: Kind = "string"
) -> Any:
    """A map."""
    return dataclasses.field(default_factory=dict, metadata={"wire": _Field(number, kind, message, False, key)})


def nested(number: int, message: Callable[[], type[Message]]) -> Any:
    """A field that is a message; absent is None."""
    return dataclasses.field(default=None, metadata={"wire": _Field(number, "message", message, False, None)})


M = TypeVar("M", bound="Message")


@dataclass
class Message:
    """Base of every message."""

    _fields: ClassVar[dict[int, _Field]]

    @classmethod
    def fields(cls) -> dict[int, _Field]:
        known: dict[int, _Field] | None = cls.__dict__.get("_fields")
        if known is None:
            known = {}
            for each in dataclasses.fields(cls):
                wire: _Field = each.metadata["wire"]
                known[wire.number] = dataclasses.replace(wire, name=each.name)
            cls._fields = known
        return known

    def encode(self) -> bytes:
        out = bytearray()
        for number, described in self.fields().items():
            value = getattr(self, described.name)
            if described.key is not None:
                for key, each in value.items():
                    entry = bytearray()
                    _put(entry, 1, described.key, key)
                    _put(entry, 2, described.kind, each)
                    _put(out, number, "bytes", bytes(entry))
            elif described.repeated:
                for each in value:
                    _put(out, number, described.kind, each, always=True)
            elif value is not None:
                _put(out, number, described.kind, value)
        return bytes(out)

    @classmethod
    def decode(cls, data: bytes | memoryview, _depth: int = 0) -> Self:
        if _depth > _DEPTH:
            raise WireError(f"{cls.__name__}: nested too deep")
        message = cls()
        fields = cls.fields()
        view = memoryview(data)
        at, end = 0, len(view)
        try:
            while at < end:
                tag, at = varint(view, at)
                number, type_ = tag >> 3, tag & 7
                value: int | memoryview
                if type_ == 0:
                    value, at = varint(view, at)
                elif type_ == 2:
                    size, at = varint(view, at)
                    if size > end - at:
                        raise WireError(f"{cls.__name__}: a field is cut short")
                    value = view[at : at + size]
                    at += size
                elif type_ in (1, 5):
                    at += 8 if type_ == 1 else 4
                    continue
                else:
                    raise WireError(f"{cls.__name__}: wire type {type_}")
                described = fields.get(number)
                if described is not None:
                    message._take(described, value, _depth)
        except IndexError:
            raise WireError(f"{cls.__name__}: cut short") from None
        return message

    def _take(self, described: _Field, value: int | memoryview, depth: int) -> None:
        name = described.name
        if described.key is not None:
            if isinstance(value, int):
                raise WireError(f"field {name} is a number")
            key, each = _entry(described, value, depth)
            getattr(self, name)[key] = each
        elif described.repeated:
            if described.kind in ("int", "bool") and not isinstance(value, int):  # packed
                at = 0
                while at < len(value):
                    number, at = varint(value, at)
                    getattr(self, name).append(_value(described, number, depth))
            else:
                getattr(self, name).append(_value(described, value, depth))
        else:
            setattr(self, name, _value(described, value, depth))


def _entry(described: _Field, data: memoryview, depth: int) -> tuple[Any, Any]:
    assert described.key is not None
    empty: dict[str, Any] = {"int": 0, "bool": False, "string": "", "bytes": b""}
    key: Any = empty[described.key]
    each: Any = empty.get(described.kind)
    if described.kind == "message" and described.message is not None:
        each = described.message()()
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        value: int | memoryview
        if tag & 7 == 0:
            value, at = varint(data, at)
        else:
            size, at = varint(data, at)
            value = data[at : at + size]
            at += size
        if tag >> 3 == 1:
            key = _value(_Field(1, described.key, None, False, None), value, depth)
        elif tag >> 3 == 2:
            each = _value(described, value, depth)
    return key, each


def _value(described: _Field, value: int | memoryview, depth: int) -> Any:
    kind = described.kind
    if isinstance(value, int):
        if kind == "bool":
            return value != 0
        if kind != "int":
            raise WireError(f"field {described.name} is a number")
        return value - (1 << 64) if value >> 63 else value
    if kind == "bytes":
        return bytes(value)
    if kind == "string":
        return bytes(value).decode("utf-8", "replace")
    if kind == "message" and described.message is not None:
        return described.message().decode(value, depth + 1)
    raise WireError(f"field {described.name} is not a number")


def varint(data: memoryview | bytes, at: int) -> tuple[int, int]:
    """A variable-length number and where it ends."""
    value = data[at]
    at += 1
    if value < 0x80:
        return value, at
    value &= 0x7F
    shift = 7
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _MASK, at
        shift += 7
        if shift > 63:
            raise WireError("a number is too long")


def _put_varint(out: bytearray, value: int) -> None:
    value &= _MASK
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _put(out: bytearray, number: int, kind: Kind, value: Any, *, always: bool = False) -> None:
    if kind in ("int", "bool"):
        if value or always:
            _put_varint(out, number << 3)
            _put_varint(out, int(value))
        return
    if kind == "message":
        data = value.encode()
        always = True
    elif kind == "string":
        data = value.encode("utf-8", "replace")
    else:
        data = bytes(value)
    if data or always:
        _put_varint(out, number << 3 | 2)
        _put_varint(out, len(data))
        out += data
