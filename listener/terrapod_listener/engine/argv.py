"""What terraform is called with, and what its answers mean. Pure."""

import itertools
import json
import re
import signal
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from terrapod_shared import wire
from terrapod_shared.variables import unfit

#: Loaded after the user's `terraform.tfvars` and `*.auto.tfvars`.
VAR_FILE = "terrapod.tfvars"
#: Of `fmt`: a file cannot be read; 3 is one that is not formatted.
NO_VALUES = 2
_REMOTE = re.compile(r'\bbackend[ \t]+"remote"[ \t]*\{')
_PREFIX = re.compile(r'\bworkspaces[ \t]*(?:=[ \t]*)?\{[^{}]{0,2000}?\bprefix[ \t]*=[ \t]*"([^"\\$%]+)"')
_BLOCK_MOST, _BLOCKS_MOST = 4096, 10
_EPHEMERAL = re.compile(r"\bephemeral[ \t]*=")
_VARIABLE = re.compile(r'^[ \t]*variable[ \t]+"?([^\W\d][\w-]*)"?[ \t]*\{', re.MULTILINE)


def init_argv(*, readonly_lock: bool) -> list[str]:
    return ["init", "-input=false", *(["-lockfile=readonly"] if readonly_lock else [])]


def values_argv(files: Iterable[str]) -> list[str]:
    """Reads files of variables' values, changes nothing, and prints names alone; exit code `NO_VALUES`: one is no HCL."""
    return ["fmt", "-check", "-no-color", *files]


def plan_argv(options: wire.Options, plan_file: str, var_file: str | None, generated: str) -> list[str]:
    """`generated` is the file for configuration of import blocks."""
    argv = ["plan", "-input=false", f"-out={plan_file}"]
    argv += ["-json"] if options.structured else []
    argv += ["-destroy"] if options.is_destroy else []
    argv += ["-refresh=false"] if not options.refresh else []
    argv += ["-refresh-only"] if options.refresh_only else []
    argv += [f"-target={address}" for address in options.target_addrs]
    argv += [f"-replace={address}" for address in options.replace_addrs]
    argv += [f"-generate-config-out={generated}"] if options.allow_config_generation else []
    argv += [f"-var-file={var_file}"] if var_file else []
    return argv


def apply_argv(options: wire.Options, plan_file: str, var_file: str | None = None) -> list[str]:
    """`var_file` holds ephemeral variables: the plan file knows all others, and none of these."""
    argv = ["apply", "-input=false"]
    argv += ["-json"] if options.structured else []
    argv += [f"-var-file={var_file}"] if var_file else []
    return [*argv, plan_file]


def credentials(hosts: Iterable[str], token: str) -> str:
    """A CLI configuration with the token for these hosts; a TF_TOKEN_ variable cannot name a port.

    An address in brackets is left out: terraform cannot name such a host, and
    would end at it.
    """
    named = dict.fromkeys(host for host in hosts if "[" not in host)
    return "".join(f"credentials {json.dumps(host)} {{\n  token = {json.dumps(token)}\n}}\n" for host in named)


def installation(cache: str, mirror: str) -> str:
    """A CLI configuration of where providers come from: a plugin cache's folder, a network mirror; each may be empty."""
    text = f"plugin_cache_dir = {quoted(cache)}\n" if cache else ""
    if mirror:
        url = f"{mirror.rstrip('/')}/"
        text += f"provider_installation {{\n  network_mirror {{\n    url = {quoted(url)}\n  }}\n}}\n"
    return text


def header(listener: str, version: str, engine: wire.Engine, platform: str) -> list[str]:
    """Exactly three lines: the CLI drops the first three of an apply's log."""
    name = "Terraform" if engine.tool == "terraform" else "OpenTofu"
    origin = "local " if engine.local else ""
    return [
        f"Terrapod listener {listener} ({version})",
        f"{name} v{engine.version} ({origin}sha256 {engine.sha256[:16]})",
        f"on {platform}",
    ]


def declared(sources: Mapping[str, str]) -> dict[str, bool]:
    """The variables that the root module declares, from its files' texts by name, and whether each may be ephemeral.

    That is read off the text up to the next declaration, so it may be true of
    one that is not: terraform takes a value that it knows from the plan once more.
    """
    found: dict[str, bool] = {}
    for name, text in sources.items():
        if name.endswith(".json"):
            found |= _declared_in_json(text)
            continue
        heads = list(_VARIABLE.finditer(text))
        ends = [*(head.start() for head in heads), len(text)][1:]
        for head, end in zip(heads, ends, strict=True):
            found[head[1]] = bool(_EPHEMERAL.search(text, head.end(), end)) or found.get(head[1], False)
    return found


def _declared_in_json(text: str) -> dict[str, bool]:
    try:
        document = json.loads(text, parse_int=str)
    except (ValueError, RecursionError):
        return {}
    blocks = document.get("variable", {}) if isinstance(document, dict) else {}
    tables = [block for block in (blocks if isinstance(blocks, list) else [blocks]) if isinstance(block, dict)]
    return {key: '"ephemeral"' in json.dumps(body) for table in tables for key, body in table.items()}


def selected(workspace: str, sources: Mapping[str, str]) -> str:
    """What `terraform.workspace` is: where the configuration's backend "remote" names a prefix, what follows it."""
    for name, text in sources.items():
        found = _prefixes_in_json(text) if name.endswith(".json") else _prefixes(text)
        for prefix in found:
            if workspace.startswith(prefix) and workspace != prefix:
                return workspace.removeprefix(prefix)
    return workspace


def _prefixes(text: str) -> list[str]:
    heads = itertools.islice(_REMOTE.finditer(text), _BLOCKS_MOST)  # terraform takes one
    blocks = [text[head.end() : head.end() + _BLOCK_MOST] for head in heads]
    return [found[1] for block in blocks if (found := _PREFIX.search(block))]


def _prefixes_in_json(text: str) -> list[str]:
    try:
        places = [json.loads(text, parse_int=str)]
    except (ValueError, RecursionError):
        return []
    for key in ("terraform", "backend", "remote", "workspaces", "prefix"):  # each may stand in a list
        flat = [each for place in places for each in (place if isinstance(place, list) else [place])]
        places = [each[key] for each in flat if isinstance(each, dict) and key in each]
    return [place for place in places if isinstance(place, str) and place]


_HCL = {r"\b": r"\u0008", r"\f": r"\u000c"}  # HCL knows neither of JSON's two


def quoted(text: str) -> str:
    """A string as HCL writes it: templates are not to be read in it."""
    plain = re.sub(r"\\(?:\\|b|f)", lambda found: _HCL.get(found[0], found[0]), json.dumps(text, ensure_ascii=False))
    return plain.replace("${", "$${").replace("%{", "%%{")


def given(variables: Iterable[wire.Variable], names: Mapping[str, bool], phase: wire.Phase) -> list[wire.Variable]:
    """What a phase is given: all of them for the plan; for the apply those of the environment, and ephemeral ones."""
    return [each for each in variables if phase == "plan" or each.category == "env" or names.get(each.key)]


def var_file(variables: Iterable[wire.Variable], names: Collection[str]) -> str:
    """Declared variables as a tfvars file; HCL values stand in it as they came."""
    lines = [
        f"{each.key} = {each.value if each.hcl else quoted(each.value)}\n"
        for each in variables
        if each.category == "terraform" and each.key in names
    ]
    return "".join(lines)


def admitted(variables: Iterable[wire.Variable]) -> tuple[list[wire.Variable], list[str]]:
    """The variables that a run may have, and for each other one why it is left out. The server refuses such names, too;
    a row may be older than a name's refusal.
    """
    taken, left_out = [], []
    for each in variables:
        if why := unfit(each.key, each.category, each.value):
            left_out.append(why)
        else:
            taken.append(each)
    return taken, left_out


def environment(
    work: wire.Work, names: Collection[str], base: Mapping[str, str], workspace: str = ""
) -> dict[str, str]:
    """The whole environment of a run: `base`, ours, and the user's variables; nothing is inherited.

    `workspace` is what terraform is to call it, by default its name.
    """
    facts = {
        "TFC_RUN_ID": work.run_id,
        "TFC_WORKSPACE_ID": work.workspace_id,
        "TFC_WORKSPACE_NAME": work.workspace_name,
        "TFC_WORKSPACE_SLUG": f"{work.organization}/{work.workspace_name}",
        "TFC_PROJECT_NAME": work.project_name,
        "TFC_CONFIGURATION_VERSION_ID": work.configuration_version_id,
    }
    env = dict(base)
    env |= {
        f"TF_VAR_{each.key}": each.value
        for each in work.variables
        if each.category == "terraform" and each.key not in names
    }
    env |= {each.key: each.value for each in work.variables if each.category == "env"}
    return (
        env
        | facts
        | {
            "TF_IN_AUTOMATION": "1",
            "TF_INPUT": "0",
            "CHECKPOINT_DISABLE": "1",
            "TF_WORKSPACE": workspace or work.workspace_name,
        }
    )


_SHELL_SIGNAL, _PANIC = 128, 11


def cut_short(tool: str, code: int) -> str:
    """Why an apply with this exit code may have made what no state tells: it did not end by itself; empty where it did.

    `-N` is a signal, `128 + N` the same as a sandbox passes it on, 11 a panic of terraform itself.
    """
    number = -code if code < 0 else code - _SHELL_SIGNAL
    if number > 0:
        known = {each.value: each.name for each in signal.Signals}
        return f"{tool} was killed by {known.get(number, f'signal {number}')} while it applied"
    return f"{tool} crashed while it applied" if code == _PANIC else ""


@dataclass(frozen=True)
class Counts:
    """What a plan does."""

    has_changes: bool = False
    additions: int = 0
    changes: int = 0
    destructions: int = 0
    imports: int = 0
    generated: bool = False


def read_plan(plan: Mapping[str, Any]) -> Counts:
    """Of `terraform show -json`. `applyable` (1.7 and later) is terraform's own word for whether there is something to do."""
    additions = changes = destructions = imports = 0
    generated = False
    moved = False
    for entry in plan.get("resource_changes", ()):
        change = entry.get("change", {})
        actions = change.get("actions", [])
        additions += "create" in actions
        changes += actions == ["update"]
        destructions += "delete" in actions
        imports += change.get("importing") is not None
        generated = generated or bool(change.get("generated_config"))
        moved = moved or "previous_address" in entry or actions == ["forget"]
    outputs = any(change.get("actions") != ["no-op"] for change in plan.get("output_changes", {}).values())
    found = bool(additions or changes or destructions or imports or moved or outputs)
    applyable = plan.get("applyable")
    return Counts(found if applyable is None else bool(applyable), additions, changes, destructions, imports, generated)


def filtered_schemas(schemas: Mapping[str, Any], plan: Mapping[str, Any]) -> dict[str, Any]:
    """The schemas of the types that the plan speaks of; the CLI needs every one of those and no other."""
    wanted: dict[str, set[tuple[str, str]]] = {}
    entries = [*plan.get("resource_changes", ()), *plan.get("resource_drift", ())]
    entries += [entry.get("resource_change", {}) for entry in plan.get("deferred_changes", ())]
    for entry in entries:
        kind = "data_source_schemas" if entry.get("mode") == "data" else "resource_schemas"
        wanted.setdefault(str(entry.get("provider_name")), set()).add((kind, str(entry.get("type"))))
    providers: dict[str, Any] = {}
    for name, types in wanted.items():
        known = schemas.get("provider_schemas", {}).get(name)
        if known is None:
            continue
        kept: dict[str, Any] = {"provider": known.get("provider", {})}
        for kind, type_ in types:
            if type_ in known.get(kind, {}):
                kept.setdefault(kind, {})[type_] = known[kind][type_]
        providers[name] = kept
    return {"format_version": schemas.get("format_version", "1.0"), "provider_schemas": providers}
