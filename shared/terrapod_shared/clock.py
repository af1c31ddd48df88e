"""The one way to ask for the time, and to write it down."""

from datetime import UTC, datetime


def now() -> datetime:
    """The current time, aware, in UTC."""
    return datetime.now(UTC)


def stamp(at: datetime) -> str:
    """RFC 3339 with a literal `Z`: go-tfe refuses any other zone spelling."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
