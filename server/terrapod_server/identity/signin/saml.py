"""SAML 2.0, web browser SSO: signing in at an identity provider that signs its assertions (optional extra `saml`).

Nothing is read of an answer but what stands inside the element whose
signature was verified: signxml gives back that very element, parsed anew of
the bytes that were signed, so an element wrapped around it, or put beside it,
is never looked at. Comments are gone from those bytes, and entities are never
resolved.
"""

import asyncio
import base64
import binascii
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit
from xml.sax.saxutils import quoteattr

from lxml import etree
from signxml.verifier import SignatureConfiguration, XMLVerifier

from terrapod_server.config import settings as config
from terrapod_server.identity import rules
from terrapod_server.identity.rules import Proof
from terrapod_server.identity.signin.provider import CALLBACK, Assertion, Trip
from terrapod_shared import clock
from terrapod_shared.errors import BadRequest, Forbidden

SAML = "urn:oasis:names:tc:SAML:2.0:assertion"
SAMLP = "urn:oasis:names:tc:SAML:2.0:protocol"
DS = "http://www.w3.org/2000/09/xmldsig#"
_SUCCESS = "urn:oasis:names:tc:SAML:2.0:status:Success"
_BEARER = "urn:oasis:names:tc:SAML:2.0:cm:bearer"
_MAIL = "urn:oasis:names:tc:SAML:1.1:nameid-format:emailAddress"
_POST = "urn:oasis:names:tc:SAML:2.0:bindings:HTTP-POST"
_LEEWAY = timedelta(seconds=rules.LEEWAY_S)
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_LONGEST = 255


@dataclass
class Saml:
    """One identity provider of the settings."""

    settings: config.Saml
    _certificates: list[str] = field(default_factory=list)

    kind = "saml"

    async def start(self, trip: Trip) -> str:
        """The URL at the provider to which the browser goes, by the HTTP-Redirect binding."""
        now = clock.now().strftime("%Y-%m-%dT%H:%M:%SZ")
        request = (
            f'<samlp:AuthnRequest xmlns:samlp="{SAMLP}" xmlns:saml="{SAML}" ID={quoteattr(trip.request)} Version="2.0" '
            f'IssueInstant="{now}" Destination={quoteattr(self.settings.sign_on_url)} ProtocolBinding="{_POST}" '
            f"AssertionConsumerServiceURL={quoteattr(trip.back)}><saml:Issuer>{_text(self.entity_id(trip.base))}</saml:Issuer>"
            f'<samlp:NameIDPolicy AllowCreate="true"/></samlp:AuthnRequest>'
        )
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        packed = base64.b64encode(packer.compress(request.encode()) + packer.flush()).decode()
        url = self.settings.sign_on_url
        query = urlencode({"SAMLRequest": packed, "RelayState": trip.state})
        return f"{url}{'&' if urlsplit(url).query else '?'}{query}"

    def entity_id(self, base: str) -> str:
        """Our name at the provider."""
        return self.settings.entity_id or f"{base}/api/v2/auth/saml/{self.settings.name}/metadata"

    def metadata(self, base: str) -> bytes:
        """Who we are, as providers import it."""
        return (
            f'<?xml version="1.0"?><md:EntityDescriptor xmlns:md="urn:oasis:names:tc:SAML:2.0:metadata" '
            f'entityID={quoteattr(self.entity_id(base))}><md:SPSSODescriptor AuthnRequestsSigned="false" '
            f'WantAssertionsSigned="true" protocolSupportEnumeration="{SAMLP}">'
            f'<md:AssertionConsumerService Binding="{_POST}" Location={quoteattr(base + CALLBACK)} index="0" isDefault="true"/>'
            "</md:SPSSODescriptor></md:EntityDescriptor>"
        ).encode()

    async def close(self) -> None:
        """Nothing is open."""

    async def finish(self, answer: Mapping[str, str], trip: Trip) -> Proof:
        del answer, trip
        raise BadRequest(f"{self.settings.shown} answers by POST")

    async def finish_posted(self, form: Mapping[str, str], trip: Trip) -> Assertion:
        """Whom the answer to our request lets in. Raises Forbidden."""
        try:
            return await asyncio.to_thread(self._judged, form.get("SAMLResponse", ""), trip)
        except ValueError as error:
            raise Forbidden(f"{self.settings.shown} did not let you in: {error}") from None

    def _judged(self, response: str, trip: Trip) -> Assertion:
        document = _parsed(response)
        if document.tag != f"{{{SAMLP}}}Response":
            raise ValueError("its answer is no SAML response")
        code = document.find(f"{{{SAMLP}}}Status/{{{SAMLP}}}StatusCode")
        if code is None or code.get("Value") != _SUCCESS:
            raise ValueError(f"it answered {'' if code is None else str(code.get('Value'))[:120]!r}")
        if document.get("Destination") not in (None, "", trip.back):
            raise ValueError("its answer is for another address")
        signed = self._signed_assertion(document)
        at = clock.now()
        issuer = signed.findtext(f"{{{SAML}}}Issuer")
        if (issuer or "").strip() != self.settings.issuer:
            raise ValueError(f"its assertion is issued by {str(issuer)[:120]!r}")
        _check_conditions(signed, self.entity_id(trip.base), at)
        until = _confirmed_until(signed, trip.request, trip.back, at)
        if signed.find(f"{{{SAML}}}AuthnStatement") is None:
            raise ValueError("its assertion does not say that anybody signed in")
        identity = signed.get("ID", "")
        if not identity:
            raise ValueError("its assertion has no ID")
        return Assertion(self._proof(signed), identity, until)

    def _signed_assertion(self, document: Any) -> Any:
        """The one assertion, as it was signed; every other way to put one in is refused."""
        if document.find(f".//{{{SAML}}}EncryptedAssertion") is not None:
            raise ValueError("its assertion is encrypted, which is not supported: TLS protects it already")
        assertions = list(document.iter(f"{{{SAML}}}Assertion"))
        if len(assertions) != 1 or assertions[0].getparent() is not document:
            raise ValueError(f"its answer holds {len(assertions)} assertions where one is needed")
        assertion = assertions[0]
        if len(assertion.findall(f"{{{DS}}}Signature")) != 1:
            raise ValueError("its assertion is not signed by itself (a signed response is not enough)")
        expected = SignatureConfiguration(location="./", expect_references=1)
        why = "no certificate is configured"
        for certificate in self._pems():
            try:
                verified = XMLVerifier().verify(
                    assertion, x509_cert=certificate, id_attribute="ID", expect_config=expected
                )
            except Exception as error:  # noqa: BLE001  the library raises many kinds for a document of any shape
                why = f"{type(error).__name__}: {error}"
                continue
            signed = None if isinstance(verified, list) else verified.signed_xml
            if signed is not None and signed.tag == f"{{{SAML}}}Assertion" and signed.get("ID") == assertion.get("ID"):
                return signed
            why = "something else than the assertion is signed"
        raise ValueError(f"the signature of its assertion is not good ({why[:200]})")

    def _pems(self) -> list[str]:
        if not self._certificates:
            self._certificates = _CERTIFICATE.findall(Path(self.settings.certificate).read_text(encoding="ascii"))
        return self._certificates

    def _proof(self, signed: Any) -> Proof:
        name_id = signed.find(f"{{{SAML}}}Subject/{{{SAML}}}NameID")
        subject = (name_id.text or "").strip() if name_id is not None else ""
        if not 0 < len(subject) <= _LONGEST:
            raise ValueError("its assertion names nobody")
        claims = _attributes(signed)
        settings = self.settings
        found = rules.values_of(claims, settings.email_attribute)
        if not found and name_id.get("Format") == _MAIL:
            found = [subject]
        email = rules.address_of(found[0]) if found else ""
        return Proof(
            provider=settings.name,
            subject=subject,
            email=email,
            is_vouched=bool(email) and settings.trust_email,
            name=next(iter(rules.values_of(claims, settings.name_attribute)), "")[:254],
            roles=rules.roles_of(claims, settings.roles_claim, settings.role_prefixes, settings.rules),
        )


def _text(text: str) -> str:
    return quoteattr(text)[1:-1]


def _parsed(response: str) -> Any:
    """The document, without a DTD. Raises ValueError."""
    try:
        raw = base64.b64decode("".join(response.split()), validate=True)
        parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, remove_comments=True)
        document = etree.fromstring(raw, parser)
    except (binascii.Error, etree.XMLSyntaxError):
        raise ValueError("its answer is not XML in base64") from None
    tree = document.getroottree()
    if tree.docinfo.doctype or tree.docinfo.internalDTD is not None:
        raise ValueError("its answer holds a document type")
    return document


def _time(element: Any, name: str) -> datetime | None:
    text = element.get(name)
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"its {name} is no time") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _check_conditions(signed: Any, entity_id: str, at: datetime) -> None:
    conditions = signed.findall(f"{{{SAML}}}Conditions")
    if len(conditions) != 1:
        raise ValueError("its assertion has no conditions")
    before, until = _time(conditions[0], "NotBefore"), _time(conditions[0], "NotOnOrAfter")
    if (before and at < before - _LEEWAY) or (until and at >= until + _LEEWAY):
        raise ValueError("its assertion is not good now")
    restrictions = conditions[0].findall(f"{{{SAML}}}AudienceRestriction")
    named = [
        {(audience.text or "").strip() for audience in restriction.findall(f"{{{SAML}}}Audience")}
        for restriction in restrictions
    ]
    if not named or not all(entity_id in audiences for audiences in named):
        raise ValueError(f"its assertion is not for {entity_id}")


def _confirmed_until(signed: Any, request_id: str, back: str, at: datetime) -> datetime:
    """Until when the bearer may show it; for exactly our request and our address."""
    for confirmation in signed.findall(f"{{{SAML}}}Subject/{{{SAML}}}SubjectConfirmation"):
        data = confirmation.find(f"{{{SAML}}}SubjectConfirmationData")
        if confirmation.get("Method") != _BEARER or data is None:
            continue
        until = _time(data, "NotOnOrAfter")
        if (
            data.get("Recipient") == back
            and data.get("InResponseTo") == request_id
            and data.get("NotBefore") is None
            and until is not None
            and at < until + _LEEWAY
        ):
            return until + _LEEWAY
    raise ValueError("its assertion does not confirm that it answers this sign-in, here and now")


def _attributes(signed: Any) -> Mapping[str, list[str]]:
    """Values by the attribute's name and by its friendly name."""
    found: dict[str, list[str]] = {}
    for attribute in signed.iterfind(f"{{{SAML}}}AttributeStatement/{{{SAML}}}Attribute"):
        values = [(value.text or "").strip() for value in attribute.findall(f"{{{SAML}}}AttributeValue")]
        for name in {attribute.get("Name"), attribute.get("FriendlyName")} - {None, ""}:
            found.setdefault(name, []).extend(values)
    return found
