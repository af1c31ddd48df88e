"""Which variables may be, and which of them a run can be given. Pure; both ends ask.

A name that would take the run's process over may not be. Terraform's names are HCL's: letters of any language, digits,
`_` and `-`, beginning with a letter or `_`.
"""

import re

#: No % or bracket: by such names a shell is given functions.
_ENV_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_FORBIDDEN = frozenset("\0=\n\r\v\f\x85\u2028\u2029")
#: `name=value` and a NUL, in bytes: the kernel's MAX_ARG_STRLEN.
ENV_MOST = 128 << 10
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
    """Why a variable may not be, or None. `category` is `env` or `terraform`.

    A key is any text but for what would end it where it is written down:
    clients use UUIDs, dashes and letters of any language.
    """
    if not key or not _FORBIDDEN.isdisjoint(key):
        return f"{key[:60]!r} is no key: it must have letters, and neither NUL, = nor a line break"
    if category == "env":
        if key in _RESERVED or key.startswith(_RESERVED_PREFIXES):
            return f"{key} is reserved: it would change how the run's process works"
        if "\0" in value:
            return f"the value of {key} holds a NUL character"
    return None


def oversize(key: str, category: str, value: str) -> str | None:
    """Why the value is too large, or None: Linux starts no program that is given a longer one."""
    if category == "env" and len(key.encode()) + len(value.encode()) + 2 > ENV_MOST:
        return (
            f"the value of {key} is larger than {ENV_MOST >> 10} KiB with its name: no program can be started with it"
        )
    return None


def hint(key: str, category: str) -> str | None:
    """Why no run can be given a variable that may be, or None; it is left out of them."""
    if category == "env":
        return (
            None if _ENV_NAME.fullmatch(key) else f"{key[:60]!r} is no name that all programs take from an environment"
        )
    is_name = not key.startswith("-") and key.replace("-", "_").isidentifier()
    return None if is_name else f"{key[:60]!r} is no name that a variable of terraform can have"


def unfit(key: str, category: str, value: str) -> str | None:
    """Why a run is not given a variable, or None; a row may be older than a rule."""
    return refusal(key, category, value) or oversize(key, category, value) or hint(key, category)
