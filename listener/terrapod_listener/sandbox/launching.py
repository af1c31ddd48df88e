"""How a run's program is begun behind its helpers, whose environment is fixed: see `launch`, which is the last of them."""

import functools
import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from terrapod_listener.sandbox import launch

#: Where a box has the launcher: in a folder that no run can write to, whatever is hidden.
INSIDE = "/dev/terrapod-launch"
#: The launcher's file on the host.
PROGRAM = Path(launch.__file__)
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Start:
    """What to execute. `env` and `cwd` are those of the first helper where there is one; `given` is for standard input."""

    argv: list[str]
    cwd: Path
    env: dict[str, str]
    given: str = ""


def directly(program: Sequence[str], cwd: Path, env: Mapping[str, str]) -> Start:
    """Without any helper: the program gets its environment at once."""
    return Start(list(program), cwd, dict(env))


def behind(
    helpers: Sequence[str], last: Sequence[str], program: Sequence[str], cwd: Path, env: Mapping[str, str]
) -> Start:
    """Behind helpers, the `last` of which is the launcher with its options."""
    given = "".join(f"{name}={value}\0" for name, value in env.items())
    return Start([*helpers, *last, str(cwd), *program], Path("/"), helpers_env(), given)


def launcher(own: Path | None, uid: int | None, *, is_boxed: bool) -> list[str]:
    """The launcher's own argv: `own` is a folder whose /tmp is to be the program's, `uid` whom it becomes."""
    words = [str(own) if own else "-", "-" if uid is None else str(uid)]
    return [interpreter(), "-I", "-S", INSIDE if is_boxed else str(PROGRAM), *words]


def helpers_env() -> dict[str, str]:
    """The environment of every helper, whatever the run's is. systemd-run finds the user's manager by it."""
    env = {"PATH": _PATH}
    if os.geteuid():
        env["XDG_RUNTIME_DIR"] = f"/run/user/{os.geteuid()}"
    return env


def interpreter() -> str:
    """The interpreter itself, not that of a virtual environment, which needs files beside it."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


@functools.cache
def interpreters_files() -> tuple[str, ...]:
    """All that the interpreter needs of its own to run the launcher: program, standard library, shared library."""
    found = [interpreter(), *(os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))]
    return tuple(dict.fromkeys([*found, *_shared_library()]))


def _shared_library() -> Iterator[str]:
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.partition("/")[2]
        if path.rpartition("/")[2].startswith("libpython"):
            yield f"/{path}"
