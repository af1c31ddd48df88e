"""How go-tfe wants a log: STX, the bytes, ETX. Pure.

Offsets count the framed stream, both marks included. go-tfe takes a 0x03 that
is the last byte of any read for the end, wherever it stands; so a 0x03 that
the run itself printed is shown as a space.
"""

STX = b"\x02"
ETX = b"\x03"


def raw_range(offset: int, limit: int, size: int) -> tuple[int, int]:
    """The part of the raw bytes that a read of the framed stream shows: from, to."""
    start = max(0, offset - 1)
    stop = max(0, offset + limit - 1)
    return min(start, size), min(max(start, stop), size)


def frame(raw: bytes, offset: int, limit: int, size: int, *, is_over: bool, has_begun: bool = True) -> bytes:
    """`raw` is what `raw_range` named. `size` is the raw size so far; `is_over` says that it is final."""
    if limit <= 0 or not (has_begun or is_over):
        return b""
    shown = raw.replace(ETX, b" ")
    if offset <= 0:
        shown = STX + shown
    end = 1 + size
    if is_over and offset <= end and offset + len(shown) == end and len(shown) < limit:
        shown += ETX
    return shown[:limit]


def never_ran(word: str, why: str = "") -> bytes:
    """The raw log of a phase that ended before it began; clients drop three lines of an apply's."""
    error = f"\nError: {why}\n" if why else ""
    return f"Terrapod\nThis phase was never started.\nThe run was {word}.\n{error}".encode()
