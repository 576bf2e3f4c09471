"""Results for people, on stdout, with rich's tables."""

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_console = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 160)
_COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    return table


def _print(*what: Any) -> None:
    for item in what:
        _console.print(item, markup=False)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def show_verdict(result: dict[str, Any]) -> None:
    latency = result["latency"]
    _console.print(f"[bold {_COLOURS[result['verdict']]}]verdict: {result['verdict']}[/]")
    _print(
        f"p90 {_ms(latency['p90_ms'])} ms, 99 % bounds {_ms(latency['p90_lower_ms'])} to "
        f"{_ms(latency['p90_upper_ms'])} ms, limit {latency['limit_ms']:g} ms, {latency['samples']} samples in "
        f"{latency['processes']} processes, {latency['effective_precision']}"
    )
    submission = result.get("submission")
    if submission:
        limit = f", limit {submission['limit_s']:g} s" if submission["limit_s"] else ""
        score = f", score {submission['score']:.4f}" if submission["score"] is not None else ""
        _print(
            f"submission of {submission['images']} images: {submission['predicted_s']:.1f} s all in{limit}{score} "
            f"(decode and resize {submission['decode_ms']:.2f} ms, inference {submission['infer_ms']:.2f} ms)"
        )
    for reason in result["reasons"]:
        _print(f"reason: {reason}")


def show_result(result: dict[str, Any], folder: Path) -> None:
    search = result["search"]
    _print(
        f"search: {search['asked']} asked, {search['rejected_untrained']} rejected untrained, {search['trained']} "
        f"trained, {search['over_limit_trained']} of them over the limit"
    )
    stages = _table("", "stage", "seconds", "")
    for stage in result["stages"]:
        stages.add_row(stage["name"], f"{stage['seconds']:.1f}", "kept" if stage["skipped"] else "")
    _print(stages)
    if result["model"] is None:
        _console.print(f"[bold red]verdict: {result['verdict']}[/]")
        for reason in result["reasons"]:
            _print(f"reason: {reason}")
    else:
        model, quality = result["model"], result["quality"]
        note = ", on which it was also chosen" if quality["selected_on"] else ""
        _print(
            f"model: {model['path']}, {model['runtime']} {model['precision']}, {model['params']} parameters, "
            f"{model['macs'] / 1e6:.1f} MMAC, {model['input_size']} px, {model['size_bytes'] / 1e6:.2f} MB",
            f"quality: macro F1 {quality['f1_macro']:.4f}, accuracy {quality['accuracy']:.4f} on "
            f"{quality['split']}{note}",
        )
        show_verdict(result)
        if result["bundle"]:
            _print(f"bundle: {result['bundle']['archive']}")
    _print(f"record: {folder / 'result.json'}")


def show_choice(summary: dict[str, Any]) -> None:
    table = _table("trained candidates (* on the Pareto front)", "trial", "F1", "p90 ms", "parameters", "px", "why not")
    for row in summary["table"]:
        table.add_row(
            f"{row['trial']}{' *' if row['pareto'] else ''}",
            f"{row['f1_macro']:.4f}",
            _ms(row["latency_ms"]),
            str(row["params"]),
            str(row["input_size"]),
            row["reason"] or "chosen",
        )
    _print(table, f"trial {summary['trial']} -> {summary['student']}")


def show_race(summary: dict[str, Any]) -> None:
    table = _table(
        f"torch: macro F1 {summary['torch']['f1_macro']:.4f}",
        "file",
        "F1",
        "change",
        "top-1 agrees",
        "logit diff",
        "kB",
        "p50 ms",
        "p90 ms",
        "",
    )
    for row in summary["race"]:
        table.add_row(
            f"{row['runtime']} {row['precision']}",
            f"{row['f1_macro']:.4f}",
            f"{row['f1_change']:+.4f}",
            f"{row['agreement']:.4f}",
            f"{row['max_diff']:.2g}",
            f"{row['size_bytes'] / 1e3:.0f}",
            _ms(row["p50_ms"]),
            _ms(row["p90_ms"]),
            row["verdict"],
        )
    _print(table)


def show_model(result: dict[str, Any]) -> None:
    table = _table("", "layer", "module", "args", "shape", "parameters", "MACs")
    for row in result["layers"]:
        args = ", ".join(f"{k}={v}" for k, v in row["args"].items())
        shape = " x ".join(str(n) for n in row["shape"])
        table.add_row(str(row["layer"]), row["module"], args, shape, f"{row['params']:,}", f"{row['macs']:,}")
    _print(
        table,
        f"{result['params']:,} parameters, {result['macs'] / 1e6:.1f} MMAC at {result['input_size']} px, "
        f"hash {result['hash']}",
    )


def show_data(result: dict[str, Any]) -> None:
    table = _table(result["root"], "class", *result["counts"])
    for name in result["classes"]:
        table.add_row(name, *(str(counts[name]) for counts in result["counts"].values()))
    table.add_row("total", *(str(sum(counts.values())) for counts in result["counts"].values()))
    _print(table)
    for path, reason in result["skipped"].items():
        _print(f"skipped: {path}: {reason}")
    if result["identical_files"]:
        _print(f"{result['identical_files']} files are byte for byte the same as another")


def show_measurements(result: dict[str, Any]) -> None:
    keys = ("p50_ms", "p90_ms", "p99_ms", "min_ms", "p90_lower_ms", "p90_upper_ms", "cold_ms")
    table = _table(result["host"]["cpu"], "file", "precision", *keys)
    for row in result["measurements"]:
        table.add_row(row["path"], row["effective_precision"], *(_ms(row["summary"][k]) for k in keys))
    _print(table)


def show_summary(summary: dict[str, Any]) -> None:
    """Any stage's summary as lines of key and value."""
    for key, value in summary.items():
        _print(f"{key}: {value}")
