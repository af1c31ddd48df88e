"""What go-tfe's decoder takes, and what our own OpenAPI document says: an attribute of another JSON type, or a relationship to another type, ends its program.

The tables are its structs: attributes by their kind on the wire, and the types of the other sides of relationships.
"""

import asyncio
import re
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from kit.serving import DATA, Running, state_bytes
from terrapod_shared import wire

#: A time of go-tfe's "iso8601" attributes ends in a literal Z.
STRICT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
KINDS: dict[str, Any] = {
    "bool": lambda v: isinstance(v, bool),
    "string": lambda v: isinstance(v, str),
    "number": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "object": lambda v: isinstance(v, dict),
    "time": lambda v: isinstance(v, str) and STRICT.fullmatch(v),
    "strings": lambda v: isinstance(v, list) and all(isinstance(each, str) for each in v),
    "objects": lambda v: isinstance(v, list) and all(isinstance(each, dict) for each in v),
}
ATTRIBUTES = {
    "organizations": {
        "bool": "assessments-enforced cost-estimation-enabled is-unified saml-enabled stacks-enabled two-factor-conformant"
        " send-passing-statuses-for-untriggered-speculative-plans speculative-plan-management-enabled user-tokens-enabled"
        " max-ttl-enabled aggregated-commit-status-enabled allow-force-delete-workspaces",
        "string": "name collaborator-auth-policy default-execution-mode email external-id owners-team-saml-role-id",
        "time": "created-at trial-expires-at",
        "object": "permissions",
        "number": "session-remember session-timeout remaining-testable-count",
    },
    "entitlement-sets": {
        "bool": "agents audit-logging cost-estimation global-run-tasks operations private-module-registry private-run-tasks"
        " run-tasks sso sentinel state-storage teams vcs-integrations waypoint-actions waypoint-templates-and-addons"
    },
    "projects": {"string": "name description", "time": "created-at", "object": "permissions"},
    "users": {
        "string": "avatar-url email unconfirmed-email username",
        "bool": "is-service-account v2-only is-site-admin is-admin is-sso-login",
        "object": "two-factor permissions",
    },
    "workspaces": {
        "object": "actions permissions vcs-repo setting-overwrites",
        "bool": "allow-destroy-plan assessments-enabled auto-apply auto-apply-run-trigger can-queue-destroy-plan"
        " file-triggers-enabled global-remote-state locked operations queue-all-runs speculative-enabled"
        " structured-run-output-enabled no-code-upgrade-available inherits-project-auto-destroy project-remote-state",
        "time": "auto-destroy-at created-at updated-at",
        "string": "auto-destroy-activity-duration description environment execution-mode migration-environment name source"
        " source-name source-url terraform-version working-directory",
        "strings": "trigger-prefixes trigger-patterns tag-names",
        "number": "resource-count apply-duration-average plan-duration-average policy-check-failures run-failures"
        " workspace-kpis-runs-count",
    },
    "configuration-versions": {
        "bool": "auto-queue-runs speculative provisional",
        "string": "error error-message source status upload-url",
        "object": "status-timestamps",
    },
    "runs": {
        "object": "actions permissions status-timestamps",
        "bool": "auto-apply allow-config-generation allow-empty-apply has-changes is-destroy plan-only refresh refresh-only"
        " save-plan",
        "time": "canceled-at created-at force-cancel-available-at",
        "strings": "invoke-action-addrs policy-paths replace-addrs target-addrs",
        "string": "message source status terraform-version trigger-reason",
        "number": "position-in-queue",
        "objects": "variables",
    },
    "plans": {
        "bool": "has-changes generated-configuration",
        "string": "log-read-url status",
        "number": "resource-additions resource-changes resource-destructions resource-imports",
        "object": "status-timestamps",
    },
    "applies": {
        "string": "log-read-url status",
        "number": "resource-additions resource-changes resource-destructions resource-imports",
        "object": "status-timestamps",
    },
    "run-events": {"string": "action description", "time": "created-at"},
    "organization-capacity": {"number": "pending running"},
    "state-versions": {
        "time": "created-at",
        "string": "hosted-state-download-url hosted-state-upload-url status hosted-json-state-upload-url"
        " hosted-json-state-download-url vcs-commit-sha vcs-commit-url terraform-version",
        "number": "serial size billable-rum-count state-version",
        "bool": "resources-processed",
        "object": "modules providers",
        "objects": "resources",
    },
    "state-version-outputs": {"string": "name type", "bool": "sensitive"},
    "vars": {"string": "key value description category version-id", "bool": "hcl sensitive"},
    "agent-pools": {
        "string": "name",
        "number": "agent-count",
        "bool": "organization-scoped",
        "time": "created-at",
    },
    "authentication-tokens": {"time": "created-at last-used-at expired-at", "string": "description token"},
    "registry-modules": {
        "string": "name provider registry-name namespace publishing-mechanism status created-at updated-at",
        "bool": "no-code",
        "object": "permissions test-config vcs-repo",
        "objects": "version-statuses",
    },
    "registry-module-versions": {"string": "source status version created-at updated-at"},
    "tags": {"string": "name", "number": "instance-count"},
    "tag-bindings": {"string": "key value"},
    "effective-tag-bindings": {"string": "key value"},
}
RELATIONS: dict[str, dict[str, str]] = {
    "organizations": {"default-project": "projects", "default-agent-pool": "agent-pools"},
    "projects": {"organization": "organizations"},
    "workspaces": {
        "agent-pool": "agent-pools", "current-run": "runs", "current-state-version": "state-versions",
        "organization": "organizations", "outputs": "workspace-outputs", "project": "projects", "tags": "tags",
        "current-configuration-version": "configuration-versions", "locked-by": "users runs teams",
        "vars": "vars", "tag-bindings": "tag-bindings", "effective-tag-bindings": "effective-tag-bindings",
    },
    "configuration-versions": {"ingress-attributes": "ingress-attributes"},
    "runs": {
        "apply": "applies", "configuration-version": "configuration-versions", "cost-estimate": "cost-estimates",
        "created-by": "users", "confirmed-by": "users", "plan": "plans", "policy-checks": "policy-checks",
        "run-events": "run-events", "task-stages": "task-stages", "workspace": "workspaces", "comments": "comments",
    },
    "run-events": {"actor": "users"},
    "state-versions": {"run": "runs", "outputs": "state-version-outputs"},
    "vars": {"configurable": "workspaces"},
    "agent-pools": {
        "organization": "organizations", "workspaces": "workspaces", "allowed-workspaces": "workspaces",
        "allowed-projects": "projects", "excluded-workspaces": "workspaces",
    },
    "authentication-tokens": {"created-by": "users"},
    "registry-modules": {"organization": "organizations"},
    "registry-module-versions": {"registry-module": "registry-modules"},
}  # fmt: skip
#: Members without which the terraform CLI or pytfe ends in a panic.
MEMBERS = {
    (
        "workspaces",
        "permissions",
    ): "can-update can-destroy can-queue-run can-queue-apply can-queue-destroy can-lock can-unlock"
    " can-force-unlock can-force-delete can-read-settings can-read-state-versions can-create-state-versions"
    " can-read-variable can-update-variable can-manage-run-tasks",
    ("workspaces", "actions"): "is-destroyable",
    ("runs", "actions"): "is-cancelable is-confirmable is-discardable is-force-cancelable",
    ("runs", "permissions"): "can-apply can-cancel can-discard can-force-cancel can-force-execute",
    (
        "registry-modules",
        "permissions",
    ): "can-update can-destroy can-create-version can-delete can-resync can-retry",
    ("users", "two-factor"): "enabled verified",
    ("users", "permissions"): "can-create-organizations can-change-email can-change-username can-manage-user-tokens",
}


def wrong_in(entry: DATA) -> list[str]:
    kind, attributes = entry["type"], entry["attributes"]
    wrong = [f"{kind} has no id"] if not re.fullmatch(r"[^/\s]+", entry["id"]) else []
    for expected, names in ATTRIBUTES[kind].items():
        wrong += [
            f"{kind}.{name} is no {expected}: {attributes[name]!r}"
            for name in names.split()
            if attributes.get(name) is not None and not KINDS[expected](attributes[name])
        ]
    for at, text in attributes.get("status-timestamps", {}).items():
        wrong += [] if at.endswith("-at") and STRICT.fullmatch(text) else [f"{kind}.status-timestamps.{at}: {text!r}"]
    for (resource, name), members in MEMBERS.items():
        if resource == kind:
            wrong += [f"{kind}.{name}.{m}" for m in members.split() if not isinstance(attributes[name].get(m), bool)]
    for name, relation in entry.get("relationships", {}).items():
        found = relation.get("data")
        for one in found if isinstance(found, list) else [found] if found else []:
            allowed = RELATIONS.get(kind, {}).get(name)
            wrong += [] if allowed is None or one["type"] in allowed.split() else [f"{kind}.{name} is a {one['type']}"]
    return wrong


async def test_every_answer_can_be_decoded(server: Running, tmp_path: Path) -> None:
    listener = await server.listener(tmp_path / "home")
    created: list[DATA] = [await server.workspace("w", labels={"a": "b"}, **{"working-directory": "x"})]
    components = (await server.api.get("/openapi.json")).json()["components"]
    own, pool = f"/workspaces/{created[0]['id']}", await server.pool_id()
    raw = state_bytes(
        1, outputs={"o": {"value": {"a": [1]}, "type": ["object", {"a": ["list", "number"]}]}}, resources=2
    )
    state = (await server.state(created[0]["id"], raw)).json()["data"]
    await server.api.put(state["attributes"]["hosted-state-upload-url"], content=raw)
    variable = await server.post(f"{own}/vars", {"key": "k", "value": "v", "category": "env"}, "vars")
    token = await server.post(f"/agent-pools/{pool}/authentication-tokens", {"description": "t"}, "agent-tokens")
    module = await server.post("/organizations/default/registry-modules", {"name": "m", "provider": "aws"})
    modules = "/organizations/default/registry-modules/private/default/m/aws"
    version = await server.post(f"{modules}/versions", {"version": "1.0.0"})
    created += [module.json()["data"], version.json()["data"]]
    configuration = await server.configuration(created[0]["id"])
    run = (await server.run(created[0]["id"], variables=[{"key": "a", "value": "1"}])).json()["data"]
    created += [state, variable.json()["data"], token.json()["data"], configuration, run]
    one = f"/runs/{run['id']}"
    paths = [
        "/account/details", "/organizations", "/organizations/default", "/organizations/default/entitlement-set",
        "/organizations/default/projects", "/organizations/default/capacity", "/organizations/default/runs/queue",
        "/organizations/default/runs", "/organizations/default/workspaces?include=organization,project,current_run",
        f"{own}?include=current_state_version,locked_by,current_run.plan", f"{own}/tag-bindings",
        f"{own}/effective-tag-bindings", f"{own}/relationships/tags", f"{own}/relationships/remote-state-consumers",
        f"{own}/vars", f"{own}/configuration-versions", f"{own}/runs", f"{own}/state-versions?include=outputs",
        f"{own}/current-state-version?include=outputs,run,created_by", f"{own}/current-state-version-outputs",
        f"{one}?include=plan,apply,workspace,created_by,configuration_version", f"{one}/run-events", f"{one}/plan",
        f"{one}/apply", modules, f"{modules}/versions?include=registry_module", "/organizations/default/registry-modules",
        "/organizations/default/agent-pools", f"/agent-pools/{pool}/authentication-tokens",
    ]  # fmt: skip
    seen: dict[str, int] = {}

    def undocumented(entry: DATA) -> list[str]:
        schema = {"$ref": f"#/components/schemas/{entry['type']}", "components": components}
        return [f"{entry['type']}: {error.message}" for error in Draft202012Validator(schema).iter_errors(entry)]

    async def look(*more: DATA) -> None:
        answers = await asyncio.gather(*(server.api.get(path) for path in paths))
        entries = list(more)
        for path, answer in zip(paths, answers, strict=True):
            assert answer.status_code == 200, (path, answer.text)
            document = answer.json()
            data = document["data"]
            entries += [*(data if isinstance(data, list) else [data]), *document.get("included", ())]
        assert [mistake for entry in entries for mistake in undocumented(entry)] == []
        assert [mistake for entry in entries for mistake in wrong_in(entry)] == []
        seen.update({entry["type"]: 1 for entry in entries})

    await look(*created)
    work = await listener.next_work(10)
    assert work is not None
    await listener.report(run["id"], wire.Report(phase="plan", status="planning"), work.lease.number)
    await server.api.post(f"{own}/actions/lock")
    await look()
    assert (await server.api.post(f"{one}/actions/cancel")).status_code == 202
    await look()
    await listener.report(run["id"], wire.Report(phase="plan", status="canceled"), work.lease.number)
    await look()
    assert set(seen) == set(ATTRIBUTES)
