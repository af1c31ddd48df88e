"""Which server, and with which token: terraform's own files and variables are read as terraform reads them."""

import ipaddress
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from terrapod_cli import hcl
from terrapod_shared.files import real_path, write_private

_TOKEN_PREFIX = "TF_TOKEN_"  # noqa: S105  the name of a variable
_HTTPS_PORT = 443


@dataclass(frozen=True)
class Host:
    """`name` is what terraform calls it, `example.com` or `example.com:8443`; `url` is where it is called."""

    name: str
    url: str


@dataclass(frozen=True)
class Token:
    """A credential and the place that it was found in, for people."""

    text: str
    source: str

    def __repr__(self) -> str:
        return f"Token(of {self.source})"


def normal(name: str) -> str:
    """A host as terraform compares it: lower case, international names in ASCII, without the port 443."""
    host, colon, port = name.strip().partition(":") if name.count(":") < 2 else (name.strip(), "", "")  # noqa: PLR2004
    try:
        host = host.encode("idna").decode() if not host.isascii() else host
    except UnicodeError:
        raise click.UsageError(f"{name!r} is no name of a host") from None
    host = host.lower()
    return f"{host}:{port}" if colon and port != str(_HTTPS_PORT) else host


def parse(text: str) -> Host:
    """`example.com`, `example.com:8443` or a URL without a path; plain http is for loopback only."""
    wrong = click.UsageError(f"{text!r} is no host: give a name, with a port where it is not 443")
    text = text.strip()
    if not text.isprintable() or " " in text:  # urlsplit drops some of these
        raise wrong
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
        port = parts.port
    except ValueError:
        raise wrong from None
    is_host = parts.hostname and port != 0 and not parts.netloc.endswith(":") and parts.username is None
    if not is_host or parts.hostname is None or parts.path.strip("/") or parts.query or parts.fragment:
        raise wrong
    if parts.scheme not in ("https", "http") or (parts.scheme == "http" and not _is_loopback(parts.hostname)):
        raise click.UsageError(f"{text!r} is not https: a token would travel in the clear")
    shown = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    name = normal(f"{shown}:{port}" if port else shown)
    return Host(name, f"{parts.scheme}://{name}")


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def is_token(text: str) -> bool:
    """Whether the text could be a token at all, and so may stand in a header."""
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


class Credentials:
    """What terraform knows about hosts. `home` and `environ` are the caller's."""

    def __init__(self, environ: Mapping[str, str] = os.environ, home: Path | None = None) -> None:
        self._environ = environ
        self._home = home or _home()
        #: The file that `terraform login` writes.
        self.file = self._home / ".terraform.d" / "credentials.tfrc.json"

    @property
    def is_file_read(self) -> bool:
        """Neither terraform nor this program reads the file of `login` while TF_CLI_CONFIG_FILE names another."""
        return not self._environ.get("TF_CLI_CONFIG_FILE")

    def _files(self) -> Iterator[Path]:
        """What is read, and what comes later wins."""
        if named := self._environ.get("TF_CLI_CONFIG_FILE"):
            yield Path(named)
            return
        yield self._home / ".terraformrc"
        yield from sorted(file for file in self.file.parent.glob("*") if file.name.endswith((".tfrc", ".tfrc.json")))

    def _found(self) -> dict[str, Token]:
        found: dict[str, Token] = {}
        for file in self._files():
            for host, text in _read(file).items():
                found[normal(host)] = Token(text, str(file))
        for name, text in self._environ.items():
            if name.startswith(_TOKEN_PREFIX) and text:
                encoded = name.removeprefix(_TOKEN_PREFIX)
                found[normal(encoded.replace("__", "-").replace("_", "."))] = Token(text, name)
        return found

    def token(self, host: Host) -> Token | None:
        """TERRAPOD_TOKEN, else the host's TF_TOKEN_ variable, else its block in a file."""
        text = self._environ.get("TERRAPOD_TOKEN", "").strip()
        found = Token(text, "TERRAPOD_TOKEN") if text else self._found().get(host.name)
        if found and not is_token(found.text):
            raise click.ClickException(f"what {found.source} holds for {host.name} is no token")
        return found

    def choose(self, asked: str | None) -> Host:
        """The host that was asked for, else TERRAPOD_ADDRESS, else the only one that there is a token for.

        Names that have one token in common are one server: the first of them is taken. TERRAPOD_HOST is the address on
        which a server listens. Where it is all that is set, nothing is guessed: it was this program's variable once.
        Raises UsageError.
        """
        named = self._environ.get("TERRAPOD_ADDRESS") or None if asked is None else asked
        if named is not None:
            return parse(named)
        if self._environ.get("TERRAPOD_HOST"):
            raise click.UsageError(
                "TERRAPOD_HOST does not name the server to call: set TERRAPOD_ADDRESS, or give --host"
            )
        found = self._found()
        known = list(found)
        if len({token.text for token in found.values()}) == 1:
            return parse(known[0])
        said = f"there are tokens for {', '.join(known)}" if known else "sign in first: terrapod login HOST"
        raise click.UsageError(f"which server? Give --host or TERRAPOD_ADDRESS ({said})")

    def save(self, host: Host, token: str) -> None:
        """Writes the host's token as `terraform login` does; other hosts and members stay."""
        document = self._document()
        document["credentials"] = {
            **{name: kept for name, kept in document["credentials"].items() if normal(name) != host.name},
            host.name: {"token": token},
        }
        self._write(document)

    def forget(self, host: Host) -> bool:
        """Takes the host's token out of the file; whether there was one."""
        document = self._document()
        kept = {name: entry for name, entry in document["credentials"].items() if normal(name) != host.name}
        if len(kept) == len(document["credentials"]):
            return False
        document["credentials"] = kept
        self._write(document)
        return True

    def _document(self) -> dict[str, Any]:
        document: Any = {}
        if self.file.exists():
            document = _json(self.file)
        if not isinstance(document.setdefault("credentials", {}), dict):
            raise click.ClickException(f"{self.file}: credentials is no object; nothing was changed")
        return dict(document)

    def _write(self, document: dict[str, Any]) -> None:
        try:
            write_private(real_path(self.file), json.dumps(document, indent=2).encode() + b"\n")
        except OSError as error:
            raise click.ClickException(f"{self.file} cannot be written: {error.strerror or error}") from None


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:
        raise click.ClickException("this user has no home folder: set HOME to the folder of .terraform.d") from None


def _json(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{file} cannot be read: {error}") from None
    if not isinstance(document, dict):
        raise click.ClickException(f"{file} holds no JSON object")
    return document


def _read(file: Path) -> dict[str, str]:
    """Host -> token of one file, JSON or HCL; none of a file that is not there."""
    if not file.is_file():
        return {}
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{file} cannot be read: {error}") from None
    if not text.lstrip().startswith("{"):
        return hcl.credentials(text)
    entries = _json(file).get("credentials", {})
    if not isinstance(entries, dict):
        return {}
    tokens = {name: entry.get("token") for name, entry in entries.items() if isinstance(entry, dict)}
    return {name: token for name, token in tokens.items() if isinstance(token, str) and token}
