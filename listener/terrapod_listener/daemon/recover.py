"""What a person does with a listener's host at hand: its state in words, a drain, a state taken out or pushed."""

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from terrapod_listener.link.client import Server
from terrapod_listener.link.identity import Identity
from terrapod_listener.phase.delivery import is_final
from terrapod_listener.supervise import files, handle, journal, spool, statefile
from terrapod_shared import errors

_LOOK_S = 0.1
_PUSH_S = 600.0
#: A server that is started again is waited for.
_PATIENCE_S = 60.0


def find(home: Path, run_id: str) -> tuple[Path, int, dict[str, Any]] | None:
    """The newest state that this host has of a run, the number of its lease, serial, lineage and md5."""
    for record in journal.records(home):
        if record.folder.name == run_id and record.facts.states:
            number = record.facts.work.lease.number
            places = [*(Path(path) for path in record.facts.states), spool.place(home, run_id, number)]
            if found := statefile.newest(home / "work" / run_id, places):
                return found[0], number, found[1]
    waiting = [facts for facts in spool.spooled(home) if facts["run_id"] == run_id]
    if not waiting:
        return None
    facts = max(waiting, key=lambda each: int(each["number"]))
    return spool.place(home, run_id, facts["number"]), facts["number"], facts


def copy(home: Path, run_id: str, state: Path, target: Path | None) -> None:
    """A state to a new file of mode 0600, or to standard output. Raises OSError. No link that a run has made is followed."""
    work = home / "work" / run_id
    root = work if state.is_relative_to(work) else state.parent
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(statefile.open_below(root, state))
        if target is None:
            shutil.copyfileobj(source, sys.stdout.buffer)
            return
        part = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        stack.callback(part.unlink, missing_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            shutil.copyfileobj(source, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    statefile.sync(target.parent)


def is_under_way(home: Path, run_id: str) -> bool:
    """Whether terraform may still write the run's state."""
    return any(record.folder.name == run_id and handle.is_alive(record.facts) for record in journal.records(home))


def drop(home: Path, run_id: str) -> str:
    """Throws away what this host has of a run that is over: record, work folder, states of the spool; what went.

    Raises NotFound, and Conflict while the run is under way or the listener works on it.
    """
    found = [record for record in journal.records(home) if record.folder.name == run_id]
    spooled = [facts for facts in spool.spooled(home) if facts["run_id"] == run_id]
    for record in found:
        if handle.is_alive(record.facts) or (spool.holder(home) is not None and not record.facts.left):
            raise errors.Conflict(f"{run_id} is still worked on")
    if not found and not spooled:
        raise errors.NotFound(f"this host has nothing of {run_id}")
    size = _size(home / "work" / run_id) if found else 0
    for record in found:
        forget(home, record)
    for facts in spooled:
        spool.drop(spool.place(home, run_id, facts["number"]))
    return f"dropped {run_id}: {size / 1e6:.1f} MB of its folder, {len(spooled)} states of the spool"


def forget(home: Path, record: journal.Record) -> None:
    """Takes the folder of a run away, and then its record. To be called in a thread."""
    files.remove_folder(home / "work" / record.folder.name)
    record.remove()


def _size(folder: Path) -> int:
    """Bytes of the files below, without following links."""
    sizes = [os.lstat(Path(place, name)).st_size for place, _, files in os.walk(folder) for name in files]
    return sum(sizes)


async def push(home: Path, who: Identity, run_id: str) -> str:
    """Sends a state to the server; what came of it. The spool is freed where the server has it. Raises the server's refusal."""
    found = find(home, run_id)
    if found is None:
        raise errors.NotFound(f"this host has no state of {run_id}")
    path, number, mark = found
    server = Server(who)
    try:
        target = server.state_path(run_id, mark)
        answer = await server.persist("PUT", target, file=path, lease=number, timeout_s=_PUSH_S, patience_s=_PATIENCE_S)
    except errors.TerrapodError as error:
        spooled = spool.place(home, run_id, number)
        if path == spooled:
            spool.blame(spooled, error.detail, is_final=is_final(error))
        raise
    finally:
        await server.close()
    if path == spool.place(home, run_id, number):
        await asyncio.to_thread(spool.drop, path)
    aside = answer.status_code == 202  # noqa: PLR2004
    return (
        "the lease is over: the server keeps the state aside, for an administrator to adopt or drop"
        if aside
        else "the server has the state, and it is current"
    )


def drain(home: Path) -> bool:
    """Tells the running listener to take no more work; whether there is one."""
    pid = spool.holder(home)
    if pid is None:
        return False
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if spool.holder(home) != pid:  # it has ended meanwhile: the number may be another's
            return False
        signal.pidfd_send_signal(process, signal.SIGUSR1)
    finally:
        os.close(process)
    return True


def wait_until_gone(home: Path) -> None:
    """Until the listener has left."""
    while spool.holder(home) is not None:
        time.sleep(_LOOK_S)


def lines(home: Path, who: Identity) -> Iterator[str]:
    """What `status` says."""
    mine, pid = who.kept, spool.holder(home)
    about = spool.told(home) if pid else {}
    yield f"listener:    {mine.name} ({mine.listener_id})"
    yield f"server:      {mine.server}"
    yield f"pool:        {mine.pool_id}"
    yield f"certificate: until {who.expires()}{' (over)' if who.is_over() else ''}"
    yield f"process:     {pid}{', draining' * bool(about.get('draining'))}" if pid else "process:     none"
    if about.get("isolation"):
        yield f"isolation:   {about['isolation']}; limits of a run: {about.get('limits', 'none')}"
    if about.get("health"):
        yield f"health:      {about['health']}"
    sizes = [path.stat().st_size for path in (home / "engines").glob("*/*") if path.is_file()]
    yield f"engines:     {sum(sizes) / 1e6:.1f} MB"
    records = journal.records(home)
    left = [record for record in records if not record.facts.left]
    yield f"runs:        {len(left)} under way"
    live = set()
    for record in left:
        work, step = record.facts.work, record.facts.step
        keeper = handle.is_alive(record.facts)
        if keeper:
            live.add(work.run_id)
        yield f"  {work.run_id}: {work.phase}, {step}" + (f", kept by process {record.facts.keeper}" if keeper else "")
    if over := [record for record in records if record.facts.left]:
        yield f"left:        {len(over)} folders of runs that are over"
    for record in over:
        size = _size(home / "work" / record.folder.name) / 1e6
        run_id = record.folder.name
        yield f"  {run_id}: {record.facts.left}; {size:.1f} MB, until terrapod-listener rescue --drop {run_id}"
    waiting = [facts for facts in spool.spooled(home) if facts["run_id"] not in live]
    yield f"spool:       {len(waiting)} states not delivered"
    for facts in waiting:
        why = f": {facts['reason']}" if facts["reason"] else ""
        if facts["is_final"]:
            why += f"; put aside, `terrapod-listener rescue {facts['run_id']} --push` sends it again"
        yield f"  {facts['run_id']}: serial {facts['serial']}, lineage {facts['lineage']}{why}"
