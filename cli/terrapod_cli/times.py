"""How long from now: `30d`, `12h`, or a time of RFC 3339."""

import re
from datetime import UTC, datetime, timedelta

import click

from terrapod_shared import clock

_SPAN = re.compile(r"(\d{1,6})([mhdw])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def until(text: str, now: datetime) -> datetime:
    """The time that is meant. Raises ValueError."""
    if span := _SPAN.fullmatch(text):
        return now + timedelta(**{_UNITS[span.group(2)]: int(span.group(1))})
    at = datetime.fromisoformat(text)
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _parsed(_context: click.Context, _parameter: click.Parameter, text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return clock.stamp(until(text, clock.now()))
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{text!r} is no span such as 30m, 12h, 30d or 8w, and no time of RFC 3339") from None


EXPIRES = click.option(
    "--expires",
    metavar="SPAN|TIME",
    callback=_parsed,
    help="30m, 12h, 30d, 8w, or a time such as 2030-01-31T12:00:00Z.",
)
