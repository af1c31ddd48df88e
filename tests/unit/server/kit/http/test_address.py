"""Whose word about a client's address is believed."""

import pytest
from starlette.requests import Request

from terrapod_server.kit.http.address import Addresses
from terrapod_server.kit.http.networks import group


def request(peer: str, *headers: tuple[str, str]) -> Request:
    raw = [(name.encode(), value.encode()) for name, value in headers]
    return Request({"type": "http", "client": (peer, 1234), "headers": raw})


@pytest.mark.parametrize(
    ("peer", "said", "expected"),
    [
        ("198.51.100.7", [], "198.51.100.7"),
        ("198.51.100.7", ["203.0.113.1"], "198.51.100.7"),  # no proxy of ours
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.1"], "203.0.113.1"),
        ("10.0.0.1", ["1.1.1.1, 203.0.113.1"], "203.0.113.1"),  # what the client wrote stands left
        ("10.0.0.1", ["1.1.1.1", "203.0.113.1"], "203.0.113.1"),  # in two headers
        ("10.0.0.1", ["1.1.1.1, 203.0.113.1, 10.9.9.9"], "203.0.113.1"),  # two proxies of ours
        ("10.0.0.1", ["10.0.0.2"], "10.0.0.2"),  # a client inside
        ("10.0.0.1", ["1.1.1.1, nonsense, 10.9.9.9"], "10.9.9.9"),
        ("10.0.0.1", ["unknown"], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.1:4711"], "203.0.113.1"),
        ("10.0.0.1", ["[2001:db8::7]:4711"], "2001:db8::7"),
        ("::ffff:10.0.0.1", ["::ffff:203.0.113.1"], "203.0.113.1"),
        ("fd00::1", ["2001:db8::7"], "2001:db8::7"),
    ],
)
def test_x_forwarded_for(peer: str, said: list[str], expected: str) -> None:
    addresses = Addresses(("10.0.0.0/8", "fd00::1"))
    headers = [("x-forwarded-for", value) for value in said]
    assert addresses.of(request(peer, *headers, ("forwarded", "for=9.9.9.9"))) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("for=203.0.113.1", "203.0.113.1"),
        ('for=1.1.1.1, proto=https;For="[2001:db8::7]:4711";by=10.0.0.1', "2001:db8::7"),
        ('for=", for=203.0.113.1', "203.0.113.1"),  # an open quote of the client's
        ("for=_hidden", "10.0.0.1"),
        ("proto=https", "10.0.0.1"),
    ],
)
def test_forwarded(said: str, expected: str) -> None:
    addresses = Addresses(("10.0.0.0/8",), "forwarded")
    assert addresses.of(request("10.0.0.1", ("forwarded", said), ("x-forwarded-for", "9.9.9.9"))) == expected


def test_without_proxies_no_header_counts(caplog: pytest.LogCaptureFixture) -> None:
    addresses = Addresses()
    for _ in range(2):
        assert addresses.of(request("198.51.100.7", ("x-forwarded-for", "203.0.113.1"))) == "198.51.100.7"
    assert [record.message for record in caplog.records if "trusted_proxies" in record.message].__len__() == 1


def test_one_customer_of_ipv6_is_one_client() -> None:
    assert group("2001:db8:1:2::1") == group("2001:db8:1:2:ffff::9") == "2001:db8:1:2::/64"
    assert group("203.0.113.1") == "203.0.113.1"
    assert group("::ffff:203.0.113.1") == "203.0.113.1"
    assert group("") == ""
