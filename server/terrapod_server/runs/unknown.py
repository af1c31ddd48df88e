"""What people read of an apply whose state is unknown. Pure.

Such an apply has ended, and what it has made may be in no state: its listener
was given up, its terraform was killed, or its state did not arrive. Its run
keeps the workspace's lock, so that the next run does not make everything a
second time.
"""

_WHY_MOST = 400
#: Of the column `lock_reason`, which holds the same kind of text.
REASON_MOST = 1024


def way_out(workspace: str) -> str:
    """What an admin does about it."""
    return (
        "Compare the state with what is really there. Adopt the state that its listener delivers after all (terrapod states late "
        f"{workspace}), or correct the state yourself: lock the workspace, terraform state push or import, unlock. Then let "
        f"the next run go: terrapod workspaces unlock {workspace} --force"
    )


def lock_reason(run_id: str, workspace: str, why: str) -> str:
    """For `lock-reason`: what happened, and what to check."""
    short = why if len(why) <= _WHY_MOST else f"{why[:_WHY_MOST]}..."
    return f"the state is unknown after the apply of {run_id}: {short}. {way_out(workspace)}"[:REASON_MOST]


def error_message(workspace: str, why: str) -> str:
    """For the run that has ended so."""
    return f"{why}\n\nThe workspace stays locked by this run, since its state is unknown. {way_out(workspace)}"
