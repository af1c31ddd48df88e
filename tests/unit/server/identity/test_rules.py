"""The pure rules of signing in, and which settings of it are refused."""

from pathlib import Path
from typing import Any

import pytest

from terrapod_server.config.load import Mistakes, load
from terrapod_server.config.settings import ClaimRule
from terrapod_server.identity import rules

PREFIXES = ("terrapod:", "terrapod-")


@pytest.mark.parametrize(
    ("claims", "roles"),
    [
        ({"groups": ["terrapod:a", "terrapod-b", "c"]}, ("a", "b")),
        ({"groups": "terrapod:a"}, ("a",)),
        ({"groups": "terrapod:a terrapod:b"}, ("a terrapod:b",)),
        ({"groups": ["admin", "Terrapod:admin", "xterrapod:admin", "terrapod:", "terrapod"]}, ()),
        ({"groups": {"terrapod:a": True}}, ()),
        ({"groups": [["terrapod:a"], 1, None]}, ()),
        ({"groups": None}, ()),
        ({}, ()),
        ({"team": "platform"}, ("audit",)),
        ({"team": ["x", "platform"]}, ("audit",)),
        ({"team": "platform-x"}, ()),
        ({"nested": {"team": ["in"]}}, ("deep",)),
        ({"nested.team": "in"}, ("deep",)),
        ({"nested": "in"}, ()),
    ],
)
def test_roles_come_by_prefix_or_rule_only(claims: dict[str, Any], roles: tuple[str, ...]) -> None:
    own = [
        ClaimRule(claim="team", value="platform", roles=("audit",)),
        ClaimRule(claim="nested.team", value="in", roles=("deep",)),
    ]
    assert rules.roles_of(claims, "groups", PREFIXES, own) == roles


def test_an_address_is_one_or_nothing() -> None:
    assert rules.address_of(" Ann@Example.ORG ") == "ann@example.org"
    for text in ("", "ann", "@x", "ann@", "a b@c", "a\nb@c", "a\0@c", None, 1, ["a@b"], "x" * 260 + "@y"):
        assert rules.address_of(text) == ""


@pytest.mark.parametrize(
    ("agent", "name"),
    [
        ("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", "Firefox on Linux"),
        (
            "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0 Safari/537.36",
            "Chrome on Windows",
        ),
        (
            "Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140 Safari/537.36 Edg/140.0",
            "Edge on Windows",
        ),
        ("Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605 Version/18 Safari/605", "Safari on macOS"),
        ("Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X) Version/17 Mobile Safari/604", "Safari on iPhone"),
        ("Mozilla/5.0 (Linux; Android 15) AppleWebKit/537 Chrome/140.0 Mobile Safari/537", "Chrome on Android"),
        ("terrapod/0.1.0 (linux)", "terrapod/0.1.0"),
        ("python-httpx/0.28", "python-httpx/0.28"),
        ("x" * 254, "x" * 60),
        ("", "Unknown program"),
        (" (", "Unknown program"),
    ],
)
def test_a_session_is_named_by_browser_and_system(agent: str, name: str) -> None:
    assert rules.device(agent) == name


@pytest.mark.parametrize(
    ("asked", "page"),
    [
        ("/app/default/net/runs/run-1", "/app/default/net/runs/run-1"),
        ("/app/default/net/runs/run-1/logs/plan?x=1", "/app/default/net/runs/run-1/logs/plan?x=1"),
        ("/app", "/account"),
        ("/app/", "/account"),
        ("/app//evil.example", "/account"),
        ("/app/../sign-out", "/account"),
        ("/app/..", "/account"),
        ("/app/default/net\\evil", "/account"),
        ("/app/default\n/net", "/account"),
        ("/app/" + "a/" * 5000 + "!", "/account"),
        ("/application/x", "/account"),
    ],
)
def test_a_sign_in_leads_on_to_pages_of_ours_alone(asked: str, page: str) -> None:
    assert rules.own_page(asked) == page


def test_a_verifier_proves_its_challenge_only() -> None:
    verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"  # the example of RFC 7636
    challenge = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
    assert rules.challenge_of(verifier) == challenge
    assert rules.proves(verifier, challenge)
    for wrong in (challenge, verifier[:-1], verifier + "=", "", "x" * 129):
        assert not rules.proves(wrong, challenge)


@pytest.mark.parametrize(
    ("auth", "said"),
    [
        ({"argon2_kib": 1024}, "argon2_kib"),
        ({"login_token_days": -1}, "login_token_days"),
        ({"oidc": [{"name": "local"}]}, "is not local"),
        ({"oidc": [{"name": "Corp"}]}, "small letters"),
        ({"oidc": [{}, {}]}, "another has this name"),
        ({"oidc": [{"issuer": "http://id.example.com"}]}, "https"),
        ({"oidc": [{"issuer": "https://"}]}, "https"),
        ({"oidc": [{"role_prefixes": ["terrapod:", ""]}]}, "every group a role"),
        ({"oidc": [{"scopes": ["email"]}]}, "openid"),
        ({"oidc": [{"client_secret_file": "/nowhere"}]}, "/nowhere cannot be read"),
        ({"oidc": [{"colour": "red"}]}, "colour"),
        (
            {"saml": [{"name": "s", "issuer": "x", "sign_on_url": "https://x/sso", "certificate": "/nowhere"}]},
            "/nowhere",
        ),
    ],
)
def test_settings_that_would_not_be_safe_are_refused(auth: dict[str, Any], said: str, tmp_path: Path) -> None:
    whole = {"name": "corp", "issuer": "https://id.example.com", "client_id": "x"}
    auth = {**auth, "oidc": [whole | each for each in auth.get("oidc", [])]}
    with pytest.raises(Mistakes) as caught:
        load({}, None, data=str(tmp_path), auth=auth)
    assert said in str(caught.value)


def test_settings_of_a_file_are_read(tmp_path: Path) -> None:
    file = tmp_path / "terrapod.toml"
    file.write_text(
        '[[auth.oidc]]\nname = "corp"\nissuer = "https://id.example.com"\nclient_id = "x"\n'
        '[[auth.oidc.rules]]\nclaim = "a"\nvalue = "b"\nroles = ["c"]\n'
    )
    config = load({"TERRAPOD_AUTH__LOGIN_TOKEN_DAYS": "30"}, file)
    assert config.auth.login_token_days == 30
    assert config.auth.oidc[0].rules[0].roles == ("c",)
