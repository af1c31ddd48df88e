"""Terraform's own files and variables, as terraform reads them."""

import json
from pathlib import Path

import click
import pytest

from terrapod_cli import hcl
from terrapod_cli.hosts import Credentials, normal, parse

RC = r"""
# credentials "commented.example.com" { token = "no" }
plugin_cache_dir = "$HOME/.terraform.d/plugin-cache"
/* credentials "also.example.com" { token = "no" } */
credentials "One.Example.com" {
  token = "first" // a comment with a }
}
provider_installation {
  network_mirror {
    url     = "https://x.example.com/{y}"
    include = ["a/b"]
  }
  credentials "nested.example.com" { token = "no" }
}
host "h" { services = { "tfe.v2" = <<EOT
credentials "heredoc.example.com" { token = "no" }
EOT
} }
credentials "two.example.com:8443" { "token" = "a\"b\\cé" }
credentials "three.example.com" {
  other = { token = "no" }
  token = "third"
}
"""


def test_credentials_blocks_of_hcl() -> None:
    assert hcl.credentials(RC) == {
        "One.Example.com": "first",
        "two.example.com:8443": 'a"b\\cé',
        "three.example.com": "third",
    }
    assert hcl.credentials('credentials "cut.example.com" { token = "') == {}
    assert hcl.credentials('credentials "x" {} "token" = "no"') == {}


def test_a_quoted_text_means_itself() -> None:
    assert hcl.quoted('a "b" ${c} %{d}\n\\') == '"a \\"b\\" $${c} %%{d}\\n\\\\"'


@pytest.mark.parametrize(
    ("text", "name", "url"),
    [
        ("Example.COM", "example.com", "https://example.com"),
        ("example.com:443", "example.com", "https://example.com"),
        ("example.com:8443/", "example.com:8443", "https://example.com:8443"),
        ("https://example.com", "example.com", "https://example.com"),
        ("http://127.0.0.1:80", "127.0.0.1:80", "http://127.0.0.1:80"),
        ("http://localhost:8080", "localhost:8080", "http://localhost:8080"),
        ("bücher.example", "xn--bcher-kva.example", "https://xn--bcher-kva.example"),
        ("[::1]:8443", "[::1]:8443", "https://[::1]:8443"),
        (" example.com\n", "example.com", "https://example.com"),
    ],
)
def test_hosts(text: str, name: str, url: str) -> None:
    found = parse(text)
    assert (found.name, found.url) == (name, url)


@pytest.mark.parametrize(
    "text",
    ["", "http://example.com", "https://user@example.com", "example.com/path", "example.com:port", "ftp://example.com",
     "https://example.com?x=1", "example.com:99999", " ", "https://[zz", "localhost\x1b[31m", "a\nb", "a b", "localhost:0",
     "localhost:"],
)  # fmt: skip
def test_what_is_no_host(text: str) -> None:
    with pytest.raises(click.UsageError):
        parse(text)


def test_order_of_sources(tmp_path: Path) -> None:
    folder = tmp_path / ".terraform.d"
    folder.mkdir()
    (tmp_path / ".terraformrc").write_text(
        'credentials "a.example.com" { token = "rc" }\ncredentials "b.example.com" { token = "rc" }'
    )
    (folder / "credentials.tfrc.json").write_text(
        json.dumps({"credentials": {"B.example.com": {"token": "login"}, "c": {}, "d": 1}})
    )
    (folder / "more.tfrc").write_text('credentials "e-f.example.com" { token = "more" }')

    def token(host: str, **environ: str) -> str | None:
        found = Credentials(environ, tmp_path).token(parse(host))
        return found.text if found else None

    assert token("a.example.com") == "rc"
    assert token("b.example.com") == "login"
    assert token("e-f.example.com") == "more"
    assert token("c") is None
    assert token("e-f.example.com", TF_TOKEN_e__f_example_com="env") == "env"
    assert token("e-f.example.com", **{"TF_TOKEN_e-f_example_com": "env"}) == "env"
    assert token("e-f.example.com:8443", TF_TOKEN_e__f_example_com="env") is None, "a variable cannot name a port"
    assert token("xn--bcher-kva.example", TF_TOKEN_xn____bcher__kva_example="env") == "env"
    assert token("a.example.com", TF_TOKEN_a_example_com="env", TERRAPOD_TOKEN="ours\n") == "ours"
    (tmp_path / "other").write_text('credentials "b.example.com" { token = "other" }')
    assert token("b.example.com", TF_CLI_CONFIG_FILE=str(tmp_path / "other")) == "other"
    assert token("a.example.com", TF_CLI_CONFIG_FILE=str(tmp_path / "other")) is None
    assert token("a.example.com", TF_CLI_CONFIG_FILE=str(tmp_path / "nowhere")) is None


@pytest.mark.parametrize("text", ["a b", "a\nb", "t\u00f6ken"])
def test_what_is_no_token_is_not_sent(tmp_path: Path, text: str) -> None:
    for name in ("TERRAPOD_TOKEN", "TF_TOKEN_example_com"):
        with pytest.raises(click.ClickException, match=name):
            Credentials({name: text}, tmp_path).token(parse("example.com"))


def test_choice_of_a_host(tmp_path: Path) -> None:
    def choose(asked: str | None, **environ: str) -> str:
        return Credentials(environ, tmp_path).choose(asked).name

    with pytest.raises(click.UsageError, match="sign in first"):
        choose(None)
    assert choose(None, TF_TOKEN_one_example_com="t") == "one.example.com"
    assert choose(None, TF_TOKEN_one_example_com="t", TERRAPOD_ADDRESS="two.example.com") == "two.example.com"
    assert choose("three", TERRAPOD_ADDRESS="two.example.com", TERRAPOD_HOST="four") == "three"
    assert choose(None, TERRAPOD_ADDRESS="two.example.com", TERRAPOD_HOST="0.0.0.0") == "two.example.com"
    with pytest.raises(click.UsageError, match="set TERRAPOD_ADDRESS"):
        choose(None, TF_TOKEN_one_example_com="t", TERRAPOD_HOST="two.example.com")
    assert choose(None, TF_TOKEN_b_example_com="t", TF_TOKEN_a_example_com="t") == "b.example.com", "one server"
    with pytest.raises(click.UsageError, match=r"a\.example\.com, b\.example\.com"):
        choose(None, TF_TOKEN_a_example_com="t", TF_TOKEN_b_example_com="u")


def test_a_token_is_kept_beside_others_and_taken_away(tmp_path: Path) -> None:
    credentials = Credentials({}, tmp_path)
    host = parse("example.com:8443")
    assert credentials.forget(host) is False
    credentials.save(host, "one")
    assert credentials.file.stat().st_mode & 0o777 == 0o600
    assert credentials.file.parent.stat().st_mode & 0o777 == 0o700
    document = json.loads(credentials.file.read_text())
    document["more"] = True
    document["credentials"] |= {"other.example.com": {"token": "x", "kept": 1}, "EXAMPLE.com:8443": {"token": "old"}}
    real = tmp_path / "dotfiles.json"
    real.write_text(json.dumps(document))
    credentials.file.unlink()
    credentials.file.symlink_to(real)
    credentials.save(host, "two")
    assert credentials.file.is_symlink(), "a link to the user's own place stays one"
    assert json.loads(real.read_text()) == {
        "more": True,
        "credentials": {"other.example.com": {"token": "x", "kept": 1}, "example.com:8443": {"token": "two"}},
    }
    assert "two" not in repr(credentials.token(host))
    assert credentials.forget(host) is True
    assert list(json.loads(real.read_text())["credentials"]) == ["other.example.com"]
    assert [file.name for file in tmp_path.glob(".*.*")] == [".terraform.d"], "no part is left"


@pytest.mark.parametrize("text", ["{", "[]", '{"credentials": []}'])
def test_a_file_that_cannot_be_read_is_left_alone(tmp_path: Path, text: str) -> None:
    credentials = Credentials({}, tmp_path)
    credentials.file.parent.mkdir()
    credentials.file.write_text(text)
    with pytest.raises(click.ClickException):
        credentials.save(parse("example.com"), "t")
    assert credentials.file.read_text() == text


def test_a_file_that_leads_to_itself_is_left_alone(tmp_path: Path) -> None:
    credentials = Credentials({}, tmp_path)
    credentials.file.parent.mkdir()
    credentials.file.symlink_to(credentials.file.name)
    with pytest.raises(click.ClickException, match="Too many levels of symbolic links"):
        credentials.save(parse("example.com"), "t")
    assert credentials.file.is_symlink()


def test_a_bad_name_is_told() -> None:
    with pytest.raises(click.UsageError):
        normal("ü" * 300)
