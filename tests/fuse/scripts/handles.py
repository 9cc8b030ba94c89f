"""Opening by handle, as an NFS server does: `handles.py save FILE PATH...`, then `handles.py open FILE MOUNT`.

Prints what each handle leads to: the content of a file, the name of a directory, or the error.
"""

import ctypes
import os
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100
ROOM = 128


class Handle(ctypes.Structure):
    """`struct file_handle` of `name_to_handle_at(2)`."""

    _fields_ = [("length", ctypes.c_uint), ("type", ctypes.c_int), ("bytes", ctypes.c_ubyte * ROOM)]


def of(path):
    handle, mount = Handle(length=ROOM), ctypes.c_int()
    if LIBC.name_to_handle_at(AT_FDCWD, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount), 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
    return handle


def found(handle, mount):
    fd = LIBC.open_by_handle_at(mount, ctypes.byref(handle), os.O_RDONLY)
    if fd < 0:
        return os.strerror(ctypes.get_errno())
    path = f"/proc/self/fd/{fd}"
    return os.path.basename(os.readlink(path)) if os.path.isdir(path) else os.read(fd, 100).decode()


def main(command, file, *paths):
    if command == "save":
        with open(file, "wb") as out:
            out.writelines(bytes(of(path)) for path in paths)
    else:
        mount = os.open(paths[0], os.O_RDONLY | os.O_DIRECTORY)
        with open(file, "rb") as saved:
            while part := saved.read(ctypes.sizeof(Handle)):
                print(found(Handle.from_buffer_copy(part), mount))


main(*sys.argv[1:])
