"""DNS messages: what is understood, and that nothing hostile does more than be refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from seacan.network import dnswire
from seacan.network.dnswire import Malformed

LABEL = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="."), min_size=1, max_size=20)
NAME = st.lists(LABEL, min_size=1, max_size=6).map(".".join)


@given(NAME, st.integers(0, 65535), st.booleans())
def test_a_question_is_read_as_it_was_written(name: str, id: int, edns: bool) -> None:
    query = dnswire.parse_query(dnswire.question(name, dnswire.A, id, edns=edns))
    assert (query.id, query.name, query.kind, query.klass) == (id, name.lower(), dnswire.A, dnswire.IN)
    assert query.udp_size == (dnswire.UDP_SIZE if edns else 512)


@given(st.binary(max_size=600))
@example(b"\0" * 12)
@example(b"\0\1\1\0\0\1\0\0\0\0\0\0\xc0\x0c\0\1\0\1")
@example(b"\0\1\1\0\0\1\0\0\0\0\0\0" + b"\x3f" * 600)
def test_hostile_bytes_are_malformed_or_a_query_and_nothing_else(data: bytes) -> None:
    try:
        query = dnswire.parse_query(data)
    except Malformed:
        refusal = dnswire.refusal(data, dnswire.FORMERR)
        assert refusal is None or (len(refusal) == 12 and refusal[:2] == data[:2])
    else:
        dnswire.answer(query, [(dnswire.A, b"\1\2\3\4")])


@given(st.binary(max_size=600), st.integers(0, 65535))
def test_hostile_answers_are_malformed_or_kept_and_nothing_else(data: bytes, id: int) -> None:
    query = dnswire.parse_query(dnswire.question("example.org", dnswire.A, id))
    body = struct.pack(">HHHHHH", id, 0x8180, 1, *data[:6].ljust(6, b"\0")[::2]) + query.question + data[6:]
    for candidate in (data, body):
        try:
            reply = dnswire.parse_reply(candidate, query, id)
        except Malformed:
            continue
        assert len(reply.aged(1, 10)) == len(candidate)


def test_an_answer_to_another_question_is_not_taken() -> None:
    query = dnswire.parse_query(dnswire.question("example.org", dnswire.A, 1))
    other = dnswire.parse_query(dnswire.question("example.com", dnswire.A, 1))
    good = dnswire.answer(query, [(dnswire.A, b"\1\2\3\4")])
    assert dnswire.parse_reply(good, query, 1).ttl == 600
    for data, id in ((good, 2), (dnswire.answer(other), 1), (dnswire.question("example.org", dnswire.A, 1), 1)):
        with pytest.raises(Malformed):
            dnswire.parse_reply(data, query, id)


def test_a_kept_answer_ages() -> None:
    query = dnswire.parse_query(dnswire.question("example.org", dnswire.A, 1))
    reply = dnswire.parse_reply(dnswire.answer(query, [(dnswire.A, b"\1\2\3\4")], ttl=100), query, 1)
    aged = dnswire.parse_reply(reply.aged(9, 30), query, 9)
    assert aged.ttl == 70
    assert dnswire.parse_reply(reply.aged(9, 300), query, 9).ttl == 0


def test_too_many_records_are_truncated_and_say_so() -> None:
    query = dnswire.parse_query(dnswire.question("many", dnswire.A, 1))
    records = [(dnswire.A, bytes([10, 0, 0, n])) for n in range(200)]
    short = dnswire.answer(query, records, limit=512)
    assert len(short) <= 512
    assert struct.unpack_from(">H", short, 2)[0] & 0x0200
    assert not struct.unpack_from(">H", dnswire.answer(query, records), 2)[0] & 0x0200


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("2.0.17.172.in-addr.arpa", "172.17.0.2"),
        ("256.0.17.172.in-addr.arpa", None),
        ("17.172.in-addr.arpa", None),
        ("2." + "0." * 23 + "0.0.0.0.0.0.d.f.ip6.arpa", "fd00::2"),
        ("x." + "0." * 31 + "ip6.arpa", None),
        ("example.org", None),
    ],
)
def test_reverse_names_are_read(name: str, address: str | None) -> None:
    assert dnswire.reverse_address(name) == address


@pytest.mark.parametrize("name", ["", "a..b", "x" * 64, ".".join(["abcdefgh"] * 40)])
def test_impossible_names_are_refused(name: str) -> None:
    with pytest.raises(Malformed):
        dnswire.encode_name(name)
