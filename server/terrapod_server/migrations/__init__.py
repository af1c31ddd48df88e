"""Migrations, numbered, forward only.

Server processes of one release and the next run side by side while a
deployment is upgraded, and an upgrade can be taken back. So a migration only
adds: new columns are nullable or have a database default. What programs no
longer use is removed a release later, and that migration's author raises
`OLDEST` to the number of the first schema whose programs do without it.
"""

import pkgutil
from typing import Final

#: Number of this release's schema: that of its last migration.
NUMBER: Final = max(int(module.name[:4]) for module in pkgutil.iter_modules(__path__) if module.name[:4].isdigit())
#: Number of the oldest schema whose programs may use this one.
OLDEST: Final = 17
