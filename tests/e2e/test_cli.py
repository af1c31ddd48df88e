"""`terrapod runs` against a real server and a listener that runs the real terraform, over TLS."""

import asyncio
import io
import json
import os
import re
import signal
import ssl
import tarfile
import uuid
from pathlib import Path

import httpx
import pexpect
import pytest

from kit.cli import Cli, of_site
from kit.site import BIN, Site

ONE = """
variable "word" { default = "unset" }
variable "list" {
  type    = list(string)
  default = []
}
resource "terraform_data" "a" { input = "${var.word} ${join("+", var.list)}" }
output "a" { value = terraform_data.a.output }
"""
SLOW = """
resource "terraform_data" "slow" {
  provisioner "local-exec" { command = "echo begun; sleep 60; echo ended" }
}
"""
TALKING = """
resource "terraform_data" "talking" {
  provisioner "local-exec" { command = "for i in $(seq 30); do echo tick $i.; sleep 0.2; done" }
}
"""
HOSTILE = """
resource "terraform_data" "a" {
  provisioner "local-exec" { command = "printf 'before\\\\033]0;title\\\\007\\\\033[2Jafter\\\\n'" }
}
"""


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.fixture
def cli(site: Site, tmp_path: Path) -> Cli:
    return of_site(site, tmp_path)


async def made(cli: Cli, tmp_path: Path, body: str) -> tuple[str, Path]:
    name = f"w-{uuid.uuid4().hex[:8]}"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "main.tf").write_text(body)
    await cli.ok("workspaces", "create", name)
    return name, folder


async def test_a_folder_is_planned_and_applied(cli: Cli, tmp_path: Path) -> None:
    name, folder = await made(cli, tmp_path, ONE)
    said = await cli(
        "runs", "start", str(folder), "-w", name, "--auto-approve", "-m", "from a test",
        "--var", 'word=say "${hi}"', "--var-hcl", 'list=["x", "y"]',
    )  # fmt: skip
    assert said.code == 0, said
    assert "Plan: 1 to add" in plain(said.out)
    assert "Apply complete! Resources: 1 added" in plain(said.out)
    assert 'say \\"${hi}\\" x+y' in plain(said.out)
    assert "is applied" in said.err
    runs = await cli.ok("runs", "list", "-w", name)
    assert [(run["status"], run["message"], run["workspace-name"]) for run in runs] == [
        ("applied", "from a test", name)
    ]
    shown = await cli.ok("runs", "show", runs[0]["id"])
    assert shown["resource-additions"] == 1
    logs = await cli("runs", "logs", runs[0]["id"])
    assert "Plan: 1 to add" in logs.out
    assert "Apply complete" in logs.out
    assert "\x1b" not in logs.out, "a pipe gets no colours"
    lines = await cli("runs", "logs", runs[0]["id"], "--apply", "--json")
    assert '{"phase": "apply", "line": "Apply complete! Resources: 1 added, 0 changed, 0 destroyed."}' in lines.out
    refused = await cli("workspaces", "delete", name, "--yes")
    assert refused.code == 6, refused
    assert (await cli.ok("runs", "start", str(folder), "-w", name, "--destroy", "--auto-approve"))[
        "status"
    ] == "applied"
    await cli.ok("workspaces", "delete", name, "--yes")


async def test_without_a_terminal_it_stops_behind_the_plan(cli: Cli, tmp_path: Path) -> None:
    name, folder = await made(cli, tmp_path, ONE)
    waiting = await cli("runs", "start", "-w", name, cwd=folder)
    assert waiting.code == 10, waiting
    run = re.search(r"terrapod runs approve (run-\w+)", waiting.err)
    assert run
    following = asyncio.create_task(cli("runs", "logs", "--follow", run.group(1)))
    assert (await cli("runs", "approve", run.group(1))).code == 0
    followed = await following
    assert followed.code == 0, followed
    assert "Plan: 1 to add" in followed.out
    assert "Apply complete! Resources: 1 added" in followed.out
    again = await cli("runs", "approve", run.group(1), "--json")
    assert again.code == 0, "within a minute it is a repeat"
    assert (await cli("runs", "discard", run.group(1))).code == 6
    planned = await cli.ok("runs", "start", "-w", name, "--plan-only", cwd=folder)
    assert (planned["status"], planned["has-changes"]) == ("planned_and_finished", False)


async def test_a_plan_that_fails_is_code_1(cli: Cli, tmp_path: Path) -> None:
    name, folder = await made(cli, tmp_path, 'resource "terraform_data" "a" { input = file("nowhere.txt") }')
    said = await cli("runs", "start", str(folder), "-w", name)
    assert said.code == 1, said
    assert "nowhere.txt" in said.out


async def begun(cli: Cli, *argv: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        str(BIN / "terrapod"), *argv, env={"PATH": os.environ["PATH"], **cli.environment},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def test_a_run_waits_for_a_lock_and_says_so(cli: Cli, tmp_path: Path) -> None:
    name, folder = await made(cli, tmp_path, ONE)
    await cli.ok("workspaces", "lock", name, "--reason", "audit")
    process = await begun(cli, "runs", "start", str(folder), "-w", name, "--auto-approve")
    assert process.stderr
    async with asyncio.timeout(30):
        while b"waits until the workspace is unlocked: audit" not in await process.stderr.readline():
            pass
    await cli.ok("workspaces", "unlock", name)
    out, _ = await process.communicate()
    assert (process.returncode, b"Apply complete" in out) == (0, True)


async def test_hostile_output_does_not_reach_the_terminal(cli: Cli, tmp_path: Path) -> None:
    name, folder = await made(cli, tmp_path, HOSTILE)
    said = await cli("runs", "start", str(folder), "-w", name, "--auto-approve")
    assert said.code == 0, said
    assert "beforeafter" in said.out
    assert "\x1b" not in said.out
    assert "\x07" not in said.out


def interactive(cli: Cli, *argv: str) -> "pexpect.spawn[str]":
    environment = {"PATH": os.environ["PATH"], "TERM": "xterm", **cli.environment}
    return pexpect.spawn(str(BIN / "terrapod"), list(argv), env=environment, timeout=60, encoding="utf-8")


async def test_on_a_terminal_it_asks(cli: Cli, tmp_path: Path) -> None:
    name, folder = await made(cli, tmp_path, ONE)
    for answer, ends, code in (
        ("later", "waits for approval", 10),
        ("no", "is discarded", 1),
        ("yes", "is applied", 0),
    ):
        session = interactive(cli, "runs", "start", str(folder), "-w", name)

        def talk(session: "pexpect.spawn[str]" = session, answer: str = answer, ends: str = ends) -> None:
            session.expect("Apply this plan")
            session.expect("> ")
            session.sendline(answer)
            session.expect(ends)
            session.expect(pexpect.EOF)
            session.close()

        await asyncio.to_thread(talk)
        assert session.exitstatus == code, answer
        if answer == "later":
            run = (await cli.ok("runs", "list", "-w", name, "--status", "planned"))[0]
            assert (await cli.ok("runs", "discard", run["id"]))["status"] == "discarded"


async def test_ctrl_c_offers_to_cancel(cli: Cli, tmp_path: Path) -> None:
    name, folder = await made(cli, tmp_path, SLOW)
    session = interactive(cli, "runs", "start", str(folder), "-w", name, "--auto-approve")

    def talk() -> None:
        session.expect("begun")
        session.sendintr()
        session.expect("Cancel the run")
        session.sendline("yes")
        session.expect("is canceled")
        session.expect(pexpect.EOF)
        session.close()

    await asyncio.to_thread(talk)
    assert session.exitstatus == 1


@pytest.mark.slow
async def test_nothing_is_written_over_a_question(cli: Cli, tmp_path: Path) -> None:
    name, folder = await made(cli, tmp_path, TALKING)
    session = interactive(cli, "runs", "start", str(folder), "-w", name, "--auto-approve")

    async def logged(text: str) -> None:
        """The server has it, and whoever followed the log would have shown it."""
        run = (await cli.ok("runs", "list", "-w", name))[0]["id"]
        while text not in (await cli("runs", "logs", run, "--apply")).out:
            pass

    def ask() -> None:
        session.sendintr()
        session.expect("Cancel the run.*leaves it running: ")

    await asyncio.to_thread(session.expect, "tick 1[.]")
    await asyncio.to_thread(ask)
    await logged("tick 9.")
    assert session.expect([pexpect.TIMEOUT, "tick"], timeout=0) == 0, session.before
    await asyncio.to_thread(session.sendline, "no")
    await asyncio.to_thread(session.expect, "tick 9[.]")
    await asyncio.to_thread(ask)
    await logged("tick 30.")

    def end() -> None:
        session.expect("tick 30[.]")  # the run is over, and so is the question
        session.expect("is applied")
        session.expect(pexpect.EOF)
        session.close()

    await asyncio.to_thread(end)
    assert session.exitstatus == 0


async def test_cancel_and_a_second_ctrl_c(cli: Cli, tmp_path: Path) -> None:
    name, folder = await made(cli, tmp_path, SLOW)
    session = interactive(cli, "runs", "start", str(folder), "-w", name, "--auto-approve")

    def talk() -> None:
        session.expect("begun")
        session.sendintr()
        session.expect("Cancel the run")
        session.kill(signal.SIGINT)
        session.expect("no longer followed")
        session.expect(pexpect.EOF)
        session.close()

    await asyncio.to_thread(talk)
    assert session.exitstatus == 130
    run = (await cli.ok("runs", "list", "-w", name))[0]
    assert run["status"] == "applying", "it goes on"
    reader = await begun(cli, "runs", "logs", "--follow", run["id"])
    assert reader.stdout
    async with asyncio.timeout(60):
        while b"begun" not in await reader.stdout.readline():
            pass
        reader.send_signal(signal.SIGINT)
        assert await reader.wait() == 130
    await cli.ok("runs", "cancel", run["id"])
    followed = await cli("runs", "logs", "-f", run["id"])
    assert followed.code == 1
    assert "is canceled" in followed.err


async def test_ctrl_c_without_a_terminal_cancels(cli: Cli, tmp_path: Path) -> None:
    name, folder = await made(cli, tmp_path, SLOW)
    process = await begun(cli, "runs", "start", str(folder), "-w", name, "--auto-approve", "--json")
    assert process.stdout
    assert process.stderr
    async with asyncio.timeout(60):
        while b"begun" not in await process.stderr.readline():
            pass
        process.send_signal(signal.SIGINT)
        out = await process.stdout.read()
        assert await process.wait() == 1
    assert json.loads(out)["status"] == "canceled"


async def test_an_approval_elsewhere_ends_the_question(cli: Cli, tmp_path: Path) -> None:
    name, folder = await made(cli, tmp_path, ONE)
    session = interactive(cli, "runs", "start", str(folder), "-w", name)
    await asyncio.to_thread(session.expect, "Apply this plan")
    run = (await cli.ok("runs", "list", "-w", name))[0]
    await cli.ok("runs", "approve", run["id"], "--comment", "looks good")

    def talk() -> None:
        session.expect("answered elsewhere")
        session.expect("is applied")
        session.expect(pexpect.EOF)
        session.close()

    await asyncio.to_thread(talk)
    assert session.exitstatus == 0


async def test_a_server_that_is_not_trusted_gets_no_token(site: Site, tmp_path: Path) -> None:
    stranger = Cli(tmp_path, TF_CLI_CONFIG_FILE=str(site.data / "terraform.rc"))
    said = await stranger("whoami")
    assert (said.code, "--ca names the authority" in said.err) == (7, True)
    assert (await stranger.ok("whoami", "--ca", str(site.data / "ca.pem")))["host"] == site.host
    assert (await stranger("whoami", "--ca", str(site.data / "terraform.rc"))).code == 2


async def archive(site: Site, cli: Cli, run_id: str) -> dict[str, tuple[bytes, str, int]]:
    """What a run's configuration holds: type, link and mode by name."""
    version = (await cli.ok("runs", "show", run_id))["configuration-version"]
    context = ssl.create_default_context(cafile=site.data / "ca.pem")
    async with httpx.AsyncClient(verify=context, headers={"Authorization": f"Bearer {site.token}"}) as api:
        answer = await api.get(f"https://{site.host}/api/v2/configuration-versions/{version}/download")
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as found:
        return {entry.name: (entry.type, entry.linkname, entry.mode) for entry in found}


async def test_a_folder_is_packed_as_terraform_packs_it(site: Site, cli: Cli, tmp_path: Path) -> None:
    name = f"w-{uuid.uuid4().hex[:8]}"
    folder = site.example(name, ONE)
    outside = tmp_path / "outside"
    for file in ("shared.tf.txt", "deep/x.txt"):
        (outside / file).parent.mkdir(exist_ok=True, parents=True)
        (outside / file).write_text("x")
    for file in ("a.log", "keep.log", "sub/b.log", "skip/x", "skip/keep.log", "rooted", "sub/rooted", "plain/x", "é/[x].txt",
                 ".git/HEAD", "sub/.git/HEAD", ".terraform/modules/m/main.tf", "q1.txt", "q12.txt"):  # fmt: skip
        (folder / file).parent.mkdir(exist_ok=True, parents=True)
        (folder / file).write_text("x")
    (folder / ".terraformignore").write_text("# a comment\n*.log\n!keep.log\nskip/\n/rooted\nplain\nq?.txt\n")
    (folder / "inside").symlink_to("sub/rooted")
    (folder / "out.txt").symlink_to(outside / "shared.tf.txt")
    (folder / "tree").symlink_to(outside)
    (folder / "run.sh").write_text("x")
    (folder / "run.sh").chmod(0o755)
    await asyncio.to_thread(site.ok, folder, "init")
    await asyncio.to_thread(site.ok, folder, "plan")
    theirs = await archive(site, cli, (await cli.ok("runs", "list", "-w", name))[0]["id"])
    ours = await archive(site, cli, (await cli.ok("runs", "start", str(folder), "-w", name, "--plan-only"))["id"])
    assert ours.pop("tree")[0] == tarfile.DIRTYPE, "terraform writes no entry for a linked folder itself"
    assert ours == {entry.rstrip("/"): facts for entry, facts in theirs.items()}
    assert "keep.log" in ours


async def test_structured_logs_are_readable(site: Site, cli: Cli) -> None:
    name = f"w-{uuid.uuid4().hex[:8]}"
    folder = site.example(name, ONE)
    await asyncio.to_thread(site.ok, folder, "init")
    await asyncio.to_thread(site.ok, folder, "apply", "-auto-approve")
    run = (await cli.ok("runs", "list", "-w", name))[0]
    said = await cli("runs", "logs", run["id"])
    assert "terraform_data.a: Plan to create" in said.out
    assert "terraform_data.a: Creation complete" in said.out
    assert '{"@' not in said.out
    assert "a = " in said.out
    assert '{"@level"' in (await cli("runs", "logs", run["id"], "--raw")).out
