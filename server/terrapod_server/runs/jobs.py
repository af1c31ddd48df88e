"""What the runs room does every so often."""

from terrapod_server.kit.periodic import Job
from terrapod_server.runs import logs, queue

JOBS = (Job("sweep leases", 2, queue.sweep), Job("seal logs", 30, logs.seal_left))
