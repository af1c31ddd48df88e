"""When a listener counts as there, and for how long it is waited for. Pure."""

from datetime import timedelta
from typing import Final

#: A listener that has been heard of within this time is there: an idle one polls every 30 s, and a dead one is to be
#: known as such within 45 s.
ONLINE: Final = timedelta(seconds=42)
#: For so long after its certificate's end a listener may still renew and deliver.
GRACE: Final = timedelta(days=30)
