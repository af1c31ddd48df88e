"""The rule alone."""

from typing import Any

import pytest

from terrapod_server.access.rules import Rights, Role, check_lockout, labels, pairs, role_name
from terrapod_server.kit.caller import Level
from terrapod_shared.errors import Conflict

DEV = frozenset({("env", "dev")})


def level(rights: Rights, labels: dict[str, str] | None = None, name: str = "w", owner: str = "user-else") -> Level:
    return rights.level("ws-1", name, labels or {}, owner)


def test_nobody_has_anything_by_being_signed_in() -> None:
    assert level(Rights("user-me")) is Level.NONE
    assert level(Rights("user-me"), {"access": "everyone"}) is Level.READ
    assert level(Rights("user-me"), {"access": "someone"}) is Level.NONE


def test_owners_and_admins_have_all_and_auditors_read() -> None:
    assert level(Rights("user-me"), owner="user-me") is Level.ADMIN
    assert level(Rights(""), owner="") is Level.NONE
    assert level(Rights("user-me", is_admin=True)) is Level.ADMIN
    assert level(Rights("user-me", is_reader=True)) is Level.READ
    assert level(Rights("user-me", is_reader=True), owner="user-me") is Level.ADMIN


def test_the_best_match_wins_and_a_denied_role_takes_nothing_from_others() -> None:
    write = Role("write", Level.WRITE, allow=DEV)
    plan = Role("plan", Level.PLAN, allow_names=frozenset({"app"}))
    admin = Role("admin-but", Level.ADMIN, allow=DEV, deny=frozenset({("tier", "gold")}), deny_names=frozenset({"db"}))
    rights = Rights("user-me", roles=(write, plan, admin))
    assert level(rights, {"env": "dev"}) is Level.ADMIN
    assert level(rights, {"env": "dev", "tier": "gold"}) is Level.WRITE
    assert level(rights, {"env": "dev"}, name="db") is Level.WRITE
    assert level(rights, {"env": "prod"}, name="app") is Level.PLAN
    assert level(rights, {"env": "prod"}) is Level.NONE
    denied = Rights("user-me", roles=(admin,))
    assert level(denied, {"env": "dev", "tier": "gold"}) is Level.NONE
    assert level(denied, {"env": "dev", "tier": "gold", "access": "everyone"}) is Level.READ


def test_a_tokens_limits_lower_and_never_raise() -> None:
    admin = Rights("user-me", is_admin=True, is_read_only=True)
    assert level(admin) is Level.READ
    one = Rights("user-me", is_admin=True, only_workspace="ws-1")
    assert level(one) is Level.ADMIN
    assert one.level("ws-2", "w", {}, "user-me") is Level.NONE
    assert level(Rights("user-me", is_read_only=True, only_workspace="ws-1")) is Level.NONE


def test_a_lockout_has_to_be_confirmed() -> None:
    check_lockout(Level.WRITE, Level.WRITE, force=False)
    check_lockout(Level.ADMIN, Level.NONE, force=True)
    with pytest.raises(Conflict, match="from admin to none"):
        check_lockout(Level.ADMIN, Level.NONE, force=False)


@pytest.mark.parametrize("name", ["admin", "audit", "everyone", "", "a b", "-a", "a" * 64, "ä"])
def test_names_that_no_role_may_have(name: str) -> None:
    with pytest.raises(ValueError, match=r"must be|built in"):
        role_name(name)


def test_conditions_take_a_value_or_a_list() -> None:
    assert pairs({"env": "dev", "team": ["a", "b"]}) == {"env": ["dev"], "team": ["a", "b"]}
    conditions: list[dict[str, Any]] = [{"env": []}, {"env": 3}, {"": "x"}, {"env": [["x"]]}]
    for wrong in conditions:
        with pytest.raises(ValueError, match="must"):
            pairs(wrong)
    with pytest.raises(ValueError, match="comma"):
        labels({"a,b": "c"})
