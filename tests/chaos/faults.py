"""What can happen to a running site. Each fault is over, and healed, when its coroutine returns.

All that is random in a fault was drawn before (`Plan`), so a seed gives the
same faults again; what they meet depends on the machine's own timing.
"""

import asyncio
import contextlib
import functools
import os
import random
import signal
import ssl
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from chaos import hostile
from chaos.proxy import stranger
from chaos.world import FAKETIME, Host, Program, World

#: What the journal of an apply goes through; a fault may wait for any of these.
STEPS = ("offered", "accepted", "apply", "spooled", "acknowledged")
#: No more than this is waited for a step: it may not come to this host.
_STEP_S = 20.0
#: Connections that are given up at once, and how long their client is patient.
_GIVEN_UP, _PATIENCE_S = 300, 30.0
#: A server that is asked to stop lets requests end for 30 s.
_STOP_S = 90.0
Found = TypeVar("Found")


@dataclass(frozen=True)
class Plan:
    """A fault to come: `pause_s` after the one before, on one of the hosts, `long_s` long, `delay_s` until a restart."""

    number: int
    kind: str
    host: int
    pause_s: float
    long_s: float
    delay_s: float
    step: str
    shift_s: int

    def __str__(self) -> str:
        more = {"step": self.step, "clock": f"{self.shift_s:+d} s"}.get(self.kind.partition(" ")[0], "")
        return (
            f"{self.number:3d} {self.kind} {more} host-{self.host} {self.long_s:.1f} s, back after {self.delay_s:.1f} s"
        )


async def server_killed(world: World, plan: Plan) -> None:
    async with world.server_busy:
        world.server.kill()
        await asyncio.sleep(plan.delay_s)
        async with world.database_busy:  # a server that finds no database at its start ends, and so leaves the game
            world.server.start()
            await world.ready()


async def server_paused(world: World, plan: Plan) -> None:
    async with world.server_busy:
        world.server.signal(signal.SIGSTOP)
        await asyncio.sleep(plan.long_s)
        world.server.signal(signal.SIGCONT)


async def server_clock(world: World, plan: Plan) -> None:
    world.server.shift_s = plan.shift_s
    await server_killed(world, plan)
    await asyncio.sleep(plan.long_s)
    world.server.shift_s = 0
    await server_killed(world, plan)


async def database_killed(world: World, plan: Plan) -> None:
    async with world.database_busy:
        await asyncio.to_thread(world.postgres.kill)
        await asyncio.sleep(plan.delay_s)
        await asyncio.to_thread(world.postgres.start)


async def _seen(look: Callable[[], Found]) -> Found:
    """What `look` finds once that is something; what it found at last where it does not come in time."""
    until = asyncio.get_running_loop().time() + _STEP_S
    while not (found := look()) and asyncio.get_running_loop().time() < until:
        await asyncio.sleep(0.003)
    return found


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def _back(host: Host, plan: Plan) -> None:
    await asyncio.sleep(plan.delay_s)
    host.program.start()


async def listener_killed(world: World, plan: Plan) -> None:
    """As a bug or the kernel would end it: what works for it goes on."""
    host = world.hosts[plan.host]
    async with host.busy:
        host.program.kill()
        await _back(host, plan)


async def step_killed(world: World, plan: Plan) -> None:
    """Killed as soon as an apply comes to one step."""
    host = world.hosts[plan.host]
    async with host.busy:
        await _seen(lambda: any(step == plan.step for _, step in host.steps()))
        host.program.kill()
        await _back(host, plan)


async def host_lost(world: World, plan: Plan) -> None:
    """As a power cut would: everything of the host ends at once."""
    host = world.hosts[plan.host]
    async with host.busy:
        everything = host.everything()
        world.hit |= host.runs_of(host.engines())
        _kill(everything)
        if host.program.process:
            host.program.process.wait(30)
        await _back(host, plan)


async def engine_killed(world: World, plan: Plan) -> None:
    """terraform alone, in the middle of an apply, where one is under way."""
    host = world.hosts[plan.host]
    async with host.busy:
        engines = await _seen(host.engines)
        world.hit |= host.runs_of(engines)
        _kill(engines)


async def keeper_killed(world: World, plan: Plan) -> None:
    """What keeps an apply, where one is under way: terraform is interrupted by that and saves its state."""
    host = world.hosts[plan.host]
    async with host.busy:
        _kill(await _seen(host.keepers))


async def listener_paused(world: World, plan: Plan) -> None:
    host = world.hosts[plan.host]
    async with host.busy:
        host.program.signal(signal.SIGSTOP)
        await asyncio.sleep(plan.long_s)
        host.program.signal(signal.SIGCONT)


async def listener_clock(world: World, plan: Plan) -> None:
    host = world.hosts[plan.host]
    async with host.busy:
        host.program.shift_s = plan.shift_s
        host.program.kill()
        await _back(host, plan)
        await asyncio.sleep(plan.long_s)
        host.program.shift_s = 0
        host.program.kill()
        await _back(host, plan)


async def network_cut(world: World, plan: Plan) -> None:
    proxy = world.hosts[plan.host].proxy
    proxy.become("cut")
    await asyncio.sleep(plan.long_s)
    proxy.become("fair")


async def network_hole(world: World, plan: Plan) -> None:
    """Nothing comes through, and nobody is told."""
    proxy = world.hosts[plan.host].proxy
    proxy.become("hole")
    await asyncio.sleep(plan.long_s)
    proxy.become("fair")


async def network_slow(world: World, plan: Plan) -> None:
    proxy = world.hosts[plan.host].proxy
    proxy.delay_s = plan.delay_s / 10
    await asyncio.sleep(plan.long_s)
    proxy.delay_s = 0.0


async def disk_full(world: World, plan: Plan) -> None:
    host = world.hosts[plan.host]
    filler = host.home / "filler"
    async with host.busy:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(1 << 16)):
                pass
        await asyncio.sleep(plan.long_s)
        filler.unlink(missing_ok=True)


async def proxy_answers(world: World, plan: Plan, status: int) -> None:
    """What stands in front of the server answers in its place, as an ingress does whose server is not there."""
    proxy = world.hosts[plan.host].proxy
    async with world.server_busy, stranger(world.own_tls(), status) as port:  # else targets would change meanwhile
        proxy.lead_to(port)
        await asyncio.sleep(plan.long_s)
        proxy.lead_to(world.port)


async def connections_given_up(world: World, _plan: Plan) -> None:
    """Hundreds of TLS connections at once, with a request and without, and their client is gone."""
    anybody = ssl.create_default_context()
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE

    async def give_up(number: int) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                reader, writer = await asyncio.open_connection("127.0.0.1", world.port, ssl=anybody)
                if number % 3:
                    writer.write(b"GET /api/v2/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")
                if number % 3 == 1:
                    await reader.read(1 << 10)
                writer.transport.abort()

    await asyncio.gather(*map(give_up, range(_GIVEN_UP)))


async def servers_restarted(world: World, plan: Plan) -> None:
    """Two servers, each asked to stop and started again while the other serves."""
    async with world.server_busy, world.database_busy, world.two_servers() as second:
        for program, port in ((world.server, world.port), (second, world.second_port)):
            await _asked_to_stop(world, program)
            program.start()
            await world.ready(program, port)
            await asyncio.sleep(plan.delay_s)
        await _asked_to_stop(world, second)


async def _asked_to_stop(world: World, program: Program) -> None:
    program.signal(signal.SIGTERM)
    assert program.process
    code = await asyncio.to_thread(program.process.wait, _STOP_S)
    if code:
        world.wrong.append(f"{program.name} was asked to stop, and ended with {code}")


async def documents_hostile(world: World, plan: Plan) -> None:
    async with world.server_busy, world.database_busy:  # whatever happens to the server now is of its own making
        await world.ready()
        await hostile.upload(world, plan.number)


Fault = Callable[[World, Plan], Awaitable[None]]
KINDS: dict[str, Fault] = {
    "server killed": server_killed,
    "server paused": server_paused,
    "clock of the server": server_clock,
    "database killed": database_killed,
    "listener killed": listener_killed,
    "step: listener killed": step_killed,
    "host lost": host_lost,
    "engine killed": engine_killed,
    "keeper killed": keeper_killed,
    "listener paused": listener_paused,
    "clock of a listener": listener_clock,
    "network cut": network_cut,
    "network swallows": network_hole,
    "network slow": network_slow,
    "disk full": disk_full,
    "proxy answers 404": functools.partial(proxy_answers, status=404),
    "proxy answers 502": functools.partial(proxy_answers, status=502),
    "connections given up": connections_given_up,
    "servers restarted in turn": servers_restarted,
    "documents hostile": documents_hostile,
}
#: How often each is drawn; the others once.
_WEIGHTS = {"listener killed": 3, "step: listener killed": 5, "network cut": 3, "server killed": 2, "host lost": 2}


def left_out(world: World) -> dict[str, str]:
    """Kinds that cannot be had on this machine, and why."""
    missing: dict[str, str] = {}
    if not FAKETIME.exists():
        missing |= {kind: "libfaketime is not installed" for kind in KINDS if kind.startswith("clock")}
    if not all(host.is_mounted for host in world.hosts):
        missing["disk full"] = "no tmpfs may be mounted"
    return missing


def draw(seed: int, count: int, hosts: int, without: set[str], longest_s: float) -> list[Plan]:
    """The same for the same arguments. The first ones go through every kind and every step once."""
    source = random.Random(seed)
    kinds = [kind for kind in KINDS if kind not in without]
    first = [*kinds, *(["step: listener killed"] * (len(STEPS) - 1))]
    source.shuffle(first)
    weights = [_WEIGHTS.get(kind, 1) for kind in kinds]
    steps = list(STEPS)
    source.shuffle(steps)
    plans = []
    for number in range(1, count + 1):
        kind = first[number - 1] if number <= len(first) else source.choices(kinds, weights)[0]
        step = steps.pop() if kind.startswith("step") and steps else source.choice(STEPS)
        plans.append(
            Plan(
                number=number, kind=kind, host=source.randrange(hosts), pause_s=source.uniform(0.2, 4.0),
                long_s=min(longest_s, source.choice((1.0, 3.0, 8.0, 20.0, 50.0)) * source.uniform(0.5, 1.2)),
                delay_s=min(longest_s, source.choice((0.0, 0.5, 3.0, 10.0))), step=step,
                shift_s=source.choice((-600, -90, -30, 30, 90, 600)),
            )
        )  # fmt: skip
    return plans
