"""When a listener says that it is ready, and which settings of its port are refused."""

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from terrapod_listener import config
from terrapod_listener.daemon.status import Facts, Observer
from terrapod_listener.link.client import Server
from terrapod_listener.link.identity import Identity, Kept
from terrapod_listener.supervise import spool

ME = Kept(
    server="https://x", name="n", listener_id="l", pool_id="p", key="", sealing_key="", certificate="", server_key=""
)


async def ready(tmp_path: Path, *, ago_s: float | None, draining: bool = False, **settings: Any) -> tuple[int, Any]:
    """Status and checks of a listener that heard its server so long ago."""
    server = Server(Identity(ME, tmp_path))
    server.standing.heard_at = None if ago_s is None else time.monotonic() - ago_s
    facts = Facts(phases=[], live=set(), is_draining=draining, server=server)
    answer = await Observer(tmp_path, config.Config(**settings), lambda: facts).answer("/ready")
    await server.close()
    assert answer is not None
    return answer.status, msgspec.json.decode(answer.body)["checks"]


async def test_ready_is_who_heard_its_server_within_a_lease_and_takes_work(tmp_path: Path) -> None:
    silent = "it has not answered"
    assert await ready(tmp_path, ago_s=39) == (200, {"server": "ok", "work": "ok"})
    assert await ready(tmp_path, ago_s=41) == (503, {"server": silent, "work": "ok"})
    assert await ready(tmp_path, ago_s=None) == (503, {"server": silent, "work": "ok"})
    assert await ready(tmp_path, ago_s=0, draining=True) == (503, {"server": "ok", "work": "draining"})
    assert (await ready(tmp_path, ago_s=65, poll_s=60.0))[0] == 200  # its long poll takes that long by itself
    assert (await ready(tmp_path, ago_s=71, poll_s=60.0))[0] == 503


def test_what_waits_is_counted_without_being_opened(tmp_path: Path) -> None:
    for run, number in (("run-a", 1), ("run-a", 2), ("run-b", 1)):
        place = spool.place(tmp_path, run, number)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.mkdir()  # nobody could read it
        place.with_suffix(".json").touch()
    assert spool.count(tmp_path, set()) == 3
    assert spool.count(tmp_path, {"run-a"}) == 1
    assert spool.count(tmp_path / "none", set()) == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.9.9.9"])
def test_the_port_is_on_loopback(tmp_path: Path, host: str) -> None:
    assert config.load(tmp_path, {"TERRAPOD_LISTENER_HEALTH_HOST": host}).health_host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1"])
def test_another_address_is_refused_unless_it_is_asked_for(tmp_path: Path, host: str) -> None:
    with pytest.raises(config.Mistakes) as mistakes:
        config.load(tmp_path, {"TERRAPOD_LISTENER_HEALTH_HOST": host, "TERRAPOD_LISTENER_HEALTH_PORT": "70000"})
    assert mistakes.value.lines == [
        "health_port: must be between 0 and 65535",
        f"health_host: {host} is not loopback: others could read it; health_public = true allows that",
    ]
    allowed = {"TERRAPOD_LISTENER_HEALTH_HOST": host, "TERRAPOD_LISTENER_HEALTH_PUBLIC": "true"}
    assert config.load(tmp_path, allowed).health_host == host


def test_an_address_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(config.Mistakes, match=r"health_host: 'example\.org' is no address"):
        config.load(tmp_path, {"TERRAPOD_LISTENER_HEALTH_HOST": "example.org"})
