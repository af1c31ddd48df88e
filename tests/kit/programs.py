"""Server and listener of this tree, or of a commit of the repository's history: what an upgrade replaces with what."""

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kit.site import BIN

ROOT = Path(__file__).parents[2]
_PACKAGES = ("server", "listener", "shared", "cli")


@dataclass(frozen=True)
class Programs:
    """How the programs of one release are called, and what their environment needs for it."""

    server: tuple[str, ...]
    listener: tuple[str, ...]
    more: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], **self.more}

    def call(self, program: Sequence[str], *argv: object, stdin: str = "", **environment: str) -> str:
        """What the command printed; it must succeed."""
        done = subprocess.run(
            [*program, *map(str, argv)], env={**self.environment, **environment},
            input=stdin, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (argv, done.stdout, done.stderr)
        return done.stdout


#: This tree's.
PRESENT = Programs((str(BIN / "terrapod-server"),), (str(BIN / "terrapod-listener"),))


def of_commit(commit: str, folder: Path) -> Programs:
    """Unpacks the commit's packages into `folder`; they run by this interpreter, with the packages installed for it.

    Skips the test where the commit cannot be had, as in a shallow clone or without a repository.
    """
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), "archive", "--format=tar", commit, *_PACKAGES], capture_output=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("git is not installed, so there is no earlier release to upgrade from")
    if done.returncode:
        pytest.skip(f"commit {commit} is not in this clone: {done.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    path = os.pathsep.join(str(folder / package) for package in _PACKAGES)
    made = Programs(
        (sys.executable, "-P", "-m", "terrapod_server"), (sys.executable, "-P", "-m", "terrapod_listener"),
        {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    for module in ("terrapod_server", "terrapod_listener", "terrapod_shared"):
        found = made.call((sys.executable,), "-P", "-c", f"import {module}; print({module}.__file__)")
        assert found.startswith(str(folder)), f"{module} comes of {found}"
    return made
