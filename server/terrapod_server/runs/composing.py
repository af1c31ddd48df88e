"""Makes the redacted form of plans, each once however many ask for it at the same time."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

from terrapod_server.kit.services import Services
from terrapod_server.kit.work.workers import Died
from terrapod_server.runs import leases, redact
from terrapod_server.runs.model import Phase
from terrapod_server.store.port import once
from terrapod_shared.errors import Invalid

#: A plan and its schemas up to this size together are composed in a thread.
IN_THREAD_MOST = 1 << 20
#: Of so many plans it is remembered that they cannot be shown: it may have taken a minute to find out.
_REFUSED_MOST = 1_000


class Composer:
    """Of one process."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._refused: dict[str, str] = {}

    @classmethod
    def of(cls, services: Services) -> "Composer":
        """The one that this server has."""
        if "composer" not in services.remembered:
            services.remembered["composer"] = cls(services)
        found: Composer = services.remembered["composer"]
        return found

    async def key(self, plan: Phase) -> str:
        """Where the plan's redacted form is in the store. Raises Invalid where it cannot be made."""
        key = leases.artifact_key(plan, "redacted")
        if await self._services.store.exists(key):
            return key
        if why := self._refused.get(plan.id):
            raise Invalid(why)
        task = self._under_way.get(plan.id)
        if task is None:
            task = self._under_way[plan.id] = asyncio.create_task(self._make(plan, key))
            task.add_done_callback(lambda done: self._over(plan.id, done))
        await asyncio.shield(task)
        return key

    def _over(self, plan_id: str, task: asyncio.Task[None]) -> None:
        del self._under_way[plan_id]
        error = None if task.cancelled() else task.exception()  # seen, where nobody waits any more
        if isinstance(error, Invalid):
            self._refused[plan_id] = error.detail
            while len(self._refused) > _REFUSED_MOST:
                del self._refused[next(iter(self._refused))]

    async def _make(self, plan: Phase, key: str) -> None:
        store = self._services.store
        keys = [leases.artifact_key(plan, name) for name in ("plan-json", "schemas") if name in plan.digests]
        try:
            if sum([await store.size(each) for each in keys]) <= IN_THREAD_MOST:
                parts = [await store.whole(each, IN_THREAD_MOST) for each in keys]
                body = await asyncio.to_thread(redact.compose, parts[0], b"".join(parts[1:]))
                await store.put(key, once(body), durable=False)
                return
            documents = [*(store.get(each) for each in keys), once(b"")][:2]
            answer = self._services.workers.run("terrapod_server.runs.redact:composed", *documents)
            async with contextlib.aclosing(answer):
                await store.put(key, _checked(answer), durable=False)
        except (redact.Unreadable, Died) as error:
            what = str(error) if isinstance(error, redact.Unreadable) else f"reading it {error}"
            raise Invalid(f"this plan cannot be shown: {what}") from None


async def _checked(answer: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    """The document. Raises Unreadable where there is none, so that nothing is stored."""
    verdict = await anext(answer)
    if verdict == b"\0":
        async for chunk in answer:
            yield chunk
        return
    raise redact.Unreadable(b"".join([chunk async for chunk in answer]).decode())
