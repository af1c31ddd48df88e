"""The listener's own parts: archives, overrides, environment, outcome, processes, settings."""

import asyncio
import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest

from kit.serving import tar
from terrapod_listener import config
from terrapod_listener.engine import argv, workdir
from terrapod_listener.link.lease import Lease
from terrapod_listener.sandbox import launching
from terrapod_listener.sandbox.process import Process
from terrapod_shared import configuration, wire
from terrapod_shared.variables import ENV_MOST, refusal, unfit


def archive(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as out:
        for entry, content in entries:
            entry.size = len(content)
            out.addfile(entry, io.BytesIO(content))
    return gzip.compress(buffer.getvalue(), mtime=0)


def special(name: str, kind: bytes, link: str = "") -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, link
    return entry, b""


def unpacked(tmp_path: Path, raw: bytes, limits: wire.Limits | None = None) -> Path:
    (tmp_path / "a.tar.gz").write_bytes(raw)
    workdir.unpack(tmp_path / "a.tar.gz", tmp_path / "out", limits or wire.Limits())
    return tmp_path / "out"


@pytest.mark.parametrize(
    "raw",
    [
        tar({"../evil": b"x"}),
        tar({"a/../../evil": b"x"}),
        archive(special("link", tarfile.SYMTYPE, "/etc/passwd")),
        archive(special("link", tarfile.SYMTYPE, "../../outside")),
        archive(special("hard", tarfile.LNKTYPE, "../outside")),
        archive(special("link", tarfile.SYMTYPE, ".."), (tarfile.TarInfo("link/evil"), b"x")),
        archive(special("fifo", tarfile.FIFOTYPE)),
        archive(special("device", tarfile.CHRTYPE)),
        archive((tarfile.TarInfo("twice"), b"1"), (tarfile.TarInfo("./twice"), b"2")),
        tar({"main.tf": b"x" * 5000})[:-30],
        b"no archive at all",
    ],
)
def test_hostile_archives_are_refused(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(workdir.Hostile):
        unpacked(tmp_path, raw)
    assert not (tmp_path / "evil").exists()
    assert not (tmp_path.parent / "evil").exists()


def test_bombs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(workdir.Hostile, match="more than"):
        unpacked(tmp_path, tar({"zeros": bytes(1 << 20)}), wire.Limits(unpacked_bytes=1 << 19))


def test_stray_state_is_dropped_and_modules_are_kept(tmp_path: Path) -> None:
    out = unpacked(
        tmp_path,
        tar({
            "main.tf": b"", "terraform.tfstate": b"{}", "x.tfstate.backup": b"", "sub/errored.tfstate": b"",
            "terraform.tfstate.d/w/terraform.tfstate": b"", ".terraform/modules/modules.json": b"{}",
            ".terraform/providers/evil": b"", ".terraform/terraform.tfstate": b"",
        }),
    )  # fmt: skip
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()) == [
        ".terraform/modules/modules.json", "main.tf",
    ]  # fmt: skip


def test_setuid_bits_are_stripped(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("tool")
    entry.mode = 0o6777
    out = unpacked(tmp_path, archive((entry, b"x")))
    assert (out / "tool").stat().st_mode & 0o7022 == 0


@pytest.mark.parametrize(
    "names",
    [
        [], ["override.tf"], ["zzzz_override.tf", "a_override.tf.json"], ["zz~~_override.tofu"],
        [".z_override.tf"], ["#z_override.tf"], ["zzzz\udcff_override.tf"],
    ],
)  # fmt: skip
def test_our_override_is_the_last(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).write_text("")
    ours = workdir.write_override(tmp_path, tmp_path / "states", "tofu")
    assert max(os.fsencode(p.name) for p in tmp_path.iterdir()) == os.fsencode(ours.name)
    assert ours.name.endswith("_override.tf")
    assert configuration.is_configuration(ours.name, "terraform"), "terraform reads it"


def test_an_override_that_cannot_be_beaten_is_refused(tmp_path: Path) -> None:
    (tmp_path / ("z" * 240 + "_override.tf")).write_text("")
    with pytest.raises(workdir.Hostile):
        workdir.write_override(tmp_path, tmp_path / "states", "terraform")


def test_configuration_is_kept_whatever_it_is_called(tmp_path: Path) -> None:
    """Without one of these the plan would be to destroy what it declares."""
    kept = {"x.tfstate.tf": b"", "sub/errored.tfstate.tf.json": b"", "main.tfstate.tofu": b""}
    out = unpacked(tmp_path, tar({**kept, "x.tfstate.json": b"", ".x.tfstate.tf": b"", "x.tfstate.tf~": b""}))
    assert {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()} == set(kept)


@pytest.mark.parametrize(
    ("files", "tool", "hint"),
    [
        ([], "terraform", "finds none in the root of"),
        (["README.md", ".x.tf", "x.tf~", "#x.tf#", "x.tftest.hcl", "terraform.tfvars", "X.TF", "tf"], "terraform", ""),
        (["main.tofu"], "terraform", "Only tofu reads 'main.tofu'."),
        (["app-1.2/main.tf", "app-1.2/x.tf"], "terraform", "There are some in 'app-1.2':"),
        (["a/main.tofu"], "terraform", "of the uploaded configuration."),
        (["a/main.tofu"], "tofu", "There are some in 'a':"),
        ([f"m{n}/x.tf" for n in range(9)], "tofu", "There are some in 'm0', 'm1', 'm2' and 6 more:"),
        (["main.tf/x.tf"], "terraform", "There are some in 'main.tf':"),
    ],
)
def test_a_folder_without_configuration_is_refused(tmp_path: Path, files: list[str], tool: str, hint: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    with pytest.raises(workdir.Hostile, match="No configuration files\n\nPlan requires configuration") as refused:
        workdir.check_configuration(tmp_path, tmp_path, tool)
    assert hint in str(refused.value)
    assert ("There are some" in str(refused.value)) == ("There are some" in hint)


@pytest.mark.parametrize(
    ("name", "tool"),
    [
        ("main.tf", "terraform"), ("main.tf.json", "terraform"), ("override.tf", "terraform"), ("#x.tf", "terraform"),
        ("main.tf", "tofu"), ("main.tofu", "tofu"), ("main.tofu.json", "tofu"), ("x.tfstate.tf", "terraform"),
        ("a\nb.tf", "terraform"), ("\udcff.tf", "terraform"),
    ],
)  # fmt: skip
def test_a_folder_with_configuration_is_taken(tmp_path: Path, name: str, tool: str) -> None:
    (tmp_path / name).write_text("")
    workdir.check_configuration(tmp_path, tmp_path, tool)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("nowhere")
    workdir.check_configuration(tmp_path, tmp_path, tool)


def test_what_the_engine_does_not_read_declares_nothing(tmp_path: Path) -> None:
    for name in ("a.tf", "b.tofu", ".c.tf", "d.tf.json"):
        (tmp_path / name).write_text("")
    assert list(workdir.sources(tmp_path, "terraform")) == ["a.tf", "d.tf.json"]
    assert list(workdir.sources(tmp_path, "tofu")) == ["a.tf", "b.tofu", "d.tf.json"]


def test_the_working_directory_stays_inside(tmp_path: Path) -> None:
    (tmp_path / "root" / "sub").mkdir(parents=True)
    (tmp_path / "root" / "out").symlink_to("/etc")
    (tmp_path / "root" / "loop").symlink_to("loop")
    assert workdir.module_folder(tmp_path / "root", "sub").name == "sub"
    for bad in ("..", "out", "missing", "loop"):
        with pytest.raises(workdir.Hostile):
            workdir.module_folder(tmp_path / "root", bad)


def work(*variables: wire.Variable) -> wire.Work:
    return wire.Work(
        listener_id="listener-1", run_id="run-1", phase="plan", lease=wire.Lease(number=1, seconds=40), workspace_id="ws-1",
        workspace_name="w", engine=wire.Engine(tool="terraform", version="1.15.5", sha256="0"), variables=list(variables),
    )  # fmt: skip


def test_the_environment_is_clean() -> None:
    env = argv.environment(
        work(
            wire.Variable(key="a", category="terraform", value="1"),
            wire.Variable(key="b", category="terraform", value="2"),
            wire.Variable(key="AWS_REGION", category="env", value="eu"),
            wire.Variable(key="TF_INPUT", category="env", value="1"),
        ),
        {"a"},
        {"PATH": "/bin"},
    )
    assert env["PATH"] == "/bin"
    assert "TF_VAR_a" not in env
    assert (env["TF_VAR_b"], env["AWS_REGION"], env["TF_INPUT"], env["TF_WORKSPACE"]) == ("2", "eu", "0", "w")
    assert os.environ["HOME"] not in env.values()


def test_reserved_names_are_refused_here_too() -> None:
    for key in ("LD_PRELOAD", "PATH", "HOME", "TF_CLI_CONFIG_FILE", "TF_DATA_DIR", "TF_WORKSPACE", "TF_REATTACH_PROVIDERS",
                "TF_FORCE_LOCAL_BACKEND", "TF_LOG_PATH", "TF_CLI_ARGS", "TF_CLI_ARGS_plan", "a=b", "",
                "TOFU_CLI_CONFIG_FILE", "GCONV_PATH", "LOCPATH", "NLSPATH", "GLIBC_TUNABLES", "RES_OPTIONS", "MALLOC_ARENA_MAX",
                "BASH_ENV", "SHELLOPTS", "PS4"):  # fmt: skip
        assert refusal(key, "env"), key
    assert refusal("X", "env", "a\0b")
    assert refusal("x\ny", "terraform")
    for key, category in (("a b", "env"), ("BASH_FUNC_x%%", "env"), ("x y", "terraform"), ("1x", "terraform")):
        assert (refusal(key, category), bool(unfit(key, category, ""))) == (None, True), key
    assert unfit("X", "env", "x" * ENV_MOST)
    assert argv.declared({"main.tf": 'variable "größe" {}\nvariable "变量" {}'}).keys() == {"größe", "变量"}
    for key in ("TF_LOG", "HTTPS_PROXY", "AWS_REGION"):
        assert refusal(key, "env") is None


def test_a_variable_that_may_not_be_is_left_out_and_named() -> None:
    """A row may be older than the refusal of its name: it must not end the run."""
    fine = wire.Variable(key="AWS_REGION", category="env", value="eu")
    bad = wire.Variable(key="LOCPATH", category="env", value="/tmp/hostile")
    taken, left_out = argv.admitted([bad, fine])
    assert taken == [fine]
    assert len(left_out) == 1
    assert "LOCPATH is reserved" in left_out[0]
    assert "hostile" not in left_out[0]


def test_strings_are_written_as_hcl() -> None:
    assert argv.quoted('a "b" ${c} %{d}\n') == '"a \\"b\\" $${c} %%{d}\\n"'
    declared = argv.declared(
        {
            "a.tf": 'variable "x" {}\n  variable y {\n',
            "b.tf.json": '{"variable": {"z": {}}}',
            "c.tf.json": "nope",
            "d.tf": "",
        }
    )
    assert declared == {"x": False, "y": False, "z": False}
    text = argv.var_file([wire.Variable(key="x", category="terraform", value="[1]", hcl=True)], declared)
    assert text == "x = [1]\n"


def test_an_apply_is_given_ephemeral_variables_alone() -> None:
    names = argv.declared(
        {
            "a.tf": 'variable "plain" {\n  default = "ephemeral"\n}\nvariable "token" {\n  ephemeral = true\n}\n',
            "b.tf.json": '{"variable": [{"json_token": {"ephemeral": true}, "json_plain": {}}]}',
        }
    )
    assert {name for name, may_be in names.items() if may_be} == {"token", "json_token"}
    keys = ("plain", "token", "json_token", "json_plain", "undeclared")
    variables = [wire.Variable(key=key, category="terraform", value="v") for key in keys]
    variables.append(wire.Variable(key="plain", category="env", value="v"))
    assert argv.given(variables, names, "plan") == variables
    left = argv.given(variables, names, "apply")
    assert [(each.key, each.category) for each in left] == [
        ("token", "terraform"), ("json_token", "terraform"), ("plain", "env"),
    ]  # fmt: skip
    assert argv.apply_argv(wire.Options(), "p", "v")[-2:] == ["-var-file=v", "p"]


def test_a_prefix_is_no_part_of_the_workspaces_name() -> None:
    block = 'terraform {\n  backend "remote" {\n    hostname = "h"\n    workspaces {\n      prefix = "app-"\n    }\n  }\n}\n'
    json_ = '{"terraform": [{"backend": {"remote": {"workspaces": [{"prefix": "app-"}]}}}]}'
    for name, text in (("a.tf", block), ("a.tf.json", json_)):
        assert argv.selected("app-one", {"0.tf": "", "0.tf.json": "[]", name: text}) == "one"
        assert argv.selected("other-one", {name: text}) == "other-one"
        assert argv.selected("app-", {name: text}) == "app-"
    other = 'locals {\n  workspaces = { prefix = "app-" }\n}\nterraform {\n  cloud {}\n}\n'
    assert argv.selected("app-one", {"a.tf": other}) == "app-one"
    hostile = 'backend "remote" {' * 20_000 + "workspaces {" * 20_000
    assert argv.selected("app-one", {"a.tf": hostile}) == "app-one"


def test_schemas_are_those_of_the_types_in_the_plan() -> None:
    def of(*types: str) -> dict[str, object]:
        return {type_: {"version": 0} for type_ in types}

    known = {
        "format_version": "1.0",
        "provider_schemas": {
            "p": {
                "provider": {"version": 1},
                "resource_schemas": of("a", "b", "c"),
                "data_source_schemas": of("a", "d"),
            },
            "unused": {"provider": {}, "resource_schemas": of("a")},
        },
    }
    plan = {
        "resource_changes": [
            {"provider_name": "p", "type": "a", "mode": "managed"}, {"provider_name": "p", "type": "d", "mode": "data"},
        ],
        "resource_drift": [{"provider_name": "p", "type": "b", "mode": "managed"}],
        "deferred_changes": [{"resource_change": {"provider_name": "gone", "type": "z", "mode": "managed"}}],
    }  # fmt: skip
    assert argv.filtered_schemas(known, plan) == {
        "format_version": "1.0",
        "provider_schemas": {
            "p": {"provider": {"version": 1}, "resource_schemas": of("a", "b"), "data_source_schemas": of("d")}
        },
    }


def test_a_plan_is_counted() -> None:
    def entry(*actions: str, **more: object) -> dict[str, object]:
        return {"change": {"actions": list(actions), **more}}

    plan = {
        "resource_changes": [entry("create"), entry("delete", "create"), entry("update"), entry("no-op", importing={})]
    }
    assert argv.read_plan(plan) == argv.Counts(True, 2, 1, 1, 1, False)
    assert argv.read_plan({"applyable": False, "resource_changes": [entry("no-op")]}).has_changes is False


def test_leases_stop_plans_and_never_applies() -> None:
    lease = Lease(until_s=100, length_s=40)
    assert [lease.move(at, "plan") for at in (61.0, 80.0, 100.0)] == ["work", "renew", "stop"]
    assert lease.move(100.0, "apply") == "renew"


async def test_a_group_is_interrupted_once_and_then_killed(tmp_path: Path) -> None:
    process, seen = Process(), bytearray()
    script = "trap 'echo got' INT; echo started; (trap '' INT TERM; exec sleep 60) & while :; do sleep 0.05; done"
    begun = asyncio.Event()

    def output(chunk: bytes) -> None:
        seen.extend(chunk)
        begun.set()

    task = asyncio.create_task(
        process.run(launching.directly(["bash", "-c", script], tmp_path, os.environ), on_output=output, timeout_s=30)
    )
    await asyncio.wait_for(begun.wait(), 10)
    process.interrupt(0.5)
    process.interrupt(0.5)
    assert await asyncio.wait_for(task, 15) == -9
    assert seen.count(b"got") == 1


async def test_who_is_left_in_the_group_is_killed(tmp_path: Path) -> None:
    process = Process()
    seen = bytearray()
    start = launching.directly(["bash", "-c", "sleep 60 & echo $!"], tmp_path, os.environ)
    code = await process.run(start, on_output=seen.extend, timeout_s=30)
    assert code == 0
    stat = Path(f"/proc/{int(seen)}/stat")
    for _ in range(200):
        if not stat.exists() or stat.read_text().split()[2] == "Z":
            break
        await asyncio.sleep(0.01)
    else:
        pytest.fail("the child lives")


def test_settings_tell_all_mistakes_at_once(tmp_path: Path) -> None:
    (tmp_path / "listener.toml").write_text(
        'capacity = 0\nnope = 1\n[[engines]]\ntool = "terraform"\nversion = "1"\npath = "/nowhere"\n'
    )
    with pytest.raises(config.Mistakes) as mistakes:
        config.load(tmp_path, {"TERRAPOD_LISTENER_POLL_S": "x"})
    assert len(mistakes.value.lines) == 4
    assert config.load(tmp_path / "none", {"TERRAPOD_LISTENER_CAPACITY": "7"}).capacity == 7


def test_the_runs_token_is_for_every_name_of_the_server_once() -> None:
    assert argv.credentials(["a.b:1", "c.d", "a.b:1", "[::1]:2"], "t") == (
        'credentials "a.b:1" {\n  token = "t"\n}\ncredentials "c.d" {\n  token = "t"\n}\n'
    )
