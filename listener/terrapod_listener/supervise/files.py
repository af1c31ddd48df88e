"""Takes away what a run has left on the disk."""

import os
import shutil
from pathlib import Path


def remove_folder(folder: Path) -> None:
    """Takes a folder away, read-only ones inside included."""
    if not folder.exists():
        return
    for place, folders, _ in os.walk(folder):
        for name in folders:
            path = Path(place) / name
            if not path.is_symlink():
                path.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)
