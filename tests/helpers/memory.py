"""How much memory a process has, and how much of it is in use."""

from __future__ import annotations

import ctypes
import math
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

MEGA = 1 << 20


def held_mb(process: psutil.Process) -> float:
    """Memory that is the process's own; on Linux without the pages of its files, which the system takes and gives."""
    info = process.memory_info()
    return (info.private if hasattr(info, "private") else info.rss - getattr(info, "shared", 0)) / MEGA


class _Mallinfo(ctypes.Structure):
    """`struct mallinfo2` of malloc.h."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


def in_use_mb() -> float:
    """What was allocated from the C library and not freed; not a number where it is not glibc 2.33 or newer."""
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None) if sys.platform == "linux" else None
    if mallinfo is None:
        return math.nan
    mallinfo.restype = _Mallinfo
    info = mallinfo()
    return (info.uordblks + info.hblkhd) / MEGA
