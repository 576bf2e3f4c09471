"""Why is it slow? Time by kernel, from the runtime's own profiler, and what of an INT8 file did not run in INT8.

The profiler costs time itself, most with many small kernels: shares are what to read, `latency measure` has the times.
"""

import re
from collections import defaultdict
from dataclasses import dataclass

from latency import FORMAT
from latency.machine import LOCAL, Machine, Worker
from latency.records import Subject
from latency.runners.kernel import Kernel

_LOW = 0.01
"""Kernels below this share of the total are not worth advice."""
_CONVERSIONS = r"Quantize|Convert|Cast|Reorder|Transpose"
_PRODUCTS = r"Conv(?!ert)|MatMul|Gemm|FullyConnected|InnerProduct"
"""Where a quantized file computes in INT8; others that touch 8 bits may only read the image."""
_ADVICE = (
    (
        r"QuantizeLinear|FakeQuantize|Convert|Cast",
        "turns numbers from INT8 to f32 or back, around an operator without an INT8 kernel; fewer such operators "
        "between convolutions (ReLU instead of Hardswish, no squeeze-excite) leave fewer of these",
    ),
    (
        r"Reorder|Transpose",
        "changes the layout between kernels that want different ones; gone where the neighbours run in one precision",
    ),
    (
        _PRODUCTS,
        "runs in float: the quantizer left it out (its input is no quantized activation, or it is ignored), or this "
        "CPU has no INT8 kernel for it; quantize its input too, or compare with the f32 file",
    ),
    (
        r"Sigmoid|Swish|Tanh|Elu|Gelu|Softmax|Clip",
        "an activation without an INT8 kernel; ReLU and ReLU6 are folded into the convolution before them",
    ),
    (
        r"Pool|Reduce|Mean",
        "pools in float, with a conversion before it; at the end of a network it costs little",
    ),
    (
        r"Add|Sub|Mul|Div|Eltwise|Concat|Sum",
        "an element-wise operator in float: normalisation at the entrance, or one that keeps conversions around it",
    ),
)


@dataclass(frozen=True)
class Row:
    """Kernels of one operator, implementation and precision, together. share: of the total."""

    operator: str
    kind: str
    precision: str
    count: int
    ms: float
    share: float


@dataclass(frozen=True)
class Finding:
    """Part of an INT8 file that does not run in INT8, or only converts, and what to do about it."""

    operator: str
    precision: str
    ms: float
    share: float
    advice: str


@dataclass(frozen=True)
class Profile:
    """rows: costliest first. not_int8: only for files that are quantized."""

    path: str
    runtime: str
    precision: str
    total_ms: float
    rows: tuple[Row, ...]
    kernels: tuple[Kernel, ...]
    not_int8: tuple[Finding, ...]
    format: int = FORMAT


def profile(subject: Subject, runs: int = 50, machine: Machine = LOCAL) -> Profile:
    """In a fresh process. Raises LatencyError."""
    with machine.lock(), Worker(machine) as worker:
        kernels = worker.profile(subject, runs)
    return summarize(subject, kernels)


def summarize(subject: Subject, kernels: list[Kernel]) -> Profile:
    total = sum(k.ms for k in kernels)
    groups: defaultdict[tuple[str, str, str], list[Kernel]] = defaultdict(list)
    for kernel in kernels:
        groups[kernel.operator, kernel.kind, kernel.precision].append(kernel)
    rows = [
        Row(*key, len(found), sum(k.ms for k in found), sum(k.ms for k in found) / total if total else 0.0)
        for key, found in groups.items()
    ]
    rows.sort(key=lambda r: -r.ms)
    quantized = any(k.precision == "int8" and re.search(_PRODUCTS, k.operator, re.IGNORECASE) for k in kernels)
    return Profile(
        path=subject.path,
        runtime=subject.runtime,
        precision="int8" if quantized else subject.precision,
        total_ms=total,
        rows=tuple(rows),
        kernels=tuple(kernels),
        not_int8=tuple(_findings(rows)) if quantized or subject.precision == "int8" else (),
    )


def _findings(rows: list[Row]) -> list[Finding]:
    """By operator and precision, costliest first."""
    shares: defaultdict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for row in rows:
        if row.precision != "int8" or re.search(_CONVERSIONS, row.operator, re.IGNORECASE):
            together = shares[row.operator, row.precision]
            together[0] += row.ms
            together[1] += row.share
    found = [
        Finding(operator, precision, ms, share, _advice(operator))
        for (operator, precision), (ms, share) in shares.items()
        if share >= _LOW
    ]
    return sorted(found, key=lambda f: -f.ms)


def _advice(operator: str) -> str:
    return next(
        (advice for pattern, advice in _ADVICE if re.search(pattern, operator, re.IGNORECASE)),
        "has no INT8 kernel in this runtime; compare with the f32 file, or with the other runtime",
    )
