"""The room that CONTRIBUTING.md shows is built as the page says, and a real server with it is called."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kit.process import Process
from kit.serving import until

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
_BLOCK = re.compile(r"```python\n# (server/\S+)\n(.*?)```", re.DOTALL)
_LINE = re.compile(r'Add `("\w+",)` to `ROOMS`[^;]*?, here behind `("\w+",)`')
PROGRAM = (sys.executable, "-m", "terrapod_server")


def blocks() -> dict[str, str]:
    """The files that the page shows, by their path."""
    return dict(_BLOCK.findall(PAGE))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the server with the room in it: the folder, one line in app.py, and the migration that make writes."""
    root = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "server", root / "server")
    for path, text in blocks().items():
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text(text)
    (root / "server/terrapod_server/notes/__init__.py").write_text('"""What people write down about workspaces."""\n')
    line = _LINE.search(PAGE)
    assert line is not None
    app = root / "server/terrapod_server/app.py"
    before, after = app.read_text().split(f"    {line[2]}\n")
    app.write_text(f"{before}    {line[2]}\n    {line[1]}\n{after}")
    made = run(root, str(ROOT / "packaging/makemigration.py"))
    assert "note" in (root / "server/terrapod_server/migrations" / made.stdout.strip()).read_text()
    return root


def run(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(root / "server"), **environment}
    done = subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, check=False)
    if arguments[0] != "-m":
        assert done.returncode == 0, done.stderr
    return done


def test_it_is_small_and_in_the_style_of_the_others(tree: Path) -> None:
    assert sum(len(text.split("\n")) for text in blocks().values()) < 150
    files = [str(tree / path) for path in blocks()]
    ruff = [str(Path(sys.executable).parent / "ruff"), "check", "--config", str(ROOT / "pyproject.toml"), *files]
    found = subprocess.run(ruff, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


@pytest.mark.slow
async def test_it_is_served(tree: Path, database_url: str, tmp_path: Path) -> None:
    process = Process(tmp_path, database_url)
    async with process.prepared() as server:
        process.settings["PYTHONPATH"] = str(tree / "server")
        await process.start(program=PROGRAM)
        workspace = (await server.workspace())["id"]
        path = f"/workspaces/{workspace}/notes"

        async def counted() -> list[int]:
            """What each way of reading shows: one workspace, the list, and as an included resource."""
            one = (await server.api.get(f"/workspaces/{workspace}")).json()["data"]
            (listed,) = (await server.api.get("/organizations/default/workspaces")).json()["data"]
            included = (await server.api.get(f"{path}?include=workspace")).json()["included"]
            return [row["attributes"]["note-count"] for row in (one, listed, *included)]

        assert await counted() == [0, 0], "there is no note that could include it"
        made = (await server.post(path, {"text": "ask Ann before applying"})).json()["data"]
        assert (made["type"], made["attributes"]["text"]) == ("notes", "ask Ann before applying")
        assert await counted() == [1, 1, 1], "it changes though the workspace's row does not"
        assert await counted() == [1, 1, 1]
        await server.post(path, {"text": "and Bob"})
        assert await counted() == [2, 2, 2]
        listed = (await server.api.get(path)).json()
        assert [row["attributes"]["text"] for row in listed["data"]] == ["and Bob", "ask Ann before applying"]
        assert listed["meta"]["pagination"]["total-count"] == 2

        version = await server.configuration(workspace)
        run = (await server.run(workspace, version["id"])).json()["data"]
        assert (await server.api.post(f"/runs/{run['id']}/actions/cancel")).status_code == 202

        async def is_noted() -> bool:
            return (await counted())[0] == 3

        await until(is_noted)
        listed = (await server.api.get(path)).json()
        texts = [row["attributes"]["text"] for row in listed["data"]]
        assert sorted(texts) == ["and Bob", "ask Ann before applying", f"{run['id']} was canceled"]

        for body in ({}, {"text": ""}, {"text": 7}, {"text": "x" * 1001}):
            answer = await server.api.post(path, json={"data": {"attributes": body}})
            assert answer.status_code == 422, answer.text
        assert (await server.api.get(path, headers={"Authorization": "Bearer x"})).status_code == 401
        assert (await server.api.get("/workspaces/ws-00000000000000000000000000/notes")).status_code == 404

        document = (await server.api.get("/openapi.json")).json()
        assert "notes" in {tag["name"] for tag in document["tags"]}
        shown = document["components"]["schemas"]["workspaces"]["properties"]["attributes"]["properties"]
        assert "integer" in shown["note-count"]["type"]

        assert (await server.api.delete(f"/workspaces/{workspace}")).status_code == 204
        assert (await server.api.get(path)).status_code == 404
        process.terminate()
        await process.ended(20)


async def test_rooms_that_do_not_fit_are_refused_in_one_line(tree: Path, tmp_path: Path) -> None:
    room = tree / "server/terrapod_server/notes/room.py"
    whole = room.read_text()
    port = 'Port[str]("notes.ports.MISSING")'
    needy = whole.replace("    provides=", f"    needs=({port},),\n    provides=")
    needy = needy.replace(
        "from terrapod_server.kit.room", "from terrapod_server.kit.ports import Port\nfrom terrapod_server.kit.room"
    )
    room.write_text(needy)
    try:
        found = await asyncio.to_thread(
            run, tree, "-m", "terrapod_server", "serve", TERRAPOD_DATA=str(tmp_path / "data")
        )
    finally:
        room.write_text(whole)
    assert found.returncode == 1
    assert found.stderr.strip() == "Error: room notes needs notes.ports.MISSING, which no room provides"
    assert not (tmp_path / "data").exists(), "nothing was made"
