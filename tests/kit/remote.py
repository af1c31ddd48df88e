"""Runs of a site through its API, without the CLI: their configuration is given as files."""

import time
import uuid
from collections.abc import Callable
from typing import Any

import httpx

from kit import scripted
from kit.serving import pause_s, tar

DATA = dict[str, Any]
WAIT_S = 60.0


class Remote:
    """One workspace of a site."""

    def __init__(self, api: httpx.Client, **attributes: Any) -> None:
        self.api = api
        self.name = f"w-{uuid.uuid4().hex[:10]}"
        attributes = {"name": self.name, "terraform-version": scripted.VERSION, "auto-apply": True, **attributes}
        self.id: str = self.post("organizations/default/workspaces", attributes)["id"]

    def post(self, path: str, attributes: DATA | None = None, **more: Any) -> DATA:
        answer = self.api.post(path, json={"data": {"attributes": attributes or {}, **more}})
        assert answer.status_code < 300, answer.text
        data: DATA = answer.json()["data"]
        return data

    def upload(self, **files: str) -> str:
        """A configuration of these scripts; `plan_sh` is the file `plan.sh`."""
        made = self.post(f"workspaces/{self.id}/configuration-versions", {"auto-queue-runs": False})
        archive = tar({name.replace("_", "."): text.encode() for name, text in {"main_tf": "", **files}.items()})
        assert self.api.put(made["attributes"]["upload-url"], content=archive).status_code == 200
        identity: str = made["id"]
        return identity

    def begin(self, headers: dict[str, str] | None = None, **attributes: Any) -> str:
        """A run of the newest configuration."""
        workspace = {"workspace": {"data": {"type": "workspaces", "id": self.id}}}
        body = {"data": {"attributes": {"message": uuid.uuid4().hex, **attributes}, "relationships": workspace}}
        answer = self.api.post("runs", json=body, headers=headers)
        assert answer.status_code == 201, answer.text
        identity: str = answer.json()["data"]["id"]
        return identity

    def run(self, run: str) -> DATA:
        found: DATA = self.api.get(f"runs/{run}").json()["data"]["attributes"]
        return found

    def workspace(self) -> DATA:
        found: DATA = self.api.get(f"workspaces/{self.id}").json()["data"]["attributes"]
        return found

    def until(self, run: str, *statuses: str) -> DATA:
        """The run, once it has one of these statuses, or is over."""
        over = ("planned_and_finished", "applied", "errored", "discarded", "canceled")
        found: DATA = wait_for(lambda: (now := self.run(run))["status"] in (*statuses, *over) and now)
        assert found["status"] in statuses, (found, self.log(run, "plan"), self.log(run, "apply"))
        return found

    def log(self, run: str, phase: str) -> str:
        url = self.api.get(f"runs/{run}/{phase}").json()["data"]["attributes"]["log-read-url"]
        return self.api.get(url, params={"limit": "4000000"}).text

    def until_logged(self, run: str, phase: str, text: str) -> str:
        found: str = wait_for(lambda: text in (log := self.log(run, phase)) and log)
        return found


def wait_for(ask: Callable[[], Any]) -> Any:
    """What `ask` answers once it is true."""
    begun = time.monotonic()
    while not (found := ask()):
        waited = time.monotonic() - begun
        assert waited < WAIT_S, "it did not come"
        time.sleep(pause_s(waited))
    return found
