"""What is over is removed: sessions, and secrets that nobody came back with."""

from terrapod_server.identity import onetime, sessions
from terrapod_server.kit.services import Services
from terrapod_server.kit.work.periodic import Job


async def purge(_services: Services) -> None:
    await sessions.purge()
    await onetime.purge()


JOBS = (Job("purge sessions", 600, purge),)
