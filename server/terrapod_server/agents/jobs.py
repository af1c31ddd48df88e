"""What the agents room does every so often."""

from terrapod_server.agents import idle
from terrapod_server.agents.auth import NONCE_S
from terrapod_server.kit import database
from terrapod_server.kit.call import Services
from terrapod_server.kit.periodic import Job


async def purge_nonces(_services: Services) -> None:
    if database.is_postgres():  # SQLite has none: its one process remembers them
        old = f"clock_timestamp() - interval '{NONCE_S} seconds'"
        await database.query(
            f"WITH gone AS (DELETE FROM listener_nonce WHERE at < {old} RETURNING 1) SELECT count(*) FROM gone"  # noqa: S608
        )


JOBS = (
    Job("purge nonces", 30, purge_nonces),
    Job("write down idle listeners", 2, idle.write_down, leader=False),
)
