"""The cache of provider packages with the real terraform, and a mirror that counts what is downloaded."""

import concurrent.futures
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import terraform_shim

from kit.provider_mirror import ADDRESS, MAIN, PROGRAM, ProviderMirror, h1, provider_mirror
from kit.remote import Remote, wait_for
from kit.serving import tar
from kit.site import Site
from terrapod_listener.engine import plugins
from terrapod_listener.engine.argv import installation
from terrapod_shared.programs import here

MOST = 1 << 30
PLACE = (*ADDRESS.split("/"), "1.0.0", "_".join(here()))
NAME = "terraform-provider-fake_v1.0.0"


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[ProviderMirror]:
    with provider_mirror(tmp_path) as started:
        started.publish("1.0.0")
        yield started


class Run:
    """A run's folder, in which terraform is called as the listener calls it."""

    def __init__(self, tmp_path: Path, name: str, terraform: Path, mirror: ProviderMirror, lock: bytes = b"") -> None:
        self.kept, self.folder = tmp_path / "providers", tmp_path / name
        self.own, self.module = self.folder / plugins.OWN, self.folder / "config"
        for folder in (self.own, self.module):
            folder.mkdir(parents=True)
        (self.module / "main.tf").write_text(MAIN)
        if lock:
            (self.module / plugins.LOCK).write_bytes(lock)
        (self.folder / "terraform.rc").write_text(installation(str(self.own), mirror.url))
        self.shared = plugins.Plugins(self.kept, self.own, MOST)
        self._terraform, self._ca = terraform, mirror.ca

    def init(self) -> str:
        argv = [str(self._terraform), "init", "-input=false", "-no-color"]
        argv += ["-lockfile=readonly"] if (self.module / plugins.LOCK).exists() else []
        env = {
            "PATH": os.environ["PATH"], "HOME": str(self.folder), "SSL_CERT_FILE": self._ca, "CHECKPOINT_DISABLE": "1",
            "TF_CLI_CONFIG_FILE": str(self.folder / "terraform.rc"),
        }  # fmt: skip
        done = subprocess.run(argv, cwd=self.module, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def whole(self) -> tuple[int, int]:
        """As a phase does it: how many packages were offered, and how many were kept."""
        offered = self.shared.offer(self.module)
        self.init()
        return offered, self.shared.take(self.module)

    @property
    def program(self) -> Path:
        return self.own.joinpath(*PLACE, NAME)

    @property
    def lock(self) -> bytes:
        return (self.module / plugins.LOCK).read_bytes()


def first(tmp_path: Path, terraform: Path, mirror: ProviderMirror) -> Run:
    run = Run(tmp_path, "first", terraform, mirror)
    assert run.whole() == (0, 1)
    assert mirror.downloads == 1
    return run


def test_a_second_run_takes_its_provider_from_the_cache(
    tmp_path: Path, terraform: Path, mirror: ProviderMirror
) -> None:
    lock = first(tmp_path, terraform, mirror).lock
    assert h1({NAME: PROGRAM + b"1.0.0", "LICENSE.txt": b"text"}) in lock.decode(), "the digest that terraform found"
    (kept,) = (tmp_path / "providers").iterdir()
    assert {path.stat().st_mode & 0o777 for path in kept.iterdir()} == {0o555}
    second = Run(tmp_path, "second", terraform, mirror, lock)
    assert second.whole() == (1, 0)
    assert mirror.downloads == 1
    used = second.module.joinpath(".terraform", "providers", *PLACE).resolve()
    assert used == second.program.parent
    assert second.program.stat().st_ino != (kept / NAME).stat().st_ino, "a copy of its own"
    without = Run(tmp_path, "without", terraform, mirror)
    assert without.whole() == (0, 0), "no lock file vouches for anything"
    assert mirror.downloads == 2


def test_what_a_run_writes_reaches_no_other_run(tmp_path: Path, terraform: Path, mirror: ProviderMirror) -> None:
    lock = first(tmp_path, terraform, mirror).lock
    good = PROGRAM + b"1.0.0"
    evil = Run(tmp_path, "evil", terraform, mirror, lock)
    evil.whole()
    evil.program.chmod(0o755)
    evil.program.write_bytes(b"#!/bin/sh\necho evil\n")
    evil.shared.take(evil.module)
    third = Run(tmp_path, "third", terraform, mirror, lock)
    assert third.whole() == (1, 0)
    assert third.program.read_bytes() == good
    # what it gave its own lock file for is for whoever asks for that very content, and nobody else
    text = evil.lock.decode().replace(h1({NAME: good, "LICENSE.txt": b"text"}), other := h1({NAME: b"#!evil"}))
    (evil.program.parent / "LICENSE.txt").unlink()
    evil.program.write_bytes(b"#!evil")
    (evil.module / plugins.LOCK).write_text(text)
    assert other in text
    assert evil.shared.take(evil.module) == 1
    fourth = Run(tmp_path, "fourth", terraform, mirror, lock)
    assert fourth.whole() == (1, 0)
    assert fourth.program.read_bytes() == good
    assert mirror.downloads == 1


def test_what_was_changed_in_the_cache_is_thrown_away(tmp_path: Path, terraform: Path, mirror: ProviderMirror) -> None:
    lock = first(tmp_path, terraform, mirror).lock
    (kept,) = (tmp_path / "providers").iterdir()
    before = (kept / NAME).stat()
    (kept / NAME).chmod(0o755)
    (kept / NAME).write_bytes(b"#!/bin/sh\nexit 7\n1.0.0")
    os.utime(kept / NAME, ns=(before.st_atime_ns, before.st_mtime_ns))
    run = Run(tmp_path, "second", terraform, mirror, lock)
    assert run.whole() == (0, 1), "not given, fetched, and kept anew"
    assert run.program.read_bytes() == PROGRAM + b"1.0.0"
    assert mirror.downloads == 2
    assert [path.name for path in (tmp_path / "providers").iterdir()] == [kept.name]
    (kept / "more").write_bytes(b"x")
    assert Run(tmp_path, "third", terraform, mirror, lock).whole() == (0, 1)


def test_runs_side_by_side(tmp_path: Path, terraform: Path, mirror: ProviderMirror) -> None:
    """Each has a cache of its own; that all keep the same package at once leaves one."""
    runs = [Run(tmp_path, f"run-{number}", terraform, mirror) for number in range(4)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda run: run.whole(), runs))
        assert sum(taken for _, taken in outcomes) == 1
        assert len(list((tmp_path / "providers").iterdir())) == 1
        again = [Run(tmp_path, f"again-{number}", terraform, mirror, runs[0].lock) for number in range(4)]
        assert list(pool.map(lambda run: run.whole(), again)) == [(1, 0)] * 4
    assert mirror.downloads == 4


def test_a_listeners_runs(tmp_path: Path, terraform: Path, mirror: ProviderMirror) -> None:
    """The provider is a script, so that the plan fails; what is looked at comes before it."""
    lock = Run(tmp_path, "lock", terraform, mirror)
    lock.init()
    mirror.asked.clear()
    settings = {
        "TERRAPOD_LISTENER_PROVIDER_MIRROR": mirror.url,
        "TERRAPOD_LISTENER_CA_FILE": mirror.ca,
    }
    with Site(tmp_path / "site", terraform, **settings) as site, site.api() as api:
        logs = [_run(api, {"main.tf": MAIN.encode(), plugins.LOCK: lock.lock}) for _ in range(2)]
        kept = list((site.data / "listener" / "providers").iterdir())
        wait_for(lambda: not list((site.data / "listener" / "work").iterdir()))
    assert len(kept) == 1
    assert mirror.downloads == 1, logs
    assert f"Using {ADDRESS.partition('/')[2]} v1.0.0 from the shared cache directory" not in logs[0]
    assert "from the shared cache directory" in logs[1]


def _run(api: httpx.Client, files: dict[str, bytes]) -> str:
    remote = Remote(api, **{"terraform-version": terraform_shim.VERSION})
    made = remote.post(f"workspaces/{remote.id}/configuration-versions", {"auto-queue-runs": False})
    assert api.put(made["attributes"]["upload-url"], content=tar(files)).status_code == 200
    run = remote.begin()
    remote.until(run, "errored")
    return remote.log(run, "plan")
