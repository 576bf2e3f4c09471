"""What does a file answer on an older CPU? Its logits with the newer instructions of this one switched off.

OpenVINO reads two environment variables; ONNX Runtime has no switch, so it runs in qemu-user, where that is installed.
Run as `python -P -m export.portability`: one request (JSON) on stdin, the logits into the file that it names.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.artifact import Artifact
from export.errors import ExportError
from export.parity import logits_of
from latency.host import BF16, INT8_DOT, Host
from latency.machine import LOCAL

_OPENVINO = {"OV_CPU_MAX_ISA": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
"""Both: the first alone leaves OpenVINO's AVX-512 kernels on, with the second alone compiling fails."""
_QEMU, _QEMU_CPU = "qemu-x86_64", "Haswell"
"""AVX2, no AVX-512, no VNNI."""
QEMU_IMAGES = 24
"""An emulated inference takes tens of times as long."""
_TIMEOUT_S = 300


@dataclass(frozen=True)
class OlderCpu:
    """logits: float32 (n, classes) of the first n images, or None where it could not be tried. how: in words.
    is_this: this CPU is one, so that all that was measured here was measured on an older CPU."""

    logits: np.ndarray | None
    how: str
    is_this: bool = False


def on_older_cpu(artifact: Artifact, images: np.ndarray, host: Host) -> OlderCpu:
    """images: uint8 (n, size, size, 3). Raises ExportError where the file does not run there at all."""
    if "avx512f" not in host.isa and not host.has_any(INT8_DOT):
        return OlderCpu(None, "this CPU has no newer instructions than AVX2 to switch off", is_this=True)
    command, environment = LOCAL.command("export.portability")
    if artifact.runtime == "openvino":
        how = "OpenVINO held to AVX2"
        environment = {**(environment or os.environ), **_OPENVINO}
    else:
        qemu = shutil.which(_QEMU)
        if qemu is None:
            return OlderCpu(None, f"{_QEMU} is not installed (package qemu-user)")
        how = f"ONNX Runtime in {_QEMU} -cpu {_QEMU_CPU}"
        command, images = [qemu, "-cpu", _QEMU_CPU, *command], images[:QEMU_IMAGES]
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "images.npy", images)
        request = {
            "path": str(artifact.path.resolve()),
            "runtime": artifact.runtime,
            "precision": artifact.precision,
            "folder": folder,
        }
        try:
            done = subprocess.run(
                command, input=json.dumps(request), capture_output=True, text=True, env=environment, timeout=_TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            return OlderCpu(None, f"{how}: not done within {_TIMEOUT_S} s")
        if done.returncode:
            last = (done.stderr.strip() or f"code {done.returncode}").splitlines()[-1]
            raise ExportError(f"{artifact.path}: {how}: {last}")
        return OlderCpu(np.load(Path(folder) / "logits.npy"), how)


def relies_on(precision: str, runs_elsewhere: bool) -> list[dict[str, Any]]:
    """Instructions that a CPU must have, each as any one of several flags. runs_elsewhere: seen to keep its F1
    without them; what could not be tried is relied on."""
    if precision == "bf16":
        return [{"what": "bfloat16 arithmetic", "any_of": list(BF16)}]
    if precision == "int8" and not runs_elsewhere:
        return [{"what": "8-bit dot products (VNNI or the like)", "any_of": list(INT8_DOT)}]
    return []


def _run(request: dict[str, str]) -> None:
    folder = Path(request["folder"])
    artifact = Artifact(Path(request["path"]), request["runtime"], request["precision"])
    np.save(folder / "logits.npy", logits_of(artifact, np.load(folder / "images.npy")))


if __name__ == "__main__":
    _run(json.load(sys.stdin))
