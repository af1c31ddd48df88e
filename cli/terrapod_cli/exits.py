"""Exit codes: what each means, and which error of the tree leads to which. The only place that knows both."""

from enum import IntEnum
from typing import Self

from terrapod_shared import errors


class Exit(IntEnum):
    """The meaning of each code; `docs/cli.md` and `terrapod --help` show this table."""

    meaning: str

    def __new__(cls, code: int, meaning: str) -> Self:
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    DONE = 0, "done; of a run: applied, or planned and no more was asked"
    FAILED = 1, "the run, or the operation, failed: errored, discarded or canceled"
    USAGE = 2, "the command, or a value in it, is wrong"
    UNAUTHORIZED = 3, "not signed in, or the token is no longer good"
    FORBIDDEN = 4, "signed in, but may not do this"
    NOT_FOUND = 5, "not there, or not to be seen by you"
    CONFLICT = 6, "in a state in which this cannot be: locked, taken, over"
    UNREACHABLE = 7, "the server cannot be reached"
    SERVER = 8, "the server failed, or does not know this command"
    LIMITED = 9, "too many requests; wait"
    WAITING = 10, "the run waits for somebody's approval"
    INTERRUPTED = 130, "interrupted by Ctrl-C"


EXITS: dict[type[errors.TerrapodError], Exit] = {
    errors.BadRequest: Exit.USAGE,
    errors.Unauthorized: Exit.UNAUTHORIZED,
    errors.Forbidden: Exit.FORBIDDEN,
    errors.NotFound: Exit.NOT_FOUND,
    errors.MethodNotAllowed: Exit.SERVER,
    errors.TooSlow: Exit.UNREACHABLE,
    errors.Conflict: Exit.CONFLICT,
    errors.TooLarge: Exit.USAGE,
    errors.UnsupportedMedia: Exit.SERVER,
    errors.Invalid: Exit.USAGE,
    errors.ProtocolMismatch: Exit.SERVER,
    errors.TooManyRequests: Exit.LIMITED,
    errors.Internal: Exit.SERVER,
    errors.BadGateway: Exit.SERVER,
    errors.Unavailable: Exit.UNREACHABLE,
}


def code_of(error: errors.TerrapodError) -> Exit:
    """The code of the nearest class in the table."""
    return next((EXITS[cls] for cls in type(error).__mro__ if cls in EXITS), Exit.FAILED)


def table() -> str:
    """The codes, a line each."""
    return "\n".join(f"{code.value:>4}  {code.meaning}" for code in Exit)
