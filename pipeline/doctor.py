"""What this machine is, what it can run, and whether its timings can be trusted; for each problem, what to do."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from export.sandbox import available as sandbox_problem
from latency.errors import LatencyError
from latency.host import INT8_DOT, Host, this_host, version_of
from latency.machine import CONTROL
from latency.measure import measure
from latency.records import Subject
from latency.runners import RUNNERS
from latency.sampling import Plan, tick_ns
from latency.selftest import SelfTest, last
from pipeline.report.pictures import browser

_PACKAGES = ("edgebuild", "torch", "torchvision", "timm", "onnx", "onnxruntime", "openvino", "nncf", "optuna", "numpy")
_QUICK = Plan(samples=20, seconds=0.05)
_BUSY = 0.5
"""Of a core that others keep at work, by the load of the last minute: then a timing may share its core."""
_DISK_GB, _MEMORY_GB = 5, 2
"""Under which a run may end for lack of it: a bundle's environment is built in the rehearsal; a teacher is trained."""
_CGROUP = Path("/sys/fs/cgroup")


def examine() -> dict[str, Any]:
    """{"host", "versions", "clock_ns", "cores", "memory_mib", "disk_gb", "load", "precisions", "tools", "selftest",
    "problems", "notes"}; each problem says what to do, and each note what could not be used."""
    host, load = this_host(), round(os.getloadavg()[0], 2)  # before anything here is at work itself
    versions = {name: version_of(name) for name in _PACKAGES}
    tested, precisions, tools = _selftest(host.key), _precisions(host), _tools()
    cores = {"allowed": host.cores, "of": os.cpu_count(), "quota": _quota()}
    memory = {"total": host.memory_mib, "available": _available_mib(), "limit": _limit_mib()}
    disk = {str(Path.cwd()): _free_gb(Path.cwd()), tempfile.gettempdir(): _free_gb(Path(tempfile.gettempdir()))}
    problems = [
        *(f"{name} is not installed: pip install {name}" for name, version in versions.items() if version is None),
        *_timing_problems(host, cores, load, tested),
        *_room_problems(memory, disk),
        *([f"sandbox: {tools['sandbox']}"] if tools["sandbox"] else []),
    ]
    if versions["torch"] and versions["torchvision"] and (trouble := _torchvision_trouble()):
        problems.append(trouble)
    return {
        "host": host.as_dict(),
        "versions": versions,
        "clock_ns": tick_ns(),
        "cores": cores,
        "memory_mib": memory,
        "disk_gb": disk,
        "load": load,
        "precisions": precisions,
        "tools": {tool: told is None for tool, told in tools.items()},
        "selftest": tested,
        "problems": problems,
        "notes": [f"{tool}: {told}" for tool, told in tools.items() if told and tool != "sandbox"],
    }


def _precisions(host: Host) -> list[dict[str, str]]:
    """What each runtime computes in when it is asked for a precision, read back from it in a fresh process."""
    rows = []
    for runtime in RUNNERS:
        for precision in ("f32", "bf16"):
            try:
                (found,) = measure([Subject.of(CONTROL, runtime, precision)], 1, _QUICK)
                used = found.effective_precision
            except LatencyError as error:
                used = f"not here: {error}"
            rows.append({"runtime": runtime, "asked": precision, "used": used})
    int8 = (
        "int8, summed in 32 bits by this CPU's own instructions"
        if host.has_any(INT8_DOT)
        else "int8, without instructions for it: hardly faster than f32, and U8S8 files may saturate"
    )
    return [*rows, {"runtime": "both", "asked": "int8", "used": int8}]


def _selftest(host_key: str) -> dict[str, Any] | None:
    """The last one here; a damaged record counts as none."""
    found = last(host_key)
    try:
        TypeAdapter(SelfTest).validate_python(found)
    except ValidationError:
        return None
    return found


def _timing_problems(host: Host, cores: dict[str, Any], load: float, tested: dict[str, Any] | None) -> list[str]:
    found = []
    if host.governor not in (None, "performance"):
        found.append(
            f"the frequency governor is {host.governor!r}: timings wander with it; `sudo cpupower frequency-set -g "
            "performance` while you measure"
        )
    if cores["quota"] is not None and cores["quota"] < cores["allowed"]:
        found.append(
            f"a quota holds this container to {cores['quota']:g} of {cores['allowed']} cores: it stops processes in "
            "the middle of a timing; give it whole cores instead (docker: --cpuset-cpus, not --cpus)"
        )
    if load > _BUSY:
        found.append(f"something is at work here (load {load:g}): end it before you time anything")
    if tested is None:
        found.append("whether timings can be trusted here was never tested: `edgebuild latency selftest`")
    elif tested["unrest"]:
        found.append(f"at the last selftest, {tested['unrest']}: end what else runs here and test again")
    elif tested["smallest"] is None:
        found.append("at the last selftest, no slowdown up to 30 % was found reliably: verdicts will be inconclusive")
    return found


def _room_problems(memory: dict[str, int | None], disk: dict[str, float]) -> list[str]:
    room = [m for m in (memory["available"], memory["limit"]) if m is not None]
    found = []
    if room and min(room) < _MEMORY_GB * 1024:
        found.append(
            f"{min(room)} MiB of memory are free: training may need {_MEMORY_GB} GB; end other programs, or lower "
            "teacher.batch and student.batch"
        )
    found += [
        f"{free:g} GB are free in {folder}: a run with its rehearsal may need {_DISK_GB}; free some, or give "
        "--run-dir and TMPDIR on another disk"
        for folder, free in disk.items()
        if free < _DISK_GB
    ]
    return found


def _tools() -> dict[str, str | None]:
    """Tool -> what is amiss, and what for it is needed; None where it is there."""
    qemu, chrome, ssh = shutil.which("qemu-x86_64"), browser(), shutil.which("ssh")
    sandbox = sandbox_problem()
    return {
        "sandbox": sandbox and f"{sandbox}; without it preflight is inconclusive",
        "qemu": None
        if qemu
        else "no qemu-x86_64 (package qemu-user): what ONNX Runtime does on an older CPU is untried",
        "browser": None if chrome else "no Chrome or Chromium: `edgebuild report --png` draws no pictures",
        "ssh": None if ssh else "no ssh (package openssh-client): no target: ssh://...",
    }


def _quota() -> float | None:
    """Cores' worth of time that the control group may use (cgroup v2, cpu.max); None where it is not held."""
    try:
        most, period = (_CGROUP / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if most == "max" else int(most) / int(period)


def _limit_mib() -> int | None:
    """What the control group may still take; None where it is not held."""
    try:
        most, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return None
    return None if most == "max" else (int(most) - int(used)) // 2**20


def _available_mib() -> int | None:
    path = Path("/proc/meminfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _free_gb(folder: Path) -> float:
    return round(shutil.disk_usage(folder).free / 1e9, 1)


def _torchvision_trouble() -> str | None:
    from models.torchvision_ops import operators_load

    if operators_load():
        return None
    return (
        "torchvision's compiled operators do not load beside this torch; edgebuild uses its Python parts only and goes "
        "on, other programs may not: install the torchvision build from the same index as torch"
    )
