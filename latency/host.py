"""Host: the machine on which a number is true."""

import hashlib
import json
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from latency import FORMAT

_ISA = (
    "sse4_2",
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "asimdhp",
    "bf16",
    "i8mm",
    "sve",
)
"""Flags of /proc/cpuinfo that decide which kernels a runtime picks (x86-64 and arm64)."""
BF16 = ("avx512_bf16", "amx_bf16", "bf16")
"""Any of them: the CPU computes in bfloat16."""
INT8_DOT = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
"""Any of them: products of 8 bits are summed in 32; without, some kernels sum them in 16 and saturate."""
KEYS = ("cpu", "model", "isa", "cores", "governor", "versions")
"""Two hosts that agree in these may share timings."""
_PACKAGES = ("numpy", "onnxruntime", "openvino")


@dataclass(frozen=True)
class Host:
    """model: what tells CPUs of one name apart, as far as the system says it."""

    cpu: str
    isa: tuple[str, ...]
    cores: int
    governor: str | None
    memory_mib: int
    system: str
    python: str
    versions: dict[str, str]
    model: str = ""
    format: int = FORMAT

    @property
    def key(self) -> str:
        """Two hosts with one key may share timings: same CPU, instruction sets, cores allowed and runtimes."""
        what = [getattr(self, name) for name in KEYS]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def has_bf16(self) -> bool:
        return self.has_any(BF16)

    def has_any(self, flags: Iterable[str]) -> bool:
        return not set(flags).isdisjoint(self.isa)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"key": self.key}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Host":
        known = {k: v for k, v in values.items() if k != "key"}
        return cls(**known | {"isa": tuple(values["isa"])})


@cache
def this_host() -> Host:
    """Read /proc, /sys and the installed packages' metadata; imports no runtime."""
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    affinity = getattr(os, "sched_getaffinity", None)
    return Host(
        cpu=info.get("model name") or platform.processor() or platform.machine(),
        isa=tuple(name for name in _ISA if name in flags),
        cores=len(affinity(0)) if affinity else (os.cpu_count() or 1),
        governor=governor.read_text().strip() if governor.is_file() else None,
        memory_mib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        model=_model(info),
        versions={p: v for p in _PACKAGES if (v := version_of(p))},
    )


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    first = path.read_text(errors="replace").split("\n\n")[0]
    return {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in first.splitlines())}


def _model(info: dict[str, str]) -> str:
    """Of /proc/cpuinfo (x86-64: a cloud may mask the name; arm64: there is no name), and of a board."""
    keys = (
        "cpu family",
        "model",
        "stepping",
        "cache size",
        "CPU implementer",
        "CPU part",
        "CPU variant",
        "CPU revision",
    )
    told = [f"{key} {info[key]}" for key in keys if key in info]
    board = Path("/proc/device-tree/model")
    if board.is_file():
        told.append(board.read_text(errors="replace").strip("\0\n"))
    return ", ".join(told)


def version_of(package: str) -> str | None:
    """Of an installed package, from its metadata; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
