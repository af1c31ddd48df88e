"""The real terraform through a real listener, isolated: configurations that attack, and what they must not get."""

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import terraform_shim

from kit.remote import Remote, wait_for
from kit.site import BIN, Site
from terrapod_listener.sandbox import isolation

DAEMON = "sleep 954321"
HOSTILE = """
resource "terraform_data" "attack" {
  provisioner "local-exec" {
    command = <<-END
      for each in %(home)s/identity.json %(data)s/admin-token %(data)s/terrapod.sqlite3 %(home)s/journal %(home)s/spool; do
        ls "$each" && echo S''EEN; cat "$each" && echo R''EAD
      done
      env | grep -c CANARY
      kill -9 %(listener)s && echo K''ILLED
      (setsid sh -c 'trap "" HUP INT TERM; (%(daemon)s &) ; %(daemon)s' &) > /dev/null 2>&1 &
      echo poison > /tmp/terrapod-poison; echo poison > $HOME/.terraformrc
      echo "attacked"
    END
  }
}
output "done" { value = "state arrives" }
"""


@pytest.fixture(scope="module")
def boxed(tmp_path_factory: pytest.TempPathFactory, terraform: Path) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("boxed")
    try:
        isolation.find(folder / "probe", isolation.Settings(want="bubblewrap"))
    except isolation.Unavailable as why:
        pytest.skip(f"this host does not offer bubblewrap: {why}")
    with Site(folder, terraform, TERRAPOD_LISTENER_ISOLATION="bubblewrap") as started:
        yield started


@pytest.fixture
def api(boxed: Site) -> Iterator[httpx.Client]:
    with boxed.api() as client:
        yield client


def listener_pid(site: Site) -> int:
    return int((site.data / "listener" / "lock").read_text())


def test_an_apply_that_attacks_its_host(boxed: Site, api: httpx.Client) -> None:
    remote = Remote(api, **{"terraform-version": terraform_shim.VERSION})
    home, pid = boxed.data / "listener", listener_pid(boxed)
    facts = {"home": home, "data": boxed.data, "listener": pid, "daemon": DAEMON}
    remote.upload(main_tf=HOSTILE % facts)
    run = remote.begin()
    remote.until(run, "applied")
    log = remote.log(run, "apply")
    assert "isolation bubblewrap" in log
    assert "attacked" in log
    assert "S''EEN" in log, "the attack was not printed as it was written"
    for word in ("SEEN", "READ", "KILLED"):
        assert word not in log
    assert (home / "identity.json").read_text() not in log
    assert listener_pid(boxed) == pid
    assert not Path("/tmp/terrapod-poison").exists()
    outputs = api.get(f"workspaces/{remote.id}/current-state-version-outputs").json()["data"]
    assert [each["attributes"]["value"] for each in outputs] == ["state arrives"]
    left = subprocess.run(["pgrep", "-f", "-r", "R,S,D", f"^{DAEMON}"], capture_output=True, text=True, check=False)
    assert left.stdout == "", "a daemon of the run goes on"


def test_status_and_the_api_say_how_runs_are_isolated(boxed: Site, api: httpx.Client) -> None:
    wanted = "bubblewrap+user" if os.geteuid() == 0 else "bubblewrap"
    argv = [str(BIN / "terrapod-listener"), "status", "--home", str(boxed.data / "listener")]
    done = subprocess.run(argv, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True)
    assert f"isolation:   {wanted}" in done.stdout
    pool = api.get("organizations/default/agent-pools").json()["data"][0]["id"]
    listeners = api.get(f"agent-pools/{pool}/listeners").json()["data"]
    assert [each["attributes"]["isolation"] for each in listeners] == [wanted]


def test_links_that_a_run_plants_are_not_followed(boxed: Site, api: httpx.Client) -> None:
    """What a listener writes itself is out of the run's reach; of what it reads no link is followed."""
    remote = Remote(api)
    identity = boxed.data / "listener" / "identity.json"
    before = identity.read_bytes()
    plants = "".join(
        f"ln -s {identity} ../{name}\n" for name in ("plan.json", "answer.json", "schemas.json", ".plan.part")
    )
    remote.upload(plan_sh=plants, apply_sh="ls -la ..")
    run = remote.begin()
    remote.until(run, "applied")
    assert identity.read_bytes() == before

    linked = Remote(api)
    linked.upload(plan_sh="ln -s elsewhere ../plan")  # the engine writes its plan through it
    run = linked.begin()
    linked.until(run, "errored")
    answer = api.get(f"runs/{run}").json()["data"]["attributes"]
    assert "symbolic links" in json.dumps(answer) + linked.log(run, "plan"), answer


def test_a_variable_from_before_its_name_was_refused_is_left_out(boxed: Site, api: httpx.Client) -> None:
    remote = Remote(api)
    for key, value in (("OLD_NAME", "/tmp/of-the-run"), ("FINE", "fine")):
        remote.post(f"workspaces/{remote.id}/vars", {"key": key, "value": value, "category": "env"}, type="vars")
    with contextlib.closing(sqlite3.connect(boxed.data / "terrapod.sqlite3", timeout=30)) as database, database:
        database.execute("UPDATE variable SET key = 'LOCPATH' WHERE key = 'OLD_NAME'")
    remote.upload(plan_sh="env", apply_sh="env")
    run = remote.begin()
    remote.until(run, "applied")
    for phase in ("plan", "apply"):
        log = remote.log(run, phase)
        assert "left out of this run: LOCPATH is reserved" in log
        assert "FINE=fine" in log
        assert "of-the-run" not in log


def test_a_listener_that_is_killed_leaves_no_plan_behind_and_comes_back(boxed: Site, api: httpx.Client) -> None:
    remote = Remote(api)
    remote.upload(plan_sh="echo begun; sleep 943210")
    run = remote.begin()
    remote.until_logged(run, "plan", "begun")
    os.kill(pid := listener_pid(boxed), 9)
    wait_for(lambda: subprocess.run(["pgrep", "-f", "-r", "R,S,D", "^sleep 943210"], check=False).returncode != 0)
    wait_for(lambda: listener_pid(boxed) != pid)
    assert api.post(f"runs/{run}/actions/cancel").status_code in (200, 202)
    remote.until(run, "canceled", "errored")


def test_what_cannot_be_had_ends_the_listener_with_the_reason(boxed: Site, tmp_path: Path) -> None:
    """Never less than what the settings ask for."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "identity.json").write_bytes((boxed.data / "listener" / "identity.json").read_bytes())
    for settings, words in (
        ({"TERRAPOD_LISTENER_ISOLATION": "user", "TERRAPOD_LISTENER_RUN_UID": "70000"}, "user: "),
        ({"TERRAPOD_LISTENER_BLOCK_METADATA": "true", "TERRAPOD_LISTENER_ISOLATION": "none"}, "block_metadata: "),
        ({"TERRAPOD_LISTENER_RUN_UID": "0"}, "run_uid: "),
        ({"TERRAPOD_LISTENER_READABLE": '["relative"]'}, "readable: relative"),
    ):
        done = subprocess.run(
            [str(BIN / "terrapod-listener"), "run", "--home", str(home)],
            env={"PATH": os.environ["PATH"], **settings}, capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
        assert done.returncode != 0
        assert words in done.stderr, done.stderr
        assert "Traceback" not in done.stderr


#: A host and, at the other end of a cable, what answers at the cloud's address.
CABLE = """
ip link add tp0 netns %(host)s type veth peer name tp1 netns %(cloud)s
ip -n %(host)s link set lo up
ip -n %(host)s addr add 169.254.1.1/16 dev tp0
ip -n %(host)s link set tp0 up
ip -n %(cloud)s addr add 169.254.169.254/16 dev tp1
ip -n %(cloud)s link set tp1 up
"""
CLOUD = """
import socket
server = socket.create_server(("169.254.169.254", 80))
print("ready", flush=True)
while True:
    client, _ = server.accept()
    client.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\nthe host's credentials\\n")
    client.close()
"""
HOST = """
import subprocess
from pathlib import Path
from terrapod_listener.sandbox import isolation, metadata
ask = ["/bin/bash", "-c", "cat < /dev/tcp/169.254.169.254/80; true"]
home = Path(%(home)r)
found = isolation.find(home, isolation.Settings(want="bubblewrap", first_uid=91000))
cell = found.cell(home / "work" / "run-a")
for name in ("home", "tmp"):
    (cell.folder / name).mkdir(parents=True)
cell.hand_over()
def inside():
    start = cell.start(ask, cell.folder, {"PATH": "/usr/bin:/bin"})
    return subprocess.run(start.argv, cwd="/", env=start.env, input=start.given, capture_output=True, text=True).stdout
print("before:", inside())
metadata.block(found); metadata.block(found)
print("after:", inside())
print("host:", subprocess.run(ask, capture_output=True, text=True).stdout)
"""


def test_the_metadata_address_is_blocked_for_runs_alone(tmp_path: Path) -> None:
    host, cloud = f"tp-host-{os.getpid()}", f"tp-cloud-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", host], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"this host gives no network namespaces: {made.stderr}")
    try:
        subprocess.run(["ip", "netns", "add", cloud], check=True)
        subprocess.run(["/bin/sh", "-ec", CABLE % {"host": host, "cloud": cloud}], check=True)
        inside = ["ip", "netns", "exec"]
        serving = [*inside, cloud, sys.executable, "-c", CLOUD]
        with subprocess.Popen(serving, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout
                assert server.stdout.readline() == "ready\n"
                program = [*inside, host, sys.executable, "-c", HOST % {"home": str(tmp_path / "home")}]
                done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=60)
            finally:
                server.kill()
    finally:
        for name in (host, cloud):
            subprocess.run(["ip", "netns", "del", name], check=False)
    assert done.returncode == 0, done.stderr
    before, after, of_host = done.stdout.split("before:")[1].replace("host:", "after:").split("after:")
    assert "credentials" in before
    assert "credentials" not in after
    assert "credentials" in of_host
