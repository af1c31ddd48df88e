"""What the runs room does every so often."""

from terrapod_server.kit.work.periodic import Job
from terrapod_server.runs import deleted, engines, leases, logs

#: Each server process does them, since a leader that is paused would keep the others from it: what they do, they do
#: by guarded statements, and a log that two of them seal is the same twice.
JOBS = (
    Job("sweep leases", 2, leases.sweep, leader=False),
    Job("settle engines", 5, engines.settle_waiting, leader=False),
    Job("seal logs", 30, logs.seal_left, leader=False),
    Job("clear deleted workspaces", 5, deleted.sweep),
)
