"""Rights: modes, special bits, ACLs, extended attributes. Needs root, and an unprivileged user to become."""

import errno
import os
import pwd
import subprocess

from check import child, fails, get, join, main, put

NOBODY = pwd.getpwnam("nobody")


def nobody(work, groups=()):
    """Does something as the user nobody."""

    def become():
        os.setgroups(list(groups))
        os.setgid(NOBODY.pw_gid)
        os.setuid(NOBODY.pw_uid)
        work()

    join(child(become))


def mode(name):
    return os.stat(name).st_mode & 0o7777


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def others_may_do_what_the_mode_says():
    put("secret", b"s")
    os.chmod("secret", 0o600)
    os.mkdir("closed", 0o711)
    put("closed/known")

    def look():
        with fails(errno.EACCES):
            get("secret")
        with fails(errno.EACCES):
            os.listdir("closed")
        os.stat("closed/known")
        with fails(errno.EACCES):
            put("closed/new")
        with fails(errno.EPERM):
            os.chmod("secret", 0o666)

    nobody(look)


def groups_beyond_the_first_count():
    put("shared", b"s")
    os.chown("shared", 0, 4242)
    os.chmod("shared", 0o640)
    nobody(lambda: get("shared"), groups=[4242])

    def look():
        with fails(errno.EACCES):
            get("shared")

    nobody(look)


def the_umask_takes_bits_away():
    before = os.umask(0o027)
    try:
        os.close(os.open("f", os.O_CREAT, 0o666))
        os.mkdir("d", 0o777)
    finally:
        os.umask(before)
    assert mode("f") == 0o640 and mode("d") == 0o750


def in_a_sticky_directory_only_owners_remove():
    os.mkdir("tmp")
    os.chmod("tmp", 0o1777)
    put("tmp/roots")

    def remove():
        with fails(errno.EPERM, errno.EACCES):
            os.unlink("tmp/roots")
        with fails(errno.EPERM, errno.EACCES):
            os.rename("tmp/roots", "tmp/mine")
        put("tmp/own")
        os.unlink("tmp/own")

    nobody(remove)


def a_setgid_directory_passes_its_group_on():
    os.mkdir("d")
    os.chown("d", 0, 4242)
    os.chmod("d", 0o2777)
    nobody(lambda: (put("d/f"), os.mkdir("d/e")))
    assert os.stat("d/f").st_gid == 4242
    assert os.stat("d/e").st_gid == 4242 and mode("d/e") & 0o2000


def writing_and_owning_clear_privileges():
    put("f", b"x")
    os.chown("f", NOBODY.pw_uid, NOBODY.pw_gid)
    os.chmod("f", 0o6777)

    def write():
        with open("f", "ab") as file:
            file.write(b"y")

    nobody(write)
    assert mode("f") == 0o777, oct(mode("f"))
    os.chmod("f", 0o6777)
    os.chown("f", 0, 0)
    assert mode("f") & 0o6000 == 0, oct(mode("f"))
    os.chmod("f", 0o4755)
    os.chown("f", NOBODY.pw_uid, -1)
    nobody(lambda: os.truncate("f", 0))
    assert mode("f") & 0o4000 == 0, oct(mode("f"))


def extended_attributes_have_linuxs_namespaces_limits_and_errors():
    put("f")
    for name in ("user.a", "trusted.b", "security.c"):
        os.setxattr("f", name, b"value")
        assert os.getxattr("f", name) == b"value"
    assert {"user.a", "trusted.b", "security.c"} <= set(os.listxattr("f"))
    with fails(errno.EEXIST):
        os.setxattr("f", "user.a", b"", os.XATTR_CREATE)
    with fails(errno.ENODATA):
        os.setxattr("f", "user.z", b"", os.XATTR_REPLACE)
    with fails(errno.ENODATA):
        os.getxattr("f", "user.z")
    with fails(errno.ENODATA):
        os.removexattr("f", "user.z")
    os.setxattr("f", "user.empty", b"")
    assert os.getxattr("f", "user.empty") == b""
    os.setxattr("f", "user.large", b"v" * 65536)
    assert len(os.getxattr("f", "user.large")) == 65536
    with fails(errno.E2BIG, errno.ENOSPC):
        os.setxattr("f", "user.toolarge", b"v" * 65537)
    os.setxattr("f", "user." + "n" * 250, b"v")
    with fails(errno.ERANGE, errno.ENAMETOOLONG):
        os.setxattr("f", "user." + "n" * 251, b"v")
    with fails(errno.EOPNOTSUPP):
        os.setxattr("f", "nonsense.a", b"v")
    os.removexattr("f", "user.a")
    assert "user.a" not in os.listxattr("f")
    os.symlink("f", "link")
    with fails(errno.EPERM, errno.EOPNOTSUPP):
        os.setxattr("link", "user.a", b"v", follow_symlinks=False)

    def look():
        assert not [name for name in os.listxattr("f") if name.startswith("trusted.")]
        with fails(errno.ENODATA, errno.EPERM):
            os.getxattr("f", "trusted.b")
        with fails(errno.EPERM):
            os.setxattr("f", "trusted.b", b"v")
        with fails(errno.EACCES):
            os.setxattr("f", "user.b", b"v")

    nobody(look)


def acls_are_stored_and_obeyed():
    put("f", b"x")
    os.chmod("f", 0o600)
    run("setfacl", "-m", "u:nobody:r", "f")
    nobody(lambda: get("f"))

    def write():
        with fails(errno.EACCES):
            put("f")

    nobody(write)
    assert "user:nobody:r--" in run("getfacl", "-p", "f")
    assert mode("f") == 0o640, "the group's bits show the mask"
    os.chmod("f", 0o600)
    assert "#effective:---" in run("getfacl", "-p", "f"), "the mode sets the mask"
    nobody(lambda: fails_to_read("f"))
    run("setfacl", "-b", "f")
    assert "nobody" not in run("getfacl", "-p", "f") and mode("f") == 0o600


def fails_to_read(name):
    with fails(errno.EACCES):
        get(name)


def default_acls_are_inherited():
    os.mkdir("d")
    run("setfacl", "-d", "-m", "u:nobody:rwx,g::r-x,o::---", "d")
    before = os.umask(0o077)
    try:
        os.mkdir("d/e")
        os.close(os.open("d/f", os.O_CREAT, 0o666))
    finally:
        os.umask(before)
    assert "default:user:nobody:rwx" in run("getfacl", "-p", "d/e")
    assert "user:nobody:rwx" in run("getfacl", "-p", "d/f")
    assert mode("d/f") == 0o660, "the default ACL stands in for the umask"
    run("setfacl", "-k", "d")
    assert "default" not in run("getfacl", "-p", "d")


def archives_keep_acls_and_attributes():
    os.makedirs("from/sub")
    put("from/sub/f", b"content")
    os.setxattr("from/sub/f", "user.note", b"kept")
    run("setfacl", "-m", "u:nobody:rw", "from/sub/f")
    run("setfacl", "-d", "-m", "g:4242:rx", "from/sub")
    os.link("from/sub/f", "from/linked")
    run("tar", "--acls", "--xattrs", "-cf", "a.tar", "from")
    os.mkdir("to")
    run("tar", "--acls", "--xattrs", "-xf", "a.tar", "-C", "to")
    run("rsync", "-aHAX", "from/", "back/")
    for copy in ("to/from", "back"):
        assert os.getxattr(f"{copy}/sub/f", "user.note") == b"kept"
        assert os.stat(f"{copy}/linked").st_ino == os.stat(f"{copy}/sub/f").st_ino
        for name in ("sub", "sub/f"):
            acl = lambda at: [line for line in run("getfacl", "-p", f"{at}/{name}").splitlines() if not line.startswith("# file")]
            assert acl(copy) == acl("from"), (acl(copy), acl("from"))
    assert run("rsync", "-aHAXni", "--delete", "from/", "back/") == ""


main([
    others_may_do_what_the_mode_says,
    groups_beyond_the_first_count,
    the_umask_takes_bits_away,
    in_a_sticky_directory_only_owners_remove,
    a_setgid_directory_passes_its_group_on,
    writing_and_owning_clear_privileges,
    extended_attributes_have_linuxs_namespaces_limits_and_errors,
    acls_are_stored_and_obeyed,
    default_acls_are_inherited,
    archives_keep_acls_and_attributes,
])
