"""
An order to a running lab and its answer: a line of JSON each, over a socket in the lab's root.

``bin/kmod`` imports this file by itself, without the package: standard library only.
"""

import contextlib
import json
import os
import socket

SOCKET = "lab.sock"


@contextlib.contextmanager
def socket_path(root):
    """A path to the lab's socket, valid within the block: a socket's path may have 107 bytes, the root more."""
    directory = os.open(root, os.O_PATH)
    try:
        yield f"/proc/self/fd/{directory}/{SOCKET}"
    finally:
        os.close(directory)


def ask(root, order, **arguments):
    """
    Send an order: ``{"answer": …}`` or, where the kernel refuses, ``{"errno": …, "error": …}``.

    Raises ``OSError`` or ``ValueError`` if no lab answers.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        with socket_path(root) as path:
            connection.connect(path)
        with connection.makefile("rw") as lines:
            lines.write(json.dumps(dict(arguments, order=order)) + "\n")
            lines.flush()
            return json.loads(lines.readline())
