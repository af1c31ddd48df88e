"""The pure rules of the server: the run's table, log framing, state order, parsing, versions, declarations."""

import gzip
import io
import json
import tarfile
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.serving import state_bytes, tar
from terrapod_server.config.load import Mistakes, load
from terrapod_server.config.settings import Config
from terrapod_server.engines import rules as releases
from terrapod_server.kit.api import parse as parsing
from terrapod_server.kit.api.declare import Attr, Resource
from terrapod_server.kit.asgi.routes import Routes
from terrapod_server.kit.http.signed import Signer
from terrapod_server.runs import framing, redact, states
from terrapod_server.runs.events import Event
from terrapod_server.runs.states import Status
from terrapod_server.states import parse
from terrapod_server.states.rules import Mark, Verdict, judge
from terrapod_server.store.archive import Checker, Unfit
from terrapod_server.variables.rules import Resolved, resolve
from terrapod_server.workspaces import rules
from terrapod_shared import errors, ids, versions


def test_the_table_is_the_one_that_clients_expect() -> None:
    expected = {
        "pending": {"plan_queued", "discarded", "canceled", "errored"},
        "plan_queued": {"planning", "canceled", "errored"},
        "planning": {"planned", "planned_and_finished", "planned_and_saved", "plan_queued", "errored", "canceled"},
        "planned": {"confirmed", "discarded", "errored"},
        "planned_and_saved": {"confirmed", "discarded", "errored"},
        "confirmed": {"apply_queued", "canceled", "errored"},
        "apply_queued": {"applying", "canceled", "errored"},
        "applying": {"applied", "errored", "canceled"},
    }
    found = {status.value: {to.value for to in row.values()} for status, row in states.NEXT.items()}
    assert found == expected
    assert {status.value for status in states.FINAL} == {
        "planned_and_finished", "applied", "errored", "discarded", "canceled",
    }  # fmt: skip


@given(st.sampled_from(list(Status)), st.sampled_from(list(Event)))
def test_what_is_not_in_the_table_is_refused_in_words(status: Status, event: Event) -> None:
    if states.allows(status, event):
        plan, apply = states.phases_after(status, event)
        assert states.after(status, event) in Status
        assert plan != "running" or apply is None
    else:
        with pytest.raises(errors.IllegalTransition, match=status.value):
            states.after(status, event)


@given(st.binary(max_size=300), st.lists(st.integers(1, 70), min_size=1), st.booleans())
def test_a_log_read_in_pieces_is_the_log(raw: bytes, limits: list[int], is_over: bool) -> None:
    seen, offset, turn = b"", 0, 0
    while True:
        limit = limits[turn % len(limits)]
        turn += 1
        start, stop = framing.raw_range(offset, limit, len(raw))
        part = framing.frame(raw[start:stop], offset, limit, len(raw), is_over=is_over)
        assert len(part) <= limit
        if not part:
            break
        assert b"\x03" not in part[:-1]
        seen += part
        offset += len(part)
        if part.endswith(b"\x03"):
            break
    assert seen == b"\x02" + raw.replace(b"\x03", b" ") + (b"\x03" if is_over else b"")


@pytest.mark.parametrize(
    ("current", "sent", "force", "verdict"),
    [
        (None, Mark(5, "a", "x"), False, Verdict.ACCEPT),
        (Mark(1, "a", "x"), Mark(2, "a", "y"), False, Verdict.ACCEPT),
        (Mark(1, "a", "x"), Mark(1, "a", "x"), False, Verdict.REPEAT),
        (Mark(1, "a", "x"), Mark(1, "a", "x"), True, Verdict.REPEAT),
        (Mark(1, "a", "x"), Mark(1, "a", "y"), False, Verdict.CONFLICT),
        (Mark(2, "a", "x"), Mark(1, "a", "y"), False, Verdict.CONFLICT),
        (Mark(1, "a", "x"), Mark(2, "b", "y"), False, Verdict.CONFLICT),
        (Mark(2, "a", "x"), Mark(1, "b", "y"), True, Verdict.ACCEPT),
    ],
)
def test_states_follow_one_another(current: Mark | None, sent: Mark, force: bool, verdict: Verdict) -> None:
    assert judge(current, sent, force=force)[0] is verdict


def test_a_state_is_read_as_a_stream() -> None:
    outputs = {
        "plain": {"value": "v", "type": "string"},
        "hidden": {"value": {"a": [1, 2.5, None]}, "type": ["object", {"a": ["list", "number"]}], "sensitive": True},
    }
    found = parse.summarise(io.BytesIO(state_bytes(7, "line", outputs, resources=3)))
    assert (found.serial, found.lineage, found.terraform_version, found.resource_count) == (7, "line", "1.15.5", 3)
    assert [(o.name, o.value, o.sensitive) for o in found.outputs] == [
        ("plain", b'"v"', False), ("hidden", b'{"a":[1,2.5,null]}', True),
    ]  # fmt: skip
    sealed = parse.summarise(io.BytesIO(b'{"serial": 3, "lineage": "l", "encrypted_data": "xyz", "meta": {}}'))
    assert (sealed.serial, sealed.is_encrypted) == (3, True)


@pytest.mark.parametrize(
    "raw",
    [b"", b"[]", b"null", b"{", b'{"serial": "1"}', b'{"serial": 1.5}', b'{"lineage": "x"}', b'{"serial": 1, "serial": 2}',
     b'{"serial": NaN}', b'{"serial": 1, "x": ' + b"[" * 500 + b"]" * 499 + b"}", b'{"serial": -1}'],
)  # fmt: skip
def test_what_is_no_state_is_refused(raw: bytes) -> None:
    with pytest.raises(parse.Unreadable):
        parse.summarise(io.BytesIO(raw))


def test_engine_versions_are_resolved() -> None:
    known = ["1.10.5", "1.11.3", "1.11.4", "1.12.0-rc1", "1.12.0", "0.15.0"]
    wanted = {
        "latest": "1.12.0", "1.11": "1.11.4", "1.11.x": "1.11.4", "1.11.3": "1.11.3", "~> 1.11.0": "1.11.4", "1": "1.12.0",
        ">= 1.10, < 1.12": "1.11.4", "1.13": None, "9.9.9": None, "1.12.0-rc1": "1.12.0-rc1",
    }  # fmt: skip
    for text, found in wanted.items():
        assert versions.choose(text, known) == found, text
    for text, found in {
        "v1.11.3": "1.11.3", " 1.11.3 ": "1.11.3", "= 1.11.3": "1.11.3", "= 1.12.0-rc1": "1.12.0-rc1",
        ">= 1.12.0-rc1": "1.12.0", "< 1.12.0-rc1": "1.11.4", "!= 1.12.0": "1.11.4", "~> 1.11, != 1.11.4": "1.12.0",
        "> 1.10,<1.11.4": "1.11.3", "1.x": "1.12.0",
    }.items():  # fmt: skip
        assert versions.is_sensible(text), text
        assert versions.choose(text, known) == found, text


@pytest.mark.parametrize(
    "text", ["newest", "", "  ", "1.11.4 ", "1.2.3.4", "~> 1.11.x", "1,", "=> 1", "1.11.4\n1", "1.11.4-", "x" * 41,
             "\u0663.\u0661.\u0664", "1.11.4; rm", "../1.11.4", "-1", ">= 1.0, <", "9" * 7, "~>", "1.11.4" + "-a" * 20],
)  # fmt: skip
def test_only_versions_and_constraints_are_sensible(text: str) -> None:
    assert versions.is_sensible(text) == (text == "1.11.4 ")
    if text != "1.11.4 ":
        with pytest.raises(ValueError, match="must be a version"):
            versions.checked(text)


def test_checksums_are_found() -> None:
    assert releases.checksum("ab" * 32 + "  x.zip\n", "x.zip") == "ab" * 32
    assert releases.checksum("ab" * 32 + "  x.zip\n", "y.zip") is None


def test_hidden_values_are_replaced_where_they_are_marked() -> None:
    change = {
        "actions": ["update"], "before": {"a": "old", "b": [1, "s"]}, "after": {"a": "new", "b": [2, "t"], "c": None},
        "before_sensitive": {"a": True, "b": [False, True]}, "after_sensitive": {"a": True, "c": True},
    }  # fmt: skip
    plan = {"format_version": "1.2", "resource_changes": [{"address": "x", "change": change}], "output_changes": {}}
    found = json.loads(redact.compose(json.dumps(plan).encode(), b'{"provider_schemas": {"p": {}}}'))
    shown = found["resource_changes"][0]["change"]
    assert shown["before"] == {"a": "(sensitive value)", "b": [1, "(sensitive value)"]}
    assert shown["after"] == {"a": "(sensitive value)", "b": [2, "t"], "c": None}
    assert found["provider_schemas"] == {"p": {}}


def test_the_higher_layer_wins_and_categories_are_apart() -> None:
    low = [Resolved("a", "env", "1"), Resolved("a", "terraform", "2"), Resolved("b", "env", "3")]
    high = [Resolved("a", "env", "4")]
    assert {(v.category, v.key): v.value for v in resolve([low, high])} == {
        ("env", "a"): "4", ("terraform", "a"): "2", ("env", "b"): "3",
    }  # fmt: skip


def check(data: bytes) -> None:
    checker = Checker()
    reader = io.BytesIO(data)
    while chunk := reader.read(100):
        checker.feed(chunk)
    checker.end()


def test_archives_are_looked_into() -> None:
    check(tar({"a/main.tf": b"x" * 2000, "b.tf": b""}))
    long = "../" * 60 + "x"
    for bad in (
        b"plain", tar({"../x": b""}), tar({"a/../../x": b""}), tar({"/x": b""}), gzip.compress(b"", mtime=0),
        tar({"main.tf": b""}) + b"tail" * 100, tar({long: b""}, tarfile.GNU_FORMAT), tar({long: b""}, tarfile.PAX_FORMAT),
    ):  # fmt: skip
        with pytest.raises(Unfit):
            check(bad)


def extended(short: str, records: dict[str, str], kind: bytes = tarfile.REGTYPE) -> bytes:
    """An entry as Go writes it: its own header holds what is left of the name in ASCII."""
    lines = b""
    for key, value in records.items():
        line = f" {key}={value}\n".encode()
        lines += f"{len(line) + 2 if len(line) < 98 else len(line) + 3}".encode() + line
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        header = tarfile.TarInfo("PaxHeaders.0/x")
        header.type, header.size = tarfile.XHDTYPE, len(lines)
        archive.addfile(header, io.BytesIO(lines))
        entry = tarfile.TarInfo(short)
        entry.type = kind
        archive.addfile(entry)
    return gzip.compress(buffer.getvalue(), mtime=0)


def test_the_extended_name_of_an_entry_is_its_name() -> None:
    check(extended("/x.txt", {"path": "é/x.txt"}))
    check(extended("/", {"path": "é/"}, tarfile.DIRTYPE))
    check(extended("x", {"path": "a/é", "linkpath": "../é"}, tarfile.SYMTYPE))
    for short, records, kind in (
        ("x", {"path": "../é"}, tarfile.REGTYPE),
        ("x", {"path": "a\n/../../é"}, tarfile.REGTYPE),
        ("x", {"path": "é", "linkpath": "../é"}, tarfile.SYMTYPE),
        ("x", {"linkpath": "/é"}, tarfile.LNKTYPE),
        ("/x", {"mtime": "1.5"}, tarfile.REGTYPE),
    ):
        with pytest.raises(Unfit):
            check(extended(short, records, kind))


def test_workspace_names_and_folders() -> None:
    assert rules.name("a-B_9") == "a-B_9"
    for bad in ("", "-a", "a b", "a" * 91, "a/b"):
        with pytest.raises(ValueError, match="must"):
            rules.name(bad)
    assert rules.folder("a/b/") == "a/b"
    for bad in ("/a", "../a", "a/../../b", "a\\b"):
        with pytest.raises(ValueError, match="relative"):
            rules.folder(bad)


def test_signed_urls_are_for_one_purpose_and_end() -> None:
    signer, other = Signer(b"k" * 32), Signer(b"o" * 32, (b"k" * 32,))
    token = signer.sign("log", "plan-1", 60)
    assert signer.check("log", token) == "plan-1"
    assert other.check("log", token) == "plan-1", "an older key still opens"
    for purpose, text in (
        ("state", token),
        ("log", token[:-1]),
        ("log", signer.sign("log", "plan-1", -5)),
        ("log", "?"),
    ):
        with pytest.raises(errors.NotFound):
            signer.check(purpose, text)


def test_a_signed_url_that_was_good_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    signer = Signer(b"k" * 32)
    tokens = [signer.sign("log", f"plan-{number}", 60) for number in range(1030)]
    for _ in range(2):
        assert [signer.check("log", token) for token in tokens] == [f"plan-{number}" for number in range(1030)]
    with pytest.raises(errors.NotFound):
        signer.check("state", tokens[-1])
    at = time.time()
    monkeypatch.setattr(time, "time", lambda: at + 61)
    for token in tokens:
        with pytest.raises(errors.NotFound):
            signer.check("log", token)


def test_ids_are_ordered_and_recognised() -> None:
    assert ids.is_valid(ids.make("ws"), "ws")
    assert not ids.is_valid("ws-short", "ws")
    assert not ids.is_valid(ids.make("run"), "ws")
    assert len({ids.make("run") for _ in range(1000)}) == 1000


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)
    )
)
def test_any_attribute_is_checked_or_refused(value: object) -> None:
    resource = Resource("things", (Attr("name", str, "n", write=True, maximum=9), Attr("count", int, "c", write=True)))
    try:
        found = parsing.attributes({"attributes": {"name": value, "count": value}}, resource)
    except errors.Invalid as error:
        assert error.pointer is not None
        assert error.pointer.startswith("/data/attributes/")
    else:
        assert all(isinstance(found[key], kind) for key, kind in (("name", str), ("count", int)) if key in found)


def test_errors_come_back_as_what_they_were() -> None:
    for cls in (errors.NotFound, errors.LeaseEnded, errors.Invalid, errors.ClockSkew, errors.Unavailable):
        again = errors.from_document(cls.status, errors.document(cls("why")))
        assert (type(again), again.detail) == (cls, "why")


def test_settings_tell_all_mistakes_at_once() -> None:
    environment = {
        "TERRAPOD_PORT": "x",
        "TERRAPOD_NOPE": "1",
        "TERRAPOD_STORAGE__KIND": "tape",
        "TERRAPOD_LIMITS__JSON_BYTES": "5",
    }
    with pytest.raises(Mistakes) as mistakes:
        load(environment)
    assert len(mistakes.value.lines) == 3
    assert load({"TERRAPOD_TOKEN": "tpod_x"}) == load({}), "exporting the token, as `up` says, breaks no later start"
    assert load({"TERRAPOD_LIMITS__JSON_BYTES": "5"}).limits.json_bytes == 5


def test_routes_know_slashes_and_methods() -> None:
    routes = Routes([])
    with pytest.raises(errors.NotFound):
        routes.find("GET", "/x")


def test_the_names_that_configurations_may_give_the_server() -> None:
    assert load({}).hosts == ["localhost:8443", "127.0.0.1:8443"]
    assert Config(host="0.0.0.0", port=9).hosts == ["localhost:9", "127.0.0.1:9"]
    assert Config(host="tf.example.com").hosts == ["tf.example.com:8443"]
    assert load({}, public_url="https://tf.example.com/").hosts == ["tf.example.com"]
