"""The programs as an operator meets them: settings, refusals, first and later starts, clean ends."""

import os
import signal
import subprocess
import time
from pathlib import Path

import httpx

from kit.postgres import free_port
from kit.release_site import release_zip
from kit.site import BIN, Site


def command(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / argv[0]), *argv[1:]], env={"PATH": os.environ["PATH"], **environment}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip


def ready(url: str, process: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + 30
    while True:
        try:
            if httpx.get(f"{url}/ready").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)


def test_check_reports_every_mistake_at_once(tmp_path: Path) -> None:
    file = tmp_path / "terrapod.toml"
    file.write_text('port = "x"\nnonsense = 1\n[storage]\nkind = "s3"\n')
    done = command("terrapod-server", "check", "--config", str(file), TERRAPOD_NOPE="1")
    assert done.returncode == 2
    assert done.stderr.count("error:") == 4, done.stderr
    file.write_text("port = 9000\n")
    assert command("terrapod-server", "check", "--config", str(file)).returncode == 0


def test_unsafe_starts_are_refused(tmp_path: Path) -> None:
    plain = command("terrapod-server", "up", "--data", str(tmp_path / "a"), "--host", "0.0.0.0", "--plain-http")
    assert (plain.returncode, "loopback only" in plain.stderr) == (1, True)
    wrong = command("terrapod-server", "up", "--data", str(tmp_path / "c"), TERRAPOD_NOPE="1")
    assert (wrong.returncode, "no such setting" in wrong.stderr, "Traceback" in wrong.stderr) == (1, True, False)
    open_ = command("terrapod-server", "serve", TERRAPOD_DATA=str(tmp_path / "b"), TERRAPOD_HOST="0.0.0.0")
    assert open_.returncode == 1
    assert "is not loopback" in open_.stderr


def test_first_and_later_starts(tmp_path: Path) -> None:
    data, port = tmp_path / "data", free_port()
    tokens = []
    for start in range(3):
        if start == 2:  # as after a first start that was killed before it wrote the file
            (data / "admin-token").unlink()
        with (tmp_path / "log").open("wb") as log:
            argv = ["up", "--data", str(data), "--port", str(port), "--plain-http", "--no-listener"]
            process = subprocess.Popen([str(BIN / "terrapod-server"), *argv], stdout=log, stderr=log)
        try:
            ready(f"http://127.0.0.1:{port}", process)
            while not (data / "admin-token").exists():
                time.sleep(0.01)
            token = (data / "admin-token").read_text()
            tokens.append(token)
            answer = httpx.get(
                f"http://127.0.0.1:{port}/api/v2/account/details", headers={"Authorization": f"Bearer {token}"}
            )
            assert answer.status_code == 200
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        assert token not in (tmp_path / "log").read_text(), "a token is never printed"
    assert tokens[0] == tokens[1] != tokens[2]
    assert (data / "admin-token").stat().st_mode & 0o777 == 0o600
    assert (data / "keys").stat().st_mode & 0o777 == 0o600


def test_serve_binaries_import_and_a_clean_end(tmp_path: Path) -> None:
    archive = tmp_path / "terraform_1.9.8_linux_amd64.zip"
    archive.write_bytes(release_zip("terraform"))
    data, port = str(tmp_path / "data"), free_port()
    done = command("terrapod-server", "binaries", "import", str(archive), "--data", data)
    assert (done.returncode, "terraform 1.9.8 linux/amd64" in done.stdout) == (0, True), done.stderr
    bad = tmp_path / "terraform_1.9.9_linux_amd64.zip"
    bad.write_bytes(b"nonsense")
    refused = command("terrapod-server", "binaries", "import", str(bad), "--data", data)
    assert (refused.returncode, "is no zip archive" in refused.stderr) == (1, True)
    environment = {"PATH": os.environ["PATH"], "TERRAPOD_DATA": data, "TERRAPOD_PORT": str(port)}
    process = subprocess.Popen([str(BIN / "terrapod-server"), "serve"], env=environment, stderr=subprocess.DEVNULL)
    ready(f"http://127.0.0.1:{port}", process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


def test_status_tells_who_the_listener_is(site: Site) -> None:
    done = command("terrapod-listener", "status", "--home", str(site.data / "listener"))
    assert done.returncode == 0, done.stderr
    assert "certificate: until" in done.stdout
    assert (site.data / "listener" / "identity.json").stat().st_mode & 0o777 == 0o600
    nobody = command("terrapod-listener", "status", "--home", str(site.folder / "nowhere"))
    assert (nobody.returncode, "join a pool first" in nobody.stderr) == (1, True)


def test_a_bad_token_does_not_join(site: Site, tmp_path: Path) -> None:
    done = command(
        "terrapod-listener", "join", "--server", f"https://{site.host}", "--token", "tpodjoin_nope",
        "--ca", str(site.data / "ca.pem"), "--home", str(tmp_path),
    )  # fmt: skip
    assert (done.returncode, "unknown, spent, revoked or over" in done.stderr) == (1, True)
    assert list(tmp_path.iterdir()) == []


def test_help_is_complete() -> None:
    for argv in (["terrapod-server"], ["terrapod-server", "up"], ["terrapod-server", "serve"], ["terrapod-server", "check"],
                 ["terrapod-server", "binaries", "import"], ["terrapod-listener", "join"], ["terrapod-listener", "run"]):  # fmt: skip
        done = command(*argv, "--help")
        assert done.returncode == 0
        assert "--" in done.stdout
