"""Remove what a trial left, however deep it nested its folders."""

import os
import shutil
import subprocess


def remove(folder: str | os.PathLike[str]) -> None:
    """Remove *folder* with all below it; what cannot be removed stays."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except RecursionError:  # a trial may nest thousands; rm has no stack to fill
        subprocess.run(["rm", "-rf", "--", os.fspath(folder)], check=False)
