"""Whether a site of `terrapod-server up` can take a run."""

import ssl
from pathlib import Path

import httpx


def has_engine(data: Path, host: str) -> bool:
    """Whether a listener has said which engines it brings.

    It says so at its first heartbeat, after it has joined; a run that comes sooner is refused where no release site
    can be reached.
    """
    ca, token = data / "ca.pem", data / "admin-token"
    if not (data / "listener" / "identity.json").exists():
        return False
    with httpx.Client(
        base_url=f"https://{host}/api/v2/",
        verify=ssl.create_default_context(cafile=ca),
        headers={"Authorization": f"Bearer {token.read_text()}"},
    ) as api:
        for pool in api.get("organizations/default/agent-pools").raise_for_status().json()["data"]:
            listeners = api.get(f"agent-pools/{pool['id']}/listeners").raise_for_status().json()["data"]
            if any(listener["attributes"]["local-engines"] for listener in listeners):
                return True
    return False
