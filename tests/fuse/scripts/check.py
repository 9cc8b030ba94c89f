"""Tools that the scripts share. Each script checks sentences about the filesystem in the present directory."""

import contextlib
import errno
import os
import sys
import traceback


def main(sentences):
    """Runs each function, whose name is a sentence, in a directory of its own; ends with 1 if one does not hold."""
    failed = []
    for sentence in sentences:
        name = sentence.__name__
        os.mkdir(name)
        os.chmod(name, 0o777)
        os.chdir(name)
        try:
            sentence()
            print("ok", name)
        except Exception:
            failed.append(name)
            print("FAILED", name)
            traceback.print_exc(file=sys.stdout)
        os.chdir("..")
    if failed:
        sys.exit(f"{len(failed)} of {len(sentences)} do not hold: {', '.join(failed)}")


@contextlib.contextmanager
def fails(*numbers):
    """Checks that the code inside fails with one of these error numbers."""
    try:
        yield
    except OSError as error:
        assert error.errno in numbers, f"{errno.errorcode[error.errno]} is not one of the expected"
        return
    raise AssertionError(f"did not fail with {[errno.errorcode[number] for number in numbers]}")


def child(work):
    """Runs a function in a process of its own, which must end well within a minute."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc(file=sys.stdout)
            sys.stdout.flush()
            os._exit(1)
    return pid


def join(pid):
    """Waits for a child."""
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the child ended with {status}"


def put(name, content=b""):
    """Makes a file with this content."""
    with open(name, "wb") as file:
        file.write(content)


def get(name):
    """Returns a file's content."""
    with open(name, "rb") as file:
        return file.read()
