"""Variables of a workspace: names, values, secrecy and repeats."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from kit.serving import DATA, Running
from terrapod_listener.engine import argv
from terrapod_server.variables import actions as variables


async def make(server: Running, workspace: str, **attributes: Any) -> DATA:
    answer = await server.post(f"/workspaces/{workspace}/vars", {"key": "k", "category": "env", **attributes}, "vars")
    return {"status": answer.status_code, **answer.json().get("data", {}), "errors": answer.json().get("errors")}


async def change(server: Running, workspace: str, variable: str, **attributes: Any) -> DATA:
    body = {"data": {"type": "vars", "attributes": attributes}}
    answer = await server.api.patch(f"/workspaces/{workspace}/vars/{variable}", json=body)
    return {"status": answer.status_code, **answer.json().get("data", {})}


NAMES = [
    "", "a=b", "a\nb", "a\rb", "a\u2028b", 'a" = 1\nb', "PATH", "HOME", "LD_PRELOAD", "DYLD_X", "TF_CLI_ARGS",
    "TF_CLI_ARGS_apply", "TF_CLI_CONFIG_FILE", "TF_DATA_DIR", "TF_WORKSPACE", "TF_REATTACH_PROVIDERS",
    "TF_FORCE_LOCAL_BACKEND", "TF_LOG_PATH", "TF_TOKEN_app_terraform_io", "TFC_RUN_ID", "x" * 256, "a\0",
    "TOFU_CLI_CONFIG_FILE", "GCONV_PATH", "LOCPATH", "NLSPATH", "GLIBC_TUNABLES", "RES_OPTIONS", "MALLOC_CHECK_", "BASH_ENV",
    "SHELLOPTS", "PS4",
]  # fmt: skip


async def test_names_that_no_run_can_have_are_kept(server: Running, tmp_path: Path) -> None:
    """Clients name variables by UUIDs and in their own language; a hint says which of them no run is given."""
    workspace = (await server.workspace())["id"]
    fine = (
        ("a-b", "env"),
        ("1a", "env"),
        ("a.b", "env"),
        ("é", "terraform"),
        ("größe-2", "terraform"),
        ("变量", "terraform"),
    )
    odd = ((" ", "env"), ("a b", "env"), ("BASH_FUNC_x%%", "env"), ("é", "env"), ("${x}", "terraform"), ("1a", "terraform"),
           ("a.b", "terraform"), ("-a", "terraform"), ("3f2b8c1e-0d5e-4e0b-9d9b-2f7a2b1c0d9e", "terraform"))  # fmt: skip
    for (name, category), is_fine in (*((each, True) for each in fine), *((each, False) for each in odd)):
        made = await make(server, workspace, key=name, category=category)
        assert made["status"] == 201, name
        assert (made["attributes"]["hint"] is None) is is_fine, (name, made["attributes"]["hint"])
    listener = await server.listener(tmp_path / "home")
    await server.configuration(workspace)
    await server.run(workspace, variables=[{"key": "größe", "value": "1"}])
    work = await listener.next_work(5)
    assert work is not None
    taken, left_out = argv.admitted(work.variables)
    assert {(each.key, each.category) for each in taken} == {*fine, ("größe", "terraform")}
    assert len(left_out) == len(odd)
    for key in ("a=b", "a\nb"):
        refused = await server.run(workspace, variables=[{"key": key, "value": "1"}])
        assert refused.json()["errors"][0]["source"]["pointer"] == "/data/attributes/variables"


async def test_a_value_that_no_environment_takes(server: Running) -> None:
    workspace = (await server.workspace())["id"]
    large = "é" * (64 << 10)
    refused = await make(server, workspace, key="k", value=large)
    assert refused["errors"][0]["source"]["pointer"] == "/data/attributes/value"
    assert (await make(server, workspace, key="k", value=large[:-2]))["status"] == 201
    made = await make(server, workspace, key="large", value=large, category="terraform", hcl=True)
    assert made["status"] == 201
    assert (await change(server, workspace, made["id"], category="env"))["status"] == 422, "nor by an update"


async def test_names_that_no_variable_may_have(server: Running) -> None:
    workspace = (await server.workspace())["id"]
    for name in NAMES:
        made = await make(server, workspace, key=name)
        assert made["status"] == 422, name
        assert name == "a\0" or made["errors"][0]["source"]["pointer"] == "/data/attributes/key", name
    for name in ("", "a=b", 'a" = 1\nb', "a\u0085b", "x" * 256):
        assert (await make(server, workspace, key=name, category="terraform"))["status"] == 422, name
    fine = (("HTTPS_PROXY", "env"), ("TF_LOG", "env"), ("_x", "env"), ("PATH", "terraform"), ("a-b", "terraform"))
    for name, category in fine:
        made = await make(server, workspace, key=name, category=category)
        assert made["status"] == 201, name
        if name == "PATH":  # no way round by an update either
            changed = await change(server, workspace, made["id"], category="env")
            assert changed["status"] == 422, name
    assert (await make(server, workspace, category="policy-set"))["status"] == 422
    assert (await make(server, workspace, value=7))["status"] == 422
    assert (await make(server, workspace, value="a\0b"))["status"] == 422


async def test_values_come_back_as_they_were(server: Running) -> None:
    workspace = (await server.workspace())["id"]
    for number, value in enumerate(("", "a\nb\r\n", '{"a" = [1, "${x}"]}', r"\u0000", "\U0001f4a9é", "x" * 100_000)):
        made = await make(server, workspace, key=f"k{number}", value=value, category="terraform", hcl=True)
        assert (made["status"], made["attributes"]["value"], made["attributes"]["hcl"]) == (201, value, True), value[
            :20
        ]
        [resolved] = [v for v in await variables.resolve(server.services, workspace) if v.key == f"k{number}"]
        assert (resolved.value, resolved.hcl, resolved.sensitive) == (value, True, False)


async def test_what_is_sensitive_stays_so(server: Running) -> None:
    workspace = (await server.workspace())["id"]
    made = await make(server, workspace, value="hunter2-before", description="d")
    seen = {made["attributes"]["version-id"]}
    for attributes in ({"sensitive": True}, {"value": "hunter2-after"}, {"description": "e"}, {}, {"key": "l"}):
        changed = await change(server, workspace, made["id"], **attributes)
        assert (changed["status"], changed["attributes"]["value"]) == (200, None)
        seen.add(changed["attributes"]["version-id"])
    assert len(seen) == 6, "another version each time"
    assert (await change(server, workspace, made["id"], sensitive=False))["status"] == 422
    for path in ("vars", "all-vars", f"vars/{made['id']}"):
        assert "hunter2" not in (await server.api.get(f"/workspaces/{workspace}/{path}")).text
    [resolved] = await variables.resolve(server.services, workspace)
    assert (resolved.key, resolved.value, resolved.sensitive) == ("l", "hunter2-after", True)


async def test_a_key_and_category_are_there_once(server: Running) -> None:
    workspace, other = [(await server.workspace())["id"] for _ in range(2)]
    first = await make(server, workspace, key="k")
    assert (await make(server, workspace, key="k"))["status"] == 422
    second = await make(server, workspace, key="k", category="terraform")
    assert (await change(server, workspace, second["id"], category="env"))["status"] == 422
    assert (await make(server, other, key="k"))["status"] == 201
    assert (await change(server, other, first["id"], value="x"))["status"] == 404, "of another workspace"
    assert (await server.api.delete(f"/workspaces/{other}/vars/{first['id']}")).status_code == 404
    raced = await asyncio.gather(*(make(server, workspace, key="r") for _ in range(6)))
    assert sorted(each["status"] for each in raced) == [201, *[422] * 5]


async def test_lists_are_whole_unless_a_size_is_asked(server: Running) -> None:
    workspace = (await server.workspace())["id"]
    for number in range(25):
        assert (await make(server, workspace, key=f"k{number:02}"))["status"] == 201
    for path, shown in (("vars", 25), ("all-vars", 25), ("vars?page[size]=10", 10), ("vars?page[number]=1", 25)):
        answer = (await server.api.get(f"/workspaces/{workspace}/{path}")).json()
        assert (len(answer["data"]), answer["meta"]["pagination"]["total-count"]) == (shown, 25), path


@pytest.mark.parametrize("hidden", [True, False])
async def test_a_run_gets_what_is_there(server: Running, tmp_path: Path, hidden: bool) -> None:
    listener = await server.listener(tmp_path / "home")
    workspace = (await server.workspace())["id"]
    await make(server, workspace, key="a", value="1\n2", category="terraform", hcl=False, sensitive=hidden)
    await make(server, workspace, key="A", value="env", sensitive=hidden)
    await server.configuration(workspace)
    run = await server.run(workspace, variables=[{"key": "a", "value": '"run"'}, {"key": "b", "value": "[1]"}])
    assert run.status_code == 201, run.text
    work = await listener.next_work(10)
    assert work is not None
    found = {(v.category, v.key): (v.hcl, v.sensitive) for v in work.variables}
    assert found == {
        ("env", "A"): (False, hidden),
        ("terraform", "a"): (True, hidden),
        ("terraform", "b"): (True, False),
    }
