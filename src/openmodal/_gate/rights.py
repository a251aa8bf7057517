"""Giving up the gate's rights before it reads anything from inside, which is hostile."""

from __future__ import annotations

import codecs
import ctypes
import os

_PR_SET_SECCOMP, _FILTER = 22, 2  # linux/prctl.h, linux/seccomp.h
_STEP = 8  # bytes of a struct sock_filter (linux/filter.h)


class _Program(ctypes.Structure):
    """A struct sock_fprog (linux/filter.h)."""

    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))


def become(id: str) -> None:
    """Take a user and group id, and so lose all capabilities. "": stay the plain user with one id."""
    codecs.lookup("idna")  # sockets may want it, and its file may be out of reach then
    os.chdir("/")
    if id:
        os.setgroups([])
        os.setresgid(int(id), int(id), int(id))
        os.setresuid(int(id), int(id), int(id))


def read_filter(fd: int) -> bytes:
    """The filter that native/cage.c has written there."""
    calls = os.pread(fd, os.fstat(fd).st_size, 0)
    os.close(fd)
    return calls


def keep_to(calls: bytes) -> None:
    """Make no system calls but those of this filter; an empty one allows all.

    Raises:
        OSError: the kernel does not take it.
    """
    if not calls:
        return
    program = _Program(len(calls) // _STEP, calls)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_SECCOMP)")
