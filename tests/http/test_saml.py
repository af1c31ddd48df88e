"""Signing in at a SAML identity provider: pysaml2's, and what attackers make of its answers."""

import base64
import copy
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from lxml import etree
from msgspec import convert

from kit.browser import Browser
from kit.postgres import free_port
from kit.saml import MAIL, NS, IdP, decoded, encoded, forged
from kit.serving import Running, running
from terrapod_server.config import settings as config
from terrapod_server.identity.model import Session, User, UserIdentity
from terrapod_server.identity.signin.saml import DS, SAML, Saml

pytestmark = pytest.mark.skipif(not shutil.which("xmlsec1"), reason="pysaml2's provider needs apt-get install xmlsec1")
START = "/api/v2/auth/authorize?provider=corp"
ANN = "ann@example.org"


#: As if there was a proxy in front: so all servers of these tests have one name at the provider, which starts slowly.
BASE = "http://terrapod.example"
ENTITY = f"{BASE}/api/v2/auth/saml/corp/metadata"


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IdP]:
    made = IdP(tmp_path_factory.mktemp("idp"), free_port())
    made.make_keys()
    own = Saml(convert(made.settings, config.Saml)).metadata(BASE)
    with made.serving(own):
        yield made


@pytest.fixture
def idp(provider: IdP) -> IdP:
    provider.says("ann", email=ANN, groups=["terrapod:builders", "admin"], displayName="Ann")
    return provider


@pytest.fixture
async def site(idp: IdP, database_url: str, tmp_path: Path) -> AsyncIterator[Running]:
    settings = {"public_url": BASE, "auth": {"saml": [idp.settings]}}
    async with running(tmp_path / "data", database_url, **settings) as server:
        yield server


async def answer(browser: Browser) -> dict[str, str]:
    """Goes to the provider; the fields of the form by which it answers."""
    await browser.open(START)
    await browser.open(browser.left_to)
    fields: dict[str, str] = browser.read.forms[0].fields
    return fields


async def deliver(server: Running, browser: Browser, fields: dict[str, str]) -> httpx.Response:
    """What the provider's page does: a POST from another site, so without our cookies, which then come with a GET."""
    async with httpx.AsyncClient(base_url=server.url) as without_cookies:
        sent = await without_cookies.post("/api/v2/auth/callback", data=fields)
    return await browser.open(sent.headers["location"]) if sent.is_redirect else sent


async def test_a_real_provider_signs_in(site: Running, idp: IdP) -> None:
    async with Browser(site.url) as browser:
        page = await deliver(site, browser, await answer(browser))
        assert (page.status_code, page.url.path) == (200, "/account"), page.text
        user, session = await User.get(email=ANN), await Session.get()
        assert (user.display_name, session.provider, session.roles) == ("Ann", "corp", ["builders"])
        identity = await UserIdentity.get()
        assert (identity.subject, identity.user_id) == ("ann", user.id)
    idp.says("Ann@Example.org", MAIL)
    async with Browser(site.url) as browser:
        page = await deliver(site, browser, await answer(browser))
        assert page.url.path == "/account", "a name that is an address is the address"
    assert await User.filter(email=ANN).count() == 1
    idp.says("nobody")
    async with Browser(site.url) as browser:
        assert (await deliver(site, browser, await answer(browser))).status_code == 403


async def test_an_answer_is_good_once_and_for_its_browser(site: Running) -> None:
    async with Browser(site.url) as browser, Browser(site.url) as other:
        fields = await answer(browser)
        await other.open("/sign-in")
        assert (await deliver(site, other, fields)).status_code == 403, "another browser"
        assert (await deliver(site, browser, fields)).status_code == 400, "its sign-in is over"
        second = await answer(browser)
        mixed = {"SAMLResponse": fields["SAMLResponse"], "RelayState": second["RelayState"]}
        assert (await deliver(site, browser, mixed)).status_code == 403, "it answers another request"
        assert (await deliver(site, browser, {"SAMLResponse": second["SAMLResponse"]})).status_code == 400, "unasked"
        assert (await deliver(site, browser, second)).status_code == 200
        assert (await deliver(site, browser, second)).status_code == 400, "a replay"
    assert await Session.all().count() == 1


async def test_a_seen_assertion_is_refused_under_a_new_request_too(site: Running, idp: IdP) -> None:
    async with Browser(site.url) as browser:
        first = await answer(browser)
        seen = decoded(first["SAMLResponse"]).find("saml:Assertion", NS).get("ID")
        assert (await deliver(site, browser, first)).status_code == 200
        await browser.submit(action="/sign-out")
        second = await answer(browser)
        second["SAMLResponse"] = idp.changed(second["SAMLResponse"], lambda assertion: assertion.set("ID", seen))
        page = await deliver(site, browser, second)
        assert (page.status_code, "used before" in page.text) == (409, True), page.text[-400:]


async def test_signature_wrapping_finds_nothing(site: Running) -> None:
    def inside(root: Any, signed: Any, evil: Any) -> None:
        """The signed one moves into an extension of the response, the forged one takes its place."""
        root.replace(signed, evil)
        extensions = etree.SubElement(root, "{urn:oasis:names:tc:SAML:2.0:protocol}Extensions")
        extensions.append(signed)

    def around(root: Any, signed: Any, evil: Any) -> None:
        root.replace(signed, evil)
        evil.append(signed)

    def with_its_signature(root: Any, signed: Any, evil: Any) -> None:
        """The forged one carries the signature, whose reference leads to the true one inside of it."""
        root.replace(signed, evil)
        signature = signed.find("ds:Signature", NS)
        signed.remove(signature)
        evil.insert(1, signature)
        etree.SubElement(signature, f"{{{DS}}}Object").append(signed)

    def same_id(root: Any, signed: Any, evil: Any) -> None:
        evil.set("ID", signed.get("ID"))
        signature = signed.find("ds:Signature", NS)
        root.replace(signed, evil)
        evil.insert(1, signature)

    placements = {
        "before": lambda root, _, evil: root.insert(0, evil),
        "after": lambda root, _, evil: root.append(evil),
        "inside an extension": inside,
        "around": around,
        "with its signature": with_its_signature,
        "under the same id": same_id,
        "in an advice": lambda _, signed, evil: signed.append(evil),
    }
    async with Browser(site.url) as browser:
        for name, place in placements.items():
            fields = await answer(browser)
            fields["SAMLResponse"] = forged(fields["SAMLResponse"], place)
            page = await deliver(site, browser, fields)
            assert page.status_code == 403, (name, page.text)
        assert await Session.all().count() == 0
        assert (await deliver(site, browser, await answer(browser))).status_code == 200, "left alone it is good"


async def test_what_is_not_signed_by_the_provider_is_refused(site: Running, idp: IdP, tmp_path: Path) -> None:
    stranger = IdP(tmp_path / "stranger", 0)
    stranger.folder.mkdir()
    stranger.make_keys()

    def tampered(response: str) -> str:
        root = decoded(response)
        root.find(".//saml:NameID", NS).text = "evil"
        return encoded(root)

    def unsigned(response: str) -> str:
        root = decoded(response)
        assertion = root.find("saml:Assertion", NS)
        assertion.remove(assertion.find("ds:Signature", NS))
        return encoded(root)

    def doctype(response: str) -> str:
        raw = etree.tostring(decoded(response)).decode()
        evil = '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/hostname">]>' + raw.replace(">ann<", ">&e;<")
        return base64.b64encode(evil.encode()).decode()

    attacks: dict[str, Callable[[str], str]] = {
        "tampered": tampered,
        "unsigned": unsigned,
        "a stranger's signature": lambda response: stranger.changed(response, lambda _: None),
        "a document type": doctype,
        "nothing": lambda _: "",
        "no base64": lambda _: "%%%",
        "no XML": lambda _: "aGVsbG8=",
        "no response": lambda response: encoded(decoded(response).find("saml:Assertion", NS)),
        "two assertions": lambda response: forged(response, lambda root, signed, _: root.append(copy.deepcopy(signed))),
    }
    async with Browser(site.url) as browser:
        for name, attack in attacks.items():
            fields = await answer(browser)
            fields["SAMLResponse"] = attack(fields["SAMLResponse"])
            page = await deliver(site, browser, fields)
            assert page.status_code == 403, (name, page.text)
        idp.says("ann", more={"sign_assertion": False, "sign_response": True}, email=ANN)
        page = await deliver(site, browser, await answer(browser))
        assert (page.status_code, "not signed by itself" in page.text) == (403, True)
        idp.says("ann", more={"sign_assertion": True, "sign_response": True}, email=ANN)
        assert (await deliver(site, browser, await answer(browser))).status_code == 200


@pytest.mark.slow
async def test_what_the_provider_signed_for_another_or_another_time_is_refused(site: Running, idp: IdP) -> None:
    data = "saml:Subject/saml:SubjectConfirmation/saml:SubjectConfirmationData"

    def put(path: str, name: str, value: str) -> Any:
        return lambda assertion: assertion.find(path, NS).set(name, value)

    def text(path: str, value: str) -> Any:
        return lambda assertion: setattr(assertion.find(path, NS), "text", value)

    def without(path: str) -> Any:
        def change(assertion: Any) -> None:
            found = assertion.find(path, NS)
            found.getparent().remove(found)

        return change

    def dropped(path: str, name: str) -> Any:
        return lambda assertion: assertion.find(path, NS).attrib.pop(name)

    changes = {
        "issuer": text("saml:Issuer", "http://evil.example"),
        "audience": text(".//saml:Audience", "http://another.example"),
        "no audience": without(".//saml:AudienceRestriction"),
        "no conditions": without("saml:Conditions"),
        "over": put("saml:Conditions", "NotOnOrAfter", "2020-01-01T00:00:00Z"),
        "not yet": put("saml:Conditions", "NotBefore", "2100-01-01T00:00:00Z"),
        "no time": put("saml:Conditions", "NotBefore", "soon"),
        "recipient": put(data, "Recipient", "http://another.example/api/v2/auth/callback"),
        "no recipient": dropped(data, "Recipient"),
        "confirmation over": put(data, "NotOnOrAfter", "2020-01-01T00:00:00Z"),
        "confirmation without end": dropped(data, "NotOnOrAfter"),
        "another request": put(data, "InResponseTo", "_another"),
        "no request": dropped(data, "InResponseTo"),
        "no confirmation": without("saml:Subject/saml:SubjectConfirmation"),
        "holder of key": put(
            "saml:Subject/saml:SubjectConfirmation", "Method", "urn:oasis:names:tc:SAML:2.0:cm:holder-of-key"
        ),
        "nobody": text("saml:Subject/saml:NameID", ""),
        "nobody signed in": without("saml:AuthnStatement"),
    }
    async with Browser(site.url) as browser:
        for name, change in changes.items():
            fields = await answer(browser)
            fields["SAMLResponse"] = idp.changed(fields["SAMLResponse"], change)
            page = await deliver(site, browser, fields)
            assert page.status_code == 403, (name, page.text)
        assert await Session.all().count() == 0
        fields = await answer(browser)
        fields["SAMLResponse"] = idp.changed(fields["SAMLResponse"], lambda _: None)
        assert (await deliver(site, browser, fields)).status_code == 200, "signed anew and unchanged it is good"


async def test_a_comment_does_not_cut_a_name(site: Running, idp: IdP) -> None:
    idp.says("ann", email="admin@localhost.evil.example")
    async with Browser(site.url) as browser:
        fields = await answer(browser)
        root = decoded(fields["SAMLResponse"])
        for value in root.iterfind(f".//{{{SAML}}}AttributeValue"):
            value.text = "admin@localhost"
            comment = etree.Comment("x")
            comment.tail = ".evil.example"
            value.append(comment)
        fields["SAMLResponse"] = encoded(root)
        await deliver(site, browser, fields)
    assert await UserIdentity.filter(user_id=(await User.get(email="admin@localhost")).id).count() == 0
    assert await User.exists(email="admin@localhost.evil.example")


async def test_an_address_counts_only_where_the_provider_is_trusted_with_it(
    idp: IdP, database_url: str, tmp_path: Path
) -> None:
    settings = {"public_url": BASE, "auth": {"saml": [{**idp.settings, "trust_email": False}]}}
    async with running(tmp_path / "data", database_url, **settings) as server, Browser(server.url) as browser:
        page = await deliver(server, browser, await answer(browser))
        assert (page.status_code, "trust_email" in page.text) == (403, True)


async def test_its_metadata_is_what_the_provider_was_given(site: Running, idp: IdP) -> None:
    async with httpx.AsyncClient(base_url=site.url) as anybody:
        shown = await anybody.get("/api/v2/auth/saml/corp/metadata")
        assert shown.headers["content-type"] == "application/samlmetadata+xml"
        assert shown.content == (idp.folder / "sp.xml").read_bytes()
        assert (await anybody.get("/api/v2/auth/saml/other/metadata")).status_code == 404
        providers = (await anybody.get("/api/v2/auth/providers")).json()["providers"]
    assert providers[1] == {"name": "corp", "type": "saml", "display_name": "corp"}
