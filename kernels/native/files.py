"""Reading files without slowing down what computes meanwhile."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

from expertmesh.kernels.native.library import native_library


def background_reader() -> Callable[[Path, int, memoryview], None] | None:
    """Fills a writable buffer from a file's byte on, on a thread of low priority; None without the library.

    It raises OSError when the file cannot be read, EOFError when it ends early.
    """
    library = native_library()
    if library is None:
        return None
    read = library.functions.expertmesh_read
    read.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_long, ctypes.c_void_p]
    read.restype = ctypes.c_int

    def fill(file: Path, offset_bytes: int, buffer: memoryview) -> None:
        to = (ctypes.c_char * buffer.nbytes).from_buffer(buffer)
        problem = read(os.fsencode(file), offset_bytes, buffer.nbytes, ctypes.addressof(to))
        if problem < 0:
            raise EOFError(f"{file} ends early")
        if problem:
            raise OSError(problem, os.strerror(problem), str(file))

    return fill
