"""What each block of the model language costs on this host, in each form that it can run in.

A block's cost is that of two more of it: (a network with three - the same network with one) / 2, both exported as a
candidate of the search is, and timed in turn in one warm process.
"""

import tempfile
from pathlib import Path
from typing import Any

from export.onnx_export import export_onnx
from latency.bounds import percentile
from latency.machine import LOCAL, Machine, Worker
from latency.measure import Tick
from latency.records import Subject
from latency.sampling import Plan
from models.build import build, profile
from models.spec import ModelSpec
from pipeline.search.measured import forms
from pipeline.training.checkpoint import student_card

_PLAN = Plan(samples=100, seconds=0.5, warmup_seconds=0.3)


def variants(channels: int) -> dict[str, list[Any]]:
    """Label -> [module, args] with as many channels out as in, at stride 1."""
    c, half = channels, channels // 2
    return {
        "Conv 1x1": ["Conv", [c, 1]],
        "Conv 3x3": ["Conv", [c, 3]],
        "DWConv 3x3": ["DWConv", [c, 3]],
        "DWConv 5x5": ["DWConv", [c, 5]],
        "InvertedResidualv2 x4": ["InvertedResidualv2", [c, 4, 1]],
        "InvertedResidualv3 x4 ReLU": ["InvertedResidualv3", [3, 4, c, 0, 0, 1]],
        "InvertedResidualv3 x4 SE Hardswish": ["InvertedResidualv3", [3, 4, c, 1, 1, 1]],
        "MBConv x4": ["MBConv", [4, c, 1, 3]],
        "Bottleneck": ["Bottleneck", [c]],
        "Fire": ["Fire", [max(1, channels // 8), half, channels - half]],
        "ShuffleNetV2": ["ShuffleNetV2", [c, 1]],
        "UniversalInvertedResidual x4": ["UniversalInvertedResidual", [c, 0, 3, 4, 1]],
        "LCBlock ReLU": ["LCBlock", [c, 3, 1, 0, "ReLU"]],
        "LCBlock Hardswish": ["LCBlock", [c, 3, 1, 0, "Hardswish"]],
        "GhostBottleneck x2": ["GhostBottleneck", [3, 2, c, 0, 1]],
        "RepVGG": ["RepVGG", [c, 1]],
        "MobileOne": ["MobileOne", [c, 3, 1]],
        "MaxPool 3x3": ["MaxPool", [3, 1, 1]],
        "AvgPool 3x3": ["AvgPool", [3, 1, 1]],
    }


def _network(label: str, block: list[Any], channels: int, size: int, times: int) -> ModelSpec:
    head = [[1, "GlobalAvgPool", []], [1, "FixedConv", [8, 1, 1, None, 1, None]]]
    rows = [[1, "Conv", [channels, 1]], *([[1, *block]] * times), *head]
    return ModelSpec.parse({"INPUT_SIZE": [size, size], "backbone": rows}, label)


def block_costs(
    channels: int, size: int, threads: int, machine: Machine = LOCAL, tick: Tick = lambda d, t: None
) -> Any:
    """{"channels", "size", "forms", "rows": [{"block", "params", "macs", FORM: ms, ...}], "host"}. Raises SpecError for
    channels that a block does not allow, LatencyError."""
    host = machine.host()
    wanted = forms(("onnxruntime", "openvino"), ("f32", "bf16"), host)
    rows: list[dict[str, Any]] = []
    blocks = variants(channels)
    with machine.lock(), Worker(machine) as worker, tempfile.TemporaryDirectory() as folder:
        for done, (label, block) in enumerate(blocks.items(), 1):
            specs = {times: _network(label, block, channels, size, times) for times in (1, 3)}
            files = {times: Path(folder) / f"{done}-{times}.onnx" for times in specs}
            for times, spec in specs.items():
                export_onnx(build(spec, 0), student_card(spec, tuple("abcdefgh"), "squash"), files[times])
            one, three = (profile(spec) for spec in specs.values())
            row: dict[str, Any] = {
                "block": label,
                "params": (three.params - one.params) // 2,
                "macs": (three.macs - one.macs) // 2,
            }
            for form in wanted:
                subjects = [Subject.of(f, form.runtime, form.precision, threads) for f in files.values()]
                short, long = (percentile(r.samples_ms, 50) for r in worker.time(subjects, _PLAN))
                row[str(form)] = (long - short) / 2
            rows.append(row)
            tick(done, len(blocks))
    rows.sort(key=lambda r: min(r[str(f)] for f in wanted))
    return {"channels": channels, "size": size, "forms": [str(f) for f in wanted], "rows": rows, "host": host.as_dict()}
