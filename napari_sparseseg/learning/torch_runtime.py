"""torch in this process: how it is imported, what is tuned for it, and on which device it runs.

This is the one place that changes the process around it. Each change, where it applies, and its reason (see D8):

=============================  ===========================  =======================================================
change                         where                        reason
=============================  ===========================  =======================================================
triton looks absent            Linux, beside a viewer;      its LLVM clashes with that of Mesa's OpenGL drivers:
                               in `tune_process` anywhere   the import ends in a segmentation fault; saves 77 MB
few threads inside operators   everywhere                   they wait for each other many times per operator: beside
                                                            busy programs nearly all the time; see D15
``OMP_WAIT_POLICY=passive``    `tune_process`               threads that wait spin, and stall beside other programs
``THP_MEM_ALLOC_ENABLE=1``     `tune_process`               with 4 kB pages half of the time goes into page faults
``mallopt`` (glibc)            `tune_process`               gives back memory that ended threads and tiles have left
libtorch is loaded by dlopen   `tune_process`, beside a     ``import torch`` holds Python's lock for up to 1.7 s, and
                               viewer                       the window would not respond
=============================  ===========================  =======================================================

The window and the shell call `tune_process`; a script or notebook that only uses `Session` is left as it is. What a
user has set in the environment goes first.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import importlib.util
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_sparseseg.errors import TrainingError

if TYPE_CHECKING:
    from types import ModuleType

    import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h of glibc
_CAME_FIRST = "torch" in sys.modules
"""Whether torch was imported by somebody else, before anything here; this module is imported before torch."""
_VIEWER_MODULES = ("napari", "vispy", "qtpy", "PyQt5", "PyQt6", "PySide2", "PySide6")


def tune_process(*, predicting: bool = False) -> None:
    """Tune this process for torch, before it is imported; see the table above.

    Parameters
    ----------
    predicting
        The process does nothing but predict: one heap for all threads, which takes the least memory.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if "GOMP_SPINCOUNT" not in os.environ:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    viewer = _in_viewer()
    # The thresholds are those that were measured to be best in each kind of process, see D8.
    if predicting and not viewer:
        _set_malloc({_M_MMAP_THRESHOLD: 16_000_000, _M_TRIM_THRESHOLD: 16_000_000, _M_ARENA_MAX: 1})
    elif not any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        _set_malloc({_M_MMAP_THRESHOLD: 32_000_000, _M_TRIM_THRESHOLD: 16_000_000})
    if viewer:
        hide_triton_from_viewer()
        _load_libraries()
    else:
        _hide_triton()


def hide_triton_from_viewer() -> bool:
    """Make triton look absent where a viewer may hold a GL context; whether it is hidden now.

    Nothing happens where triton was imported already (it did so safely), off Linux, and in a plain process, where
    ``torch.compile`` stays available.
    """
    if sys.platform == "linux" and _in_viewer():
        _hide_triton()
    return sys.modules.get("triton", ...) is None


def import_torch(threads: int | None = None) -> ModuleType:
    """Import torch safely beside a viewer and set its number of threads; call it off the GUI thread.

    Parameters
    ----------
    threads
        CPU threads inside torch's operators. None: ``OMP_NUM_THREADS`` where set; else one for every four cores, unless
        a script has imported torch before and so has made its own choice.
    """
    hide_triton_from_viewer()
    collecting = gc.isenabled()
    gc.disable()  # looking for garbage among what an import makes takes a sixth of its time
    try:
        import torch
    finally:
        if collecting:
            gc.enable()

    if threads is not None:
        torch.set_num_threads(threads)
    elif not os.environ.get("OMP_NUM_THREADS") and not (_CAME_FIRST and not _in_viewer()):
        _set_few_threads()
    return torch


@functools.cache
def _set_few_threads() -> None:
    """Once: a user may set another number later."""
    import torch

    torch.set_num_threads(threads_for(torch.get_num_threads()))


def threads_for(cores: int) -> int:
    """Threads inside torch's operators on a machine with that many cores: a quarter of them, at least one.

    The small parallel regions of an operator wait for the thread that the machine runs last, so on a machine that
    other programs use as well, as many threads as cores stall each other (see D15).
    """
    return max(1, cores // 4)


def _in_viewer() -> bool:
    return any(name in sys.modules for name in _VIEWER_MODULES)


def _hide_triton() -> None:
    if "triton" not in sys.modules:
        # The type of sys.modules does not know that None means "absent"; the import system does.
        modules: dict[str, Any] = sys.modules
        modules["triton"] = None


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def _set_malloc(options: dict[int, int]) -> None:
    if (libc := _glibc()) is not None:
        for option, value in options.items():
            libc.mallopt(option, value)


def _load_libraries() -> None:
    """Load torch's libraries without Python's lock; only those that know nothing of Python.

    Where that fails, the import does it or says why not.
    """
    libc, torch = _glibc(), importlib.util.find_spec("torch")
    if libc is None or torch is None or torch.origin is None or "torch" in sys.modules:
        return
    path = Path(torch.origin).parent / "lib" / "libtorch.so"
    libc.dlopen.restype = ctypes.c_void_p
    libc.dlopen(os.fsencode(path), os.RTLD_NOW)


def choose_device(name: str = "auto") -> torch.device:
    """The device for a setting ``auto | cpu | cuda[:n] | mps``.

    Raises
    ------
    TrainingError
        When the device is not available.
    """
    import_torch()
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind = name.split(":")[0]
    found = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not found.get(kind, False):
        there = ", ".join(k for k, ok in found.items() if ok)
        raise TrainingError(f"device {name!r} is not available here (found: {there}); choose one of these, or auto.")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise TrainingError(f"device {name!r} is not a device name; write cpu, cuda, cuda:1 or mps.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise TrainingError(f"device {name!r} is not there: this machine has {torch.cuda.device_count()} CUDA devices.")
    return device


def autocast_dtype(device: torch.device, *, training: bool = False) -> torch.dtype | None:
    """The reduced precision that pays on a device, or None for float32.

    bfloat16 on CUDA that computes in it (not: emulates it, as cards before Ampere do). Those predict in float16 and
    train in float32: small gradients vanish in float16 unless the loss is scaled, a second way to train for old cards.
    """
    import torch

    if device.type != "cuda":
        return None
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return None if training else torch.float16


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: CUDA has a class for it, main memory and MPS a `RuntimeError`."""
    text = str(error)
    said = ("out of memory", "allocate memory", "not enough memory", "bad_alloc", "bad allocation")
    return isinstance(error, MemoryError) or any(words in text for words in said)
