"""`Idempotency-Key` on every POST: the first answer is given again, the work is done once."""

import contextlib
import hashlib
from datetime import timedelta

from tortoise.exceptions import IntegrityError

from terrapod_server.kit.api.call import Call
from terrapod_server.kit.model import Repeat
from terrapod_server.kit.services import Services
from terrapod_server.kit.work.periodic import Job
from terrapod_shared import clock
from terrapod_shared.errors import Invalid, UnderWay

HEADER = "idempotency-key"
KEPT = timedelta(hours=24)
_LONGEST = 255
#: Ids of keys whose work was not done, which the database could not be told yet.
_undone: set[str] = set()


class Attempt:
    """One keyed request: `begin` gives an earlier answer, or claims the key; then `end` or `forget`."""

    def __init__(self, call: Call, raw: bytes) -> None:
        key = call.request.headers[HEADER]
        if not 0 < len(key) <= _LONGEST:
            message = f"Idempotency-Key must have 1 to {_LONGEST} characters"
            raise Invalid(message)
        who = call.principal.token_id or call.principal.id
        scope = f"{who}\n{call.request.url.path}\n{key}"
        self._id = hashlib.sha256(scope.encode()).hexdigest()
        self._request = hashlib.sha256(raw).hexdigest()
        self._cipher = call.services.cipher

    async def begin(self) -> tuple[int, bytes] | None:
        """Raises Invalid for another body under the same key, UnderWay until the first has ended."""
        await forget_undone()
        try:
            await Repeat.create(id=self._id, request=self._request)
        except IntegrityError:
            first = await Repeat.get_or_none(id=self._id)
        else:
            return None
        if first is None or first.request != self._request:
            message = "this Idempotency-Key was used for another request"
            raise Invalid(message) from None
        if first.status == 0:
            message = "the first request with this Idempotency-Key is still under way"
            raise UnderWay(message) from None
        return first.status, self._cipher.unseal(first.body, self._id)

    async def end(self, status: int, body: bytes) -> None:
        await Repeat.filter(id=self._id).update(status=status, body=self._cipher.seal(body, self._id))

    async def forget(self) -> None:
        """Nothing was done, so the key may be used again: where the database cannot be told now, as soon as it can."""
        _undone.add(self._id)
        with contextlib.suppress(Exception):  # whoever forgets has failed, and says why
            await forget_undone()


async def forget_undone(_services: Services | None = None) -> None:
    while _undone:
        one = _undone.pop()  # before the statement: a later request may claim the key while it runs
        try:
            await Repeat.filter(id=one).delete()
        except BaseException:
            _undone.add(one)
            raise


async def purge(_services: Services) -> None:
    await Repeat.filter(created_at__lt=clock.now() - KEPT).delete()


JOBS = (Job("purge repeats", 3600, purge), Job("forget repeats", 2, forget_undone))
