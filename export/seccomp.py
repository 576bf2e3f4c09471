"""The system calls that the sandbox forbids: keyrings, namespaces, mounts, sockets, memory of no process, changes to
other processes, and resources that are limited per user.

The filter is a classic BPF program, as `seccomp(2)` and `linux/filter.h` describe it. Forbidden calls fail as if the
kernel lacked them (ENOSYS), so libraries fall back to others; sockets fail as if the network were down (ENETDOWN).
"""

import contextlib
import ctypes
import errno
import platform
import struct
from itertools import accumulate

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""AUDIT_ARCH_* of linux/audit.h."""
_FORBIDDEN = {
    # call: (number on x86_64, number on aarch64); asm/unistd_64.h, asm-generic/unistd.h
    "shmget": (29, 194),
    "shmat": (30, 196),
    "socketpair": (53, 199),
    "semget": (64, 190),
    "msgget": (68, 186),
    "flock": (73, 32),
    "ptrace": (101, 117),
    "rt_sigqueueinfo": (129, 138),
    "setpriority": (141, 140),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "pivot_root": (155, 41),
    "mount": (165, 40),
    "umount2": (166, 39),
    "io_setup": (206, 0),
    "timer_create": (222, 107),
    "mq_open": (240, 180),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "ioprio_set": (251, 30),
    "migrate_pages": (256, 238),
    "unshare": (272, 97),
    "vmsplice": (278, 75),
    "move_pages": (279, 239),
    "rt_tgsigqueueinfo": (297, 240),
    "perf_event_open": (298, 241),
    "fanotify_init": (300, 262),
    "setns": (308, 268),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "sched_setattr": (314, 274),
    "memfd_create": (319, 279),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "clone3": (435, 435),  # its flags cannot be read by a filter; the C library falls back to clone
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    "mount_setattr": (442, 442),
    "memfd_secret": (447, 447),
}
_NOTIFIERS = {
    "epoll_create": (213, 20),  # aarch64 has only the newer call of each pair
    "inotify_init": (253, 26),
    "epoll_create1": (291, 20),
    "inotify_init1": (294, 26),
}
"""Limited per user, outside the sandbox too. Forbidden where there is no network to wait for."""
_CLONE, _SOCKET, _FCNTL = (56, 220), (41, 198), (72, 25)
_FCNTL_FORBIDDEN = (6, 7, 37, 38, 1024, 1026, 1031)
"""F_SETLK, F_SETLKW, F_OFD_SETLK and F_OFD_SETLKW (processes outside would wait for a lock on a file of the system),
F_SETLEASE and F_NOTIFY (so would whoever opens it), and F_SETPIPE_SZ; linux/fcntl.h."""
_OF_ITSELF = {"sched_setaffinity": (203, 122), "prlimit64": (302, 261)}
"""Allowed only for the calling process, which these calls know as process 0."""
_INTERNET = (2, 10, 16)
"""AF_INET, AF_INET6, and AF_NETLINK, by which names are resolved. Sockets of other families reach the host (AF_VSOCK),
or fill the kernel's memory, which no limit of a process counts (AF_UNIX)."""
_X32 = 0x40000000
"""Calls from here on are those of x86's 32-bit pointers."""
_NEW_NAMESPACES = 0x7E020000 | 0x00000080
"""CLONE_NEW* of linux/sched.h."""
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_AT, _SECOND_AT = 0, 4, 16, 24
"""Offsets in struct seccomp_data. The low half of the first argument: the flags of clone, the process of prlimit, the
family of socket; of the second one: the command of fcntl."""
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_ENDS = {
    "no network": _ERROR | errno.ENETDOWN,
    "fail": _ERROR | errno.ENOSYS,
    "allow": _ALLOW,
    "kill": _KILL,
}
_KEYCTL_JOIN_SESSION_KEYRING = 1

_Step = tuple[int, int, str, str]
"""(code, value, label to go on at if true, and if not); no label: the next step."""


def program(network: bool) -> bytes | None:
    """The filter for this machine, or None where the numbers of its system calls are not known here. network: whether
    there is one; if not, there are no sockets either."""
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        return None
    which = list(_ARCHITECTURES).index(machine)
    calls = _FORBIDDEN if network else _FORBIDDEN | _NOTIFIERS
    first: _Step = (_LOAD, _FIRST_AT, "", "")
    parts: dict[str, list[_Step]] = {
        "": [
            (_LOAD, _ARCHITECTURE_AT, "", ""),
            (_EQUAL, _ARCHITECTURES[machine], "", "kill"),
            (_LOAD, _NUMBER_AT, "", ""),
            (_AT_LEAST, _X32, "kill", ""),
            *((_EQUAL, number, "fail", "") for number in sorted({numbers[which] for numbers in calls.values()})),
            (_EQUAL, _CLONE[which], "clone", ""),
            (_EQUAL, _FCNTL[which], "fcntl", ""),
            *((_EQUAL, numbers[which], "itself", "") for numbers in _OF_ITSELF.values()),
            (_EQUAL, _SOCKET[which], "socket", "allow"),
        ],
        "clone": [first, (_ANY_BIT, _NEW_NAMESPACES, "fail", "allow")],
        "fcntl": [
            (_LOAD, _SECOND_AT, "", ""),
            *((_EQUAL, command, "fail", "") for command in _FCNTL_FORBIDDEN),
            (_RETURN, _ALLOW, "", ""),
        ],
        "itself": [first, (_EQUAL, 0, "allow", "fail")],
        "socket": [first, *((_EQUAL, f, "allow", "") for f in (_INTERNET if network else ()))],
        **{label: [(_RETURN, value, "", "")] for label, value in _ENDS.items()},
    }
    at = dict(zip(parts, accumulate(map(len, parts.values()), initial=0), strict=False))
    every = [step for steps in parts.values() for step in steps]

    def jump(label: str, i: int) -> int:
        """How many steps are passed over."""
        return at[label] - i - 1 if label else 0

    return b"".join(
        struct.pack("=HBBI", code, jump(if_true, i), jump(if_false, i), value)
        for i, (code, value, if_true, if_false) in enumerate(every)
    )


def leave_keyring() -> None:
    """Give this process an empty session keyring of its own, so that the user's keys are not reachable from it."""
    machine = platform.machine()
    if machine in _ARCHITECTURES:
        number = _FORBIDDEN["keyctl"][list(_ARCHITECTURES).index(machine)]
        with contextlib.suppress(OSError):
            ctypes.CDLL(None).syscall(number, _KEYCTL_JOIN_SESSION_KEYRING, None)
