"""The certificate of `up`: whom it names, and for how long it is good."""

import ipaddress
import socket
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtensionOID

from terrapod_server.commands import tls
from terrapod_server.commands.up import host_here, hosts_elsewhere
from terrapod_server.config.hosts import is_name
from terrapod_server.config.settings import Config
from terrapod_server.store.cipher import KeyRing
from terrapod_shared import clock

HERE = ["localhost", "127.0.0.1", "::1"]
#: On some hosts localhost is no IPv6 address: then a server there is called by a name that was given.
IPV6_HERE = "localhost" if "::1" in {each[4][0] for each in socket.getaddrinfo("localhost", 1)} else "terrapod.lan"


@pytest.fixture
def ring() -> KeyRing:
    return KeyRing.fresh()


def named(file: Path) -> list[str]:
    """All names and addresses in the certificate."""
    certificate = x509.load_pem_x509_certificate(file.read_bytes())
    found = certificate.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME).value
    assert isinstance(found, x509.SubjectAlternativeName)
    return [str(each.value) for each in found]


@pytest.mark.parametrize(
    ("host", "names", "wanted"),
    [
        ("127.0.0.1", [], []),
        ("localhost", [], []),
        ("terrapod.lan", [], ["terrapod.lan"]),
        ("192.0.2.7", ["terrapod.lan", "192.0.2.8", "fd00::8"], ["192.0.2.7", "terrapod.lan", "192.0.2.8", "fd00::8"]),
    ],
)
def test_a_certificate_names_its_host_and_what_is_asked_for(
    tmp_path: Path, ring: KeyRing, host: str, names: list[str], wanted: list[str]
) -> None:
    file, _ = tls.ensure(tmp_path, host, ring, names)
    assert named(file) == [*HERE, *wanted]


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_on_all_addresses_it_names_this_host_and_its_addresses(tmp_path: Path, ring: KeyRing, host: str) -> None:
    file, _ = tls.ensure(tmp_path, host, ring, ["terrapod.lan"])
    found = named(file)
    assert {*HERE, socket.gethostname(), "terrapod.lan"} <= set(found)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
        try:
            route.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return  # a host without a network
        assert route.getsockname()[0] in found
    addresses = [ipaddress.ip_address(name) for name in found if name[0].isdigit() or ":" in name]
    assert not any(address.is_unspecified or address.is_link_local for address in addresses)


def test_both_certificates_are_good_on_a_host_whose_clock_is_behind(tmp_path: Path, ring: KeyRing) -> None:
    file, _ = tls.ensure(tmp_path, "127.0.0.1", ring, [])
    for each in (file, tmp_path / "ca.pem"):
        certificate = x509.load_pem_x509_certificate(each.read_bytes())
        assert clock.now() - certificate.not_valid_before_utc >= timedelta(days=1)
    leaf = x509.load_pem_x509_certificate(file.read_bytes())
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc <= timedelta(days=397)


def test_it_is_made_again_for_a_new_name_by_the_same_authority(tmp_path: Path, ring: KeyRing) -> None:
    file, _ = tls.ensure(tmp_path, "127.0.0.1", ring, ["a.lan", "b.lan"])
    first, ca = file.read_bytes(), (tmp_path / "ca.pem").read_bytes()
    tls.ensure(tmp_path, "127.0.0.1", ring, ["b.lan"])
    assert file.read_bytes() == first, "it has the name already"
    tls.ensure(tmp_path, "127.0.0.1", ring, ["c.lan"])
    assert named(file) == [*HERE, "c.lan"]
    assert (tmp_path / "ca.pem").read_bytes() == ca


@pytest.mark.parametrize("content", [None, b"", b"junk"], ids=["lost", "empty", "junk"])
@pytest.mark.parametrize("name", ["ca.pem", "server.pem", "server-key.pem", "ca-key"])
def test_a_damaged_file_is_made_again_and_all_fit_together(
    tmp_path: Path, ring: KeyRing, name: str, content: bytes | None
) -> None:
    tls.ensure(tmp_path, "127.0.0.1", ring)
    before = (tmp_path / "ca.pem").read_bytes()
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    tls.ensure(tmp_path, "127.0.0.1", ring)
    ca, leaf = (x509.load_pem_x509_certificate((tmp_path / each).read_bytes()) for each in ("ca.pem", "server.pem"))
    key = serialization.load_pem_private_key((tmp_path / "server-key.pem").read_bytes(), None)
    leaf.verify_directly_issued_by(ca)
    leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(before))  # other hosts have copies
    assert key.public_key() == leaf.public_key()


def test_without_the_key_of_its_authority_a_new_name_makes_a_new_one_and_says_so(
    tmp_path: Path, ring: KeyRing, caplog: pytest.LogCaptureFixture
) -> None:
    tls.ensure(tmp_path, "127.0.0.1", ring)
    (tmp_path / "ca-key").unlink()
    tls.ensure(tmp_path, "127.0.0.1", ring, ["a.lan"])
    ca, leaf = (x509.load_pem_x509_certificate((tmp_path / each).read_bytes()) for each in ("ca.pem", "server.pem"))
    leaf.verify_directly_issued_by(ca)
    assert "to the other hosts again" in caplog.text


def test_what_was_made_while_the_clock_was_ahead_is_made_again(tmp_path: Path, ring: KeyRing) -> None:
    with pytest.MonkeyPatch.context() as patch:
        ahead = clock.now() + timedelta(days=400)
        patch.setattr(clock, "now", lambda: ahead)
        tls.ensure(tmp_path, "127.0.0.1", ring)
    tls.ensure(tmp_path, "127.0.0.1", ring)
    for name in ("ca.pem", "server.pem"):
        assert x509.load_pem_x509_certificate((tmp_path / name).read_bytes()).not_valid_before_utc < clock.now()


def test_it_names_an_address_of_loopback_on_which_a_server_listens(tmp_path: Path, ring: KeyRing) -> None:
    file, _ = tls.ensure(tmp_path, "127.0.0.2", ring)
    assert "127.0.0.2" in named(file)


@pytest.mark.parametrize(
    ("text", "is_good"),
    [("10.0.0.300", False), ("192.0.2", False), ("10.0.0.3", True), ("node-1", True), ("1.example.org", True)],
)
def test_a_mistyped_address_is_no_name(text: str, is_good: bool) -> None:
    assert is_name(text) is is_good


@pytest.mark.parametrize(
    ("host", "names", "here", "elsewhere"),
    [
        ("127.0.0.1", (), "localhost:8443", []),
        ("::1", ("terrapod.lan",), f"{IPV6_HERE}:8443", ["terrapod.lan:8443"]),
        ("0.0.0.0", ("terrapod.lan", "fd00::8"), "localhost:8443", ["terrapod.lan:8443", "[fd00::8]:8443"]),
        ("127.0.0.2", (), "127.0.0.2:8443", []),
        ("terrapod.lan", (), "terrapod.lan:8443", ["terrapod.lan:8443"]),
        ("fd00::7", (), "[fd00::7]:8443", ["[fd00::7]:8443"]),
        ("fd00::7", ("terrapod.lan",), "terrapod.lan:8443", ["terrapod.lan:8443"]),
    ],
)
def test_what_a_server_is_called(host: str, names: tuple[str, ...], here: str, elsewhere: list[str]) -> None:
    config = Config(host=host, names=names)
    assert (host_here(config), hosts_elsewhere(config)) == (here, elsewhere)
