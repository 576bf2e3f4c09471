"""The system calls that the sandbox forbids: keyrings, namespaces, mounts, sockets, and memory of no process.

The filter is a classic BPF program, as `seccomp(2)` and `linux/filter.h` describe it. Forbidden calls fail as if the
kernel lacked them (ENOSYS), so libraries fall back to others; sockets fail as if the network were down (ENETDOWN).
"""

import contextlib
import ctypes
import errno
import platform
import struct

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""AUDIT_ARCH_* of linux/audit.h."""
_FORBIDDEN = {
    # call: (number on x86_64, number on aarch64); asm/unistd_64.h, asm-generic/unistd.h
    "shmget": (29, 194),
    "shmat": (30, 196),
    "semget": (64, 190),
    "msgget": (68, 186),
    "socketpair": (53, 199),
    "ptrace": (101, 117),
    "pivot_root": (155, 41),
    "mount": (165, 40),
    "umount2": (166, 39),
    "mq_open": (240, 180),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "unshare": (272, 97),
    "vmsplice": (278, 75),
    "perf_event_open": (298, 241),
    "setns": (308, 268),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
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
    "mount_setattr": (442, 442),
    "memfd_secret": (447, 447),
}
_CLONE = {"x86_64": 56, "aarch64": 220}
_SOCKET = {"x86_64": 41, "aarch64": 198}
_INTERNET = (2, 10, 16)
"""AF_INET, AF_INET6, and AF_NETLINK, by which names are resolved. Sockets of other families reach the host (AF_VSOCK),
or fill the kernel's memory, which no limit of a process counts (AF_UNIX)."""
_X32 = 0x40000000
"""Calls from here on are those of x86's 32-bit pointers."""
_NEW_NAMESPACES = 0x7E020000 | 0x00000080
"""CLONE_NEW* of linux/sched.h."""
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_AT = 0, 4, 16
"""Offsets in struct seccomp_data. The low half of the first argument: the flags of clone, the family of socket."""
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_FAIL, _NO_NETWORK = _ERROR | errno.ENOSYS, _ERROR | errno.ENETDOWN
_KEYCTL_JOIN_SESSION_KEYRING = 1


def program(network: bool) -> bytes | None:
    """The filter for this machine, or None where the numbers of its system calls are not known here. network: whether
    there is one; if not, there are no sockets either."""
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        return None
    numbers = [calls[list(_ARCHITECTURES).index(machine)] for calls in _FORBIDDEN.values()]

    def step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, if_true, if_false, value)

    # Jumps count the steps that are passed over; the last four return.
    families = _INTERNET if network else ()
    calls, known = len(numbers), len(families)
    steps = [
        step(_LOAD, _ARCHITECTURE_AT),
        step(_EQUAL, _ARCHITECTURES[machine], 0, calls + known + 10),
        step(_LOAD, _NUMBER_AT),
        step(_AT_LEAST, _X32, calls + known + 8, 0),
        *(step(_EQUAL, number, calls + known - i + 5, 0) for i, number in enumerate(numbers)),
        step(_EQUAL, _CLONE[machine], 0, 2),
        step(_LOAD, _FIRST_AT),
        step(_ANY_BIT, _NEW_NAMESPACES, known + 3, known + 4),
        step(_EQUAL, _SOCKET[machine], 0, known + 3),
        step(_LOAD, _FIRST_AT),
        *(step(_EQUAL, family, known - i + 1, 0) for i, family in enumerate(families)),
        step(_RETURN, _NO_NETWORK),
        step(_RETURN, _FAIL),
        step(_RETURN, _ALLOW),
        step(_RETURN, _KILL),
    ]
    return b"".join(steps)


def leave_keyring() -> None:
    """Give this process an empty session keyring of its own, so that the user's keys are not reachable from it."""
    machine = platform.machine()
    if machine in _ARCHITECTURES:
        number = _FORBIDDEN["keyctl"][list(_ARCHITECTURES).index(machine)]
        with contextlib.suppress(OSError):
            ctypes.CDLL(None).syscall(number, _KEYCTL_JOIN_SESSION_KEYRING, None)
