"""Opening files whose names come from others: regular files only, and where a folder is set, only what lies below it.

A service's job takes its files from a request, and those of pictures from a table or a folder that the request names.
Its process runs with the folder of --jobs in `SUREMATCH_PICTURES_BELOW`; processes it starts inherit that.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from index.errors import DataError

BELOW = "SUREMATCH_PICTURES_BELOW"
"""The variable that names the folder. Without it every file may be read."""


def open_confined(path: Path) -> BinaryIO:
    """The regular file `path` for reading. Raises `DataError`, without its name, and `OSError` if it cannot be opened.

    Of what lies outside the folder nothing is said, not even whether it is there.
    """
    folder, place = os.environ.get(BELOW), path
    if folder is not None:
        place = Path(os.path.realpath(path))  # wherever links lead
        if not place.is_relative_to(os.path.realpath(folder)):
            raise DataError(f"leads out of {folder}, and nothing outside is read. Put the picture there.")
    # a pipe without a writer would be waited for
    handle = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise DataError("is a folder, a pipe or a device, not a file. Give the file of a picture.")
    return os.fdopen(handle, "rb")
