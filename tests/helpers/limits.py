"""What a child process takes from itself before it works: rights, room on disk, memory.

`resource` is imported where it is used: Windows has none, and modules that import this one must be found there too.
"""

from __future__ import annotations

import ctypes
import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

end_now = os._exit
"""Ends this process without cleaning up, as a child of `os.fork` must."""

if TYPE_CHECKING:
    from collections.abc import Iterator

_CAPABILITY_VERSION_3 = 0x20080522


def obey_permissions() -> None:
    """Give up root's right to write what may not be written; without effect for an ordinary user."""
    if os.getuid() != 0:
        return
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    none = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")


def limit_file_size(size: int) -> None:
    """No file may grow beyond `size` bytes: what a full disk is to a program."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@contextmanager
def file_size_limited(size: int) -> Iterator[None]:
    """`limit_file_size` for a block within this process."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit_file_size(size)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def limit_memory(extra: int) -> None:
    """Allow `extra` bytes of address space more than the process has now."""
    import resource

    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + extra, resource.getrlimit(resource.RLIMIT_AS)[1]))
