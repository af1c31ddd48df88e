"""A SAML identity provider in a process (pysaml2, see saml_idp.py), and what an attacker does to its answers."""

import base64
import contextlib
import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from lxml import etree
from signxml.algorithms import CanonicalizationMethod
from signxml.signer import XMLSigner

from terrapod_server.identity.signin.saml import DS, SAML, SAMLP

PERSISTENT = "urn:oasis:names:tc:SAML:2.0:nameid-format:persistent"
MAIL = "urn:oasis:names:tc:SAML:1.1:nameid-format:emailAddress"
NS = {"saml": SAML, "samlp": SAMLP, "ds": DS}


@dataclass
class IdP:
    """Its folder has the keys; what `says` writes is whom it signs in."""

    folder: Path
    port: int

    @property
    def certificate(self) -> Path:
        return self.folder / "cert.pem"

    @property
    def settings(self) -> dict[str, Any]:
        base = f"http://127.0.0.1:{self.port}"
        return {
            "name": "corp",
            "issuer": f"{base}/idp",
            "sign_on_url": f"{base}/sso",
            "certificate": str(self.certificate),
            "trust_email": True,
        }

    def says(self, name_id: str, form: str = PERSISTENT, more: dict[str, Any] | None = None, **attributes: Any) -> None:
        person = {"name_id": name_id, "format": form, "attributes": attributes, "more": more or {}}
        (self.folder / "person.json").write_text(json.dumps(person))

    def make_keys(self) -> None:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "idp")])
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        self.certificate.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        private = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (self.folder / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, *private))

    @contextlib.contextmanager
    def serving(self, metadata: bytes) -> Iterator[None]:
        (self.folder / "sp.xml").write_bytes(metadata)
        command = [sys.executable, str(Path(__file__).with_name("saml_idp.py")), str(self.port), str(self.folder)]
        with (self.folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        until = time.monotonic() + 60
        try:
            while True:
                assert process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < until
                with contextlib.suppress(httpx.ConnectError):
                    httpx.get(f"http://127.0.0.1:{self.port}/")
                    break
                time.sleep(0.05)
            yield
        finally:
            process.terminate()
            process.wait(10)

    def signed(self, assertion: Any) -> Any:
        """The assertion, signed with the provider's key, as it would sign it."""
        for old in assertion.findall("ds:Signature", NS):
            assertion.remove(old)
        signer = XMLSigner(c14n_algorithm=CanonicalizationMethod.EXCLUSIVE_XML_CANONICALIZATION_1_0)
        key, cert = (self.folder / "key.pem").read_bytes(), self.certificate.read_text()
        return signer.sign(assertion, key=key, cert=cert, reference_uri=assertion.get("ID"), id_attribute="ID")

    def changed(self, response: str, change: Callable[[Any], object]) -> str:
        """The response with an assertion that the provider signed after the change."""
        root = decoded(response)
        assertion = root.find("saml:Assertion", NS)
        change(assertion)
        alone = etree.fromstring(etree.tostring(assertion, with_tail=False))
        root.replace(assertion, etree.Comment("here"))
        # as text: moving the element would give its namespaces other prefixes, which are signed
        whole = etree.tostring(root).replace(b"<!--here-->", etree.tostring(self.signed(alone)))
        return base64.b64encode(whole).decode()


def decoded(response: str) -> Any:
    return etree.fromstring(base64.b64decode(response))


def encoded(root: Any) -> str:
    return base64.b64encode(etree.tostring(root)).decode()


def forged(response: str, place: Callable[[Any, Any, Any], object]) -> str:
    """Signature wrapping: `place(root, signed, evil)` puts a forged assertion beside, around or into the signed one."""
    root = decoded(response)
    signed = root.find("saml:Assertion", NS)
    evil = copy.deepcopy(signed)
    evil.remove(evil.find("ds:Signature", NS))
    evil.set("ID", "_evil")
    evil.find("saml:Subject/saml:NameID", NS).text = "evil"
    for value in evil.iterfind(".//saml:AttributeValue", NS):
        value.text = "admin@localhost"
    place(root, signed, evil)
    return encoded(root)
