"""Where each object lies. All of a workspace's begin with `workspaces/<id>/`: it goes as one. Pure."""


def workspace(workspace_id: str) -> str:
    return f"workspaces/{workspace_id}/"


def state(workspace_id: str, version_id: str) -> str:
    return f"workspaces/{workspace_id}/states/{version_id}"


def json_state(workspace_id: str, version_id: str) -> str:
    return f"workspaces/{workspace_id}/states/{version_id}.json"


def late_state(workspace_id: str, run_id: str, number: int, tail: str) -> str:
    return f"workspaces/{workspace_id}/late/{run_id}-{number}-{tail}"


def configuration(workspace_id: str, version_id: str) -> str:
    return f"workspaces/{workspace_id}/configurations/{version_id}"


def artifact(workspace_id: str, run_id: str, name: str) -> str:
    """`plan-file`, `lock-file`, `plan-json`, `schemas`, `redacted` or `variables` of a run."""
    return f"workspaces/{workspace_id}/runs/{run_id}/{name}"


def log(workspace_id: str, run_id: str, phase: str) -> str:
    """The sealed log of a phase that is over."""
    return f"workspaces/{workspace_id}/runs/{run_id}/{phase}.log"


def log_parts(workspace_id: str, run_id: str, phase: str) -> str:
    return f"workspaces/{workspace_id}/runs/{run_id}/{phase}.parts/"


def log_part(workspace_id: str, run_id: str, phase: str, offset: int, number: int) -> str:
    """Part names sort by offset, and at one place by the number of the lease that wrote them."""
    return f"{log_parts(workspace_id, run_id, phase)}{offset:016d}.{number:09d}"


def module(module_id: str) -> str:
    return f"modules/{module_id}/"


def module_version(module_id: str, version_id: str, tail: str) -> str:
    return f"modules/{module_id}/{version_id}.{tail}"


def engine(tool: str, version: str, system: str, arch: str) -> str:
    return f"engines/{tool}/{version}/{system}_{arch}.zip"
