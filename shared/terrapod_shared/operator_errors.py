"""Errors that whoever runs a program can mend, each as one line: what is wrong, where, and what to do.

`Group` is the edge of a program's commands: what can be mended ends a command
with its line, and only what is a fault of the program shows a stack trace.
"""

import errno
import os
import pwd
import sys
from pathlib import Path
from typing import Any

import click

from terrapod_shared.errors import TerrapodError

#: Errors that a write to an open file raises, without the name of the file.
_NAMELESS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.EIO})
#: More bytes than a password or a token has.
_LINE_MOST = 8192


class OperatorError(Exception):
    """Something that the operator can mend; the text is one line for them."""


def user_name(uid: int) -> str:
    """The name of a user of this host, or the number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def explain_os_error(error: OSError) -> str:
    """What the system refused, where, and what to do about it."""
    where = _place(error)
    why = error.strerror or str(error) or type(error).__name__
    advice = _advice(error.errno or 0)
    said = f"{where}: {why}" if where else why
    return f"{said}: {advice}" if advice else said


def _place(error: OSError) -> str:
    return " and ".join(
        os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)
    )


def _advice(number: int) -> str:
    if number in (errno.EACCES, errno.EPERM):
        return f"give the user {user_name(os.geteuid())} access to it, or run this as the user who has it"
    return {
        errno.ENOENT: "make it, or correct its path",
        errno.ENOTDIR: "a part of this path is a file: correct the path",
        errno.EEXIST: "a file is in the way: correct the path",
        errno.EISDIR: "this is a folder: name a file",
        errno.EROFS: "the file system is read-only: name a place that can be written",
        errno.ENOSPC: "the disk is full: free some space",
        errno.EDQUOT: "the quota is used up: free some space",
        errno.EMFILE: "raise the limit of open files (ulimit -n, LimitNOFILE=)",
        errno.ENFILE: "raise the system's limit of open files (fs.file-max)",
        errno.ELOOP: "links lead in a circle: correct the path",
        errno.ENAMETOOLONG: "name a shorter path",
    }.get(number, "")


def make_folder(folder: Path, what: str) -> None:
    """Makes a folder of mode 0700 where there is none. Raises OperatorError, which names `what` it is for."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise OperatorError(f"cannot make {what}: {explain_os_error(error)}") from None
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        who = user_name(os.geteuid())
        raise OperatorError(f"cannot use {what}: {folder} cannot be written by {who}: give it to that user (chown -R)")


def missing_extra(program: str, extra: str, error: ModuleNotFoundError) -> OperatorError:
    """Says how to install what a program lacks. Raises the error again where it lacks a part of its own."""
    if error.name is None or error.name.startswith("terrapod_"):
        raise error
    return OperatorError(f"{program} lacks the package {error.name.partition('.')[0]}: {install_line(extra)}")


def install_line(extra: str) -> str:
    """The command that installs an extra for this interpreter."""
    return f"{sys.executable} -m pip install 'terrapod[{extra}]'"


def line_of_stdin(what: str) -> str:
    """The line that stands on standard input, such as a password. Raises UsageError where there is none."""
    try:
        line = sys.stdin.buffer.readline(_LINE_MOST + 1).decode()
    except UnicodeDecodeError:
        raise click.UsageError(f"the {what} on stdin is no text in UTF-8") from None
    if len(line) > _LINE_MOST:
        raise click.UsageError(f"the line on stdin is too long for a {what}")
    if not (found := line.rstrip("\r\n")):
        raise click.UsageError(f"there is no {what} on stdin: one line is read")
    return found


def _open_standard_files() -> None:
    """Gives a process what it was started without (`<&-`), so that no file that it opens later gets what is printed."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            os.set_inheritable(null, True)
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


class Group(click.Group):
    """Commands whose operator reads no stack trace for what they can mend."""

    def main(self, *args: Any, **more: Any) -> Any:
        _open_standard_files()
        return super().main(*args, **more)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except OperatorError as error:
            raise click.ClickException(str(error)) from None
        except TerrapodError as error:
            raise click.ClickException(error.detail) from None
        except UnicodeEncodeError as error:
            if not any("\ud800" <= letter <= "\udfff" for letter in error.object):
                raise
            cut = error.object[max(error.start - 20, 0) : error.end]
            shown = os.fsencode(cut).decode(errors="backslashreplace")
            raise click.UsageError(f"this is no text in UTF-8: {shown}") from None
        except OSError as error:
            if error.errno == errno.EPIPE or not (_place(error) or error.errno in _NAMELESS):
                raise
            raise click.ClickException(explain_os_error(error)) from None
