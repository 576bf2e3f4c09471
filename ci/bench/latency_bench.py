"""Can the numbers of latency/ be believed? Live comparisons on this host, with the raw samples kept beside.

`python ci/bench/latency_bench.py [--part NAME ...] [--table]`. Resumable: each unit's samples are written when it is
done, to latency_raw/ (in units of 100 ns), and what is there is not measured again; on another host, remove the folder
first. --table only computes the table from what is there. Parts:

  aa       40 checks of a network of about 1 ms against itself (none may fail); 300 comparisons by relabelling
  slow     20 checks of it against itself with 5 % of real work added (19 must fail)
  busy     10 checks against itself with a neighbour at work on the other cores (none may fail)
  repeat   10 times two measurements of it, minutes apart: do the medians in units of the control agree within 3 %?
  harness  our harness beside OpenVINO's benchmark_app and a bare ONNX Runtime loop, in turn: medians within 3 %?
"""

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# ruff: noqa: E402
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from latency.check import Rounds, check
from latency.compare import BAND, conclude, interval, log_ratios
from latency.host import this_host
from latency.lock import timing_lock
from latency.measure import measure
from latency.records import Measurement, Subject
from latency.selftest import false_alarms

RAW = HERE / "latency_raw"
ZOO = ROOT / "build" / "zoo"
NETWORK = "cpu_small"
SLOWDOWN = 0.05
COUNTS = {"aa": 40, "slow": 20, "busy": 10, "repeat": 10, "harness": 24}
RELABELLED = 300


def keep(name: str, facts: dict[str, Any], measured: list[Measurement], arms: int = 1) -> None:
    """Samples by process, in whole units of 100 ns, which pack well; `facts` beside them. arms: so many in a row were
    timed together and share their control."""
    arrays = {}
    for i, m in enumerate(measured):
        for kind in ("samples_ms", "control_ms"):
            values = [np.rint(np.multiply(getattr(r, kind), 1e4)).astype(np.uint32) for r in m.runs]
            arrays[f"{i}-{kind}"] = np.stack([v[: min(map(len, values))] for v in values])
        if i % arms:
            del arrays[f"{i}-control_ms"]
    np.savez_compressed(RAW / f"{name}.npz", **arrays)
    (RAW / f"{name}.json").write_text(json.dumps(facts) + "\n")


def unit_check(name: str, subject: Subject, slowdown: float = 0.0) -> None:
    began = time.perf_counter()
    found, taken = check(subject, subject, slowdown=slowdown)
    rounds = Rounds((), ())
    for base, head, again in zip(taken[::3], taken[1::3], taken[2::3], strict=True):
        rounds += Rounds(tuple(log_ratios(base, head)), tuple(log_ratios(base, again)))
    compared = conclude(interval(rounds.head), BAND, len(rounds.head)).verdict if rounds.head else "inconclusive"
    facts = {
        "verdict": found.verdict,
        "ratio": found.ratio,
        "low": found.low,
        "high": found.high,
        "threshold": found.threshold,
        "compare": compared,
        "reasons": found.reasons,
        "head": rounds.head,
        "noise": rounds.noise,
        "control_spread": taken[0].control_spread,
        "p50_ms": taken[0].summary()["p50_ms"],
        "seconds": time.perf_counter() - began,
    }
    keep(name, facts, taken, arms=3)
    print(f"{name}: {found.verdict} {found.ratio} in {facts['seconds']:.0f} s", flush=True)


def unit_busy(name: str, subject: Subject) -> None:
    """A neighbour works and rests by turns of half a second on every core but one."""
    others = [multiprocessing.Process(target=_work, daemon=True) for _ in range(max(1, (os.cpu_count() or 2) - 1))]
    for other in others:
        other.start()
    try:
        unit_check(name, subject)
    finally:
        for other in others:
            other.terminate()


def _work() -> None:
    a = np.random.default_rng(0).random((400, 400))
    while True:
        end = time.perf_counter() + 0.5
        while time.perf_counter() < end:
            a @ a
        time.sleep(0.5)


def unit_repeat(name: str, subject: Subject) -> None:
    pair = []
    for _ in range(2):
        pair += measure([subject], 9)
        time.sleep(20)
    values = [float(np.median([r.normalised_p50 for r in m.runs])) for m in pair]
    plain = [m.summary()["p50_ms"] for m in pair]
    keep(name, {"normalised": values, "p50_ms": plain, "control_spread": [m.control_spread for m in pair]}, pair)
    print(f"{name}: {values[1] / values[0]:.4f} normalised, {plain[1] / plain[0]:.4f} plain", flush=True)


_BARE = """
import sys, time, numpy as np, onnxruntime as ort
options = ort.SessionOptions(); options.intra_op_num_threads = options.inter_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
(only,) = session.get_inputs()
x = np.random.default_rng(0).integers(0, 256, only.shape, dtype=np.uint8)
took, end = [], time.perf_counter() + 2
while time.perf_counter() < end:
    start = time.perf_counter_ns(); session.run(None, {only.name: x}); took.append(time.perf_counter_ns() - start)
print(np.median(took[len(took) // 4:]) / 1e6)
"""


def unit_harness(name: str, subject: Subject) -> None:
    """One process of each, in turn."""
    (ov,) = measure([Subject.of(Path(subject.path), "openvino")], 1)
    with timing_lock():
        app = _benchmark_app(subject.path)
    (ort,) = measure([subject], 1)
    with timing_lock():
        done = subprocess.run([sys.executable, "-c", _BARE, subject.path], capture_output=True, text=True, check=True)
    facts = {
        "onnxruntime": ort.summary()["p50_ms"] / float(done.stdout),
        "openvino": ov.summary()["p50_ms"] / app,
        "bare_ms": float(done.stdout),
        "benchmark_app_ms": app,
    }
    keep(name, facts, [ov, ort])
    print(f"{name}: ours / bare {facts['onnxruntime']:.4f}, ours / benchmark_app {facts['openvino']:.4f}", flush=True)


def _benchmark_app(path: str) -> float:
    options = [
        "-d",
        "CPU",
        "-api",
        "sync",
        "-nstreams",
        "1",
        "-nthreads",
        "1",
        "-hint",
        "none",
        "-infer_precision",
        "f32",
        "-t",
        "2",
    ]
    program = Path(sys.executable).with_name("benchmark_app")
    told = subprocess.run([program, "-m", path, *options], capture_output=True, text=True, check=True).stdout
    found = re.search(r"Median:\s+([\d.]+) (ms|us)", told)
    assert found, told
    return float(found[1]) / (1000 if found[2] == "us" else 1)


def table() -> dict[str, Any]:
    """Every figure, from the files."""

    def facts(part: str) -> list[dict[str, Any]]:
        return [json.loads(p.read_text()) for p in sorted(RAW.glob(f"{part}-*.json"))]

    def spread(values: list[float]) -> str:
        return f"{np.median(values):.4f} ({min(values):.4f} to {max(values):.4f})"

    result: dict[str, Any] = {}
    for part in ("aa", "slow", "busy"):
        if found := facts(part):
            verdicts = [f["verdict"] for f in found]
            result[part] = {
                "checks": len(found),
                **{v: verdicts.count(v) for v in ("pass", "fail", "inconclusive")},
                "compare_flags": sum(f["compare"] in ("slower", "faster") for f in found),
                "ratio": spread([f["ratio"] for f in found if f["ratio"]]) if any(f["ratio"] for f in found) else None,
                "seconds_at_most": round(max(f["seconds"] for f in found)),
            }
    if found := facts("aa"):
        rounds = Rounds(tuple(x for f in found for x in f["head"]), tuple(x for f in found for x in f["noise"]))
        rng = np.random.default_rng(0)
        result["relabelled"] = {
            "comparisons": RELABELLED,
            "slower or faster": round(false_alarms(rounds.head + rounds.noise, RELABELLED, rng) * RELABELLED),
        }
    if found := facts("repeat"):
        for key in ("normalised", "p50_ms"):
            ratios = [f[key][1] / f[key][0] for f in found]
            result.setdefault("repeat", {})[key] = {
                "ratio": spread(ratios),
                "within 3 %": f"{sum(abs(np.log(r)) <= np.log(1.03) for r in ratios)} of {len(ratios)}",
            }
    if found := facts("harness"):
        for key in ("onnxruntime", "openvino"):
            bounds = interval([np.log(f[key]) for f in found])
            result.setdefault("harness", {})[key] = (
                f"{bounds.ratio:.4f} (99 % bounds {bounds.low:.4f} to {bounds.high:.4f})"
            )
    return result


UNITS: dict[str, Callable[[str, Subject], None]] = {
    "aa": unit_check,
    "slow": lambda name, subject: unit_check(name, subject, SLOWDOWN),
    "busy": unit_busy,
    "repeat": unit_repeat,
    "harness": unit_harness,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=UNITS)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    RAW.mkdir(exist_ok=True)
    host = this_host().as_dict()
    stamp = RAW / "host.json"
    if stamp.is_file() and json.loads(stamp.read_text())["key"] != host["key"] and not args.table:
        sys.exit(f"{RAW} is of another host; remove it to measure here")
    if not args.table:
        stamp.write_text(json.dumps(host, indent=1) + "\n")
        network = ZOO / f"{NETWORK}.onnx"
        if not network.is_file():
            subprocess.run([sys.executable, ROOT / "ci" / "build_zoo.py", ZOO], check=True, cwd=ROOT)
        subject = Subject.of(network)
        for part in args.part or UNITS:
            for i in range(COUNTS[part]):
                name = f"{part}-{i:02d}"
                if not (RAW / f"{name}.json").is_file():
                    UNITS[part](name, subject)
    result = {"network": NETWORK, **table(), "host": json.loads(stamp.read_text())}
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    for name, row in result.items():
        if name != "host":
            print(f"{name}: {row}")


if __name__ == "__main__":
    main()
