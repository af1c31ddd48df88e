"""A certificate authority for one host, so that `up` can speak TLS without anybody's help."""

import contextlib
import ipaddress
import itertools
import logging
import socket
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from terrapod_server.config.hosts import is_loopback, is_name, is_unspecified
from terrapod_shared import clock
from terrapod_shared.files import write_private

log = logging.getLogger("terrapod")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_CONTEXT = "the authority of tls"
_CA_LIFE = timedelta(days=3650)
_LEAF_LIFE = timedelta(days=397)  # what clients accept at most
#: Certificates are dated back by so much: another host's clock may be behind.
_CLOCK_SKEW = timedelta(days=1)
#: A certificate names so many of this host's addresses at most.
_ADDRESSES_MOST = 64
_IPV6_GLOBAL, _IPV6_TEMPORARY = 0, 1
_RENEW_BEFORE = timedelta(days=30)


class Cipher(Protocol):
    """What the authority's key is kept with."""

    def seal(self, data: bytes, context: str) -> bytes: ...
    def unseal(self, sealed: bytes, context: str) -> bytes: ...


def files(folder: Path) -> tuple[Path, Path]:
    """Where certificate and key of the server are."""
    return folder / "server.pem", folder / "server-key.pem"


def ensure(folder: Path, host: str, cipher: Cipher, names: Iterable[str] = ()) -> tuple[Path, Path]:
    """Certificate and key for `host` and `names`, made or renewed where needed; the authority is `ca.pem`, its key
    `ca-key`, sealed.
    """
    ca_file, ca_key_file = folder / "ca.pem", folder / "ca-key"
    _seal_older(folder / "ca-key.pem", ca_key_file, cipher)
    certificate, key = files(folder)
    ca, leaf = _certificate_in(ca_file), _certificate_in(certificate)
    if ca and ca.not_valid_before_utc > clock.now():  # made while the clock was ahead
        ca = None
    own = [] if is_unspecified(host) else [host]
    wanted = [_general_name(name) for name in dict.fromkeys((*_LOOPBACK, *own, *names_of(host), *names))]
    if ca and leaf and leaf.public_key() == _public_key_in(key) and _still_good(ca, leaf, wanted):
        return certificate, key
    if not ca_key_file.exists():
        if leaf:
            log.warning(
                "%s is lost, so a new authority is made: give %s to the other hosts again", ca_key_file, ca_file
            )
        _make_ca(ca_file, _name_of_ca(), _new_key(ca_key_file, cipher))
    elif ca is None:  # by the same key and name: the copies that other hosts have stay good
        _make_ca(ca_file, leaf.issuer if leaf else _name_of_ca(), _ca_key(ca_key_file, cipher))
    ca, leaf = _certificate_in(ca_file), _certificate_in(certificate)
    if not (ca and leaf and leaf.public_key() == _public_key_in(key) and _still_good(ca, leaf, wanted)):
        _issue(ca_file, _ca_key(ca_key_file, cipher), certificate, key, wanted)
    return certificate, key


def names_of(host: str) -> list[str]:
    """By what other hosts may reach a server that listens on `host`: for all addresses, this host's name and its own."""
    if not is_unspecified(host):
        return [] if is_loopback(host) else [host]
    name = socket.gethostname()
    return [*([name] if is_name(name) and name != "localhost" else []), *_addresses()[:_ADDRESSES_MOST]]


def _addresses() -> list[str]:
    """This host's addresses, as the kernel lists them: none of loopback, of one link alone, or of an hour."""
    found: dict[str, None] = {}
    with contextlib.suppress(OSError):
        lines = Path("/proc/net/fib_trie").read_text().splitlines()
        for above, line in itertools.pairwise(lines):
            if line.split() == ["/32", "host", "LOCAL"]:
                found[above.split()[-1]] = None
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            digits, _, _, scope, flags, _ = line.split()
            if int(scope, 16) == _IPV6_GLOBAL and not int(flags, 16) & _IPV6_TEMPORARY:
                found[str(ipaddress.IPv6Address(bytes.fromhex(digits)))] = None
    known = [ipaddress.ip_address(text) for text in found]
    return [str(address) for address in known if not address.is_loopback and not address.is_link_local]


def _seal_older(plain: Path, sealed: Path, cipher: Cipher) -> None:
    """Earlier releases kept the key in clear."""
    if plain.exists():
        if not sealed.exists():
            write_private(sealed, cipher.seal(plain.read_bytes(), _CONTEXT))
        plain.unlink()


def _name_of_ca() -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Terrapod authority of {socket.gethostname()}"[:64])])


def _new_key(key_file: Path, cipher: Cipher) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    write_private(key_file, cipher.seal(_pem(key), _CONTEXT))
    return key


def _ca_key(key_file: Path, cipher: Cipher) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(cipher.unseal(key_file.read_bytes(), _CONTEXT), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        message = f"the key in {key_file} is not of this program"
        raise TypeError(message)
    return key


def _make_ca(ca_file: Path, name: x509.Name, key: ec.EllipticCurvePrivateKey) -> None:
    now = clock.now()
    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + _CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    ca_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _issue(
    ca_file: Path,
    ca_key: ec.EllipticCurvePrivateKey,
    certificate_file: Path,
    key_file: Path,
    names: list[x509.GeneralName],
) -> None:
    ca = x509.load_pem_x509_certificate(ca_file.read_bytes())
    key = ec.generate_private_key(ec.SECP256R1())
    now = clock.now()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "terrapod-server")]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now - _CLOCK_SKEW + _LEAF_LIFE)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    write_private(key_file, _pem(key))
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _certificate_in(file: Path) -> x509.Certificate | None:
    """None where it is not there, or damaged."""
    try:
        return x509.load_pem_x509_certificate(file.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def _public_key_in(file: Path) -> object:
    """That of the private key in the file; None where it is not there, or damaged."""
    try:
        return serialization.load_pem_private_key(file.read_bytes(), None).public_key()
    except (FileNotFoundError, ValueError):
        return None


def _still_good(ca: x509.Certificate, leaf: x509.Certificate, names: list[x509.GeneralName]) -> bool:
    try:
        leaf.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):  # such as one of an authority that was replaced
        return False
    have = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    is_in_time = leaf.not_valid_before_utc <= clock.now() < leaf.not_valid_after_utc - _RENEW_BEFORE
    return set(names) <= set(have) and is_in_time


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
