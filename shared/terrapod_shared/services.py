"""Writing the files that make a program a service of systemd: `install-service`.

The units stand once, as data of each program, with the paths of the Debian
package in them. A pip install gets copies that name its own interpreter.
"""

import os
import re
import secrets
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from terrapod_shared.operator_errors import OperatorError, user_name

_MARK = "# Written by `{program} install-service`, and again by its next call: put changes into a drop-in (systemctl edit).\n"
_HIDDEN = ("/home", "/root", "/run", "/tmp", "/var/tmp")  # noqa: S108  the unit has none of the host's
#: What a unit's line holds without being quoted.
_PLAIN = re.compile(r"/[A-Za-z0-9._/@+-]+")


class Refused(OperatorError):
    """Why nothing is written; the text is for the user."""


@dataclass(frozen=True)
class Service:
    """One program's service: `units` is the folder of its templates, `home` and `executable` are as they stand there."""

    program: str
    module: str
    units: Path
    home: str
    drop_ins: tuple[str, ...] = ()  #: that may be asked for

    def files(
        self, home: Path, interpreter: Path, *, config: Path | None = None, drop_ins: Sequence[str] = ()
    ) -> dict[str, str]:
        """Text by path. Raises Refused for a home that the unit cannot hold."""
        for path in filter(None, (home, interpreter, config)):
            if not _PLAIN.fullmatch(str(path)):
                raise Refused(f"{path} must be an absolute path of letters, digits and ._/@+-")
        mark = _MARK.format(program=self.program)
        name = self.program
        found = {
            f"/etc/systemd/system/{name}.service": self._unit(home, interpreter, config),
            f"/etc/sysusers.d/{name}.conf": self._text("sysusers.conf").replace(self.home, str(home)),
            f"/etc/tmpfiles.d/{name}.conf": self._text("tmpfiles.conf").replace(self.home, str(home)),
        }
        for each in drop_ins:
            found[f"/etc/systemd/system/{name}.service.d/{each}.conf"] = self._text(f"{each}.conf")
        return {path: mark + text for path, text in found.items()}

    def _text(self, name: str) -> str:
        return (self.units / name).read_text(encoding="utf-8")

    def _unit(self, home: Path, interpreter: Path, config: Path | None) -> str:
        text = self._text(f"{self.program}.service")
        # -I: what lies in the working directory is no module of ours
        text = text.replace(f"ExecStart=/usr/bin/{self.program}", f"ExecStart={interpreter} -I -m {self.module}")
        own = Path(self.home)
        if config:
            text = re.sub(r"--config \S+", f"--config {config}", text)
        if home == own:
            return text
        text = text.replace(self.home, str(home))
        if home.is_relative_to("/var/lib"):
            return text.replace(f"StateDirectory={own.name}\n", f"StateDirectory={home.relative_to('/var/lib')}\n")
        text = text.replace("StateDirectoryMode=0700\n", "")
        return text.replace(f"StateDirectory={own.name}\n", f"ReadWritePaths={home}\n")


def hidden(*paths: Path) -> Iterator[str]:
    """What the unit could not see, a line each."""
    for path in paths:
        for folder in _HIDDEN:
            if path.is_relative_to(folder):
                yield f"{path} is below {folder}, which the service does not see: put it elsewhere, such as /opt/terrapod"


def interpreter() -> tuple[Path, Sequence[Path]]:
    """This interpreter as a service is to call it, and all that it needs to be seen."""
    own = Path(sys.executable)
    return own, (own, Path(sys.prefix), Path(sys.base_prefix))


def write(files: dict[str, str], root: Path, program: str) -> Iterator[str]:
    """Writes what is not there yet, below `root`; what was done, a line each. Raises Refused for files that are not its own."""
    mark = _MARK.format(program=program)
    places = {root / path.lstrip("/"): text for path, text in files.items()}
    for place in places:
        if place.exists() and not place.read_text(encoding="utf-8", errors="replace").startswith(mark):
            raise Refused(f"{place} was not written by `{program} install-service`: move it away")
    for place, text in places.items():
        if place.exists() and place.read_text(encoding="utf-8") == text:
            yield f"unchanged  {place}"
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
        part.write_text(text, encoding="utf-8")
        part.chmod(0o644)
        part.replace(place)
        yield f"written    {place}"


@dataclass(frozen=True)
class Wish:
    """What the command line says."""

    home: Path
    root: Path
    dry_run: bool
    config: Path | None = None
    drop_ins: tuple[str, ...] = ()


def install(service: Service, wish: Wish) -> None:
    """Writes or shows the files. Raises Refused."""
    own, needed = interpreter()
    files = service.files(wish.home, own, config=wish.config, drop_ins=wish.drop_ins)
    wrong = [*hidden(*needed), *hidden(wish.home)]
    if wish.dry_run:
        for path, text in files.items():
            click.echo(f"# {path}\n{text}")
        for line in dict.fromkeys(wrong):
            click.echo(f"warning: {line}", err=True)
        return
    if wrong:
        raise Refused(wrong[0])
    if wish.root == Path("/") and os.geteuid() != 0:
        raise Refused("only root may write into /etc: call it by sudo, or look at what it would write with --dry-run")
    try:
        for line in write(files, wish.root, service.program):
            click.echo(line)
    except OSError as error:
        raise Refused(f"{error.filename}: {error.strerror}") from None


def check_owner(home: Path) -> None:
    """Raises Refused where a folder belongs to somebody else: what we wrote there could not be read by its owner."""
    try:
        owner = home.stat().st_uid
    except OSError:
        return
    if owner == os.geteuid():
        return
    name = user_name(owner)
    if os.geteuid() == 0:
        advice = f"call this as that user (`runuser -u {name} -- …`)"
    else:
        advice = f"call this as that user, or give the folder to {user_name(os.geteuid())} (chown -R)"
    raise Refused(f"{home} belongs to {name}: {advice}")
