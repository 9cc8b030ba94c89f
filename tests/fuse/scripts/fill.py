"""Fills the working directory until `fsync` and `close` have failed eight times for lack of room; prints the names of the
files that were synced."""

import errno
import os

synced, failed = [], 0
while failed < 8:
    refused = None
    name = f"fill{len(synced) + failed}"
    file = os.open(name, os.O_CREAT | os.O_WRONLY)
    for step in (lambda: os.write(file, os.urandom(700_000)), lambda: os.fsync(file), lambda: os.close(file)):
        try:
            step()
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
            refused = error
    if refused:
        failed += 1
    else:
        synced.append(name)
print(*synced)
