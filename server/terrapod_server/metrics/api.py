"""`/metrics`: what Prometheus may know of this server. Figures of all processes come of the database, the rest are this one's."""

import importlib.metadata
import platform

from starlette.responses import Response

from terrapod_server.agents import ca, depth, pools
from terrapod_server.agents.late import actions as late
from terrapod_server.audit.writer import Writer
from terrapod_server.kit.api.call import Call
from terrapod_server.kit.api.declare import Endpoint, Raw
from terrapod_server.kit.caller import Access
from terrapod_server.kit.db import database
from terrapod_server.kit.http.certificates import end_of
from terrapod_server.runs import actions as runs
from terrapod_server.runs import leases, states
from terrapod_shared.prometheus import MEDIA, Sample, family, process

#: Pools with labels of their own, by name; what is beyond them is one.
POOLS_MOST = 100
_OTHERS = "(others)"


async def show(call: Call) -> Response:
    """Figures in Prometheus' text format; a bearer token of an admin or auditor is needed."""
    lines = [*_build(), *await _runs(), *await _leases(), *await _pools(), *await _late(), *await _certificates(call)]
    lines += await _outbox(call)
    writer = Writer.of(call.services)
    if writer is not None:
        about = "Audit entries that are in memory alone."
        lines += family("terrapod_audit_backlog", "gauge", about, [({}, writer.backlog)])
        about = "1 while audit entries wait in a file, since the database takes none."
        lines += family("terrapod_audit_spooling", "gauge", about, [({}, writer.is_spooling)])
    lines += [*call.services.measured.lines(), *process()]
    return Response("\n".join(lines) + "\n", media_type=MEDIA)


def _build() -> list[str]:
    labels = {"version": importlib.metadata.version("terrapod"), "python": platform.python_version()}
    labels["database"] = database.dialect()
    return list(family("terrapod_build_info", "gauge", "What runs here.", [(labels, 1)]))


async def _outbox(call: Call) -> list[str]:
    found = await call.services.outbox.figures()
    waiting: list[Sample] = [({"outlet": name}, figures[0]) for name, figures in found.items()]
    failed: list[Sample] = [({"outlet": name}, figures[1]) for name, figures in found.items()]
    return [
        *family("terrapod_outbox_waiting", "gauge", "Events that an outlet has not got yet.", waiting),
        *family(
            "terrapod_outbox_failed", "gauge", "Events that an outlet did not take, and that were given up.", failed
        ),
    ]


async def _runs() -> list[str]:
    found = await runs.count_unfinished()
    samples: list[Sample] = [({"status": s.value}, found.get(s.value, 0)) for s in sorted(states.UNFINISHED)]
    return list(family("terrapod_runs", "gauge", "Runs that are not over.", samples))


async def _leases() -> list[str]:
    found = await leases.count()
    samples: list[Sample] = [
        ({"phase": kind, "state": state}, found.get((kind, state), 0))
        for kind in ("plan", "apply")
        for state in ("offered", "leased", "held")
    ]
    return list(family("terrapod_leases", "gauge", "Phases at listeners; held: its listener is lost.", samples))


async def _pools() -> list[str]:
    found = await depth.of()
    names = await pools.names(POOLS_MOST)
    summed: dict[str, list[float]] = {name: [0.0] * len(_FIGURES) for name in names.values()}
    for pool_id, each in found.items():
        figures = summed.setdefault(names.get(pool_id, _OTHERS), [0.0] * len(_FIGURES))
        for place, (column, _, _) in enumerate(_FIGURES):
            value = float(getattr(each, column))
            figures[place] = max(figures[place], value) if column == "oldest_s" else figures[place] + value
    return [
        line
        for place, (_, name, about) in enumerate(_FIGURES)
        for line in family(name, "gauge", about, [({"pool": pool}, figures[place]) for pool, figures in summed.items()])
    ]


_FIGURES = (
    ("waiting", "terrapod_pool_queue_depth", "Phases that wait for a listener, plan-only ones included."),
    ("oldest_s", "terrapod_pool_queue_oldest_seconds", "How long the oldest of them has waited."),
    ("running", "terrapod_pool_running", "Phases at listeners."),
    ("held", "terrapod_pool_held", "Applies whose listener is lost."),
    ("listeners", "terrapod_pool_listeners_online", "Listeners that are there."),
    ("slots", "terrapod_pool_slots", "Runs at once of those that take work."),
    ("free", "terrapod_pool_slots_free", "Of the slots, those not in use."),
)


async def _late() -> list[str]:
    count = await late.waiting_count()
    return list(family("terrapod_late_states", "gauge", "Late states that wait for an admin's word.", [({}, count)]))


async def _certificates(call: Call) -> list[str]:
    certificate = call.services.certificate
    ends: list[Sample] = [({"certificate": "server"}, certificate.ends_at)] if certificate else []
    ends += [({"certificate": "listeners"}, end_of(each)) for each in await ca.certificates()]
    name, about = (
        "terrapod_certificate_expiry_timestamp_seconds",
        "Ends of the server's and of the listeners' authority.",
    )
    lines = list(family(name, "gauge", about, ends))
    if certificate:
        about = "1 while the certificate's files cannot be used, so that the earlier one stays."
        lines += family("terrapod_certificate_refused", "gauge", about, [({}, certificate.is_refused)])
    return lines


ENDPOINTS: tuple[Endpoint | Raw, ...] = (Raw("GET", "/metrics", show, Access.AUDIT, gives="text/plain"),)
