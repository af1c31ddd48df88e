"""A run's folder: configuration unpacked safely, stray state gone, the user's backend overridden by ours."""

import json
import os
import re
import shutil
import stat
import tarfile
from pathlib import Path

from terrapod_listener.engine import untar
from terrapod_listener.supervise import statefile
from terrapod_shared import configuration, wire
from terrapod_shared.errors import Conflict

_RATIO_MOST = 200
_NAME_MOST = 255
_SOURCE_MOST, _SOURCES_MOST = 4 << 20, 64 << 20
#: Bytes of a header in an archive that tells more of an entry.
_HEADER_MOST = 1 << 20
_LOOKED_AT_MOST = 10_000
_OVERRIDE = re.compile(r"(?:^|.*_)override\.(tf|tf\.json|tofu|tofu\.json)$")


class Hostile(Conflict):
    """The configuration cannot be run: the archive, or what is in it, is refused."""


def unpack(archive: Path, target: Path, limits: wire.Limits) -> None:
    """Unpacks a gzip tar below `target`. To be called in a thread. Raises Hostile.

    `untar` refuses what would land or point outside, and devices; caps, and the
    refusal of duplicate or empty names, are here.
    """
    target.mkdir(parents=True, mode=0o700)
    seen: set[int] = set()  # hashes of names: the names themselves could take much
    size = 0
    most = min(limits.unpacked_bytes, max(64 << 20, archive.stat().st_size * _RATIO_MOST))
    try:
        with tarfile.open(archive, "r|gz", tarinfo=_Entry) as tar:
            for entry in tar:
                tar.members = []  # type: ignore[attr-defined]  # it remembers all that came
                untar.check_size(entry)
                name = os.path.normpath(entry.name)
                if name == "." and entry.isdir():
                    continue
                if not entry.name or hash(name) in seen:
                    raise Hostile(f"the archive has {entry.name!r} twice, or without a name")
                seen.add(hash(name))
                size += max(0, entry.size)
                if len(seen) > limits.unpacked_entries or size > most:
                    raise Hostile(f"the archive holds more than {limits.unpacked_entries} entries or {most} bytes")
                if _is_dropped(name):
                    continue
                entry.mode = (entry.mode or 0) & 0o755 | stat.S_IRUSR | stat.S_IWUSR
                untar.place(tar, entry, target)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise Hostile(f"the archive cannot be unpacked: {error}") from None
    _purge(target)


class _Entry(tarfile.TarInfo):
    """An entry whose long names and other facts do not take all memory."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type not in tarfile.SUPPORTED_TYPES and self.size > _HEADER_MOST:
            raise Hostile(f"a header in it has {self.size} bytes")
        proceeding: tarfile.TarInfo = super()._proc_member(tar)  # type: ignore[misc]
        return proceeding


def _is_dropped(name: str) -> bool:
    """`.terraform` but for its modules, and state that strayed in: a local backend would take it for its own.

    What terraform reads as configuration stays whatever it is called: without `main.tfstate.tf` the plan is another.
    """
    parts = name.split("/")
    if ".terraform" in parts:
        after = parts[parts.index(".terraform") + 1 :]
        return bool(after) and after[0] != "modules"
    return _is_state(parts[-1]) or "terraform.tfstate.d" in parts


def _is_state(name: str) -> bool:
    return (name.endswith(".tfstate") or ".tfstate." in name) and not configuration.is_configuration(name)


def _purge(root: Path) -> None:
    """Once more on what is there, links included."""
    for folder, folders, files in os.walk(root):
        if "terraform.tfstate.d" in folders:
            shutil.rmtree(Path(folder) / "terraform.tfstate.d", ignore_errors=True)
            folders.remove("terraform.tfstate.d")
        for name in files:
            if _is_state(name):
                (Path(folder) / name).unlink()


def module_folder(root: Path, working_directory: str) -> Path:
    """The root module's folder. Raises Hostile where it is not inside the configuration."""
    message = f"the working directory {working_directory!r} is not in the configuration"
    try:
        folder = (root / working_directory).resolve()
    except (RuntimeError, OSError):  # a link that leads to itself
        raise Hostile(message) from None
    if not folder.is_relative_to(root.resolve()) or not folder.is_dir():
        raise Hostile(message)
    return folder


def configuration_files(module: Path, tool: str) -> list[str]:
    """Names of the files that the engine reads in this folder, sorted; a link counts whatever it leads to."""
    with os.scandir(module) as entries:
        found = [entry for entry in entries if configuration.is_configuration(entry.name, tool)]
        return sorted((entry.name for entry in found if not entry.is_dir(follow_symlinks=False)), key=os.fsencode)


def value_files(module: Path) -> list[str]:
    """Paths of the files in the root module that the engine takes variables' values from by itself; JSON is left out."""
    with os.scandir(module) as entries:
        names = [entry.name for entry in entries if not entry.is_dir()]
    found = [name for name in names if name == "terraform.tfvars" or name.endswith(".auto.tfvars")]
    return [str(module / name) for name in sorted(found, key=os.fsencode)]


def check_configuration(root: Path, module: Path, tool: str) -> None:
    """Asks terraform's question before our override answers it. In a thread. Raises Hostile if no file is configuration.

    terraform plans nothing of a folder without configuration, since that plan destroys
    everything; it would take our override file for configuration.
    """
    if not configuration_files(module, tool):
        folder = str(module.relative_to(root.resolve()))
        raise Hostile(configuration.refusal(tool, "" if folder == "." else folder, _elsewhere(root)))


def _elsewhere(root: Path) -> list[str]:
    """Paths of files below `root` that look like configuration, of the first entries."""
    found: list[str] = []
    seen = 0
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [os.path.relpath(Path(folder) / name, root) for name in files if configuration.is_configuration(name)]
        seen += len(folders) + len(files)
        if seen > _LOOKED_AT_MOST:
            break
    return found


def write_override(module: Path, states: Path, tool: str) -> Path:
    """Our backend in the file that terraform merges last. Raises Hostile where no name can be last."""
    names = [name for name in configuration_files(module, tool) if _OVERRIDE.match(name)]
    last = os.fsdecode(max(map(os.fsencode, names), default=b""))
    stem = last.partition(".")[0] if last else "zzzz_terrapod"
    name = f"{stem}~terrapod_override.tf" if last else f"{stem}_override.tf"
    raw = os.fsencode(name)
    if len(raw) > _NAME_MOST or os.path.lexists(module / name) or raw <= os.fsencode(last):
        raise Hostile(f"no override file can come after {last!r}: the run would use a backend of its own")
    path = module / name
    ours = _backend(module, states)
    path.write_text(
        f'terraform {{\n  backend "local" {{\n    path = {json.dumps(ours["path"])}\n'
        f"    workspace_dir = {json.dumps(ours['workspace_dir'])}\n  }}\n}}\n"
    )
    return path


def _backend(module: Path, states: Path) -> dict[str, str]:
    """Where terraform keeps state: the workspace `default` at `path`, all others below `workspace_dir`.

    As seen from the module's folder, in which it runs: a plan file holds these
    words, and is applied by whichever host takes the apply, wherever its home is.
    """
    seen = os.path.relpath(states.resolve(), module.resolve())
    return {"workspace_dir": seen, "path": os.path.join(seen, "default", "terraform.tfstate")}  # noqa: PTH118  no Path


def read_below(root: Path, path: Path) -> bytes | None:
    """A small file that a run may have written, without following its links; None where there is none. In a thread."""
    try:
        with statefile.open_below(root, path) as file:
            return file.read(_SOURCE_MOST)
    except OSError:
        return None


def check_backend(root: Path, module: Path, states: Path) -> None:
    """After `init`: the backend that terraform took is ours. To be called in a thread. Raises Hostile."""
    ours = _backend(module, states)
    try:
        kept = json.loads(read_below(root, module / ".terraform" / "terraform.tfstate") or b"{}")
        backend = kept.get("backend") or {}
        config = backend.get("config") or {}
        places = {name: config.get(name) for name in ours}
    except (ValueError, AttributeError, RecursionError):
        backend = places = {}
    if backend.get("type") != "local" or places != ours:
        raise Hostile(
            f"the configuration's backend won over ours ({backend.get('type') or 'none'}): the run is refused"
        )


def sources(module: Path, tool: str) -> dict[str, str]:
    """Texts of the root module's files; of what nobody wrote by hand, the beginning."""
    found, left = {}, _SOURCES_MOST
    for path in (module / name for name in configuration_files(module, tool)):
        if path.is_file():
            with path.open("rb") as file:
                raw = file.read(min(left, _SOURCE_MOST))
            left -= len(raw)
            found[path.name] = raw.decode("utf-8", "replace")
    return found


def state_mark(root: Path, path: Path) -> wire.StateRef | None:
    """Serial, lineage and md5 of a run's state file; None where there is none. To be called in a thread."""
    try:
        with statefile.open_below(root, path) as file:
            return wire.StateRef(**statefile.mark(file))
    except FileNotFoundError:
        return None


def take_back(folder: Path) -> None:
    """Closes a run's folder to its user, who will be another run's. To be called in a thread."""
    os.chown(folder, os.geteuid(), os.getegid())
    folder.chmod(0o700)
