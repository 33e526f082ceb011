"""Confine: starts a program as another user, with no more rights than it needs (`ts-confine`).

    ts-confine [--user NAME] [--group NAME]... [--keep CAPABILITY]... -- PROGRAM ARGUMENT...

The program gets the user's groups, HOME, USER and LOGNAME, `--group` besides, of root's capabilities only those that
are kept, and can never gain any (no_new_privs). Why not supervisord's `user=`: it gives away nothing else, and one
program whose user is gone keeps supervisord from starting all others. Why not setpriv: busybox's cannot do it.

It is run as a file of its own, so that it starts in a moment: nothing here but the standard library.
"""

import argparse
import ctypes
import grp
import os
import pwd
import sys
from collections.abc import Collection, Sequence
from typing import NoReturn

CAPABILITIES = {"net_bind_service": 10, "net_admin": 12, "net_raw": 13}
"""Those that can be kept, with the kernel's numbers (linux/capability.h)."""
UNKNOWN = 2
"""Exit status: there is no such user, group or program."""
_PR_SET_KEEPCAPS, _PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 8, 23, 24, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 47, 2
_VERSION_3 = 0x20080522
_LAST = 63


class ConfineError(Exception):
    """The program cannot be started so; the text says why."""


def confine(user: str, groups: Sequence[str], keep: Collection[int]) -> None:
    """Make this process `user` with further `groups` and no capabilities but `keep`. Raises ConfineError, OSError."""
    account = _account(user)
    gids = {*os.getgrouplist(account.pw_name, account.pw_gid), *map(_gid, groups)}
    libc = ctypes.CDLL(None, use_errno=True)
    for number in range(_LAST + 1):
        if number not in keep and libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0) == 1:
            _check(libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0))
    _check(libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0))
    os.setgroups(sorted(gids))
    os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
    os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
    mask = sum(1 << number for number in keep)
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    _check(libc.capset(header, (ctypes.c_uint32 * 6)(mask, mask, mask, 0, 0, 0)))
    for number in keep:
        # What another user than root keeps when a program starts.
        _check(libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number, 0, 0))
    _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    os.environ.update(HOME=account.pw_dir, USER=account.pw_name, LOGNAME=account.pw_name)


def _account(user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(user)
    except KeyError:
        raise ConfineError(f"there is no user {user!r} on this machine") from None


def _gid(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ConfineError(f"there is no group {group!r} on this machine") from None


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def main() -> NoReturn:
    """Start the program in place of this one."""
    parser = argparse.ArgumentParser(prog="ts-confine", description="Start a program with fewer rights.")
    parser.add_argument("--user", default="root")
    parser.add_argument("--group", action="append", default=[], help="one more group")
    parser.add_argument("--keep", action="append", default=[], choices=CAPABILITIES, help="a capability that it keeps")
    parser.add_argument("argv", nargs="+", metavar="PROGRAM ARGUMENT...")
    options = parser.parse_args()
    try:
        confine(options.user, options.group, [CAPABILITIES[name] for name in options.keep])
        os.execvp(options.argv[0], options.argv)  # noqa: S606  (the words of the command line, no shell)
    except ConfineError as error:
        parser.exit(UNKNOWN, f"ts-confine: {error}\n")
    except OSError as error:
        parser.exit(UNKNOWN, f"ts-confine: cannot start {options.argv[0]}: {error.strerror}\n")


if __name__ == "__main__":
    sys.exit(main())
