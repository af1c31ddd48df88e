"""What the server, the listener and the command line must agree on; imports none of them.

Each program imports this package first, before anything can import httpx.
"""

import sys

# None says that the module is not there. It is httpx's own command line, which loads rich and pygments: 4 MiB and a
# tenth of the start of a program that never calls it
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
