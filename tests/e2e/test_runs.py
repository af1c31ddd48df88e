"""What a run keeps its word about, with the real terraform: variables, environment, plan and log."""

import json
import re
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from kit.remote import wait_for
from kit.site import CANARY, REMOTE, Site, both

DATA = dict[str, Any]


@pytest.fixture
def api(site: Site) -> Iterator[httpx.Client]:
    with site.api() as client:
        yield client


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def name() -> str:
    return f"w-{uuid.uuid4().hex[:8]}"


def workspace_id(api: httpx.Client, workspace: str) -> str:
    found: str = api.get(f"organizations/default/workspaces/{workspace}").json()["data"]["id"]
    return found


def runs(api: httpx.Client, workspace: str) -> list[DATA]:
    found: list[DATA] = api.get(f"workspaces/{workspace_id(api, workspace)}/runs").json()["data"]
    return found


def test_ephemeral_variables_are_there_in_both_phases(site: Site, api: httpx.Client) -> None:
    workspace = name()
    body = """
variable "token" {
  type      = string
  ephemeral = true
}
variable "own" {
  type      = string
  ephemeral = true
}
variable "optional" {
  type      = string
  default   = null
  ephemeral = true
}
variable "word" {}
resource "terraform_data" "a" {
  input = var.word
  provisioner "local-exec" { command = "test '${var.token}${var.own}' = 'secret of the workspaceof the run'" }
}
"""
    folder = site.example(workspace, body)
    site.ok(folder, "init")
    for key, value in (("token", "secret of the workspace"), ("word", "kept in the plan")):
        values = {"key": key, "value": value, "category": "terraform", "sensitive": key == "token"}
        made = api.post(f"workspaces/{workspace_id(api, workspace)}/vars", json={"data": {"attributes": values}})
        assert made.status_code == 201, made.text
    assert "1 added" in plain(site.ok(folder, "apply", "-auto-approve", "-var", "own=of the run"))


def test_a_run_sees_nothing_of_its_hosts_environment(site: Site, api: httpx.Client) -> None:
    """A configuration that looks for all it can find in its own surroundings."""
    workspace = name()
    body = """
resource "terraform_data" "a" {
  provisioner "local-exec" {
    command = "echo; tr '\\\\0' '\\\\n' < /proc/self/environ; set; cat $HOME/.terraformrc ~/.netrc; ls -la $HOME $TMPDIR; echo end"
  }
}
"""
    folder = site.remote(workspace, body)
    site.ok(folder, "init")
    shown = plain(site.ok(folder, "apply", "-auto-approve"))
    assert CANARY not in shown
    assert site.token not in shown
    assert not re.findall(r"TERRAPOD_\w*=|AWS_\w*=|TF_TOKEN\w*=|DATABASE\w*=", shown)
    found = dict(re.findall(r"\(local-exec\): ([A-Z_a-z0-9]+)='?([^\n']*)", shown))
    run = runs(api, workspace)[0]["id"]
    assert found["TFC_RUN_ID"] == run
    assert f"/work/{run}/" in found["HOME"] + "/"
    assert f"/work/{run}/" in found["TMPDIR"] + "/"
    known = r"TFC?_\w+|PATH|HOME|TMPDIR|LANG|SSL_CERT_FILE|CHECKPOINT_DISABLE|PWD|OLDPWD|SHLVL|_|IFS|OPTIND|PPID|PS\d"
    assert [key for key in found if not re.fullmatch(known, key)] == []


def test_a_workspace_of_a_prefix_is_called_by_what_follows_it(site: Site, api: httpx.Client) -> None:
    prefix = f"{name()}-"
    head = REMOTE.format(host=site.host, name="").replace('name = ""', f'prefix = "{prefix}"')
    folder = site.example(f"{prefix}folder", 'output "called" { value = terraform.workspace }\n', head=head)
    for suffix in ("one", "two"):
        made = api.post("organizations/default/workspaces", json={"data": {"attributes": {"name": prefix + suffix}}})
        assert made.status_code == 201, made.text
    site.ok(folder, "init", TF_WORKSPACE="one")
    for suffix in ("one", "two"):
        site.ok(folder, "apply", "-auto-approve", TF_WORKSPACE=suffix)
        assert site.ok(folder, "output", "-raw", "called", TF_WORKSPACE=suffix) == suffix
        assert "No changes" in plain(site.ok(folder, "plan", TF_WORKSPACE=suffix)), "its own state was there"


def test_a_plan_that_prints_an_end_mark_is_read_to_its_end(site: Site, api: httpx.Client) -> None:
    workspace = name()
    body = """
resource "terraform_data" "a" { input = "one" }
check "forged" {
  assert {
    condition     = terraform.workspace == "nowhere"
    error_message = "before\\u0003\\u0003 after"
  }
}
"""
    folder = site.remote(workspace, body)
    site.ok(folder, "init")
    planned = plain(site.ok(folder, "plan"))
    assert "before   after" in planned
    assert "Plan: 1 to add" in planned
    run = runs(api, workspace)[0]["id"]
    url = api.get(f"runs/{run}/plan").json()["data"]["attributes"]["log-read-url"]
    raw = api.get(url, params={"limit": "1000000"}).content
    assert (raw.count(b"\x03"), raw[-1:]) == (1, b"\x03"), "the only end mark is ours"


@both
def test_a_stale_plan_is_refused_by_terraform(site: Site, api: httpx.Client) -> None:
    """The state that an apply begins from is the one that is current at its claim, not the plan's."""
    workspace = name()
    folder = site.example(workspace, 'resource "terraform_data" "a" { input = "one" }\n')
    site.ok(folder, "init")
    site.ok(folder, "apply", "-auto-approve")
    (folder / "main.tf").write_text((folder / "main.tf").read_text().replace('"one"', '"two"'))
    assert site.run(folder, "apply", "-input=false").code == 1
    run = runs(api, workspace)[0]
    assert run["attributes"]["status"] == "planned"
    site.ok(folder, "state", "mv", "terraform_data.a", "terraform_data.b")
    assert api.post(f"runs/{run['id']}/actions/apply").status_code == 202

    def ended() -> Any:
        now = api.get(f"runs/{run['id']}").json()["data"]["attributes"]
        return now["status"] in ("applied", "errored") and now

    shown = wait_for(ended)
    assert (shown["status"], "apply failed" in shown["error-message"]) == ("errored", True)
    url = api.get(f"runs/{run['id']}/apply").json()["data"]["attributes"]["log-read-url"]
    assert "plan is stale" in api.get(url, params={"limit": "1000000"}).text
    assert plain(site.ok(folder, "state", "list")).strip() == "terraform_data.b"


@both
def test_a_saved_plans_configuration_counts_once_it_is_applied(site: Site, api: httpx.Client) -> None:
    workspace = name()
    folder = site.example(workspace, 'output "a" { value = "one" }\n')
    site.ok(folder, "init")
    site.ok(folder, "apply", "-auto-approve")
    (folder / "main.tf").write_text((folder / "main.tf").read_text().replace('"one"', '"two"'))
    site.ok(folder, "plan", "-out=saved")
    assert configuration_of_a_run_without_one(api, workspace) == configuration(runs(api, workspace)[-1])
    site.ok(folder, "apply", "saved")
    applied = next(run for run in runs(api, workspace) if run["attributes"]["save-plan"])
    assert configuration_of_a_run_without_one(api, workspace) == configuration(applied)
    assert site.ok(folder, "output", "-raw", "a") == "two"


def configuration(run: DATA) -> str:
    found: str = run["relationships"]["configuration-version"]["data"]["id"]
    return found


def configuration_of_a_run_without_one(api: httpx.Client, workspace: str) -> str:
    related = {"workspace": {"data": {"type": "workspaces", "id": workspace_id(api, workspace)}}}
    body = {"data": {"attributes": {"plan-only": True, "message": uuid.uuid4().hex}, "relationships": related}}
    made = api.post("runs", content=json.dumps(body))
    assert made.status_code == 201, made.text
    return configuration(made.json()["data"])


def test_nothing_secret_lies_in_clear(site: Site, api: httpx.Client) -> None:
    """Sensitive variables, state, plan, configuration and the authority's key, on the server's disk."""
    workspace = name()
    marks = {kind: f"{kind}-{uuid.uuid4().hex}" for kind in ("variable", "state", "configuration")}
    body = f"""
variable "secret" {{ sensitive = true }}
resource "terraform_data" "a" {{ input = ["{marks["state"]}", sha256(var.secret)] }}
# {marks["configuration"]}
"""
    folder = site.example(workspace, body)
    site.ok(folder, "init")
    values = {"key": "secret", "value": marks["variable"], "category": "terraform", "sensitive": True}
    assert api.post(f"workspaces/{workspace_id(api, workspace)}/vars", json={"data": {"attributes": values}}).is_success
    site.ok(folder, "apply", "-auto-approve")
    server = [path for path in site.data.rglob("*") if path.is_file() and "listener" not in path.parts]
    assert len(server) > 8
    for path in server:
        raw = path.read_bytes()
        assert not any(mark.encode() in raw for mark in marks.values()), path
        assert b"PRIVATE KEY" not in raw or path.name == "server-key.pem", path  # TLS reads it
    assert not any(mark in site.log for mark in marks.values())
