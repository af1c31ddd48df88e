from functools import partial
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from terrapod_server.kit.http.connections import Room, Terms


def room(most: int = 100, each: int = 100, exempt: str = "127.0.0.1") -> Room:
    return Room(Terms(most=most, most_per_address=each, is_exempt=lambda address: address == exempt))


def enter(of: Room, address: str, closed: list[str], name: str) -> Any:
    place = of.enter(address)
    if place is not None:
        place.close = lambda: closed.append(name)
    return place


def test_the_one_that_is_idle_longest_goes_first() -> None:
    closed: list[str] = []
    of = room(most=3)
    first, second, _third = (enter(of, f"10.0.0.{n}", closed, str(n)) for n in range(3))
    of.work(first)
    assert enter(of, "10.0.0.3", closed, "3") is not None
    assert closed == ["1"], "the oldest one has a request under way"
    of.rest(first)
    for n in range(4, 7):
        enter(of, "10.0.0.9", closed, str(n))
    assert closed == ["1", "2", "3", "0"], "it has been idle for the shortest time"
    of.rest(second)  # it is over, whatever is still heard of it
    of.leave(second)
    assert len(of) == 3


def test_where_all_are_at_work_the_new_one_is_refused() -> None:
    closed: list[str] = []
    of = room(most=2)
    places = [enter(of, "10.0.0.1", closed, str(n)) for n in range(2)]
    for place in places:
        of.work(place)
    assert enter(of, "10.0.0.2", closed, "x") is None
    of.leave(places[0])
    assert enter(of, "10.0.0.2", closed, "x") is not None
    assert closed == []


def test_one_address_takes_nothing_from_others() -> None:
    closed: list[str] = []
    of = room(most=10, each=2)
    enter(of, "10.0.0.1", closed, "other")
    for n in range(5):
        assert enter(of, f"2001:db8::{n}", closed, str(n)) is not None, "a network is one address"
    assert closed == ["0", "1", "2"]
    for n in range(5):
        assert enter(of, "127.0.0.1", closed, f"proxy {n}") is not None
    assert closed == ["0", "1", "2"]
    assert len(of) == 8


@given(st.lists(st.tuples(st.sampled_from("ewrl"), st.integers(0, 5)), max_size=60))
def test_what_is_counted_is_what_is_there(steps: list[tuple[str, int]]) -> None:
    of, there = room(most=4, each=2), list[Any]()
    for what, n in steps:
        if what == "e":
            place = of.enter(f"10.0.0.{n % 3}")
            if place is not None:
                there.append(place)
                place.close = partial(there.remove, place)
        elif there:
            place = there[n % len(there)]
            {"w": of.work, "r": of.rest, "l": of.leave}[what](place)
            if what == "l":
                there.remove(place)
        assert len(of) == len(there) <= 4
