"""What a stranger's code may do in the sandbox: its own work, on its own disk, and nothing that reaches the host."""

import os
import platform
import signal
import textwrap
import threading
from pathlib import Path

import pytest

from export import rehearsal, sandbox
from export.checks import Checks, Ended, Limits
from export.judge import judge_step
from export.sandbox import Answer, Given
from tests.faults.bundles import needs_sandbox

pytestmark = needs_sandbox
DISK = 2**26


def rehearsed(tmp_path, code, disk=DISK, timeout_s=60):
    """The driver's answer for `code`, run by the bare Python."""
    given = Given(*(tmp_path / name for name in ("bundle", "fetched", "images")))
    for folder in (given.bundle, given.images, given.fetched / "env/bin", given.fetched / "wheels"):
        folder.mkdir(parents=True)
    (given.fetched / "env/bin/python").symlink_to(sandbox._python())
    limits = {"memory_bytes": None, "timeout_s": timeout_s}
    with sandbox.opened(given, disk) as box:
        box.ask(60, "prepare", options=[], **limits)
        return box.ask(2 * timeout_s, "label", name="x", args=["-c", textwrap.dedent(code)], **limits)


def said(answer):
    step = answer.steps["x"]
    assert step.code == 0, step.said
    return step.said.split()


def test_no_setting_of_the_host_can_be_written(tmp_path):
    """Not by root either, whom the kernel lets write most of /proc/sys without any capability."""
    answer = rehearsed(
        tmp_path,
        """
        import os
        for folder, folders, files in os.walk("/proc"):
            if folder == "/proc":
                folders[:] = [f for f in folders if not f.isdigit()]
            for path in (os.path.join(folder, name) for name in files):
                try:
                    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
                    print(path)
                except OSError:
                    pass
        """,
    )
    assert said(answer) == []


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of the calls are those of x86_64")
def test_no_memory_can_be_had_that_belongs_to_no_process(tmp_path):
    calls = {
        "shmget": 29,
        "semget": 64,
        "msgget": 68,
        "mq_open": 240,
        "add_key": 248,
        "vmsplice": 278,
        "memfd_create": 319,
        "memfd_secret": 447,
        "socketpair": 53,
        "io_uring_setup": 425,
    }
    answer = rehearsed(
        tmp_path,
        f"""
        import ctypes, errno
        libc = ctypes.CDLL(None, use_errno=True)
        for name, number in {calls}.items():
            if libc.syscall(number, 0, 1, 0o600) >= 0 or ctypes.get_errno() != errno.ENOSYS:
                print(name)
        """,
    )
    assert said(answer) == []


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of the calls are those of x86_64")
def test_no_other_process_can_be_changed_and_nothing_used_up_that_a_user_has_so_many_of(tmp_path):
    """Of process 1, which watches, and of the host's: notifiers, terminals, timers."""
    answer = rehearsed(
        tmp_path,
        """
        import ctypes, errno, fcntl, os, resource, signal
        calls = {"rt_sigqueueinfo": 129, "io_setup": 206, "timer_create": 222, "epoll_create1": 291}
        calls |= {"inotify_init": 253, "inotify_init1": 294, "migrate_pages": 256, "move_pages": 279}
        calls |= {"process_madvise": 440, "pidfd_getfd": 438, "fanotify_init": 300, "flock": 73}
        libc = ctypes.CDLL(None, use_errno=True)
        for name, number in calls.items():
            if libc.syscall(number, 1, 1, 0, 0, 0) >= 0 or ctypes.get_errno() != errno.ENOSYS:
                print(name)
        tried = {
            "limit": lambda: resource.prlimit(1, resource.RLIMIT_NOFILE, (0, 0)),
            "priority": lambda: os.setpriority(os.PRIO_PROCESS, 1, 19),
            "scheduler": lambda: os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0)),
            "parameter": lambda: os.sched_setparam(1, os.sched_param(0)),
            "affinity": lambda: os.sched_setaffinity(1, {0}),
            "terminal": lambda: os.openpty(),
            "ptmx": lambda: os.open("/dev/ptmx", os.O_RDWR),
            "lock": lambda: fcntl.lockf(shared, fcntl.LOCK_SH | fcntl.LOCK_NB),
            "lease": lambda: fcntl.fcntl(shared, fcntl.F_SETLEASE, fcntl.F_RDLCK),
            "notice": lambda: fcntl.fcntl(os.open("/usr", os.O_RDONLY), fcntl.F_NOTIFY, fcntl.DN_MODIFY),
            "pipe": lambda: fcntl.fcntl(os.pipe()[0], fcntl.F_SETPIPE_SZ, 2**20),
            "more files": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096)),
            "files": lambda: [os.open("/dev/null", os.O_RDONLY) for _ in range(200)],
        }
        shared = os.open("/given/rehearsal.py", os.O_RDONLY)

        def pending():
            return int(open("/proc/self/status").read().partition("SigQ:")[2].partition("/")[0])

        signal.pthread_sigmask(signal.SIG_BLOCK, [40])
        before = pending()
        for _ in range(1000):
            os.kill(os.getpid(), 40)
        if pending() >= before + 1000:
            print("signals")
        for name, act in tried.items():
            try:
                act()
                print(name)
            except (OSError, ValueError):
                pass
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        resource.prlimit(0, resource.RLIMIT_CORE)
        os.kill(1, signal.SIGINT)
        """,
    )
    assert said(answer) == []


def test_what_cannot_be_watched_is_ended(tmp_path, monkeypatch):
    changed = tmp_path / "rehearsal.py"
    source = Path(rehearsal.__file__).read_text()
    at = "        machine = _memory_of_machine()\n        shared = machine"
    assert at in source
    changed.write_text(source.replace(at, "        raise OSError\n        shared = machine"))
    monkeypatch.setattr(rehearsal, "__file__", str(changed))
    assert rehearsed(tmp_path, "import time; time.sleep(600)").exceeded == "watch"


def test_no_socket_of_any_family_can_be_made(tmp_path):
    """A namespace of the network does not hold AF_VSOCK, by which a virtual machine reaches its host."""
    answer = rehearsed(
        tmp_path,
        """
        import itertools, socket
        for family, kind in itertools.product(range(50), (1, 2, 3, 5)):
            try:
                socket.socket(family, kind).close()
                print(family, kind)
            except OSError:
                pass
        """,
    )
    assert said(answer) == []


FORKED = """
    import os, time
    for _ in range({count}):
        if os.fork() == 0:
            hog = bytearray(b'x') * {size}
            time.sleep(600)
    time.sleep(600)
"""
MUCH = {
    "memory of many processes": (FORKED.format(count=20, size=2**26), "memory"),
    "many processes": (FORKED.format(count=3000, size=1), "memory"),
    "many threads": (
        """
        import threading, time
        threading.stack_size(2**16)
        for _ in range(3000):
            threading.Thread(target=time.sleep, args=(600,)).start()
        """,
        "tasks",
    ),
    "page tables": (
        """
        import mmap, time
        most = 2**42
        held = mmap.mmap(-1, most, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000, prot=mmap.PROT_READ)
        for at in range(0, most, 2**21):
            held[at]
        time.sleep(600)
        """,
        "memory",
    ),
}


@pytest.mark.parametrize("what", MUCH)
def test_what_processes_hold_together_is_bounded(tmp_path, what):
    """With a disk that leaves the least memory that a rehearsal is given."""
    code, exceeded = MUCH[what]
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    answer = rehearsed(tmp_path, code, disk=machine)
    assert answer.exceeded == exceeded, answer
    assert answer.steps["x"].code != 0


def test_a_host_that_runs_out_of_memory_ends_the_rehearsal(tmp_path, monkeypatch):
    changed = tmp_path / "rehearsal.py"
    changed.write_text(Path(rehearsal.__file__).read_text().replace("_LEAST_LEFT = 0.05", "_LEAST_LEFT = 2.0"))
    monkeypatch.setattr(rehearsal, "__file__", str(changed))
    assert rehearsed(tmp_path, "import time; time.sleep(600)").exceeded == "host"


@pytest.mark.parametrize(
    ("exceeded", "verdict", "told"),
    [
        ("memory", "fail", "its processes held half of this machine's memory"),
        ("tasks", "fail", "over 2000 processes and threads"),
        ("host", "inconclusive", "almost out of memory"),
        ("watch", "fail", "could not be watched"),
    ],
)
def test_what_was_exceeded_is_told(exceeded, verdict, told):
    checks = Checks()
    with pytest.raises(Ended):
        judge_step("golden", Answer(steps={}, disk_peak_bytes=0, disk_full=False, exceeded=exceeded), Limits(), checks)
    (found,) = checks.found
    assert (found.verdict, told in found.told) == (verdict, True), found


def test_a_question_that_is_interrupted_leaves_no_thread_behind(tmp_path):
    """Python would wait for it before it ends, for minutes."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before, handler = set(threading.enumerate()), signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.alarm(3)
        with pytest.raises(KeyboardInterrupt):
            rehearsed(tmp_path, "import time; time.sleep(600)")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive(), thread
