"""Names, links, directories, times and numbers."""

import ctypes
import errno
import os
import time

from check import fails, get, main, put

LIBC = ctypes.CDLL(None, use_errno=True)
NOREPLACE, EXCHANGE = 1, 2
AT_FDCWD = -100


def renameat2(old, new, flags):
    if LIBC.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def names_are_any_bytes_up_to_255():
    names = [bytes([byte]) * 3 for byte in range(1, 256) if byte not in b"/."]
    names += [b"x" * 255, b" leading", b"trailing ", "ünïcödé".encode(), b"\xff\xfe", b"...", b"new\nline"]
    for name in names:
        put(name, name)
    assert sorted(os.listdir(b".")) == sorted(names)
    for name in names:
        assert get(name) == name
        os.unlink(name)
    with fails(errno.ENAMETOOLONG):
        put(b"x" * 256)
    for call in (os.mkdir, os.unlink, os.stat):
        with fails(errno.ENAMETOOLONG):
            call(b"x" * 256)


def paths_reach_4095_bytes():
    here = os.getcwd()
    depth = (4095 - 10) // 101
    for _ in range(depth):
        os.mkdir("d" * 100)
        os.chdir("d" * 100)
    put("deep", b"deep")
    os.chdir(here)
    path = "/".join(["d" * 100] * depth) + "/deep"
    assert get(path) == b"deep"
    with fails(errno.ENAMETOOLONG):
        os.stat("./" * 2100 + "x")


def symlinks_hold_4095_bytes():
    target = "t" * 4095
    os.symlink(target, "link")
    assert os.readlink("link") == target and os.lstat("link").st_size == 4095
    os.symlink("b", "a")
    os.symlink("a", "b")
    with fails(errno.ELOOP):
        os.stat("a")


def hard_links_share_one_inode_across_directories():
    os.mkdir("one")
    os.mkdir("two")
    put("one/f", b"content")
    os.link("one/f", "two/g")
    os.link("one/f", "one/h")
    numbers = {os.stat(name).st_ino for name in ("one/f", "two/g", "one/h")}
    assert len(numbers) == 1 and os.stat("one/f").st_nlink == 3
    put("two/g", b"changed")
    assert get("one/f") == b"changed"
    os.unlink("one/f")
    assert os.stat("two/g").st_nlink == 2 and get("one/h") == b"changed"
    with fails(errno.EPERM, errno.EISDIR):
        os.link("one", "three")
    with fails(errno.EEXIST):
        os.link("one/h", "two/g")


def directories_count_their_subdirectories():
    os.mkdir("d")
    assert os.stat("d").st_nlink == 2
    for number in range(5):
        os.mkdir(f"d/{number}")
    put("d/file")
    assert os.stat("d").st_nlink == 7
    os.rmdir("d/0")
    os.mkdir("e")
    os.rename("d/1", "e/1")
    assert os.stat("d").st_nlink == 5 and os.stat("e").st_nlink == 3
    with fails(errno.ENOTEMPTY, errno.EEXIST):
        os.rmdir("d")


def renaming_replaces_refuses_or_exchanges():
    put("a", b"a")
    put("b", b"b")
    with fails(errno.EEXIST):
        renameat2("a", "b", NOREPLACE)
    renameat2("a", "b", EXCHANGE)
    assert get("a") == b"b" and get("b") == b"a"
    renameat2("a", "c", NOREPLACE)
    os.rename("c", "b")
    assert get("b") == b"b" and os.listdir(".") == ["b"]
    os.makedirs("d/e/f")
    put("d/e/x")
    for target in ("d/e/f/g", "d/e"):
        with fails(errno.EINVAL, errno.ENOTEMPTY, errno.EEXIST):
            os.rename("d", target)
    with fails(errno.EINVAL):
        os.rename("d", "d/e/f/g")
    renameat2("d", "b", EXCHANGE)
    assert os.path.isdir("b/e/f") and get("d") == b"b"
    os.mkdir("empty")
    os.rename("b", "empty")
    assert os.path.isdir("empty/e/f")
    with fails(errno.ENOTDIR):
        os.rename("empty", "d")
    with fails(errno.EISDIR):
        os.rename("d", "empty")


def renaming_over_an_open_file_leaves_its_readers_the_old_one():
    put("old", b"old content")
    put("new", b"new content")
    reader = os.open("old", os.O_RDONLY)
    os.rename("new", "old")
    assert os.read(reader, 100) == b"old content" and get("old") == b"new content"
    os.close(reader)


def a_listing_is_stable_while_entries_come_and_go():
    for number in range(3000):
        os.close(os.open(f"stays-{number}", os.O_CREAT))
    seen, step = [], 0
    with os.scandir(".") as entries:
        for entry in entries:
            seen.append(entry.name)
            step += 1
            if step % 50 == 0:
                put(f"comes-{step}")
                if step > 100:
                    os.unlink(f"comes-{step - 100}")
    stays = [name for name in seen if name.startswith("stays-")]
    assert len(stays) == 3000 and len(set(seen)) == len(seen), (len(stays), len(seen) - len(set(seen)))


def a_position_in_a_listing_can_be_returned_to():
    class Entry(ctypes.Structure):
        _fields_ = [("ino", ctypes.c_uint64), ("off", ctypes.c_int64), ("len", ctypes.c_uint16), ("type", ctypes.c_uint8),
                    ("name", ctypes.c_char * 256)]

    for number in range(500):
        os.close(os.open(f"f{number}", os.O_CREAT))
    LIBC.opendir.restype = ctypes.c_void_p
    LIBC.readdir.restype = ctypes.POINTER(Entry)
    LIBC.telldir.restype = ctypes.c_long
    stream = ctypes.c_void_p(LIBC.opendir(b"."))
    names, places = [], []
    while True:
        places.append(LIBC.telldir(stream))
        entry = LIBC.readdir(stream)
        if not entry:
            break
        names.append(entry.contents.name)
    assert len(names) == 502 and set(names) >= {b".", b".."}
    for index in (0, 1, 2, 3, 250, 400, 501):
        LIBC.seekdir(stream, ctypes.c_long(places[index]))
        assert LIBC.readdir(stream).contents.name == names[index], index
    os.unlink(names[300].decode())
    LIBC.seekdir(stream, ctypes.c_long(places[301]))
    assert LIBC.readdir(stream).contents.name == names[301]
    LIBC.closedir(stream)


def dots_lead_where_they_should():
    os.makedirs("a/b")
    assert os.stat("a/b/..").st_ino == os.stat("a").st_ino == os.stat("a/.").st_ino
    os.rename("a/b", "c")
    assert os.stat("c/..").st_ino == os.stat(".").st_ino
    root = os.getcwd()
    while not os.path.ismount(root):
        root = os.path.dirname(root)
    inside = {entry: os.stat(os.path.join(root, entry)).st_ino for entry in (".", "..")}
    assert inside["."] == os.stat(root).st_ino and inside[".."] == os.stat(os.path.dirname(root)).st_ino


def times_have_nanoseconds_and_follow_what_is_done():
    put("f", b"x")
    os.utime("f", ns=(1_234_567_890_123_456_789, 987_654_321_987_654_321))
    found = os.stat("f")
    assert (found.st_atime_ns, found.st_mtime_ns) == (1_234_567_890_123_456_789, 987_654_321_987_654_321)
    os.utime("f", ns=(-5_000_000_001, 4_000_000_000_000_000_001))
    found = os.stat("f")
    assert (found.st_atime_ns, found.st_mtime_ns) == (-5_000_000_001, 4_000_000_000_000_000_001), found

    def moves(what, *names):
        """Returns which of the times of `names` change when `what` is done."""
        before = [os.stat(name) for name in names]
        time.sleep(0.02)  # clocks tick in milliseconds
        what()
        after = [os.stat(name) for name in names]
        return [(old.st_mtime_ns != new.st_mtime_ns, old.st_ctime_ns != new.st_ctime_ns) for old, new in zip(before, after)]

    put("f", b"x")
    os.mkdir("d")
    assert moves(lambda: os.chmod("f", 0o600), "f") == [(False, True)]
    assert moves(lambda: put("f", b"more"), "f") == [(True, True)]
    assert moves(lambda: os.truncate("f", 1), "f") == [(True, True)]
    assert moves(lambda: os.link("f", "d/g"), "f", "d") == [(False, True), (True, True)]
    assert moves(lambda: os.rename("d/g", "d/h"), "d") == [(True, True)]
    assert moves(lambda: os.unlink("d/h"), "f", "d") == [(False, True), (True, True)]
    assert moves(lambda: os.setxattr("f", "user.a", b"1"), "f") == [(False, True)]
    assert moves(lambda: get("f"), "f") == [(False, False)]


def reading_moves_the_access_time_once_after_a_change():
    put("f", b"content")
    changed = os.stat("f").st_mtime_ns
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as caches:
        caches.write("3")
    assert get("f") == b"content"
    deadline = time.monotonic() + 30
    while os.stat("f").st_atime_ns <= changed:
        assert time.monotonic() < deadline, "the access time does not move"
        time.sleep(0.05)
    found = os.stat("f")
    assert found.st_mtime_ns == changed and found.st_ctime_ns < found.st_atime_ns


def links_to_one_file_end_at_emlink():
    put("f")
    made = 1
    while True:
        try:
            os.link("f", f"l{made}")
            made += 1
        except OSError as error:
            assert error.errno == errno.EMLINK
            break
        if made > 1200:
            # The limit is far higher; the state machine's own tests check it.
            break
    assert os.stat("f").st_nlink == made


def free_space_and_inodes_are_reported():
    found = os.statvfs(".")
    assert found.f_blocks > found.f_bfree > 0 and found.f_bavail <= found.f_bfree
    assert found.f_namemax == 255 and found.f_files > 0


main([
    names_are_any_bytes_up_to_255,
    paths_reach_4095_bytes,
    symlinks_hold_4095_bytes,
    hard_links_share_one_inode_across_directories,
    directories_count_their_subdirectories,
    renaming_replaces_refuses_or_exchanges,
    renaming_over_an_open_file_leaves_its_readers_the_old_one,
    a_listing_is_stable_while_entries_come_and_go,
    a_position_in_a_listing_can_be_returned_to,
    dots_lead_where_they_should,
    times_have_nanoseconds_and_follow_what_is_done,
    reading_moves_the_access_time_once_after_a_change,
    links_to_one_file_end_at_emlink,
    free_space_and_inodes_are_reported,
])
