"""Locks of whole files and of ranges, also when their owners end."""

import errno
import fcntl
import os
import signal
import struct

from check import child, fails, join, main, put


def lock(fd, kind, start=0, length=0):
    fcntl.lockf(fd, kind, length, start)


def taken(fd, start, length):
    """Returns the process that holds a lock in the way of an exclusive one."""
    asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
    kind, _, _, _, pid = struct.unpack("hhqqi4x", fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    return pid if kind != fcntl.F_UNLCK else None


class Signal:
    """A signal for which one process waits and which another one gives."""

    def __init__(self):
        self.reader, self.writer = os.pipe()

    def give(self):
        os.write(self.writer, b"x")

    def wait(self):
        assert os.read(self.reader, 1) == b"x"


def ranges_exclude_each_other_and_only_where_they_overlap():
    put("f", b"x" * 100)
    fd = os.open("f", os.O_RDWR)
    lock(fd, fcntl.LOCK_EX, 10, 10)
    parent = os.getpid()

    def other():
        mine = os.open("f", os.O_RDWR)
        lock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB, 0, 10)
        lock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB, 20, 80)
        for start, length in ((19, 1), (10, 1), (5, 100)):
            with fails(errno.EAGAIN, errno.EACCES):
                lock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB, start, length)
        assert taken(mine, 15, 1) == parent

    join(child(other))
    lock(fd, fcntl.LOCK_UN, 12, 3)
    join(child(lambda: lock(os.open("f", os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB, 12, 3)))
    os.close(fd)


def shared_locks_go_together():
    put("f", b"x")
    fd = os.open("f", os.O_RDWR)
    lock(fd, fcntl.LOCK_SH)

    def other():
        mine = os.open("f", os.O_RDWR)
        lock(mine, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with fails(errno.EAGAIN, errno.EACCES):
            lock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)

    join(child(other))
    os.close(fd)


def a_waiting_lock_is_granted_when_the_holder_releases_it():
    for take in (lambda fd: lock(fd, fcntl.LOCK_EX), lambda fd: fcntl.flock(fd, fcntl.LOCK_EX)):
        put("f", b"x")
        held, done = Signal(), Signal()

        def holder():
            fd = os.open("f", os.O_RDWR)
            take(fd)
            held.give()
            done.wait()

        pid = child(holder)
        held.wait()
        waiter = child(lambda: take(os.open("f", os.O_RDWR)))
        assert os.waitpid(waiter, os.WNOHANG) == (0, 0)
        done.give()
        join(pid)
        join(waiter)


def a_waiting_lock_is_interrupted_by_a_signal():
    put("f", b"x")
    fd = os.open("f", os.O_RDWR)
    lock(fd, fcntl.LOCK_EX)
    ready = Signal()

    def waiter():
        waits = False

        def stop(*_):
            if waits:
                raise InterruptedError

        signal.signal(signal.SIGUSR1, stop)
        mine = os.open("f", os.O_RDWR)
        ready.give()
        try:
            waits = True
            lock(mine, fcntl.LOCK_EX)
        except InterruptedError:
            waits = False
            return
        raise AssertionError("the lock was given")

    pid = child(waiter)
    ready.wait()
    ended = 0
    while ended == 0:
        # The signal is sent repeatedly, because the first may come before the process waits.
        os.kill(pid, signal.SIGUSR1)
        ended, status = os.waitpid(pid, os.WNOHANG)
    assert status == 0
    os.close(fd)


def a_deadlock_is_refused():
    put("f", b"xx")
    fd = os.open("f", os.O_RDWR)
    lock(fd, fcntl.LOCK_EX, 0, 1)
    held = Signal()

    def other():
        mine = os.open("f", os.O_RDWR)
        lock(mine, fcntl.LOCK_EX, 1, 1)
        held.give()
        lock(mine, fcntl.LOCK_EX, 0, 1)

    pid = child(other)
    held.wait()
    # One of the two must be refused; the other one then gets what it waits for.
    try:
        lock(fd, fcntl.LOCK_EX, 1, 1)
        _, status = os.waitpid(pid, 0)
        assert status != 0
    except OSError as error:
        assert error.errno == errno.EDEADLK
        os.close(fd)
        join(pid)


def locks_end_with_their_process():
    put("f", b"x")
    held = Signal()

    def holder():
        fd = os.open("f", os.O_RDWR)
        lock(fd, fcntl.LOCK_EX)
        fcntl.flock(fd, fcntl.LOCK_EX)
        held.give()
        signal.pause()

    pid = child(holder)
    held.wait()
    fd = os.open("f", os.O_RDWR)
    with fails(errno.EAGAIN, errno.EACCES):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    lock(fd, fcntl.LOCK_EX)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.close(fd)


def closing_any_descriptor_drops_a_processs_range_locks():
    put("f", b"x")
    fd = os.open("f", os.O_RDWR)
    lock(fd, fcntl.LOCK_EX)
    os.close(os.open("f", os.O_RDONLY))
    join(child(lambda: lock(os.open("f", os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)))
    os.close(fd)


def a_whole_files_lock_belongs_to_its_open_file():
    put("f", b"x")
    one, two = os.open("f", os.O_RDWR), os.open("f", os.O_RDWR)
    fcntl.flock(one, fcntl.LOCK_EX)
    with fails(errno.EAGAIN):
        fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
    copy = os.dup(one)
    os.close(one)
    with fails(errno.EAGAIN):
        fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(copy)
    # The kernel notifies a FUSE filesystem of the last close, and does not wait for it.
    signal.alarm(60)
    fcntl.flock(two, fcntl.LOCK_EX)
    signal.alarm(0)
    fcntl.flock(two, fcntl.LOCK_SH | fcntl.LOCK_NB)
    os.close(two)


def two_programs_that_share_a_lock_and_want_it_exclusively_get_it_one_after_the_other():
    put("f", b"x")
    shared, go = Signal(), Signal()

    def upgrade():
        signal.alarm(60)
        fd = os.open("f", os.O_RDWR)
        fcntl.flock(fd, fcntl.LOCK_SH)
        shared.give()
        go.wait()
        fcntl.flock(fd, fcntl.LOCK_EX)

    both = [child(upgrade), child(upgrade)]
    for _ in both:
        shared.wait()
    for _ in both:
        go.give()
    for pid in both:
        join(pid)


main([
    ranges_exclude_each_other_and_only_where_they_overlap,
    shared_locks_go_together,
    a_waiting_lock_is_granted_when_the_holder_releases_it,
    a_waiting_lock_is_interrupted_by_a_signal,
    a_deadlock_is_refused,
    locks_end_with_their_process,
    closing_any_descriptor_drops_a_processs_range_locks,
    a_whole_files_lock_belongs_to_its_open_file,
    two_programs_that_share_a_lock_and_want_it_exclusively_get_it_one_after_the_other,
])
