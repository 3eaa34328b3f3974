"""A wait for what somebody else reads, in another process or thread, as the kernel tells of it."""

import ctypes
import os
import select
import time

IN_OPEN = 0x20
EVENT = 16  # bytes, for a watched file


def wait_for_opens(path, count, deadline=120):
    """Return when the file was opened ``count`` times more."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(0)
    try:
        added = libc.inotify_add_watch(watch, os.fsencode(path), IN_OPEN)
        assert watch >= 0 and added >= 0, os.strerror(ctypes.get_errno())
        end = time.monotonic() + deadline
        while count > 0:
            readable, _, _ = select.select([watch], [], [], max(0, end - time.monotonic()))
            assert readable, f"nobody opens {path}"
            count -= len(os.read(watch, 4096)) // EVENT
    finally:
        os.close(watch)
