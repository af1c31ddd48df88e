"""After real runs, good ones, failed ones and killed ones, no secret is left in clear anywhere."""

import asyncio
import os
import re
import secrets
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import terraform_shim

from kit.canaries import contents, dump, found_in
from kit.postgres import Postgres
from kit.recording import Recorder
from kit.remote import Remote, wait_for
from kit.site import BIN, Site

MODULE = """
variable "secret" {
  sensitive = true
}
variable "table" {}
variable "own" {}
resource "terraform_data" "a" {
  input = "${var.secret} ${var.own}"
  provisioner "local-exec" {
    command = "echo $TOKEN; echo it is ${nonsensitive(var.secret)}; echo ${nonsensitive(base64encode(var.secret))}; echo ${var.own}"
  }
}
output "whole" {
  value     = var.secret
  sensitive = true
}
output "shown" {
  value = nonsensitive(jsonencode({ a = var.secret, b = var.table.password }))
}
"""
FAILS = """
variable "secret" {}
resource "terraform_data" "a" {
  lifecycle {
    precondition {
      condition     = var.secret == ""
      error_message = "It cannot be that the value of this variable, which is long, is ${nonsensitive(var.secret)} or so."
    }
  }
}
"""


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def watched(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, terraform: Path
) -> Iterator[Site]:
    """A site that logs all it can."""
    settings = {"TERRAPOD_LOG_LEVEL": "debug", "TERRAPOD_ACCESS_LOG": "true", "TERRAPOD_LISTENER_LOG_LEVEL": "debug"}
    if request.param == "postgres":
        postgres: Postgres = request.getfixturevalue("postgres")
        settings["TERRAPOD_DATABASE_URL"] = asyncio.run(postgres.fresh("canaries"))
    with Site(tmp_path_factory.mktemp("watched"), terraform, **settings) as started:
        yield started


def canary(kind: str) -> str:
    return f"canary {kind} {secrets.token_hex(6)}"


def variable(remote: Remote, key: str, value: str, category: str, *, hcl: bool = False) -> str:
    remote.post(
        f"workspaces/{remote.id}/vars",
        {"key": key, "value": value, "category": category, "sensitive": True, "hcl": hcl},
    )
    return value


def real(api: httpx.Client) -> tuple[list[str], str]:
    """Plan and apply by terraform; the secrets, and both logs."""
    remote = Remote(api, **{"terraform-version": terraform_shim.VERSION})
    known = [
        variable(remote, "TOKEN", canary("env"), "env"),
        variable(remote, "secret", canary('"in" a state'), "terraform"),
    ]
    known.append(canary("in a table"))
    variable(remote, "table", f'{{ password = "{known[-1]}", n = 1 }}', "terraform", hcl=True)
    variable(remote, "own", "replaced-by-the-run", "terraform")
    known.append(canary("of a run"))
    remote.upload(main_tf=MODULE)
    run = remote.begin(variables=[{"key": "own", "value": f'"{known[-1]}"'}])
    remote.until(run, "applied")
    logs = remote.log(run, "plan") + remote.log(run, "apply")
    assert "it is ***" in logs
    state = api.get(f"workspaces/{remote.id}/current-state-version").json()["data"]["attributes"]
    raw = api.get(state["hosted-state-download-url"], follow_redirects=True).json()
    assert raw["outputs"]["whole"]["value"] == known[1], "the state itself is whole"
    return known, logs


def failed(api: httpx.Client) -> tuple[list[str], str]:
    """A plan that fails with its secret in the error."""
    remote = Remote(api, **{"terraform-version": terraform_shim.VERSION})
    known = [variable(remote, "secret", canary("with as many words as it needs for a line to be broken"), "terraform")]
    remote.upload(main_tf=FAILS)
    run = remote.begin()
    message = remote.until(run, "errored")["error-message"]
    log = remote.log(run, "plan")
    assert "It cannot be" in log
    assert "***" in log
    unbroken = " ".join(re.sub(r"\x1b\[[0-9;]*m|│", "", log).split())
    return known, log + unbroken + message


def killed(api: httpx.Client, site: Site, marks: Path) -> tuple[list[str], str]:
    """A plan whose listener is killed in the middle, and that runs again when it is back."""
    remote = Remote(api)
    known = [variable(remote, "TOKEN", canary("of a killed run"), "env")]
    remote.upload(
        plan_sh=f"echo $TOKEN | tee left-in-the-folder; cat $TF_CLI_CONFIG_FILE; cat $TF_CLI_CONFIG_FILE >> {marks}/token\n"
        f"touch {marks}/begun; until [ -e {marks}/go ]; do sleep 0.02; done"
    )
    (marks / "token").touch()
    (marks / "token").chmod(0o666)  # isolated, its second time may be as another user
    run = remote.begin()
    wait_for((marks / "begun").exists)
    command = f"terrapod_listener run --home {site.data / 'listener'}"
    pids = subprocess.run(["pgrep", "-f", command], capture_output=True, text=True, check=True).stdout.split()
    for pid in pids:
        os.kill(int(pid), signal.SIGKILL)
    (marks / "go").touch()
    remote.until(run, "applied")
    tokens = re.findall(r'token = "([^"]+)"', (marks / "token").read_text())
    (marks / "token").unlink()
    assert len(set(tokens)) >= 2, "one of each lease"
    return [*known, *tokens], remote.log(run, "plan")


def test_no_canary_is_left_in_clear(watched: Site) -> None:
    with watched.api() as api:
        pool = api.get("organizations/default/agent-pools").json()["data"][0]["id"]
        made = {"data": {"attributes": {"description": "t"}}}
        join = api.post(f"agent-pools/{pool}/authentication-tokens", json=made).json()["data"]["attributes"]["token"]
        me = api.get("account/details").json()["data"]["id"]
        user = api.post(f"users/{me}/authentication-tokens", json=made).json()["data"]["attributes"]["token"]
        known, text = [join, user], b""
        for more, log in (real(api), failed(api), killed(api, watched, watched.shared)):
            known += more
            text += log.encode()
        work = watched.data / "listener" / "work"
        wait_for(lambda: not list(work.glob("*")))
    named = (watched.data / "admin-token", watched.data / "terraform.rc")  # for the person who started it
    admin = named[0].read_text().strip()
    kept = contents(watched.folder, *named) | {Path("the logs of the runs"): text}
    if url := watched.settings.get("TERRAPOD_DATABASE_URL"):
        kept[Path("dump")] = asyncio.run(dump(url))
    assert any(path.name == "up.log" and b"PATCH" in content for path, content in kept.items())
    assert found_in(kept, [*known, admin]) == []


def test_a_proxy_that_ends_tls_sees_no_sensitive_variable(watched: Site, tmp_path: Path) -> None:
    with watched.api() as api, Recorder(tmp_path, watched.port, watched.data / "ca.pem") as proxy:
        made = {"data": {"attributes": {"name": f"pool-{secrets.token_hex(3)}"}}}
        pool = api.post("organizations/default/agent-pools", json=made).json()["data"]["id"]
        join = api.post(
            f"agent-pools/{pool}/authentication-tokens", json={"data": {"attributes": {"description": "t"}}}
        )
        token = join.json()["data"]["attributes"]["token"]
        home = tmp_path / "home"
        home.mkdir()
        (home / "listener.toml").write_text((watched.data / "listener" / "listener.toml").read_text())
        program, env = str(BIN / "terrapod-listener"), {"PATH": os.environ["PATH"], "TERRAPOD_LISTENER_TOKEN": token}
        server = ["--server", f"https://localhost:{proxy.port}", "--ca", str(proxy.ca), "--name", home.parent.name]
        subprocess.run([program, "join", "--home", str(home), *server], env=env, check=True, capture_output=True)
        with (tmp_path / "listener.log").open("wb") as log:
            listener = subprocess.Popen(
                [program, "run", "--home", str(home)], env={"PATH": env["PATH"]}, stdout=log, stderr=log
            )
        try:
            mine = f"agent-pools/{pool}/listeners"
            wait_for(lambda: any(each["attributes"]["local-engines"] for each in api.get(mine).json()["data"]))
            remote = Remote(api, **{"execution-mode": "agent", "agent-pool-id": pool})
            known = [
                variable(remote, "TOKEN", canary("env"), "env"),
                variable(remote, "v", canary("terraform"), "terraform"),
            ]
            script = "echo saw $TOKEN; echo $TF_VAR_v | base64"
            remote.upload(plan_sh=script, apply_sh=script)
            run = remote.begin()
            remote.until(run, "applied")
        finally:
            listener.terminate()
            assert listener.wait(30) == 0
        assert remote.log(run, "plan").count("***") == 2
    assert b'"sealed":"' in proxy.seen
    assert b"saw ***" in proxy.seen
    assert found_in({Path("proxy"): bytes(proxy.seen)} | contents(tmp_path), known) == []
