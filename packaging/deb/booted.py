"""What `prove.py --boot` does inside of a booted system: the services under a real systemd, with all that their units forbid."""

import gzip
import io
import json
import shutil
import subprocess
import sys
import tarfile
import time
import traceback
import urllib.request
from pathlib import Path
from typing import Any

import prove

from kit import scripted

RESULT = Path("/proof/result")
HOME = Path("/var/lib/terrapod-listener")
BASE = "http://127.0.0.1:8443/api/v2/"
DROP_IN = Path("/etc/systemd/system/terrapod-listener.service.d/bubblewrap.conf")


def run(*argv: str, user: str = "", check: bool = True) -> str:
    """What a command printed; as `user`. Raises Wrong where it fails."""
    before = ["runuser", "-u", user, "--"] if user else []
    done = subprocess.run([*before, *argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode and check:
        message = f"{argv}: {done.returncode}\n{done.stdout}"
        raise prove.Wrong(message)
    return done.stdout.strip()


def shown(unit: str, name: str) -> str:
    return run("systemctl", "show", "--value", "--property", name, unit)


class Api:
    """Calls of an administrator."""

    def __init__(self, token: str) -> None:
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/vnd.api+json"}

    def call(self, path: str, attributes: dict[str, Any] | None = None, **more: Any) -> Any:
        body = None if attributes is None else json.dumps({"data": {"attributes": attributes, **more}}).encode()
        with urllib.request.urlopen(urllib.request.Request(BASE + path, body, self._headers), timeout=30) as got:
            return json.load(got)["data"]

    def begin(self, workspace: str, **files: str) -> str:
        """A run of these scripts; its id."""
        made = self.call(f"workspaces/{workspace}/configuration-versions", {"auto-queue-runs": False})
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, text in {"main_tf": "", **files}.items():
                entry = tarfile.TarInfo(name.replace("_", "."))
                entry.size = len(text)
                archive.addfile(entry, io.BytesIO(text.encode()))
        upload = urllib.request.Request(
            made["attributes"]["upload-url"], gzip.compress(buffer.getvalue()), method="PUT"
        )
        urllib.request.urlopen(upload, timeout=30).close()
        related = {"workspace": {"data": {"type": "workspaces", "id": workspace}}}
        return str(self.call("runs", {"message": str(time.time())}, relationships=related)["id"])

    def reaches(self, run_id: str, *wanted: str) -> str:
        """Waits until a run has one of these states. Raises Wrong, with the logs, where it ends in another."""
        until = time.monotonic() + prove.WAIT_S
        while (status := self.call(f"runs/{run_id}")["attributes"]["status"]) not in wanted:
            if time.monotonic() > until or status in ("errored", "canceled"):
                logs = [self.log(run_id, phase) for phase in ("plan", "apply")]
                message = f"{run_id} is {status} and not {wanted}:\n{''.join(logs)}"
                raise prove.Wrong(message)
            time.sleep(0.1)
        return str(status)

    def log(self, run_id: str, phase: str) -> str:
        url = self.call(f"runs/{run_id}/{phase}")["attributes"]["log-read-url"]
        with urllib.request.urlopen(url, timeout=30) as got:
            return str(got.read().decode("utf-8", "replace"))


def started() -> Api:
    """Both services, with an engine of the host's owner."""
    for folder in (HOME, Path("/var/lib/terrapod")):  # of an earlier proof
        shutil.rmtree(folder, ignore_errors=True)
    run("dpkg", "-i", "/proof/terrapod.deb")
    for unit in ("terrapod-server", "terrapod-listener"):
        if run("systemctl", "is-active", unit, check=False) != "inactive":
            message = f"the installation has started {unit}"
            raise prove.Wrong(message)
    refused = run("systemctl", "start", "terrapod-listener", check=False)
    if "Assertion failed" not in refused:
        message = f"who has not joined is not refused: {refused}"
        raise prove.Wrong(message)
    prove.say("who has not joined is told so")
    run("systemctl", "start", "terrapod-server")
    prove.say(f"terrapod-server: {shown('terrapod-server', 'StatusText')}")
    token = run(*prove.TOKEN, user="terrapod").split()[-1]
    program = scripted.program(Path("/usr/local/lib/scripted"))
    settings = HOME / "listener.toml"
    settings.write_text(
        f'poll_s = 2.0\n[[engines]]\ntool = "terraform"\nversion = "{scripted.VERSION}"\npath = "{program}"\n'
    )
    argv = ("terrapod-listener", "join", "--server", "http://127.0.0.1:8443", "--name", "proof")
    run(*argv, "--token", prove.join_token(token), user="terrapod-listener")
    run("systemctl", "start", "terrapod-listener")
    prove.ready(9846)
    prove.say(f"terrapod-listener: {shown('terrapod-listener', 'StatusText')}")
    return Api(token)


def outlived(api: Api, workspace: str) -> None:
    """The listener is killed while it applies: systemd starts it again, and the apply was never interrupted."""
    apply = (
        "echo $$ > /tmp/begun; until [ -e /tmp/go ]; do sleep 0.1; done; touch /tmp/after || exit 1\n"
        'mkdir -p "$(dirname "$STATE")"; echo "{\\"version\\": 4, \\"terraform_version\\": \\"0.0.1\\", \\"serial\\": 1, \\"lineage\\": \\"a\\", '
        '\\"outputs\\": {}, \\"resources\\": []}" > $STATE\n'
    )
    run_id, tmp = api.begin(workspace, apply_sh=apply), HOME / "tmp"
    prove.wait_for((tmp / "begun").exists)
    before, engine = shown("terrapod-listener", "MainPID"), (tmp / "begun").read_text().strip()
    run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "terrapod-listener")
    prove.wait_for(lambda: shown("terrapod-listener", "MainPID") not in ("0", before))
    prove.wait_for(lambda: shown("terrapod-listener", "ActiveState") == "active")
    if not Path("/proc", engine).exists():
        message = "terraform did not outlive its listener"
        raise prove.Wrong(message)
    (tmp / "go").touch()
    api.reaches(run_id, "applied")
    prove.say("an apply outlived its listener, and the next one has delivered its state")


def isolation() -> str:
    """What the listener says of itself."""
    lines = run("terrapod-listener", "status", user="terrapod-listener").splitlines()
    return next(line.split()[1].rstrip(";") for line in lines if line.startswith("isolation:"))


def boxed(api: Api, workspace: str) -> None:
    """Runs are put into a bubblewrap with the drop-in, and only then."""
    if (found := isolation()) != "none":
        message = f"the shipped unit lets runs be isolated by {found}"
        raise prove.Wrong(message)
    DROP_IN.parent.mkdir()
    DROP_IN.write_text(Path("/usr/share/terrapod/bubblewrap.conf").read_text())
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "terrapod-listener")
    prove.ready(9846)
    if (found := isolation()) != "bubblewrap":
        why = run("journalctl", "-u", "terrapod-listener", "-n", "30")
        message = f"with the drop-in runs are isolated by {found}\n{why}"
        raise prove.Wrong(message)
    steals = f"if cat {HOME}/identity.json; then exit 1; fi; echo kept > /tmp/mine\n"
    run_id = api.begin(workspace, plan_sh=steals, apply_sh=steals)
    api.reaches(run_id, "applied")
    log = api.log(run_id, "apply")
    if "isolation bubblewrap" not in log or (HOME / "tmp" / "mine").exists():
        message = f"the run was not isolated:\n{log}"
        raise prove.Wrong(message)
    prove.say("with the drop-in runs are isolated by bubblewrap, plan and apply")


def main() -> None:
    api = started()
    workspace = api.call(
        "organizations/default/workspaces", {"name": "w", "terraform-version": scripted.VERSION, "auto-apply": True}
    )["id"]
    outlived(api, workspace)
    boxed(api, workspace)
    for unit in ("terrapod-listener", "terrapod-server"):
        run("systemctl", "stop", unit)
        if shown(unit, "Result") != "success":
            message = f"{unit} ended with {shown(unit, 'Result')}"
            raise prove.Wrong(message)
    prove.say("both have stopped well")
    run("apt-get", "-qq", "remove", "terrapod")


if __name__ == "__main__":
    try:
        main()
        RESULT.write_text("good\n")
    except Exception:
        traceback.print_exc()
        sys.stdout.write(run("journalctl", "--no-pager", "-u", "terrapod-*", "-n", "60", check=False) + "\n")
        raise
