"""Opening by handle, as an NFS server does: `handles.py save FILE PATH...`, then `handles.py open FILE MOUNT`. With
`handles.py fresh DIR MOUNT`, the handles are those of a directory, one in it and a file in that, all just made in DIR, and
the kernel is made to forget them.

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


def fresh(top, mount):
    deep = os.path.join(top, "fresh", "deep")
    os.makedirs(deep)
    file = os.path.join(deep, "file")
    with open(file, "w") as new:
        new.write("written")
    handles = [of(path) for path in (os.path.dirname(deep), deep, file)]
    with open("/proc/sys/vm/drop_caches", "w") as drop:
        drop.write("2")
    mount = os.open(mount, os.O_RDONLY | os.O_DIRECTORY)
    for handle in reversed(handles):
        print(found(handle, mount))


def main(command, file, *paths):
    if command == "fresh":
        fresh(file, paths[0])
    elif command == "save":
        with open(file, "wb") as out:
            out.writelines(bytes(of(path)) for path in paths)
    else:
        mount = os.open(paths[0], os.O_RDONLY | os.O_DIRECTORY)
        with open(file, "rb") as saved:
            while part := saved.read(ctypes.sizeof(Handle)):
                print(found(Handle.from_buffer_copy(part), mount))


main(*sys.argv[1:])
