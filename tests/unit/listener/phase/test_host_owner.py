"""The host owner's word: what a listener takes, and hooks."""

import asyncio
import os
from pathlib import Path

import pytest

from terrapod_listener import config
from terrapod_listener.config import HookSettings
from terrapod_listener.phase import accept
from terrapod_listener.phase.hooks import HookFailed, Hooks
from terrapod_shared import wire


def work(name: str = "prod-web", phase: wire.Phase = "plan", **labels: str) -> wire.Work:
    return wire.Work(
        listener_id="listener-1", run_id="run-1", phase=phase, lease=wire.Lease(number=1, seconds=40), workspace_id="ws-1",
        workspace_name=name, engine=wire.Engine(tool="terraform", version="1.15.5", sha256="0"), labels=labels,
    )  # fmt: skip


def test_what_is_not_accepted_is_refused_with_the_reason() -> None:
    assert accept.refusal(wire.Accepts(), work()) is None
    patterns = wire.Accepts(workspaces=["prod-*", "?est"])
    assert accept.refusal(patterns, work()) is None
    assert accept.refusal(patterns, work("test")) is None
    for name in ("my-prod-web", "tested", "prod", "Prod-web"):
        assert name in (accept.refusal(patterns, work(name)) or "")
    assert accept.refusal(wire.Accepts(workspaces=["a.c"]), work("abc")), "a pattern is no regular expression"
    labels = wire.Accepts(labels={"env": "p*", "team": "*"})
    assert accept.refusal(labels, work(env="prod", team="")) is None
    assert "env=p*" in (accept.refusal(labels, work(env="dev", team="a")) or "")
    assert "team=*" in (accept.refusal(labels, work(env="prod")) or "")
    assert "no apply" in (accept.refusal(wire.Accepts(phases=["plan"]), work(phase="apply")) or "")
    assert "terraform" in (accept.refusal(wire.Accepts(tools=["tofu"]), work()) or "")


def test_mistakes_of_the_host_owners_word_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "listener.toml").write_text(
        '[accept]\nworkspaces = [""]\n[hooks]\npre_plan = ["relative"]\npost_plan = ["/no/such"]\ntimeout_s = 0\n'
    )
    with pytest.raises(config.Mistakes) as mistakes:
        config.load(tmp_path, {})
    text = str(mistakes.value)
    for word in ("accept", "hooks.pre_plan: relative", "hooks.post_plan: /no/such", "hooks.timeout_s"):
        assert word in text
    (tmp_path / "listener.toml").write_text('[accept]\nlabel = { env = "prod" }\n')
    with pytest.raises(config.Mistakes, match="label"):
        config.load(tmp_path, {})
    (tmp_path / "listener.toml").write_text('[accept]\nphases = ["destroy"]\n[hooks]\npre_all = ["/bin/true"]\n')
    with pytest.raises(config.Mistakes) as mistakes:
        config.load(tmp_path, {})
    assert len(mistakes.value.lines) == 2
    found = config.load(tmp_path / "none", {"TERRAPOD_LISTENER_ACCEPT": '{"phases": ["plan"]}'})
    assert found.accept.phases == ["plan"]


def sh(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


async def around(settings: HookSettings, home: Path, code: int | None = 0) -> tuple[str, str]:
    seen, why = bytearray(), ""
    hooks = Hooks(settings, home, work())
    try:
        async with hooks.around("plan", home / "module", seen.extend) as step:
            seen.extend(b"[step]\n")
            step.code = code
            if code is None:
                raise RuntimeError("cut off")
    except (HookFailed, RuntimeError) as error:
        why = str(error)
    return seen.decode(), why


async def test_hooks_get_the_facts_and_nothing_of_the_run(tmp_path: Path) -> None:
    settings = HookSettings(
        pre_plan=sh("echo before; env; pwd"), post_plan=sh("echo after $TERRAPOD_HOOK [$TERRAPOD_EXIT_CODE]")
    )
    out, why = await around(settings, tmp_path, 3)
    assert why == ""
    before, after = out.split("[step]\n")
    told = dict(line.split("=", 1) for line in before.splitlines() if "=" in line)
    assert (told["TERRAPOD_RUN_ID"], told["TERRAPOD_WORKSPACE_NAME"], told["TERRAPOD_PHASE"]) == (
        "run-1",
        "prod-web",
        "plan",
    )
    assert (told["TERRAPOD_HOOK"], told["TERRAPOD_MODULE"]) == ("pre_plan", str(tmp_path / "module"))
    assert "TERRAPOD_EXIT_CODE" not in told
    assert before.splitlines()[-1] == str(tmp_path)
    assert after == "after post_plan [3]\n"


async def test_a_failing_hook_before_ends_and_one_after_is_told(tmp_path: Path) -> None:
    out, why = await around(
        HookSettings(pre_plan=sh("echo no; exit 4"), post_plan=sh("echo after [$TERRAPOD_EXIT_CODE]")), tmp_path
    )
    assert why == "the host's hook pre_plan failed with exit code 4"
    assert out == "no\nafter []\n", "the step did not begin, and the hook after it ran"
    out, why = await around(HookSettings(post_plan=sh("exit 5")), tmp_path)
    assert why == ""
    assert "[step]\n\nWarning: the host's hook post_plan failed with exit code 5; the run goes on\n" in out
    out, why = await around(HookSettings(post_plan=sh("echo after [$TERRAPOD_EXIT_CODE]")), tmp_path, None)
    assert (why, out) == ("cut off", "[step]\nafter []\n")
    missing = tmp_path / "missing"
    out, why = await around(HookSettings(pre_plan=[str(missing)]), tmp_path)
    assert "could not be started: No such file" in why


async def test_a_hook_has_so_much_time_and_leaves_nobody(tmp_path: Path) -> None:
    settings = HookSettings(pre_plan=sh("(trap '' TERM INT; exec sleep 600) & echo $!; wait"), timeout_s=0.5)
    out, why = await asyncio.wait_for(around(settings, tmp_path), 20)
    assert why == "the host's hook pre_plan took longer than 0.5 s and was killed"
    stat = Path(f"/proc/{int(out)}/stat")
    for _ in range(500):
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            break
        await asyncio.sleep(0.01)
    else:
        pytest.fail("what the hook left lives")


async def test_a_daemon_of_a_hook_does_not_hold_the_run(tmp_path: Path) -> None:
    """One that took the output with it, into a session of its own."""
    settings = HookSettings(pre_plan=sh("setsid sleep 600 & echo $!"))
    out, why = await asyncio.wait_for(around(settings, tmp_path), 20)
    assert why == ""
    os.kill(int(out.split()[0]), 9)


async def test_a_cancel_kills_a_hook_before_a_step(tmp_path: Path) -> None:
    hooks = Hooks(HookSettings(pre_plan=sh("echo begun; exec sleep 600"), post_plan=sh("echo after")), tmp_path, work())
    begun, seen = asyncio.Event(), bytearray()

    def output(chunk: bytes) -> None:
        seen.extend(chunk)
        begun.set()

    async def step() -> None:
        async with hooks.around("plan", tmp_path, output):
            pytest.fail("the step began")

    task = asyncio.create_task(step())
    await asyncio.wait_for(begun.wait(), 20)
    hooks.stop()
    with pytest.raises(HookFailed):
        await asyncio.wait_for(task, 20)
    assert bytes(seen) == b"begun\nafter\n"
