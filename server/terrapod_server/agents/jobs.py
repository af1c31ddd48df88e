"""What the agents room does every so often."""

from datetime import timedelta

from terrapod_server.agents.auth import NONCE_S
from terrapod_server.agents.model import Nonce
from terrapod_server.kit.call import Services
from terrapod_server.kit.periodic import Job
from terrapod_shared import clock


async def purge_nonces(_services: Services) -> None:
    await Nonce.filter(at__lt=clock.now() - timedelta(seconds=NONCE_S)).delete()


JOBS = (Job("purge nonces", 30, purge_nonces),)
