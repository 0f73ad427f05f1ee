"""Telling the C library's allocator to keep the memory that a training step frees."""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # names of malloc.h: M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX


def keep_freed_memory(ahead: int = 64) -> bool:
    """Let this process keep freed memory for its next allocations, for good.

    A training step on a CPU allocates and frees the same gigabytes again and again. glibc gives large blocks back to
    the system at once, which then hands them out anew page by page and zeroed: a fifth of a small model's step. The
    process stays as large as it ever was.

    Args:
        ahead: megabytes that the heap grows by when it must grow.

    Returns:
        Whether there was a glibc to tell; elsewhere nothing happens.

    Example:
        >>> keep_freed_memory() in (True, False)
        True
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # No block of its own mapping, whatever its size, and no giving back from the end of the heap.
    return all(mallopt(*option) for option in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, ahead << 20)))


__all__ = ["keep_freed_memory"]
