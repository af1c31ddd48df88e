"""Values of variables that no engine can read: the run ends, and is not planned with the defaults."""

from collections.abc import Iterator

import httpx
import pytest
import terraform_shim

from kit.remote import Remote
from kit.serving import tar
from kit.site import Site

CONFIG = b"""
variable "on" { default = 0 }
variable "tags" { default = {} }
resource "terraform_data" "database" { count = var.on }
"""
SAID = "cannot read the values of the variables"


@pytest.fixture
def api(site: Site) -> Iterator[httpx.Client]:
    with site.api() as client:
        yield client


@pytest.fixture
def workspace(api: httpx.Client) -> Remote:
    """Its state holds a resource, which there is because a variable says so."""
    made = Remote(api, **{"terraform-version": terraform_shim.VERSION})
    made.post(f"workspaces/{made.id}/vars", {"key": "on", "value": "1", "category": "terraform"})
    upload(made)
    made.until(made.begin(), "applied")
    return made


def upload(workspace: Remote, **files: bytes) -> None:
    made = workspace.post(f"workspaces/{workspace.id}/configuration-versions", {"auto-queue-runs": False})
    archive = tar({"main.tf": CONFIG, **{name.replace("__", "."): text for name, text in files.items()}})
    assert workspace.api.put(made["attributes"]["upload-url"], content=archive).status_code == 200


@pytest.mark.parametrize("value", ["{ a = ", '"x', "}", "{}\non = 0"])
def test_a_value_that_is_no_hcl_never_means_the_defaults(workspace: Remote, value: str) -> None:
    attributes = {"key": "tags", "value": value, "category": "terraform", "hcl": True}
    variable = workspace.post(f"workspaces/{workspace.id}/vars", attributes)["id"]
    run = workspace.begin()
    assert SAID in workspace.until(run, "errored")["error-message"]
    assert "terrapod.tfvars line" in workspace.log(run, "plan")
    given = [{"key": "tags", "value": value}]
    body = {"data": {"attributes": {"value": '{ a = "b" }'}}}
    assert workspace.api.patch(f"workspaces/{workspace.id}/vars/{variable}", json=body).status_code == 200
    workspace.until(workspace.begin(None, variables=given), "errored")
    run = workspace.begin()
    workspace.until(run, "planned_and_finished")
    assert "No changes" in workspace.log(run, "plan")


def test_a_file_of_values_that_is_no_hcl_ends_the_plan(workspace: Remote) -> None:
    for name in ("terraform__tfvars", "x__auto__tfvars"):
        upload(workspace, **{name: b"tags = {\n"})
        assert SAID in workspace.until(workspace.begin(), "errored")["error-message"]
    upload(workspace, terraform__tfvars=b'tags={a="badly formatted"}\n')
    run = workspace.begin()
    workspace.until(run, "planned_and_finished")
    assert "No changes" in workspace.log(run, "plan")
