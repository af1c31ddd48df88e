"""The last helper of a run's program: gives up what it may do, takes the run's environment, and becomes the program.

Started as a file by a bare interpreter:

    python -I -S launch.py FOLDER UID FOLDER_TO_RUN_IN PROGRAM ARGUMENT...

FOLDER holds a /tmp and an /etc/passwd for a mount namespace of its own; UID is
whom it becomes; `-` stands for neither. Every helper before it, and this one
itself, has a fixed environment: names such as LOCPATH or BASH_ENV decide which
code a C library or a shell loads, so a run's variables must not be in a process
that may do more than the run. They are read from standard input once all else
is given up, a NUL after each NAME=value: anybody on the host may read an argv.

Standard library alone, and no module of ours: it also runs inside of boxes.
"""

import os
import signal
import sys

_CANNOT_START = 126
_CLONE_NEWNS, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x20000, 0x1000, 0x4000, 0x40000
_PR_SET_NO_NEW_PRIVS = 38
_READ = 1 << 20


def main(folder: str, uid: str, cwd: str, *program: str) -> int:
    """Does not return where the program begins."""
    for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):  # which an interpreter takes for itself
        signal.signal(number, signal.SIG_DFL)
    try:
        if folder != "-":
            _mount_own(folder)
        if uid != "-":
            _become(int(uid))
        os.chdir(cwd)
        os.execve(program[0], program, _given())  # noqa: S606  no shell
    except OSError as error:
        sys.stderr.write(f"cannot start {program[0]}: {error.strerror or error}: {error.filename or ''}\n")
    return _CANNOT_START


def _mount_own(folder: str) -> None:
    """A mount namespace in which /tmp, /var/tmp and /etc/passwd are the run's; nothing of it is seen outside."""
    import ctypes  # noqa: PLC0415  a box does without it, and may not have its libraries

    libc = ctypes.CDLL(None, use_errno=True)

    def must(code: int, what: str) -> None:
        if code:
            raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")

    must(libc.unshare(_CLONE_NEWNS), "no mount namespace")
    must(libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None), "no private mounts")
    for name, place in (("tmp", "/tmp"), ("tmp", "/var/tmp"), ("passwd", "/etc/passwd")):  # noqa: S108
        must(libc.mount(os.fsencode(f"{folder}/{name}"), os.fsencode(place), None, _MS_BIND, None), f"no own {place}")
    must(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")  # bubblewrap sets it in a box


def _become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _given() -> dict[bytes, bytes]:
    """The run's environment, from standard input, which is empty for the program."""
    raw = b""
    while chunk := os.read(0, _READ):
        raw += chunk
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return dict(each.split(b"=", 1) for each in raw.split(b"\0") if b"=" in each)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
