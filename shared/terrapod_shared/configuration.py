"""Which files of a folder are terraform configuration, and what is said of a folder without any. Pure.

The rule is `IsConfigDir` of terraform's `internal/configs/parser_config_dir.go`,
and the same of OpenTofu, which reads `.tofu` files too. Without such a file
terraform refuses to plan, since the plan would be to destroy everything.
"""

from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Literal

Tool = Literal["terraform", "tofu"]
_SUFFIXES: dict[str, tuple[str, ...]] = {
    "terraform": (".tf", ".tf.json"),
    "tofu": (".tf", ".tf.json", ".tofu", ".tofu.json"),
}
_NAMED_MOST = 3
_SHOWN_MOST = 200


def is_configuration(name: str, tool: str = "tofu") -> bool:
    """Whether the engine reads a file of this name, which has no folder in front; by default, whether any does."""
    is_ignored = name.startswith(".") or name.endswith("~") or (name.startswith("#") and name.endswith("#"))
    return not is_ignored and name.endswith(_SUFFIXES.get(tool, _SUFFIXES["tofu"]))


def refusal(tool: str, folder: str, elsewhere: Iterable[str] = ()) -> str:
    """Why there is no plan of `folder`, a path below the configuration's root: terraform's own words, and a hint.

    `elsewhere` are paths of files below the root that may have been meant.
    """
    called = "an OpenTofu" if tool == "tofu" else "a Terraform"
    text = (
        "No configuration files\n\n"
        "Plan requires configuration to be present. Planning without a configuration would mark everything for "
        "destruction, which is normally not what is desired. If you would like to destroy everything, run plan with "
        f"the -destroy option. Otherwise, create {called} configuration file (.tf file) and try again.\n\n"
        f"{tool} reads files that end in {', '.join(_SUFFIXES[tool])}, and finds none in "
        f"{repr(folder) if folder else 'the root'} of the uploaded configuration."
    )
    return text + "".join(f" {hint}" for hint in _hints(tool, folder, elsewhere))


def _hints(tool: str, folder: str, elsewhere: Iterable[str]) -> list[str]:
    """Sentences about files that may have been meant."""
    here = PurePosixPath(folder)
    paths = [PurePosixPath(path) for path in elsewhere]
    foreign = sorted(path.name for path in paths if path.parent == here and not is_configuration(path.name, tool))
    folders = sorted({str(path.parent) for path in paths if path.parent != here and is_configuration(path.name, tool)})
    hints = []
    if foreign:
        hints.append(f"Only tofu reads {_listed(foreign)}.")
    if folders:
        hints.append(f"There are some in {_listed(folders)}: is that the working directory, or the folder to upload?")
    return hints


def _listed(names: list[str]) -> str:
    named = ", ".join(repr(name)[:_SHOWN_MOST] for name in names[:_NAMED_MOST])
    return f"{named} and {len(names) - _NAMED_MOST} more" if len(names) > _NAMED_MOST else named
