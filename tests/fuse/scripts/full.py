"""On a full disk, stored files stay, `fsync` and `close` report content that could not be stored, and room can be made."""

import errno
import os
import subprocess
import time

here = os.open(".", os.O_RDONLY)
# A cut also removes content that waits in memory for room; space on the disk is free again after the grace period.
os.truncate("big", 100 << 20)
assert os.stat("big").st_size == 100 << 20
# A small file is part of the metadata, for which there is room: from now on nobody knows that content is refused.
with open("small", "w") as small:
    small.write("x")
    small.flush()
    os.fsync(small.fileno())
try:
    with open("new", "wb") as new:
        # A block as long as those that were refused: for a shorter one there may be room.
        new.write(os.urandom(4 << 20))
    os.rename("new", "replaced")
    os.fsync(here)
except OSError as error:
    assert error.errno == errno.ENOSPC, error
else:
    raise AssertionError("what could not be stored has taken the place of something else")
# The kernel is notified of it a moment later.
end = time.monotonic() + 30
while os.path.getsize("replaced") != 4:
    assert time.monotonic() < end, "something else has this name"
    time.sleep(0.01)
with open("replaced") as replaced:
    assert replaced.read() == "old\n"

os.chmod("new", 0o600)
os.utime("new", (7, 7))
subprocess.run(["mv", "new", "moved"], check=True)
found = os.stat("moved")
assert (found.st_mode & 0o777, found.st_mtime) == (0o600, 7), found
os.truncate("moved", 0)
os.close(os.open("big", os.O_WRONLY | os.O_TRUNC))
assert os.stat("moved").st_size == os.stat("big").st_size == 0
