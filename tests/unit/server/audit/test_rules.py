"""Which requests are recorded and what they are said to be about."""

from pathlib import Path
from typing import Any

import pytest

from terrapod_server.app import ENDPOINTS
from terrapod_server.audit.chain_heads import Keys, Ledger, lines
from terrapod_server.audit.rules import NOTHING, Chain, Entry, Refusals, is_recorded, is_refusal, mac_of, shape, shown
from terrapod_server.kit.api.declare import Endpoint, Recorded, Route

EMPTY = Entry("ae-1", "", 0, 1, "user", "", "", "", "", "POST", "/x", "", "", "", 200, "", "", 1, 1, "")


@pytest.mark.parametrize(
    ("method", "declared", "status", "is_admitted", "expected"),
    [
        ("GET", Recorded.CHANGES, 200, True, False),
        ("GET", Recorded.CHANGES, 404, True, False),
        ("GET", Recorded.CHANGES, 404, False, True),
        ("GET", Recorded.CHANGES, 401, False, True),
        ("GET", Recorded.CHANGES, 403, True, True),
        ("GET", Recorded.CHANGES, 429, False, True),
        ("GET", Recorded.READS, 200, True, True),
        ("GET", Recorded.READS, 302, True, True),
        ("GET", Recorded.READS, 204, True, False),
        ("GET", Recorded.READS, 404, True, False),
        ("HEAD", Recorded.READS, 200, True, True),
        ("POST", Recorded.CHANGES, 201, True, True),
        ("POST", Recorded.CHANGES, 422, True, True),
        ("POST", Recorded.CHANGES, 500, True, True),
        ("DELETE", Recorded.CHANGES, 0, True, True),
        ("POST", Recorded.REFUSALS, 200, True, False),
        ("POST", Recorded.REFUSALS, 409, True, True),
        ("POST", Recorded.REFUSALS, 401, False, True),
    ],
)
def test_what_is_recorded(method: str, declared: Recorded, status: int, is_admitted: bool, expected: bool) -> None:
    assert is_recorded(declared, method, status, is_admitted=is_admitted) is expected
    assert any(endpoint.recorded is declared for endpoint in ENDPOINTS)


def test_every_change_is_recorded_but_what_listeners_do_all_the_time() -> None:
    spared = [e.path for e in ENDPOINTS if e.method != "GET" and e.recorded is Recorded.REFUSALS]
    assert sorted(path.rpartition("/")[2] for path in spared) == ["heartbeat", "log"]


@pytest.mark.parametrize(
    ("path", "of", "expected"),
    [
        ("/api/v2/workspaces/{workspace}/actions/lock", "workspaces", ("workspaces", "workspace")),
        ("/api/v2/workspaces/{workspace}/relationships/tags", "tags", ("workspaces", "workspace")),
        ("/api/v2/workspaces/{workspace}/vars", "vars", ("vars", "")),
        ("/api/v2/workspaces/{workspace}/vars/{var}", "vars", ("vars", "var")),
        ("/api/v2/organizations/{org}/workspaces", "workspaces", ("workspaces", "")),
        ("/api/v2/organizations/{org}/workspaces/{name}", "workspaces", ("workspaces", "name")),
        ("/api/v2/runs", "runs", ("runs", "")),
        ("/api/v2/state-versions/{state_version}/download", "", ("state-versions", "state_version")),
        ("/api/v2/agent-pools/join", "", ("agent-pools", "")),
        ("/api/v2/listeners/{listener}/runs/{run}", "", ("runs", "run")),
        ("/api/v2/listeners/{listener}/runs/{run}/{artifact}", "", ("runs", "run")),
        ("/api/v2/listeners/{listener}/runs/{run}/{phase}/log", "", ("runs", "run")),
        ("/app/{org}/{workspace_name}/runs/{run}/logs/{phase}", "", ("runs", "run")),
        ("/oauth/token", "", ("oauth", "")),
    ],
)
def test_what_a_path_is_about(path: str, of: str, expected: tuple[str, str]) -> None:
    assert shape(path, of) == expected


def test_every_path_fits_its_columns() -> None:
    for endpoint in ENDPOINTS:
        of = endpoint.resource.type if isinstance(endpoint, Endpoint) and endpoint.resource else ""
        found = shape(endpoint.path, of)
        assert len(endpoint.path) <= 200
        assert 0 < len(found.type) <= 64
        assert "{" not in found.type
        assert isinstance(endpoint, Route)


def test_what_may_be_a_secret_is_not_shown() -> None:
    assert shown("ws-01abc") == "ws-01abc"
    assert shown("ann@example.com") == "ann@example.com"
    assert shown("tpod_abc") == shown("tpodrun_abc") == shown("a b") == shown("x" * 129) == shown("") == ""


def test_refusals_of_one_address_become_an_entry_a_minute() -> None:
    refusals = Refusals(60.0)
    refused = EMPTY._replace(actor_kind="anonymous", status=401, address="203.0.113.1", path="/one")
    written = [
        entry for n in range(300) for entry in refusals.take(refused._replace(id=f"ae-{n}", path="/two"), n / 10)
    ]
    assert [(entry.id, entry.repeats) for entry in written] == [("ae-0", 1)]
    assert refusals.take(refused._replace(address="203.0.113.2"), 30.0) != []
    assert refusals.take(refused._replace(status=429), 30.0) != []
    assert refusals.due(59.9) == []
    assert refusals.next_at == 60.0
    (counted,) = refusals.due(60.0)
    assert (counted.id, counted.repeats) == ("ae-299", 299)
    assert refusals.take(refused, 61.0) == [], "the next minute has begun"
    assert [entry.repeats for entry in refusals.due(200.0)] == [1]
    assert refusals.due(1000.0) == []
    assert refusals.next_at == float("inf"), "who was not refused again is forgotten"


def test_a_network_is_one_address_and_a_user_is_told_by_what_was_refused() -> None:
    refusals = Refusals()
    stranger = EMPTY._replace(actor_kind="anonymous", status=404, address="2001:db8::1")
    assert refusals.take(stranger, 0.0) != []
    assert refusals.take(stranger._replace(address="2001:db8::2"), 0.0) == []
    guessed = stranger._replace(path="/sign-in", resource_type="users", resource_id="user-1")
    assert refusals.take(guessed, 0.0) != [], "an account whose password is guessed is named"
    assert refusals.take(guessed, 0.0) == []
    asked = stranger._replace(path="/api/v2/users/{user}", resource_type="users", resource_id="user-2")
    assert refusals.take(asked, 0.0) == [], "an id in a path is anybody's invention"
    ann = EMPTY._replace(actor_kind="user", actor_id="user-1", status=403, path="/a", resource_id="ws-1")
    assert refusals.take(ann, 0.0) != []
    assert refusals.take(ann, 0.0) == []
    assert refusals.take(ann._replace(resource_id="ws-2"), 0.0) != []
    assert refusals.take(ann._replace(actor_id="user-2"), 0.0) != []
    assert is_refusal(ann)
    assert is_refusal(stranger)
    assert not is_refusal(ann._replace(status=422))
    assert not is_refusal(ann._replace(status=404))
    assert [entry.repeats for entry in refusals.rest()] == [2, 1, 1]


def test_however_many_addresses_are_refused_all_are_counted_in_bounded_memory() -> None:
    refusals = Refusals(60.0, most=100)
    written = []
    for _ in range(2):
        for n in range(1000):
            entry = EMPTY._replace(actor_kind="anonymous", status=401, address=f"10.0.{n // 250}.{n % 250}")
            written += refusals.take(entry, 1.0)
            written += refusals.take(entry, 1.0)
    assert len(refusals._open) == 100
    assert sum(entry.repeats for entry in [*written, *refusals.rest()]) == 4000


def test_seals_depend_on_all_values_and_on_the_entry_before() -> None:
    chain = Chain("c", b"k" * 32)
    one, two = chain.seal(EMPTY), chain.seal(EMPTY)
    assert (one.number, two.number, two.chain) == (1, 2, "c")
    assert mac_of(b"k" * 32, NOTHING, one) == one.mac
    assert mac_of(b"k" * 32, one.mac, two) == two.mac != mac_of(b"k" * 32, NOTHING, two)
    for name in Entry._fields[:-1]:
        value = getattr(one, name)
        other: dict[str, Any] = {name: value + 1 if isinstance(value, int) else value + "x"}
        assert mac_of(b"k" * 32, NOTHING, one._replace(**other)) != one.mac, name


def test_the_file_of_checkpoints_is_trimmed_and_what_cannot_be_read_is_kept(tmp_path: Path) -> None:
    keys = Keys([b"s" * 32], [b"m" * 32])
    ledger = Ledger(keys, tmp_path)
    file = tmp_path / "checkpoints"
    ledger.append(1, "c", 1, NOTHING)
    old = file.read_bytes()
    file.write_bytes(b"what is this\n" + old)
    ledger.append(2, "c", 2, NOTHING)
    ledger.trim("2020")
    assert len(list(lines(file))) == 3
    new = file.read_bytes().splitlines(keepends=True)[-1]
    at = [line.at for line in lines(file) if line][-1]
    ledger.trim(at)
    assert file.read_bytes().endswith(new)
    assert file.read_bytes().startswith(b"what is this\n")
    assert file.stat().st_mode & 0o777 == 0o600
    (unreadable, *found) = lines(file)
    assert unreadable is None
    assert all(line is not None and keys.has_signed(line.signed, line.signature) for line in found)
    assert not Keys([b"x" * 32], [b"m" * 32]).has_signed(found[0].signed if found[0] else b"", new.decode()[:10])
