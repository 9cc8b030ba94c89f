"""Reading and writing in all the ways that Linux has."""

import ctypes
import errno
import mmap
import os
import struct
import threading
import time

from check import child, fails, get, join, main, put

LIBC = ctypes.CDLL(None, use_errno=True)
KEEP_SIZE, PUNCH, COLLAPSE, ZERO, INSERT = 1, 2, 8, 16, 32
MIB = 1 << 20


def fallocate(fd, mode, offset, length):
    done = LIBC.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length))
    if done != 0:
        raise OSError(ctypes.get_errno(), "fallocate")


def data_of(fd, size):
    """Returns the ranges of a file's data according to SEEK_DATA and SEEK_HOLE."""
    ranges, at = [], 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            assert error.errno == errno.ENXIO
            break
        at = os.lseek(fd, start, os.SEEK_HOLE)
        ranges.append((start, at))
    return ranges


def holes_are_found_and_read_as_zeros():
    fd = os.open("f", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b"a" * 4096, 0)
    os.pwrite(fd, b"b" * 4096, 10 * MIB)
    os.ftruncate(fd, 20 * MIB)
    for committed in (False, True):
        assert data_of(fd, 20 * MIB) == [(0, 4096), (10 * MIB, 10 * MIB + 4096)], (committed, data_of(fd, 20 * MIB))
        assert os.pread(fd, 4096, 5 * MIB) == bytes(4096)
        os.fsync(fd)
    assert os.fstat(fd).st_blocks == 16, os.fstat(fd)
    with fails(errno.ENXIO):
        os.lseek(fd, 20 * MIB, os.SEEK_DATA)
    assert os.lseek(fd, 19 * MIB, os.SEEK_HOLE) == 19 * MIB
    os.close(fd)


def punching_and_zeroing_leave_the_rest():
    fd = os.open("f", os.O_RDWR | os.O_CREAT)
    content = bytearray(os.urandom(300_000))
    os.pwrite(fd, content, 0)
    for mode, start, length in ((PUNCH | KEEP_SIZE, 1000, 50_000), (ZERO, 100_001, 70_000), (PUNCH | KEEP_SIZE, 299_000, 5000)):
        fallocate(fd, mode, start, length)
        end = min(start + length, len(content))
        content[start:end] = bytes(end - start)
        assert os.pread(fd, 400_000, 0) == bytes(content), mode
        os.fsync(fd)
        assert os.pread(fd, 400_000, 0) == bytes(content), mode
    fallocate(fd, ZERO, 290_000, 20_000)
    assert os.fstat(fd).st_size == 310_000
    fallocate(fd, ZERO | KEEP_SIZE, 300_000, 20_000)
    assert os.fstat(fd).st_size == 310_000
    with fails(errno.EOPNOTSUPP, errno.EINVAL):
        fallocate(fd, PUNCH, 0, 10)
    os.close(fd)


def collapsing_and_inserting_move_what_follows():
    fd = os.open("f", os.O_RDWR | os.O_CREAT)
    content = os.urandom(10 * 4096)
    os.pwrite(fd, content, 0)
    try:
        fallocate(fd, COLLAPSE, 4096, 8192)
    except OSError as error:
        assert error.errno == errno.EOPNOTSUPP
        return
    expected = content[:4096] + content[3 * 4096 :]
    assert os.pread(fd, 1 << 20, 0) == expected and os.fstat(fd).st_size == len(expected)
    fallocate(fd, INSERT, 8192, 4096)
    expected = expected[:8192] + bytes(4096) + expected[8192:]
    assert os.pread(fd, 1 << 20, 0) == expected
    os.close(fd)
    assert get("f") == expected


def allocating_grows_or_keeps_the_size():
    fd = os.open("f", os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(fd, 0, 100_000)
    assert os.fstat(fd).st_size == 100_000 and os.pread(fd, 100, 50_000) == bytes(100)
    fallocate(fd, KEEP_SIZE, 0, 500_000)
    assert os.fstat(fd).st_size == 100_000
    os.close(fd)


def offsets_reach_sixteen_tebibytes_and_end_there():
    fd = os.open("f", os.O_RDWR | os.O_CREAT)
    end = 16 << 40
    os.pwrite(fd, b"last", end - 4)
    os.fsync(fd)
    assert os.fstat(fd).st_size == end and os.pread(fd, 10, end - 4) == b"last"
    assert os.fstat(fd).st_blocks < 100
    with fails(errno.EFBIG):
        os.pwrite(fd, b"x", end)
    with fails(errno.EFBIG):
        os.ftruncate(fd, end + 1)
    os.close(fd)


def several_processes_append_without_overwriting_each_other():
    def append(letter):
        fd = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        for number in range(200):
            os.write(fd, f"{letter} {number}\n".encode())
        os.close(fd)

    children = [child(lambda letter=letter: append(letter)) for letter in "abcd"]
    for pid in children:
        join(pid)
    lines = get("log").decode().splitlines()
    assert len(lines) == 800 and len(set(lines)) == 800, len(lines)
    for letter in "abcd":
        own = [line for line in lines if line.startswith(letter)]
        assert own == [f"{letter} {number}" for number in range(200)], "each one's order is kept"


def direct_and_synchronous_writes_are_read_back():
    block = mmap.mmap(-1, 65536)
    block.write(os.urandom(65536))
    for name, flags in (("direct", os.O_DIRECT), ("sync", os.O_SYNC), ("dsync", os.O_DSYNC)):
        fd = os.open(name, os.O_RDWR | os.O_CREAT | flags)
        assert os.pwrite(fd, block, 4096) == 65536
        os.close(fd)
        assert get(name) == bytes(4096) + block[:], name
    fd = os.open("direct", os.O_RDONLY | os.O_DIRECT)
    back = mmap.mmap(-1, 65536)
    assert os.preadv(fd, [back], 4096) == 65536 and back[:] == block[:]
    os.close(fd)


class AsynchronousWrites:
    """`io_submit(2)`: the program does not wait for the writes before it calls `done`."""

    SETUP, DESTROY, GETEVENTS, SUBMIT, PWRITE = 206, 207, 208, 209, 1  # x86_64

    def __init__(self):
        self.context = ctypes.c_ulong(0)
        assert LIBC.syscall(self.SETUP, 4, ctypes.byref(self.context)) == 0

    def begin(self, fd, buffer, offset):
        address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        block = struct.pack("<QIiHhIQQqQII", 0, 0, 0, self.PWRITE, 0, fd, address, len(buffer), offset, 0, 0, 0)
        self.block = ctypes.create_string_buffer(block)
        blocks = (ctypes.c_void_p * 1)(ctypes.addressof(self.block))
        assert LIBC.syscall(self.SUBMIT, self.context, 1, blocks) == 1

    def done(self):
        event = ctypes.create_string_buffer(32)
        assert LIBC.syscall(self.GETEVENTS, self.context, 1, 1, event, None) == 1
        return struct.unpack("<QQqq", event.raw)[2]

    def end(self):
        assert LIBC.syscall(self.DESTROY, self.context) == 0


def a_buffered_read_returns_what_an_asynchronous_direct_write_has_written_even_if_somebody_read_meanwhile():
    size = MIB // 2
    fd, buffer = os.open("f", os.O_RDWR | os.O_CREAT | os.O_DIRECT), mmap.mmap(-1, size)
    assert os.pwrite(fd, buffer, 0) == size
    ended = threading.Event()

    def read_on():
        while not ended.is_set():
            reader = os.open("f", os.O_RDONLY)
            while os.read(reader, 65536):
                pass
            os.close(reader)

    readers = [threading.Thread(target=read_on) for _ in range(2)]
    for reader in readers:
        reader.start()
    writes, number, until = AsynchronousWrites(), 0, time.monotonic() + 5
    try:
        while time.monotonic() < until:
            number += 1
            buffer[:] = bytes([number % 251]) * size
            writes.begin(fd, buffer, 0)
            assert writes.done() == size
            assert get("f") == buffer[:], f"write {number} is not what a read after it returns"
    finally:
        ended.set()
        for reader in readers:
            reader.join()
        writes.end()
        os.close(fd)
    assert number > 3


def opening_may_truncate():
    put("f", b"long content")
    os.close(os.open("f", os.O_WRONLY | os.O_TRUNC))
    assert os.stat("f").st_size == 0
    put("f", b"x")
    assert get("f") == b"x"
    # The times change though there is nothing to cut.
    put("f", b"")
    os.utime("f", (1, 1))
    os.close(os.open("f", os.O_WRONLY | os.O_TRUNC))
    assert os.stat("f").st_mtime > 1


def shared_mappings_write_and_private_ones_do_not():
    put("f", b"." * 10_000)
    fd = os.open("f", os.O_RDWR)
    shared = mmap.mmap(fd, 10_000)
    private = mmap.mmap(fd, 10_000, flags=mmap.MAP_PRIVATE)
    shared[5000:5003] = b"abc"
    private[0:3] = b"xyz"
    assert os.pread(fd, 3, 5000) == b"abc" and os.pread(fd, 3, 0) == b"..."
    shared.flush()
    os.pwrite(fd, b"new", 100)
    assert shared[100:103] == b"new"
    shared.close()
    private.close()
    os.close(fd)
    expected = bytearray(b"." * 10_000)
    expected[5000:5003], expected[100:103] = b"abc", b"new"
    assert get("f") == bytes(expected)


def sendfile_splice_and_copy_file_range_move_bytes():
    content = os.urandom(700_001)
    put("from", content)
    source = os.open("from", os.O_RDONLY)
    target = os.open("sent", os.O_WRONLY | os.O_CREAT)
    sent = 0
    while sent < len(content):
        sent += os.sendfile(target, source, sent, len(content) - sent)
    os.close(target)
    assert get("sent") == content
    read_end, write_end = os.pipe()
    target = os.open("spliced", os.O_WRONLY | os.O_CREAT)
    at = 0
    while at < len(content):
        count = os.splice(source, write_end, 65536, offset_src=at)
        done = 0
        while done < count:
            done += os.splice(read_end, target, count - done, offset_dst=at + done)
        at += count
    os.close(target)
    assert get("spliced") == content
    target = os.open("copied", os.O_WRONLY | os.O_CREAT)
    at = 0
    while at < len(content):
        at += os.copy_file_range(source, target, len(content) - at, at, at)
    os.close(target)
    assert get("copied") == content
    os.close(source)


def a_copied_range_shares_blocks():
    put("big", os.urandom(32 * MIB))
    os.sync()
    free = lambda: os.statvfs(".").f_bfree * os.statvfs(".").f_frsize
    before = free()
    source = os.open("big", os.O_RDONLY)
    # Daemons report their space every second, and others may use the same disk: so many copies show all the same.
    for number in range(8):
        target = os.open(f"clone-{number}", os.O_RDWR | os.O_CREAT)
        at = 0
        while at < 32 * MIB:
            at += os.copy_file_range(source, target, 32 * MIB - at, at, at)
        os.fsync(target)
        if number < 7:
            os.close(target)
    assert before - free() < 128 * MIB, "256 MiB were copied"
    os.pwrite(target, b"changed", 1000)
    assert os.pread(source, 7, 1000) != b"changed"
    os.close(source)
    os.close(target)


def an_unlinked_file_lives_until_it_is_closed():
    put("f", b"content")
    fd = os.open("f", os.O_RDWR)
    os.unlink("f")
    assert os.fstat(fd).st_nlink == 0
    os.pwrite(fd, b"CON", 0)
    os.fsync(fd)
    assert os.pread(fd, 10, 0) == b"CONtent"
    with open(f"/proc/self/fd/{fd}", "rb") as again:
        assert again.read() == b"CONtent"
    put("f", b"other")
    assert os.pread(fd, 10, 0) == b"CONtent"
    os.close(fd)
    assert get("f") == b"other"


def saving_as_editors_do_leaves_the_old_or_the_new_content():
    put("document", b"first")
    for number in range(20):
        text = f"version {number}".encode()
        with open("document.tmp", "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        reader = os.open("document", os.O_RDONLY)
        os.rename("document.tmp", "document")
        old = os.read(reader, 100)
        os.close(reader)
        assert get("document") == text and old == (f"version {number - 1}".encode() if number else b"first")
    assert os.listdir(".") == ["document"]


def inotify_reports_changes_on_the_same_mount():
    fd = LIBC.inotify_init1(os.O_NONBLOCK)
    created, closed_after_writing, moved_to, deleted = 0x100, 0x8, 0x80, 0x200
    assert LIBC.inotify_add_watch(fd, b".", created | closed_after_writing | moved_to | deleted) > 0
    put("a", b"x")
    os.rename("a", "b")
    os.unlink("b")
    events, data = [], os.read(fd, 65536)
    while data:
        mask, length = int.from_bytes(data[4:8], "little"), int.from_bytes(data[12:16], "little")
        events.append((mask, data[16 : 16 + length].rstrip(b"\0")))
        data = data[16 + length :]
    os.close(fd)
    assert events == [(created, b"a"), (closed_after_writing, b"a"), (moved_to, b"b"), (deleted, b"b")], events


main([
    holes_are_found_and_read_as_zeros,
    punching_and_zeroing_leave_the_rest,
    collapsing_and_inserting_move_what_follows,
    allocating_grows_or_keeps_the_size,
    offsets_reach_sixteen_tebibytes_and_end_there,
    several_processes_append_without_overwriting_each_other,
    direct_and_synchronous_writes_are_read_back,
    a_buffered_read_returns_what_an_asynchronous_direct_write_has_written_even_if_somebody_read_meanwhile,
    opening_may_truncate,
    shared_mappings_write_and_private_ones_do_not,
    sendfile_splice_and_copy_file_range_move_bytes,
    a_copied_range_shares_blocks,
    an_unlinked_file_lives_until_it_is_closed,
    saving_as_editors_do_leaves_the_old_or_the_new_content,
    inotify_reports_changes_on_the_same_mount,
])
