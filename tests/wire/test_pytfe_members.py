"""Each member that pytfe can send is declared, as those of go-tfe are in tests/whole/test_members.py."""

import pytest
import pytfe.models

from terrapod_server import app

BY_TYPE = {resource.type: resource for resource in app.RESOURCES}
#: The models of pytfe's options whose members are sent, and what they are sent as.
PYTFE = {
    "WorkspaceCreateOptions": "workspaces",
    "WorkspaceUpdateOptions": "workspaces",
    "RunCreateOptions": "runs",
    "StateVersionCreateOptions": "state-versions",
    "ConfigurationVersionCreateOptions": "configuration-versions",
    "AgentPoolCreateOptions": "agent-pools",
    "AgentPoolUpdateOptions": "agent-pools",
    "AgentTokenCreateOptions": "authentication-tokens",
    "VariableCreateOptions": "vars",
    "VariableUpdateOptions": "vars",
    "RegistryModuleCreateOptions": "registry-modules",
    "RegistryModuleUpdateOptions": "registry-modules",
    "RegistryModuleCreateVersionOptions": "registry-module-versions",
}


@pytest.mark.parametrize("model", PYTFE)
def test_each_member_of_pytfe_is_declared(model: str) -> None:
    resource = BY_TYPE[PYTFE[model]]
    fields = getattr(pytfe.models, model).model_fields
    names = {(field.alias or name).replace("_", "-") for name, field in fields.items()} - {"type"}
    members = (*resource.attributes, *resource.relations)
    declared = {member.name for member in members if member.write} | {member.name for member in resource.unsupported}
    read_only = {member.name for member in resource.attributes if not member.write}
    assert names - declared <= read_only & {"terraform-version"}, "of a state it is in the bytes"
