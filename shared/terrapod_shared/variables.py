"""Names that a run's variables may not have: they would take the process over. Pure; both ends refuse them."""

import re

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TERRAFORM_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_RESERVED = frozenset(
    {
        "PATH",
        "HOME",
        "TF_CLI_CONFIG_FILE",
        "TF_DATA_DIR",
        "TF_WORKSPACE",
        "TF_REATTACH_PROVIDERS",
        "TF_FORCE_LOCAL_BACKEND",
        "TF_LOG_PATH",
        "TERRAFORM_CONFIG",
        "TOFU_CLI_CONFIG_FILE",
        # what the C library loads code from, or is changed by
        "GCONV_PATH",
        "LOCPATH",
        "NLSPATH",
        "GLIBC_TUNABLES",
        "RES_OPTIONS",
        # what a shell runs, or is changed by
        "BASH_ENV",
        "SHELLOPTS",
        "PS4",
    }
)
_RESERVED_PREFIXES = ("LD_", "TF_CLI_ARGS", "TF_TOKEN_", "TFC_", "DYLD_", "MALLOC_")


def refusal(key: str, category: str, value: str = "") -> str | None:
    """Why a variable may not be, or None. `category` is `env` or `terraform`."""
    if category == "env":
        if not _ENV_NAME.fullmatch(key):
            return f"{key[:60]!r} is no name of an environment variable"
        if key in _RESERVED or key.startswith(_RESERVED_PREFIXES):
            return f"{key} is reserved: it would change how the run's process works"
        if "\0" in value:
            return f"the value of {key} holds a NUL character"
        return None
    if not _TERRAFORM_NAME.fullmatch(key):
        return f"{key[:60]!r} is no name of a terraform variable"
    return None
