"""The server shows a listener only the work that its host's owner lets it take."""

from pathlib import Path

from kit.phases import take
from kit.serving import Running
from terrapod_server.variables.rules import Resolved, resolve
from terrapod_shared import wire

ENGINE = wire.LocalEngine(tool="terraform", version="1.15.5", sha256="0" * 64)


async def test_what_a_listener_does_not_accept_is_not_shown_to_it(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    runs: dict[str, str] = {}
    for name, labels in (
        ("prod-a_b", {"env": "prod"}),
        ("prod-axb", {"env": "prod"}),
        ("dev", {"env": "d[e]v", "k": ""}),
    ):
        workspace = await server.workspace(name, labels=labels, **{"terraform-version": "1.15.5"})
        await server.configuration(workspace["id"])
        made = await server.run(workspace["id"])
        assert made.status_code == 201, made.text
        runs[name] = made.json()["data"]["id"]

    async def shown(accepts: wire.Accepts) -> list[str]:
        """The workspaces that it is offered; each offer is given back."""
        await listener.beat(wire.Beat(free_slots=5, capacity=5, local_engines=[ENGINE], accepts=accepts))
        taken = []
        while work := await listener.next_work(0):
            taken.append(work)
        for work in taken:
            refusal = wire.Report(phase="plan", status="refused", reason="not here", is_unwilling=True)
            await listener.report(work.run_id, refusal, work.lease.number)
        return [work.workspace_name for work in taken]

    every = ["prod-a_b", "prod-axb", "dev"]
    for accepts, expected in (
        (wire.Accepts(), every),
        (wire.Accepts(phases=["plan"], tools=["terraform"]), every),
        (wire.Accepts(phases=["apply"]), []),
        (wire.Accepts(tools=["tofu"]), []),
        (wire.Accepts(workspaces=["prod-*"]), every[:2]),
        (wire.Accepts(workspaces=["prod-a_b", "PROD*"]), every[:1]),
        (wire.Accepts(workspaces=["prod-a?b", "de?"]), every),
        (wire.Accepts(workspaces=["prod-%", "[d]ev"]), []),
        (wire.Accepts(workspaces=["*"], labels={"env": "d[*v"}), every[2:]),
        (wire.Accepts(labels={"k": "*", "env": "*"}), every[2:]),
        (wire.Accepts(labels={"k": "?"}), []),
        (wire.Accepts(labels={"env": "prod"}, workspaces=["dev"]), []),
    ):  # fmt: skip
        assert await shown(accepts) == expected, accepts
    for run in runs.values():
        events = (await server.api.get(f"/runs/{run}/run-events")).json()["data"]
        assert [each["attributes"]["action"] for each in events].count("refused") >= 4
        assert await server.status(run) == "plan_queued", "however often: it says nothing about the run"
    pool = await server.pool_id()
    told = (await server.api.get(f"/agent-pools/{pool}/listeners")).json()["data"][0]["attributes"]["accepts"]
    assert told == {"labels": {"env": "prod"}, "workspaces": ["dev"]}
    await listener.beat(wire.Beat(free_slots=5, capacity=5, local_engines=[ENGINE]))
    work = await take(listener)
    assert work.labels == {"env": "prod"}
    await listener.close()


def test_a_run_variable_is_as_sensitive_as_the_one_it_takes_the_place_of() -> None:
    below = [Resolved("secret", "terraform", "a", sensitive=True), Resolved("plain", "terraform", "b")]
    own = [Resolved(key, "terraform", '"c"', hcl=True, from_run=True) for key in ("secret", "plain", "new")]
    assert [(each.key, each.value, each.sensitive) for each in resolve([below, own])] == [
        ("new", '"c"', False), ("plain", '"c"', False), ("secret", '"c"', True),
    ]  # fmt: skip
