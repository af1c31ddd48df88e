"""Reading the log by pages, and taking out what is older than retention."""

import time
from collections.abc import Mapping
from datetime import datetime, timedelta

import msgspec

from terrapod_server.audit.chain_heads import Head, Heads, Ledger
from terrapod_server.audit.model import AuditEntry
from terrapod_server.kit.db import database
from terrapod_server.kit.db.conditions import Where
from terrapod_server.kit.paging import PageRequest, Rows
from terrapod_shared import clock, ids

#: So many entries go in one transaction.
_PURGED = 2_000
#: What is older is in the table, but for what waits in a spool.
_SETTLED = timedelta(minutes=1)
_REMEMBERED_S = 30.0
_CONDITIONS = 100
_FILTERED = {"actor": "actor", "resource_type": "resource_type", "action": "action"}


def since(at: datetime) -> str:
    """The id that entries from that time on do not sort before: ids are ordered by time."""
    return ids.first_at("ae", int(at.timestamp() * 1000))


class Counts:
    """How many entries a condition finds, exactly, without counting a million for each page.

    Entries are only ever added at the end, so what is older than a minute is
    counted once and remembered for half of one; the rest is counted each time.
    What retention removes meanwhile, or a spool brings in late, shows after that.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[Where, str], tuple[float, str, int]] = {}

    async def total(self, where: Where, least: str) -> int:
        """Of those from the id `least` on."""
        until_s, boundary, count = self._known.get((where, least), (0.0, "", 0))
        if until_s < time.monotonic():
            boundary = since(clock.now() - _SETTLED)
            count = await _count(where & Where("id >= $1 AND id < $2", (least, boundary)))
            if len(self._known) >= _CONDITIONS:
                self._known.clear()
            self._known[where, least] = (time.monotonic() + _REMEMBERED_S, boundary, count)
        return count + await _count(where & Where("id >= $1", (max(least, boundary),)))


async def _count(where: Where) -> int:
    return int((await database.rows(f"SELECT count(*) FROM audit_entry WHERE {where.sql}", where.values))[0][0])  # noqa: S608


async def page(
    wanted: PageRequest,
    counts: Counts,
    equal: Mapping[str, str],
    after: datetime | None = None,
    until: datetime | None = None,
) -> Rows:
    """A page, newest first. `equal` has values by `actor`, `resource_type` and `action`.

    A page far back is reached over the index alone, and from the nearer end.
    """
    where = Where()
    for name, value in equal.items():
        where &= Where(f"{_FILTERED[name]} = $1", (value,))
    least = "" if after is None else since(after)
    if until is not None:
        where &= Where("id < $1", (since(until),))
    total = await counts.total(where, least)
    count = min(wanted.size, total - wanted.offset)
    if count <= 0:
        return Rows([], total)
    behind = total - wanted.offset - count
    # from the newest on as many as were asked for: others may have come since they were counted
    order, offset, limit = ("DESC", wanted.offset, wanted.size) if wanted.offset <= behind else ("ASC", behind, count)
    where &= Where("id >= $1", (least,))
    keys = await database.rows(
        f"SELECT id FROM audit_entry WHERE {where.sql} ORDER BY id {order} LIMIT {limit} OFFSET {offset}",  # noqa: S608
        where.values,
    )
    found = await AuditEntry.filter(id__in=[row[0] for row in keys]).order_by("-id")
    return Rows(found, max(total, wanted.offset + len(found)))


async def purge(ledger: Ledger, keep: timedelta, own: str) -> int:
    """Takes out what is older; how many entries. Each step is a signed checkpoint in the same transaction.

    A chain of which nothing is left, and that is not this process' `own`, is
    listed no longer.
    """
    before = clock.now() - keep
    removed = 0
    for chain in list((await ledger.newest()).chains):
        while count := await _purge_some(ledger, chain, since(before)):
            removed += count
    heads = await ledger.newest()
    over = [chain for chain, head in heads.chains.items() if head.floor == head.number and chain != own]
    if over:

        def without(heads: Heads) -> Heads:
            # not `before`: the last line about a chain in the checkpoint file may be younger than its last entry
            left = {
                chain: head for chain, head in heads.chains.items() if chain not in over or head.floor != head.number
            }
            return msgspec.structs.replace(heads, chains=left, purged_until=clock.stamp(clock.now()))

        await ledger.amend(without)
    return removed


async def _purge_some(ledger: Ledger, chain: str, until: str) -> int:
    """The chain's oldest entries, as many as go at once and as a checkpoint has named."""
    head = (await ledger.newest()).chains[chain]
    rows = await database.rows(
        "SELECT number, mac, id FROM audit_entry WHERE chain = $1 AND number > $2 AND number <= $3 ORDER BY number LIMIT $4",
        [chain, head.floor, head.number, _PURGED],
    )
    count = next((place for place, row in enumerate(rows) if row[2] >= until), len(rows))
    if not count:
        return 0
    floor, mac = int(rows[count - 1][0]), str(rows[count - 1][1])

    def raised(heads: Heads) -> Heads:
        now: Head = heads.chains[chain]
        lifted = msgspec.structs.replace(now, floor=floor, floor_mac=mac) if now.floor < floor else now
        return msgspec.structs.replace(heads, chains={**heads.chains, chain: lifted})

    await ledger.amend(raised, AuditEntry.filter(chain=chain, number__lte=floor).delete)
    return count
