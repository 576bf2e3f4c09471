"""Results of the timing commands for people: tables and a histogram on stdout, progress on stderr."""

from typing import Any

import numpy as np

from latency.records import Measurement
from pipeline.show.results import console, ms, new_table, put

_BARS = 12
_WIDTH = 50
_COLOURS = {
    "pass": "green",
    "same": "green",
    "faster": "green",
    "fail": "red",
    "slower": "red",
    "inconclusive": "yellow",
}


def _verdict(name: str, what: str = "verdict") -> None:
    console.print(f"{what}: [bold {_COLOURS.get(name, 'yellow')}]{name}[/]")


def show_measurements(found: list[Measurement], all_in: dict[str, Any] | None) -> None:
    keys = ("p50_ms", "p90_ms", "p99_ms", "min_ms", "p90_lower_ms", "p90_upper_ms", "cold_ms", "load_ms")
    table = new_table(found[0].host["cpu"], "file", "precision", *keys, "spread", "peak MiB")
    for measured in found:
        summary = measured.summary()
        table.add_row(
            measured.subject.path,
            f"{measured.subject.runtime} {measured.effective_precision}",
            *(ms(summary[k]) for k in keys),
            f"{summary['spread']:.2f}",
            f"{summary['peak_mib']:.0f}",
        )
    put(table)
    for measured in found:
        count = len(measured.runs)
        put(f"{measured.subject.path}: {sum(len(r.samples_ms) for r in measured.runs)} samples in {count} processes")
        _histogram(np.concatenate([r.samples_ms for r in measured.runs]))
        if measured.unrest:
            put(f"not steady: {measured.unrest}")
    put(
        "p90_lower_ms and p90_upper_ms bound the median process's p90 (99 %; - where the processes are too few); "
        "spread: largest over smallest median of a process"
    )
    if all_in:
        _all_in(all_in)


def _histogram(samples: np.ndarray) -> None:
    """Up to the 99th percentile, which a few outliers would squeeze into one bar; the rest is counted."""
    top = float(np.percentile(samples, 99))
    counts, edges = np.histogram(samples[samples <= top], bins=_BARS)
    for count, low in zip(counts, edges, strict=False):
        put(f"  {low:9.3f} ms {'█' * round(_WIDTH * count / counts.max())} {count}")
    beyond = samples[samples > top]
    if len(beyond):
        put(f"  over {top:.3f} ms: {len(beyond)}, up to {beyond.max():.3f} ms")


def _all_in(all_in: dict[str, Any]) -> None:
    table = new_table(f"all in, {all_in['images']} images, reading from the page cache", "part", "p50 ms", "p90 ms")
    full = all_in["decode_at_full_size"]
    for part, row in all_in["parts"].items():
        table.add_row(part, ms(row["p50_ms"]), ms(row["p90_ms"]))
    put(table)
    gain = full["p50_ms"] - all_in["parts"]["decode"]["p50_ms"]
    changed = all_in["labels_changed_by_scaled_decoding"]
    put(
        f"decoding at a fraction saves {gain:.3f} ms of {full['p50_ms']:.3f}, changing the label of {changed} "
        f"of {all_in['images']} images"
    )
    whole = all_in["submission"]
    put(
        f"{whole['images']} images: {whole['predicted_s']:.1f} s ({whole['predicted_lower_s']:.1f} to "
        f"{whole['predicted_upper_s']:.1f} over {all_in['processes']} processes)"
    )


def show_comparison(result: dict[str, Any]) -> None:
    _verdict(result["verdict"], "B against A")
    if result["ratio"] is not None:
        put(
            f"B/A {result['ratio']:.4f}, 99 % bounds {result['low']:.4f} to {result['high']:.4f}, "
            f"band {result['band']:.1%}, {result['processes']} processes"
        )
    for name, measured in zip("AB", result["measurements"], strict=False):
        summary = measured["summary"]
        put(
            f"{name}: p50 {summary['p50_ms']:.3f} ms, p90 {summary['p90_ms']:.3f} ms, {measured['runtime']} "
            f"{measured['effective_precision']}, {measured['path']}"
        )
    _reasons(result)


def show_check(result: dict[str, Any]) -> None:
    _verdict(result["verdict"])
    table = new_table("", "file", "verdict", "head/base", "99 % bounds", "threshold", "processes")
    for row in result["files"]:
        known = row["ratio"] is not None
        bounds = f"{row['low']:.4f} to {row['high']:.4f}" if known else "-"
        ratio, threshold = (f"{row[k]:.4f}" if known else "-" for k in ("ratio", "threshold"))
        table.add_row(row["name"], row["verdict"], ratio, bounds, threshold, str(row["processes"]))
    put(table)
    for row in result["files"]:
        _reasons(row, f"{row['name']}: ")


def _reasons(result: dict[str, Any], where: str = "") -> None:
    for reason in result["reasons"]:
        put(f"reason: {where}{reason}")


def show_selftest(result: dict[str, Any]) -> None:
    put(
        f"{result['path']}: {result['rounds']} rounds in fresh processes, {result['seconds']:.0f} s, "
        f"{result['host']['cpu']}",
        f"A/A: the ratio of a file to itself varies by {result['spread']:.2%} from process to process; "
        f"false alarms: {result['false_alarms']:.1%} of {result['draws']} comparisons drawn from the rounds",
        f"injected: {result['injected']:.1%} slower, seen as {result['seen']['ratio'] - 1:.1%} (99 % bounds "
        f"{result['seen']['low'] - 1:.1%} to {result['seen']['high'] - 1:.1%}); {result['detected']:.1%} of the checks "
        "found it",
    )
    table = new_table(f"with {result['allowed']:.0%} allowed", "slowdown", "found")
    for share, found in result["power"].items():
        table.add_row(share, f"{found:.0%}")
    put(table)
    if result["smallest"] is None:
        put("no slowdown up to 30 % is found reliably (95 %) on this host")
    else:
        put(f"the smallest slowdown that this host finds reliably (95 %) is {result['smallest']:.0%}")
    if result["unrest"]:
        put(f"not steady: {result['unrest']}")


def show_profile(result: dict[str, Any]) -> None:
    table = new_table(
        f"{result['path']}: {result['total_ms']:.3f} ms in kernels, {result['runtime']} {result['precision']}",
        *("operator", "precision", "kernel", "count", "ms", "share"),
    )
    for row in result["rows"]:
        table.add_row(
            row["operator"], row["precision"], row["kind"], str(row["count"]), ms(row["ms"]), f"{row['share']:.1%}"
        )
    put(table)
    if not result["total_ms"]:
        put("the runtime's profiler saw no time: every kernel takes less than the microsecond that it counts in")
    if result["not_int8"]:
        put("what does not run in INT8, or only converts:")
    for found in result["not_int8"]:
        put(f"  {found['share']:6.1%}  {found['operator']} ({found['precision']}): {found['advice']}")


def show_blocks(result: dict[str, Any]) -> None:
    table = new_table(
        f"one more block of {result['channels']} channels at {result['size']} x {result['size']}, ms, fastest first, "
        f"{result['host']['cpu']}",
        *("block", "parameters", "MMAC", *result["forms"]),
    )
    for row in result["rows"]:
        table.add_row(
            row["block"],
            f"{row['params']:,}",
            f"{row['macs'] / 1e6:.2f}",
            *(f"{row[form]:.4f}" for form in result["forms"]),
        )
    put(table)


def show_calibration(result: dict[str, Any]) -> None:
    high = "no bound above" if result["high_ms"] is None else f"{result['high_ms']:.4f}"
    put(
        f"a local limit of {result['limit_ms']:.4f} ms keeps {result['limit_s']:g} s there "
        f"(range {result['low_ms']:.4f} to {high})",
        f"by a {result['method']} through {len(result['pairs'])} pairs: seconds = {result['start_s']:.4g} + "
        f"{result['seconds_per_ms']:.4g} * ms",
    )
    for note in result["notes"]:
        put(f"note: {note}")
