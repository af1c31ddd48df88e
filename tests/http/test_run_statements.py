"""How many statements it takes to make a run."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kit.serving import Running
from terrapod_server.runs.model import Run

#: What begins and ends the transaction is not in the ORM's log.
TRANSACTION = 2
MOST = 15


class Statements(logging.Handler):
    """What is logged while a request is answered: a task begins with each request, and jobs have begun long before.

    Entries of the audit log are left out: a task of their own writes those of many requests together.
    """

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self._others = asyncio.all_tasks()

    def emit(self, record: logging.LogRecord) -> None:
        if asyncio.current_task() not in self._others and "INTO audit_entry" not in record.getMessage():
            self.texts.append(" ".join(record.getMessage().split())[:150])


@contextmanager
def counted() -> Iterator[list[str]]:
    log, handler = logging.getLogger("tortoise.db_client"), Statements()
    level = log.level
    log.setLevel(logging.DEBUG)
    log.addHandler(handler)
    try:
        yield handler.texts
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


@pytest.mark.parametrize("attributes", [{"plan-only": True}, {}, {"auto-apply": True}])
async def test_a_run_is_made_by_few_statements(server: Running, tmp_path: Path, attributes: dict[str, Any]) -> None:
    await server.listener(tmp_path / "home")
    workspace = (await server.workspace())["id"]
    configuration = (await server.configuration(workspace))["id"]
    for number in range(2):  # one that is queued; another that waits behind it, if it may be applied
        with counted() as statements:
            answer = await server.run(workspace, configuration, message=f"{number}", **attributes)
        assert answer.status_code == 201, answer.text
        assert 8 < len(statements) <= MOST - TRANSACTION, "\n".join(statements)


@pytest.mark.parametrize("attributes", [{"plan-only": True}, {}])
async def test_a_long_queue_costs_no_statement(server: Running, tmp_path: Path, attributes: dict[str, Any]) -> None:
    await server.listener(tmp_path / "home")
    workspace = (await server.workspace())["id"]
    await server.configuration(workspace)
    found: list[str] = []
    for number in range(12):
        with counted() as statements:
            answer = await server.run(workspace, message=f"{number}", **attributes)
        assert answer.status_code == 201, answer.text
        found = statements
    assert 8 < len(found) <= MOST - TRANSACTION, "\n".join(found)
    assert await Run.filter(workspace_id=workspace, status="plan_queued").count() == (12 if attributes else 1)
