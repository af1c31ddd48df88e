"""Programs of terraform and tofu that a host has already: found on its PATH, and asked which version they are.

A program is asked as itself, by its resolved path, in an empty folder and
without the caller's environment: a version switcher that looks for settings
finds none, and is no engine.
"""

import contextlib
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from terrapod_shared import programs, versions

Tool = Literal["terraform", "tofu"]
_TOOLS: Mapping[str, Tool] = {"Terraform": "terraform", "OpenTofu": "tofu"}
_ANSWER = re.compile(rb"^(Terraform|OpenTofu) v(\S{1,40})$", re.MULTILINE)
_ANSWER_MOST = 64 << 10


class Unfit(Exception):
    """Why a program cannot be an engine; the text is for the operator."""


@dataclass(frozen=True)
class HostEngine:
    """A program, by its resolved path, and what it says it is."""

    tool: Tool
    version: str
    path: Path

    def __str__(self) -> str:
        return f"{self.tool} {self.version} ({self.path})"


def on_path(search: str) -> list[Path]:
    """All files named `terraform` or `tofu` in the folders of a PATH, in its order; relative folders are left out."""
    folders = [Path(folder) for folder in search.split(os.pathsep) if Path(folder).is_absolute()]
    files = [folder / tool for tool in _TOOLS.values() for folder in folders]
    return list(dict.fromkeys(file for file in files if os.path.lexists(file)))


def choose(files: Iterable[Path]) -> tuple[list[HostEngine], list[str]]:
    """The engines among the files, the first of each version, and why each of the others is none. Blocks for seconds."""
    found: dict[tuple[str, str], HostEngine] = {}
    left_out: dict[str, None] = {}
    for file in files:
        try:
            engine = ask(file)
        except Unfit as why:
            left_out[f"{file}: {why}"] = None
        else:
            found.setdefault((engine.tool, engine.version), engine)
    return list(found.values()), list(left_out)


def ask(file: Path, patience_s: float = 20.0) -> HostEngine:
    """What a program says it is. Blocks until it answers, or is killed. Raises Unfit for a script, and for what is no engine."""
    try:
        path = Path(os.path.realpath(file, strict=True))
        with path.open("rb") as opened:
            head = opened.read(programs.HEAD)
    except OSError as error:
        raise Unfit(f"cannot be read: {error.strerror or error}") from None
    built = programs.platform_of(head)
    if built is None:
        raise Unfit("is a script, and not the program itself" if head.startswith(b"#!") else "is no program")
    if built != programs.here():
        raise Unfit(f"is built for {'/'.join(built)}, and not for {'/'.join(programs.here())}")
    if not os.access(path, os.X_OK):
        raise Unfit("cannot be started: it is not executable")
    answer = _ANSWER.search(_answer(path, patience_s))
    if answer is None or not versions.is_exact(answer[2].decode("ascii", "replace")):
        raise Unfit("does not say that it is terraform or tofu")
    return HostEngine(_TOOLS[answer[1].decode()], answer[2].decode(), path)


def _answer(path: Path, patience_s: float) -> bytes:
    """What `version` prints. Raises Unfit."""
    try:
        with tempfile.TemporaryDirectory(prefix="terrapod-") as folder, tempfile.TemporaryFile() as out:
            # CHECKPOINT_DISABLE: it is not to ask the internet whether there is a newer one
            env = {"HOME": folder, "TMPDIR": folder, "PATH": os.defpath, "CHECKPOINT_DISABLE": "1"}
            process = subprocess.Popen(  # noqa: S603  a program that the operator has named, or has on the PATH
                [str(path), "version"], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.DEVNULL,
                cwd=folder, env=env, start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(patience_s)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            out.seek(0)
            text = out.read(_ANSWER_MOST)
    except subprocess.TimeoutExpired:
        raise Unfit(f"did not answer `version` within {patience_s:g} s") from None
    except OSError as error:
        raise Unfit(f"cannot be started: {error.strerror or error}") from None
    if code:
        raise Unfit(f"answered `version` with exit code {code}")
    return text
