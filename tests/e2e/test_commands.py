"""The programs as an operator meets them: settings, refusals, first and later starts, clean ends."""

import contextlib
import hashlib
import os
import signal
import sqlite3
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from kit.openpgp import Signer
from kit.postgres import free_port
from kit.release_site import release_zip
from kit.serving import PLAIN, state_bytes
from kit.site import BIN, Site
from terrapod_server.store.cipher import KeyRing


def command(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / argv[0]), *argv[1:]], env={"PATH": os.environ["PATH"], **environment}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip


def ready(url: str, process: "subprocess.Popen[bytes] | subprocess.Popen[str]", ca: Path | None = None) -> None:
    until = time.monotonic() + 30
    while True:
        try:
            trusted = ssl.create_default_context(cafile=ca) if ca else PLAIN
            if httpx.get(f"{url}/ready", verify=trusted).status_code == 200:
                return
        except (httpx.HTTPError, FileNotFoundError):  # the authority is not made yet
            pass
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.1)


def test_check_reports_every_mistake_at_once(tmp_path: Path) -> None:
    file = tmp_path / "terrapod.toml"
    file.write_text('port = "x"\nnonsense = 1\n[storage]\nkind = "s3"\n')
    done = command("terrapod-server", "check", "--config", str(file), TERRAPOD_NOPE="1")
    assert done.returncode == 2
    assert done.stderr.count("error:") == 4, done.stderr
    file.write_text(
        'host = "0.0.0.0"\nport = 0\ndatabase_url = "mysql://x"\nshutdown_s = nan\n[limits]\njson_bytes = -1\n[runs]\nplan_s = 0\n'
    )
    done = command("terrapod-server", "check", "--config", str(file), TERRAPOD_DATABASE_POOL="0")
    wrong = {line.split(": ")[1] for line in done.stderr.splitlines()}
    assert wrong == {"host", "database_url", "shutdown_s", "limits.json_bytes", "runs.plan_s", "database_pool"}
    for content in ("no certificate", ""):
        file.write_text(f'[tls]\ncertificate = "{tmp_path}/c"\nkey = "{tmp_path}/c"\n')
        (tmp_path / "c").write_text(content)
        done = command("terrapod-server", "check", "--config", str(file))
        assert (done.returncode, "are no certificate with its key" in done.stderr) == (2, True), done.stderr
    imported = command("terrapod-server", "binaries", "import", str(file), "--data", str(tmp_path), TERRAPOD_NOPE="1")
    assert (imported.returncode, "Traceback" in imported.stderr) == (2, False)
    file.write_text("port = 9000\n")
    of_the_cli = {"TERRAPOD_ADDRESS": "terrapod.example.com", "TERRAPOD_TOKEN": "t"}
    assert command("terrapod-server", "check", "--config", str(file), **of_the_cli).returncode == 0


def test_unsafe_starts_are_refused(tmp_path: Path) -> None:
    plain = command("terrapod-server", "up", "--data", str(tmp_path / "a"), "--host", "0.0.0.0", "--plain-http")
    assert (plain.returncode, "loopback only" in plain.stderr) == (1, True)
    wrong = command("terrapod-server", "up", "--data", str(tmp_path / "c"), TERRAPOD_NOPE="1")
    assert (wrong.returncode, "no such setting" in wrong.stderr, "Traceback" in wrong.stderr) == (1, True, False)
    open_ = command("terrapod-server", "serve", TERRAPOD_DATA=str(tmp_path / "b"), TERRAPOD_HOST="0.0.0.0")
    assert open_.returncode == 2
    assert "is not loopback" in open_.stderr


def test_up_listens_on_all_addresses_by_the_names_that_are_given(tmp_path: Path) -> None:
    """From nothing: the certificate is not there yet when the settings are checked. The options win over server.toml."""
    data, port = tmp_path / "data", free_port()
    data.mkdir()
    (data / "server.toml").write_text('host = "0.0.0.0"\nport = 1\nnames = ["terrapod.test"]\n')
    argv = [str(BIN / "terrapod-server"), "up", "--data", str(data), "--port", str(port), "--no-listener"]
    process = subprocess.Popen(
        [*argv, "--name", "127.0.0.2"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        for host in ("localhost", "127.0.0.2"):
            ready(f"https://{host}:{port}", process, data / "ca.pem")
        url, home = f"https://localhost:{port}", str(tmp_path / "home")
        mistrusts = command("terrapod-listener", "join", "--server", url, "--token", "x", "--home", home)
        assert "; --ca names the authority to trust\n" in mistrusts.stderr
    finally:
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=20)[0]
    assert f"Terrapod is ready at https://localhost:{port}\n" in said
    assert f"  https://127.0.0.2:{port}\n" in said
    assert f'credentials "127.0.0.2:{port}"' in (data / "terraform.rc").read_text()
    for content, name, why in (
        ('[tls]\ncertificate = "c"\nkey = "k"', "terrapod.test", "`up` makes a certificate of its own"),
        ("", "https://x", "names: 'https://x' is neither a name nor an address of a host"),
    ):
        (data / "server.toml").write_text(content)
        done = command(*argv, "--name", name)
        assert (done.returncode, why in done.stderr, done.stderr.count("\n")) == (1, True, 1), done.stderr
    (data / "server.toml").unlink()
    (data / "server.toml").symlink_to(tmp_path / "not-mounted")
    done = command(*argv)
    assert (done.returncode, "server.toml: No such file" in done.stderr) == (1, True), done.stderr


def test_two_servers_at_once_on_one_new_folder(tmp_path: Path) -> None:
    """SQLite takes one of them, and the other says so; the folder serves the next one that comes."""
    data, ports = tmp_path / "data", (free_port(), free_port())
    both = {
        port: subprocess.Popen(
            [BIN / "terrapod-server", "up", "--data", data, "--port", str(port), "--no-listener"],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for port in ports
    }  # fmt: skip
    until = time.monotonic() + 30
    while all(each.poll() is None for each in both.values()):
        assert time.monotonic() < until
        time.sleep(0.02)
    (refused,) = [port for port, each in both.items() if each.poll() is not None]
    (port,) = [each for each in ports if each != refused]
    try:
        ready(f"https://localhost:{port}", both[port], data / "ca.pem")
    finally:
        both[port].send_signal(signal.SIGKILL)
        both[port].communicate(timeout=20)
    said = both[refused].communicate(timeout=20)[1]
    assert f"Error: another server (process {both[port].pid}) uses {data}/terrapod.sqlite3" in said
    assert (both[refused].returncode, said.count("\n")) == (1, 1), said
    argv = [str(BIN / "terrapod-server"), "up", "--data", str(data), "--port", str(port), "--no-listener"]
    again = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    try:
        ready(f"https://localhost:{port}", again, data / "ca.pem")
    finally:
        again.terminate()
        assert again.wait(20) == 0


def test_up_ends_well_where_its_listener_cannot_be_started(tmp_path: Path) -> None:
    """The interpreter by whose path it would be started is gone."""
    data, port, python = tmp_path / "data", free_port(), tmp_path / "python"
    python.symlink_to(Path(sys.executable).resolve())
    process = subprocess.Popen(
        [python, "-m", "terrapod_server", "up", "--data", data, "--port", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={"PATH": "/none", "PYTHONHOME": sys.base_prefix, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    python.unlink()
    assert process.stderr
    said = process.stderr.readline()
    ready(f"https://localhost:{port}", process, data / "ca.pem")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert f"the listener cannot be started: {python}: No such file or directory" in said
    assert process.returncode == 0


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
    assert (done.returncode, "--unsigned" in done.stderr) == (1, True), done.stderr
    both = command("terrapod-server", "binaries", "import", str(archive), "--unsigned", "--sums", str(archive))
    assert (both.returncode, "goes with neither" in both.stderr) == (2, True)
    signer = Signer()
    sums = f"{hashlib.sha256(archive.read_bytes()).hexdigest()}  {archive.name}\n".encode()
    (tmp_path / "sums").write_bytes(sums)
    (tmp_path / "signature").write_bytes(signer.sign(sums))
    done = command(
        "terrapod-server", "binaries", "import", str(archive), "--data", data,
        "--sums", str(tmp_path / "sums"), "--signature", str(tmp_path / "signature"),
        TERRAPOD_ENGINES__TERRAFORM_KEYS=signer.write(tmp_path / "keys.asc"),
    )  # fmt: skip
    assert (done.returncode, "terraform 1.9.8 linux/amd64" in done.stdout) == (0, True), done.stderr
    assert f"signed by {signer.fingerprint}" in done.stdout
    again = command("terrapod-server", "binaries", "import", str(archive), "--unsigned", "--data", data)
    assert again.returncode == 0, again.stderr
    bad = tmp_path / "terraform_1.9.9_linux_amd64.zip"
    bad.write_bytes(b"nonsense")
    refused = command("terrapod-server", "binaries", "import", str(bad), "--data", data)
    assert (refused.returncode, "is no zip archive" in refused.stderr) == (1, True)
    environment = {"PATH": os.environ["PATH"], "TERRAPOD_DATA": data, "TERRAPOD_PORT": str(port)}
    process = subprocess.Popen([str(BIN / "terrapod-server"), "serve"], env=environment, stderr=subprocess.DEVNULL)
    ready(f"http://127.0.0.1:{port}", process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


def test_keys_are_rotated(tmp_path: Path) -> None:
    """What was sealed before is read after it, and what comes then is sealed by the new key."""
    data, port = tmp_path / "data", free_port()
    nothing = command("terrapod-server", "keys", "rotate", "--data", str(data))
    assert (nothing.returncode, "there is no key file" in nothing.stderr) == (1, True)
    assert not data.exists(), "a command that only looks makes nothing"

    def listed() -> list[str]:
        done = command("terrapod-server", "keys", "list", "--data", str(data))
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    with up(data, port) as api:
        workspace = api.post("/organizations/default/workspaces", json={"data": {"attributes": {"name": "w"}}})
        home = f"/workspaces/{workspace.json()['data']['id']}"
        push_state(api, home, 1)
        add_variable(api, home, "old")
    first = listed()
    assert [line.split()[1] for line in first] == ["encrypts"]
    done = command("terrapod-server", "keys", "rotate", "--data", str(data))
    assert (done.returncode, "start every server process again" in done.stdout) == (0, True), done.stderr
    new, old = (line.split()[0] for line in listed())
    assert (done.stdout.startswith(new), first[0].startswith(old)) == (True, True)
    assert not any(line.partition(":")[2].strip() in done.stdout for line in (data / "keys").read_text().split())
    assert (data / "keys").stat().st_mode & 0o777 == 0o600
    with up(data, port) as api:
        shown = api.get(f"{home}/current-state-version").json()["data"]["attributes"]
        assert api.get(shown["hosted-state-download-url"], follow_redirects=True).content == state_bytes(1)
        push_state(api, home, 2)
        add_variable(api, home, "new")
        values = {
            each["attributes"]["key"]: each["attributes"]["value"] for each in api.get(f"{home}/vars").json()["data"]
        }
        assert values == {"old": "value", "new": "value"}
    with sqlite3.connect(data / "terrapod.sqlite3") as database:
        sealed = {key: bytes(value)[:8].hex() for key, value in database.execute("SELECT key, value FROM variable")}
    database.close()
    assert sealed == {"old": old, "new": new}
    states = [path.read_bytes() for path in (data / "store").rglob("*") if path.is_file() and "states" in path.parts]
    assert sorted(raw[4:12].hex() for raw in states) == sorted([old, new])


@contextlib.contextmanager
def up(data: Path, port: int) -> Iterator[httpx.Client]:
    """A server without a listener, over plain HTTP, and a client with its token."""
    argv = ["up", "--data", str(data), "--port", str(port), "--plain-http", "--no-listener"]
    process = subprocess.Popen([str(BIN / "terrapod-server"), *argv], stdout=subprocess.DEVNULL)
    try:
        ready(f"http://127.0.0.1:{port}", process)
        while not (data / "admin-token").exists():
            time.sleep(0.01)
        headers = {"Authorization": f"Bearer {(data / 'admin-token').read_text()}"}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v2", headers=headers, timeout=20) as api:
            yield api
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def push_state(api: httpx.Client, home: str, serial: int) -> None:
    raw = state_bytes(serial)
    values = {"serial": serial, "lineage": "aaaa", "md5": hashlib.md5(raw).hexdigest()}
    made = api.post(f"{home}/state-versions", json={"data": {"attributes": values}})
    assert made.status_code == 201, made.text
    assert api.put(made.json()["data"]["attributes"]["hosted-state-upload-url"], content=raw).status_code == 200


def add_variable(api: httpx.Client, home: str, key: str) -> None:
    values = {"key": key, "value": "value", "category": "terraform"}
    assert api.post(f"{home}/vars", json={"data": {"attributes": values}}).status_code == 201


def test_the_authoritys_key_is_sealed(tmp_path: Path) -> None:
    """One of an earlier release too, which had it in clear; clients go on with the `ca.pem` that they have."""
    data, port = tmp_path / "data", free_port()
    argv = [str(BIN / "terrapod-server"), "up", "--data", str(data), "--port", str(port), "--no-listener"]

    def start(*, refused: str = "") -> bytes:
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if refused:
            assert refused in process.communicate(timeout=30)[1]
            assert process.returncode == 1
            return b""
        try:
            ready(f"https://localhost:{port}", process, data / "ca.pem")
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=20)
        return (data / "ca.pem").read_bytes()

    authority = start()
    sealed = data / "ca-key"
    assert (b"PRIVATE" in sealed.read_bytes(), sealed.stat().st_mode & 0o777) == (False, 0o600)
    key = KeyRing.load(data / "keys").unseal(sealed.read_bytes(), "the authority of tls")
    (data / "ca-key.pem").write_bytes(key)
    for path in (sealed, data / "server.pem"):  # the certificate has to be made again with it
        path.unlink()
    assert start() == authority
    assert not (data / "ca-key.pem").exists()
    assert sealed.exists()
    (data / "keys").unlink()
    (data / "server.pem").unlink()
    start(refused="there is no key file")
    for left in data.glob("terrapod.sqlite3*"):
        left.unlink()
    start(refused="is not the key file of")


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
