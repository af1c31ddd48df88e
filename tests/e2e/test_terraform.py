"""The real terraform CLI over TLS against a real server and a real listener. Output is looked at as well as the exit code."""

import base64
import concurrent.futures
import hashlib
import json
import re
import shutil
import uuid
from pathlib import Path

import pexpect
import pytest

from kit.remote import wait_for
from kit.site import Site, both

ONE = """
resource "terraform_data" "a" { input = "one" }
output "a" { value = terraform_data.a.output }
"""
SLOW = """
resource "terraform_data" "slow" {
  provisioner "local-exec" { command = "echo begun; sleep 30; echo ended" }
}
resource "terraform_data" "quick" { input = "made" }
"""


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def name() -> str:
    return f"w-{uuid.uuid4().hex[:8]}"


def api(site: Site, method: str, path: str, body: str = "") -> str:
    """The text of the API's answer, whatever its status."""
    with site.api() as client:
        headers = {"Content-Type": "application/vnd.api+json"}
        return client.request(method, path.removeprefix("/"), content=body, headers=headers).text


def runs(site: Site, workspace: str) -> list[dict[str, str]]:
    found = json.loads(api(site, "GET", f"/organizations/default/workspaces/{workspace}"))["data"]["id"]
    return [
        {"id": run["id"], **run["attributes"]}
        for run in json.loads(api(site, "GET", f"/workspaces/{found}/runs"))["data"]
    ]


@both
def test_plan_apply_output_and_destroy(site: Site) -> None:
    folder = site.example(name(), ONE)
    assert "successfully initialized" in site.ok(folder, "init")
    planned = site.ok(folder, "plan")
    assert "\x1b[" in planned, "the diff is in colour"
    assert "Plan: 1 to add" in plain(planned)
    assert site.run(folder, "plan", "-detailed-exitcode").code == 2
    applied = plain(site.ok(folder, "apply", "-auto-approve"))
    assert "terraform_data.a: Creation complete" in applied
    assert "1 added" in applied
    assert site.ok(folder, "output", "-raw", "a") == "one"
    assert "No changes" in plain(site.ok(folder, "plan"))
    assert plain(site.ok(folder, "state", "list")).strip() == "terraform_data.a"
    assert "1 destroyed" in plain(site.ok(folder, "destroy", "-auto-approve"))


def test_a_plan_that_fails_shows_why(site: Site) -> None:
    folder = site.example(name(), 'resource "terraform_data" "a" { input = file("nowhere.txt") }')
    site.ok(folder, "init")
    done = site.run(folder, "plan")
    assert done.code == 1
    assert "nowhere.txt" in plain(done.out)


def test_options_reach_the_run(site: Site) -> None:
    workspace = name()
    body = """
variable "word" { default = "unset" }
resource "terraform_data" "a" { input = var.word }
resource "terraform_data" "b" { input = "b" }
"""
    folder = site.example(workspace, body)
    site.ok(folder, "init")
    assert "1 added" in plain(
        site.ok(folder, "apply", "-auto-approve", "-target=terraform_data.a", "-var", 'word=say "${hi}"')
    )
    shown = plain(site.ok(folder, "show"))
    assert 'say \\"${hi}\\"' in shown
    assert "terraform_data.b" not in shown
    assert "as requested" in plain(site.ok(folder, "plan", "-replace=terraform_data.a", "-var", "word=x"))
    assert "Plan: 0 to add, 0 to change, 1 to destroy" in plain(site.ok(folder, "plan", "-destroy"))
    assert "No changes" in plain(site.ok(folder, "plan", "-refresh-only"))
    (folder / "terraform.tfvars").write_text('word = "from the file"\n')
    assert "from the file" in plain(site.ok(folder, "plan"))


def test_workspace_variables_reach_the_run(site: Site) -> None:
    workspace = name()
    folder = site.example(
        workspace,
        """
variable "word" {}
variable "list" { type = list(string) }
resource "terraform_data" "a" {
  input = "${var.word} ${join("+", var.list)}"
  provisioner "local-exec" { command = "echo env=$SHOUT home=$HOME" }
}
""",
    )
    site.ok(folder, "init")
    found = json.loads(api(site, "GET", f"/organizations/default/workspaces/{workspace}"))["data"]["id"]
    for key, value, category, hcl, sensitive in (
        ("word", 'a "quoted" ${word}', "terraform", False, False),
        ("list", '["x", "y"]', "terraform", True, False),
        ("SHOUT", "loud", "env", False, True),
    ):
        attributes = {"key": key, "value": value, "category": category, "hcl": hcl, "sensitive": sensitive}
        answer = api(
            site, "POST", f"/workspaces/{found}/vars", json.dumps({"data": {"type": "vars", "attributes": attributes}})
        )
        assert '"errors"' not in answer, answer
    applied = plain(site.ok(folder, "apply", "-auto-approve"))
    assert "env=loud" in applied
    assert 'a \\"quoted\\" ${word} x+y' in plain(site.ok(folder, "state", "show", "terraform_data.a"))


def test_apply_asks_and_takes_yes_and_no(site: Site) -> None:
    folder = site.example(name(), ONE)
    site.ok(folder, "init")
    session = site.interactive(folder, "apply")
    session.expect("Enter a value:")
    session.sendline("no")
    session.expect("Apply discarded")
    session.expect(pexpect.EOF)
    session.close()
    assert session.exitstatus == 1
    session = site.interactive(folder, "apply")
    session.expect("Enter a value:")
    session.sendline("yes")
    session.expect("Apply complete! Resources: 1 added")
    session.wait()
    session.close()
    assert session.exitstatus == 0


def test_without_input_the_run_stays_open(site: Site) -> None:
    workspace = name()
    folder = site.example(workspace, ONE)
    site.ok(folder, "init")
    done = site.run(folder, "apply", "-input=false")
    assert done.code == 1
    assert "Cannot confirm apply due to -input=false" in plain(done.out)
    assert runs(site, workspace)[0]["status"] == "planned"


@both
def test_a_saved_plan_is_shown_and_applied(site: Site) -> None:
    folder = site.example(name(), ONE)
    site.ok(folder, "init")
    site.ok(folder, "plan", "-out=saved")
    assert "Plan: 1 to add" in plain(site.ok(folder, "show", "saved"))
    assert json.loads(site.ok(folder, "show", "-json", "saved"))["resource_changes"][0]["change"]["actions"] == [
        "create"
    ]
    assert "1 added" in plain(site.ok(folder, "apply", "saved"))
    again = site.run(folder, "apply", "saved")
    assert again.code == 1
    assert "already" in plain(again.out)


def test_state_commands(site: Site) -> None:
    folder = site.example(name(), ONE)
    site.ok(folder, "init")
    site.ok(folder, "apply", "-auto-approve")
    pulled = json.loads(site.ok(folder, "state", "pull"))
    assert pulled["outputs"]["a"]["value"] == "one"
    site.ok(folder, "state", "mv", "terraform_data.a", "terraform_data.moved")
    assert plain(site.ok(folder, "state", "list")).strip() == "terraform_data.moved"
    assert "marked as tainted" in plain(site.ok(folder, "taint", "terraform_data.moved"))
    newer = json.loads(site.ok(folder, "state", "pull"))
    assert newer["serial"] > pulled["serial"]
    newer["serial"] += 1
    (folder / "push.json").write_text(json.dumps(newer))
    site.ok(folder, "state", "push", "push.json")
    (folder / "old.json").write_text(json.dumps(pulled))
    refused = site.run(folder, "state", "push", "old.json")
    assert refused.code == 1
    site.ok(folder, "state", "rm", "terraform_data.moved")
    assert plain(site.ok(folder, "state", "list")).strip() == ""
    site.ok(folder, "import", "terraform_data.a", "some-id")
    assert plain(site.ok(folder, "state", "list")).strip() == "terraform_data.a"


def test_workspaces_by_tags(site: Site) -> None:
    tag = name()
    folder = site.example(tag, ONE, workspaces=f'tags = ["{tag}"]')
    (folder / ".terraform").mkdir()
    session = site.interactive(folder, "init")
    session.expect("Enter a value:")
    session.sendline(f"{tag}-one")
    session.expect("successfully initialized")
    session.wait()
    session.close()
    site.ok(folder, "workspace", "new", f"{tag}-two")
    assert f"* {tag}-two" in plain(site.ok(folder, "workspace", "list"))
    site.ok(folder, "workspace", "select", f"{tag}-one")
    site.ok(folder, "workspace", "delete", f"{tag}-two")
    assert f"{tag}-two" not in plain(site.ok(folder, "workspace", "list"))


def test_backend_remote_gets_plain_text(site: Site) -> None:
    workspace = name()
    folder = site.remote(workspace, ONE)
    site.ok(folder, "init")
    planned = plain(site.ok(folder, "plan"))
    assert "Plan: 1 to add" in planned
    assert '{"@level"' not in planned
    assert "1 added" in plain(site.ok(folder, "apply", "-auto-approve"))
    assert site.ok(folder, "output", "-raw", "a") == "one"


@both
def test_local_execution_mode_locks_and_force_unlock(site: Site) -> None:
    workspace = name()
    folder = site.example(workspace, ONE)
    site.ok(folder, "init")
    found = json.loads(api(site, "GET", f"/organizations/default/workspaces/{workspace}"))["data"]["id"]
    local = '{"data": {"type": "workspaces", "attributes": {"execution-mode": "local"}}}'
    api(site, "PATCH", f"/workspaces/{found}", local)
    assert "1 added" in plain(site.ok(folder, "apply", "-auto-approve"))
    assert "Running apply in" not in site.log
    api(site, "POST", f"/workspaces/{found}/actions/lock", '{"reason": "maintenance"}')
    refused = site.run(folder, "plan")
    assert refused.code == 1
    assert "Error acquiring the state lock" in plain(refused.out)
    site.ok(folder, "force-unlock", "-force", f"default/{workspace}")
    assert "No changes" in plain(site.ok(folder, "plan"))


@both
def test_a_state_with_another_serial_than_its_bytes_is_worked_on(site: Site) -> None:
    """As go-tfe's users announce them: terraform goes on from the bytes, here and in a run."""
    workspace = name()
    folder = site.example(workspace, ONE)
    site.ok(folder, "init")
    found = json.loads(api(site, "GET", f"/organizations/default/workspaces/{workspace}"))["data"]["id"]
    raw = json.dumps({"version": 4, "terraform_version": "1.9.0", "serial": 40, "lineage": "of-the-bytes"}).encode()
    sent = {
        "serial": 2, "lineage": "announced", "md5": hashlib.md5(raw).hexdigest(), "state": base64.b64encode(raw).decode()
    }  # fmt: skip
    body = json.dumps({"data": {"type": "state-versions", "attributes": sent}})

    def serial(text: str) -> int:
        return int(json.loads(text)["data"]["attributes"]["serial"])

    assert serial(api(site, "POST", f"/workspaces/{found}/state-versions", body)) == 2
    assert "1 added" in plain(site.ok(folder, "apply", "-auto-approve"))
    after = serial(api(site, "GET", f"/workspaces/{found}/current-state-version"))
    assert after > 40
    local = '{"data": {"type": "workspaces", "attributes": {"execution-mode": "local"}}}'
    api(site, "PATCH", f"/workspaces/{found}", local)
    main = folder / "main.tf"
    main.write_text(main.read_text().replace('input = "one"', 'input = "two"'))
    assert "1 changed" in plain(site.ok(folder, "apply", "-auto-approve"))
    assert serial(api(site, "GET", f"/workspaces/{found}/current-state-version")) > after
    pulled = folder / "pulled.tfstate"
    pulled.write_text(site.ok(folder, "state", "pull"))
    assert json.loads(pulled.read_text())["lineage"] == "of-the-bytes"
    site.ok(folder, "state", "push", str(pulled))
    pulled.write_text(pulled.read_text().replace('"of-the-bytes"', '"foreign"'))
    assert "lineage" in site.run(folder, "state", "push", str(pulled)).out


@both
def test_interrupt_during_apply_cancels_and_keeps_the_state(site: Site) -> None:
    workspace = name()
    folder = site.example(workspace, SLOW)
    site.ok(folder, "init")
    session = site.interactive(folder, "apply", "-auto-approve")
    session.expect("begun")
    session.sendintr()
    session.expect("cancelled")
    session.wait()
    session.close()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(_until_final, site, workspace).result(60)
    run = runs(site, workspace)[0]
    assert run["status"] == "canceled"
    assert "terraform_data.quick" in plain(site.ok(folder, "state", "list"))
    log = api(site, "GET", f"/runs/{run['id']}/apply")
    assert json.loads(log)["data"]["attributes"]["status"] == "canceled"


def _until_final(site: Site, workspace: str) -> None:
    wait_for(lambda: runs(site, workspace)[0]["status"] in ("canceled", "errored", "applied"))


@both
def test_two_applies_at_once_take_turns(site: Site) -> None:
    workspace = name()
    slow = SLOW.replace("sleep 30", "sleep 4")
    first = site.example(workspace, slow)
    second = site.example(f"{workspace}-b", slow, workspaces=f'name = "{workspace}"')
    site.ok(first, "init")
    site.ok(second, "init")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        one = pool.submit(site.run, first, "apply", "-auto-approve")
        wait_for(lambda: one.done() or any(run["status"] == "applying" for run in runs(site, workspace)))
        assert not one.done(), one.result().out
        two = pool.submit(site.run, second, "apply", "-auto-approve").result(90)
    assert one.result().code == 0, one.result().out
    assert two.code == 0, two.out
    assert "to finish before being queued" in plain(two.out)
    assert sorted(run["status"] for run in runs(site, workspace)) == ["applied", "planned_and_finished"]


@pytest.mark.long
def test_a_large_log_arrives_whole_and_in_order(site: Site) -> None:
    workspace = name()
    lines = 200_000
    body = f"""
resource "terraform_data" "a" {{
  provisioner "local-exec" {{
    command = "i=0; seq -f '%010g {"x" * 90}' 1 {lines}"
  }}
}}
"""
    folder = site.remote(workspace, body)
    site.ok(folder, "init")
    applied = plain(site.ok(folder, "apply", "-auto-approve"))
    assert len(applied) > 20 << 20
    # terraform cuts a line in two where the command writes it in two halves: what counts is that nothing is lost
    told = re.findall(r"\(local-exec\): ?([\dx ]*)\r?$", applied, re.MULTILINE)
    whole = "".join(told).replace(" ", "")
    expected = "".join(f"{number:010d}" + "x" * 90 for number in range(1, lines + 1))
    assert len(whole) == len(expected)
    assert whole == expected


def test_a_forged_end_mark_does_not_end_the_log(site: Site) -> None:
    body = """
resource "terraform_data" "a" {
  provisioner "local-exec" { command = "printf 'before\\\\003'; sleep 1; echo after" }
}
"""
    folder = site.remote(name(), body)
    site.ok(folder, "init")
    applied = plain(site.ok(folder, "apply", "-auto-approve"))
    assert "after" in applied
    assert "Apply complete" in applied


def test_the_users_backend_does_not_win(site: Site) -> None:
    workspace = name()
    folder = site.example(workspace, ONE)
    site.ok(folder, "init")
    (folder / "zzzz_override.tf").write_text((folder / "main.tf").read_text().partition("resource")[0])
    assert "1 added" in plain(site.ok(folder, "apply", "-auto-approve"))
    assert runs(site, workspace)[0]["status"] == "applied"


def test_stray_state_is_not_adopted(site: Site) -> None:
    folder = site.example(name(), ONE)
    site.ok(folder, "init")
    stray = {"version": 4, "serial": 9, "lineage": "stray", "outputs": {}, "resources": []}
    for path in ("terraform.tfstate", "errored.tfstate"):
        (folder / path).write_text(json.dumps(stray))
    assert "1 added" in plain(site.ok(folder, "apply", "-auto-approve"))
    assert json.loads(site.ok(folder, "state", "pull"))["lineage"] != "stray"


def test_the_machines_own_terraform_works_too(site: Site, tmp_path: Path) -> None:
    found = shutil.which("terraform")
    if found is None:
        pytest.skip("this machine has no terraform on its PATH")
    workspace = name()
    folder = site.example(workspace, ONE)
    assert "successfully initialized" in plain(site.run(folder, "init", program=Path(found)).out)
    found_id = json.loads(api(site, "GET", f"/organizations/default/workspaces/{workspace}"))["data"]["id"]
    wanted = '{"data": {"type": "workspaces", "attributes": {"terraform-version": "1.15.5"}}}'
    api(site, "PATCH", f"/workspaces/{found_id}", wanted)
    done = site.run(folder, "apply", "-auto-approve", program=Path(found))
    assert done.code == 0, done.out
    assert "1 added" in plain(done.out)
    del tmp_path


def test_remote_state_of_a_sharing_workspace(site: Site) -> None:
    source, reader = name(), name()
    first = site.example(source, ONE)
    site.ok(first, "init")
    site.ok(first, "apply", "-auto-approve")
    body = f"""
data "terraform_remote_state" "other" {{
  backend = "remote"
  config = {{
    hostname     = "{site.host}"
    organization = "default"
    workspaces   = {{ name = "{source}" }}
  }}
}}
output "seen" {{ value = data.terraform_remote_state.other.outputs.a }}
"""
    second = site.example(reader, body)
    site.ok(second, "init")
    refused = site.run(second, "apply", "-auto-approve")
    assert refused.code == 1, refused.out
    found = json.loads(api(site, "GET", f"/organizations/default/workspaces/{source}"))["data"]["id"]
    api(
        site,
        "PATCH",
        f"/workspaces/{found}",
        '{"data": {"type": "workspaces", "attributes": {"global-remote-state": true}}}',
    )
    site.ok(second, "apply", "-auto-approve")
    assert site.ok(second, "output", "-raw", "seen") == "one"


def test_console_and_refresh_only_apply(site: Site) -> None:
    folder = site.example(name(), ONE)
    site.ok(folder, "init")
    site.ok(folder, "apply", "-auto-approve")
    session = site.interactive(folder, "console")
    session.expect("> ")
    session.sendline("terraform_data.a.output")
    session.expect('"one"')
    session.sendline("exit")
    session.wait()
    session.close()
    assert "No changes" in plain(site.ok(folder, "apply", "-refresh-only", "-auto-approve"))


def test_backend_remote_flows(site: Site) -> None:
    workspace = name()
    folder = site.remote(workspace, ONE)
    site.ok(folder, "init")
    failed = site.example(
        f"{workspace}-bad-remote", 'resource "terraform_data" "a" { input = file("nowhere.txt") }', head=" "
    )
    (failed / "main.tf").write_text((folder / "main.tf").read_text() + 'output "b" { value = file("nowhere.txt") }\n')
    site.ok(failed, "init")
    done = site.run(failed, "plan")
    assert (done.code, "nowhere.txt" in plain(done.out)) == (1, True)
    assert "Plan: 1 to add" in plain(site.ok(folder, "plan", "-target=terraform_data.a"))
    session = site.interactive(folder, "apply")
    session.expect("Enter a value:")
    session.sendline("yes")
    session.expect("Apply complete! Resources: 1 added")
    session.wait()
    session.close()
    assert "as requested" in plain(site.ok(folder, "plan", "-replace=terraform_data.a"))
    assert "1 to destroy" in plain(site.ok(folder, "plan", "-destroy"))
    assert "No changes" in plain(site.ok(folder, "plan", "-refresh-only"))
    site.ok(folder, "state", "mv", "terraform_data.a", "terraform_data.b")
    pulled = json.loads(site.ok(folder, "state", "pull"))
    pulled["serial"] += 1
    (folder / "push.json").write_text(json.dumps(pulled))
    site.ok(folder, "state", "push", "push.json")
    assert "1 destroyed" in plain(site.ok(folder, "destroy", "-auto-approve"))
    assert plain(site.ok(folder, "state", "list")).strip() == ""


@pytest.mark.long
def test_one_line_of_100_mb_passes(site: Site) -> None:
    body = """
resource "terraform_data" "a" {
  provisioner "local-exec" { command = "head -c 100000000 /dev/zero | tr '\\\\0' x; echo; echo after the line" }
}
"""
    folder = site.remote(name(), body)
    site.ok(folder, "init")
    applied = plain(site.ok(folder, "apply", "-auto-approve"))
    assert "after the line" in applied
    assert "Apply complete" in applied
    assert "workspace" in api(
        site, "GET", "/organizations/default/workspaces?page[size]=1".replace("[", "%5B").replace("]", "%5D")
    )
