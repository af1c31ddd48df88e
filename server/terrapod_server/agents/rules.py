"""When a listener counts as there. Pure."""

from datetime import timedelta
from typing import Final

#: A listener that has been heard of within this time is there: an idle one polls every 30 s, and a dead one is to be
#: known as such within 45 s.
ONLINE: Final = timedelta(seconds=42)
