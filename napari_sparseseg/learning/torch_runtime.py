"""How torch is imported and on what it runs: triton hidden in a viewer, threads, device."""

from __future__ import annotations

import ctypes
import functools
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
_VIEWER_MODULES = ("napari", "vispy", "qtpy", "PyQt5", "PyQt6", "PySide2", "PySide6")


def hide_triton_from_viewer() -> bool:
    """Make triton look absent where a viewer may hold a GL context; whether it is hidden now.

    Nothing happens where triton was imported already (it did so safely), off Linux, and in a plain process, where
    ``torch.compile`` stays available.
    """
    if sys.platform == "linux" and _in_viewer():
        hide_triton()
    return sys.modules.get("triton", ...) is None


def _in_viewer() -> bool:
    return any(name in sys.modules for name in _VIEWER_MODULES)


def hide_triton() -> None:
    """Make triton look absent unless it was imported already; a process that never compiles saves 77 MB.

    Nothing here is compiled. Measured on one core with torch 2.14: ``torch.compile`` took 87 s for the encoder and 43 s
    for the decoder, and was slower afterwards (66 against 54 ms a pass of four patches, 191 against 153 ms a step).
    """
    if "triton" not in sys.modules:
        # The type of sys.modules does not know that None means "absent"; the import system does.
        modules: dict[str, Any] = sys.modules
        modules["triton"] = None


def lean_process() -> None:
    """Make a process that only predicts hold less memory: no triton, and one heap that gives back what it has to spare.

    Small tensors come out of the heap, else half of the time goes into page faults; what is free at its top beyond
    16 MB goes back. A label image of 4,096 px by a model with decoder, two threads, one run each on a busy machine
    (2026-11-23), CPU time and memory by the two thresholds: 32 and 48 MB 31 s and 1,106 MB; 24 and 32 MB 28 s and
    1,010 MB; 24 and 24 MB 33 s and 987 MB; 16 and 16 MB 34 s and 948 MB. dask's nanny tells its workers to give back
    every 64 kB, which this undoes. Only for a process of our own: what a viewer does is in
    `_let_ended_threads_give_back`.
    """
    hide_triton()
    _set_malloc(_M_MMAP_THRESHOLD, 16_000_000, _M_TRIM_THRESHOLD, 16_000_000, _M_ARENA_MAX, 1)


@functools.cache
def _let_ended_threads_give_back() -> None:
    """Keep glibc from holding up to 64 MB for every thread that ever worked; a user's own setting goes first.

    glibc raises its thresholds by itself, to 32 and 64 MB, once arrays of that size are freed, and ``malloc_trim`` does
    not reach what is at the top of a thread's arena. Measured in the window: whole-slide predictions took the memory in
    steps from 1,180 to 1,590 MB; with 16 MB instead of 64 it stays at 1,170, at no cost that could be measured.
    """
    if not any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        _set_malloc(_M_MMAP_THRESHOLD, 32_000_000, _M_TRIM_THRESHOLD, 16_000_000)


def _set_malloc(*options: int) -> None:
    libc = _glibc()
    for option, value in zip(options[::2], options[1::2], strict=True):
        if libc is not None:
            libc.mallopt(option, value)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def _load_libraries() -> None:
    """Load torch's libraries without Python's lock, which ``import torch`` holds meanwhile: a window would stand still.

    Measured on two busy cores: the longest the main thread waited was 760 to 1,720 ms, with this 170 to 210 ms. Only
    those that know nothing of Python; where it does not work, the import does it or says why not.
    """
    libc, torch = _glibc(), importlib.util.find_spec("torch")
    if libc is None or torch is None or torch.origin is None or "torch" in sys.modules:
        return
    path = Path(torch.origin).parent / "lib" / "libtorch.so"
    libc.dlopen.restype = ctypes.c_void_p
    libc.dlopen(os.fsencode(path), os.RTLD_NOW)


def import_torch(threads: int | None = None) -> ModuleType:
    """Import torch safely beside a viewer and set how many threads it uses; call it off the GUI thread.

    Parameters
    ----------
    threads
        CPU threads of torch. None: ``OMP_NUM_THREADS`` where set, else one on machines of up to four cores when a
        viewer is open (its event loop needs the rest), else torch's own choice.
    """
    hide_triton_from_viewer()
    if _in_viewer():
        _let_ended_threads_give_back()
        _load_libraries()
    # torch reads this once. With 4 kB pages half of the time of a tile of 1,088 px went into page faults (measured).
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # Threads that wait for each other sleep. As OpenMP does it they spin: beside another busy program two threads took
    # 3 to 7 s for a tile of 1,008 px, asleep 0.8 to 1.2 s; alone 0.36 to 0.41 s and 0.40 to 0.49 s (2026-11-23).
    if "GOMP_SPINCOUNT" not in os.environ:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import torch

    cores = os.cpu_count() or 1
    if threads is None and _in_viewer() and "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, cores // 2 if cores <= 4 else cores - 2)
    if threads is not None:
        torch.set_num_threads(threads)
    return torch


def choose_device(name: str = "auto") -> torch.device:
    """The device for a setting ``auto | cpu | cuda[:n] | mps``.

    Raises
    ------
    TrainingError
        When the device is not there.
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
