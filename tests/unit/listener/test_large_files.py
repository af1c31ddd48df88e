"""Sizes are asked before anything is read: files of gigabytes that take no place on the disk, and little memory."""

import contextlib
import io
import json
import resource
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from terrapod_listener.daemon import recover
from terrapod_listener.engine import plugins, schemas, workdir
from terrapod_listener.phase.delivery import Delivery
from terrapod_listener.phase.outcomes import Failed
from terrapod_listener.supervise import statefile, supervisor
from terrapod_shared import wire

G = 1 << 30
#: A server and its work, which nobody asks.
NOBODY: tuple[Any, Any] = (None, None)
HEAD = b'{\n  "version": 4,\n  "serial": 9,\n  "lineage": "line",\n  "outputs": {},\n'
#: What a reader may have besides the interpreter and what it has loaded.
MOST = 600 << 20


def sparse(path: Path, size: int, head: bytes = b"", tail: bytes = b"") -> Path:
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size - len(tail))
        file.seek(0, 2)
        file.write(tail)
    assert path.stat().st_size == size
    return path


def in_little_memory(code: str, *argv: Path) -> str:
    """What a program prints that may not have much."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (MOST, MOST))

    words = [sys.executable, "-c", f"import sys\nfrom pathlib import Path\n{code}", *map(str, argv)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120, preexec_fn=limit)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize(
    ("size", "head", "tail"), [(3 * G, b"", b""), (3 * G, HEAD, b"\n}\n"), (G, HEAD, b"\n}\n"), (G, b"{", b"}")]
)
def test_a_sparse_state_is_not_read(tmp_path: Path, size: int, head: bytes, tail: bytes) -> None:
    state = sparse(tmp_path / "errored.tfstate", size, head, tail)
    code = """
from terrapod_listener.supervise import statefile
root, state = Path(sys.argv[1]).parent, Path(sys.argv[1])
print(statefile.newest(root, [state]))
try:
    statefile.keep(root, state, root / "spool" / "run-1" / "state-1")
except statefile.Torn as error:
    print("torn", list((root / "spool" / "run-1").iterdir()))
"""
    assert in_little_memory(code, state) == "None\ntorn []\n"
    assert state.exists(), "it stays where it is"


def test_a_large_state_of_terraforms_is_copied_in_pieces(tmp_path: Path) -> None:
    state = tmp_path / "terraform.tfstate"
    state.write_bytes(HEAD + b'  "x": "' + b"a" * (700 << 20) + b'"\n}\n')
    code = """
from terrapod_listener.supervise import statefile
root, state = Path(sys.argv[1]).parent, Path(sys.argv[1])
print(statefile.keep(root, state, root / "spool" / "run-1" / "state-1")["serial"])
"""
    assert in_little_memory(code, state) == "9\n"
    with contextlib.suppress(FileNotFoundError):
        (tmp_path / "spool" / "run-1" / "state-1").unlink()
    state.unlink()


def test_what_terraform_says_of_its_plan_is_not_read_whole(tmp_path: Path) -> None:
    (tmp_path / "answer.json").write_text('{"format_version": "1.0", "provider_schemas": {}}')
    with pytest.raises(schemas.NotWhole, match="are the most"):
        schemas.digest(sparse(tmp_path / "plan.json", 3 * G), tmp_path / "answer.json", tmp_path / "cut")
    change = {
        "actions": ["create"],
        "after": {"text": "x" * 1000, "many": [{"a": [1, 2, 3]}] * 100},
        "importing": {"id": "i"},
    }
    entry = {"mode": "managed", "type": "t", "provider_name": "p", "change": change}
    entries = ", ".join([json.dumps(entry)] * 60_000)
    text = f'{{"resource_changes": [{entries}], "planned_values": {{"deep": "{"x" * 1000}"}}}}'
    (tmp_path / "plan.json").write_text(text)
    assert len(text) > 150 << 20
    schema = {
        "p": {"provider": {"version": 0}, "resource_schemas": {"t": {"block": {}}, "other": {"x": "y" * (50 << 20)}}}
    }
    (tmp_path / "answer.json").write_text(json.dumps({"format_version": "1.0", "provider_schemas": schema}))
    code = """
from terrapod_listener.engine import schemas
folder = Path(sys.argv[1])
print(schemas.digest(folder / "plan.json", folder / "answer.json", folder / "cut").imports)
"""
    assert in_little_memory(code, tmp_path) == "60000\n"
    wanted = {"provider": {"version": 0}, "resource_schemas": {"t": {"block": {}}}}
    assert json.loads((tmp_path / "cut").read_text()) == {"format_version": "1.0", "provider_schemas": {"p": wanted}}


def test_a_plan_that_is_deep_is_no_plan(tmp_path: Path) -> None:
    (tmp_path / "answer.json").write_text("{}")
    for text in ('{"x":' * 100_000, '{"resource_changes": ' + "[" * 100_000, "", "[]", '{"resource_changes": 7}'):
        (tmp_path / "plan.json").write_text(text)
        with pytest.raises(schemas.NotWhole):
            schemas.digest(tmp_path / "plan.json", tmp_path / "answer.json", tmp_path / "cut")
    (tmp_path / "plan.json").write_text('{"x": ' + "9" * 100_000 + ', "applyable": true}')
    assert schemas.digest(tmp_path / "plan.json", tmp_path / "answer.json", tmp_path / "cut").has_changes


async def test_a_product_that_the_server_would_not_take_is_not_read(tmp_path: Path) -> None:
    plan = sparse(tmp_path / "plan", 3 * G)
    with pytest.raises(Failed, match=f"the plan file has {3 * G} bytes"):
        await Delivery(*NOBODY, tmp_path).artifact("plan-file", plan)


def test_small_files_are_read_to_a_limit(tmp_path: Path) -> None:
    lock = sparse(tmp_path / plugins.LOCK, 3 * G)
    with pytest.raises(plugins.NotKept):
        plugins._read(lock)
    assert len(workdir.read_below(tmp_path, lock) or b"") == workdir._SOURCE_MOST
    for number in range(40):
        sparse(tmp_path / f"{number:02}.tf", G)
    found = workdir.sources(tmp_path, "terraform")
    assert sum(map(len, found.values())) == workdir._SOURCES_MOST
    (tmp_path / ".terraform").mkdir()
    for text in ("[" * 100_000, "[]", '{"backend": "x"}', '{"backend": {"type": "local", "config": "x"}}'):
        (tmp_path / ".terraform" / "terraform.tfstate").write_text(text)
        with pytest.raises(workdir.Hostile):
            workdir.check_backend(tmp_path, tmp_path, tmp_path / "states")


def test_no_room_is_taken_for_a_state_that_is_none(tmp_path: Path) -> None:
    """Also where an earlier step has left one of gigabytes where terraform saves what it cannot write."""
    state = sparse(tmp_path / "errored.tfstate", 3 * G)
    reserve = supervisor.Reserve(tmp_path / "reserve", [str(state)])
    assert (tmp_path / "reserve").stat().st_size == supervisor._RESERVE_LEAST
    reserve.give_back()


def test_a_state_is_rescued_in_pieces_and_by_no_link(tmp_path: Path) -> None:
    work = tmp_path / "work" / "run-1"
    work.mkdir(parents=True)
    state = sparse(work / "errored.tfstate", G // 2, HEAD)
    code = """
from terrapod_listener.daemon import recover
recover.copy(Path(sys.argv[1]), "run-1", Path(sys.argv[2]), Path(sys.argv[3]))
"""
    target = tmp_path / "out"
    in_little_memory(code, tmp_path, state, target)
    assert (target.stat().st_size, target.stat().st_mode & 0o777) == (G // 2, 0o600)
    target.unlink()
    state.unlink()
    state.symlink_to("/etc/hostname")
    with pytest.raises(OSError):
        recover.copy(tmp_path, "run-1", state, target)
    assert list(tmp_path.iterdir()) == [tmp_path / "work"]


def archive(*names: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz", format=tarfile.PAX_FORMAT) as tar:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, link
            tar.addfile(entry)
    return raw.getvalue()


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(archive("a/" * 100_000 + "b"), id="a name of many parts"),
        pytest.param(archive("a" * 5000), id="a long name"),
        pytest.param(archive("a", kind=tarfile.SYMTYPE, link="x/" * 100_000), id="a long link"),
        pytest.param(archive("a" * (8 << 20)), id="a header of megabytes"),
    ],
)
def test_names_in_archives_have_an_end(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "a.tar.gz").write_bytes(raw)
    with pytest.raises(workdir.Hostile):
        workdir.unpack(tmp_path / "a.tar.gz", tmp_path / "out", wire.Limits())


def test_a_torn_state_says_why(tmp_path: Path) -> None:
    with sparse(tmp_path / "s", 3 * G).open("rb") as file, pytest.raises(statefile.Torn, match=f"{3 * G} bytes"):
        statefile.mark(file)
