"""Results for people, on stdout, with rich's tables."""

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

console = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 160)
_COLOURS = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


def colour(verdict: str) -> str:
    return _COLOURS[verdict]


def new_table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    return table


def put(*what: Any) -> None:
    for item in what:
        console.print(item, markup=False)


def ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def show_verdict(result: dict[str, Any]) -> None:
    latency = result["latency"]
    console.print(f"[bold {_COLOURS[result['verdict']]}]verdict: {result['verdict']}[/]")
    put(
        f"p90 {ms(latency['p90_ms'])} ms, 99 % bounds {ms(latency['p90_lower_ms'])} to "
        f"{ms(latency['p90_upper_ms'])} ms, limit {latency['limit_ms']:g} ms, {latency['samples']} samples in "
        f"{latency['processes']} processes, {latency['effective_precision']}"
    )
    submission = result.get("submission")
    if submission:
        limit = f", limit {submission['limit_s']:g} s" if submission["limit_s"] else ""
        score = f", score {submission['score']:.4f}" if submission["score"] is not None else ""
        put(
            f"submission of {submission['images']} images: {submission['predicted_s']:.1f} s all in{limit}{score} "
            f"(decode and resize {submission['decode_ms']:.2f} ms, inference {submission['infer_ms']:.2f} ms)"
        )
    for reason in result["reasons"]:
        put(f"reason: {reason}")


def show_result(result: dict[str, Any], folder: Path) -> None:
    search = result["search"]
    put(
        f"search: {search['asked']} asked, {search['rejected_untrained']} rejected untrained, {search['trained']} "
        f"trained, {search['over_limit_trained']} of them over the limit"
    )
    stages = new_table("", "stage", "seconds", "")
    for stage in result["stages"]:
        stages.add_row(stage["name"], f"{stage['seconds']:.1f}", "kept" if stage["skipped"] else "")
    put(stages)
    if result["model"] is None:
        console.print(f"[bold red]verdict: {result['verdict']}[/]")
        for reason in result["reasons"]:
            put(f"reason: {reason}")
    else:
        model, quality = result["model"], result["quality"]
        note = ", on which it was also chosen" if quality["selected_on"] else ""
        put(
            f"model: {model['path']}, {model['runtime']} {model['precision']}, {model['params']} parameters, "
            f"{model['macs'] / 1e6:.1f} MMAC, {model['input_size']} px, {model['size_bytes'] / 1e6:.2f} MB",
            f"quality: macro F1 {quality['f1_macro']:.4f} ({quality['f1_low']:.4f}..{quality['f1_high']:.4f}, 95 %), "
            f"accuracy {quality['accuracy']:.4f} on {quality['split']}{note}",
        )
        show_verdict(result)
        if result["bundle"]:
            put(f"bundle: {result['bundle']['archive']}")
        if result["preflight"]:
            told = "; ".join(result["preflight"]["reasons"])
            put(f"preflight: {result['preflight']['verdict']}{f': {told}' if told else ''}")
    put(f"record: {folder / 'result.json'}")


def show_choice(summary: dict[str, Any]) -> None:
    if summary["trial"] is None:
        found = summary["measurement"]
        put(f"named by the config: p90 {ms(found['latency_ms'])} ms ({found['form']}) -> {summary['student']}")
        return
    table = new_table(
        "trained candidates (* on the Pareto front)", "trial", "F1", "p90 ms", "parameters", "px", "why not"
    )
    for row in summary["table"]:
        table.add_row(
            f"{row['trial']}{' *' if row['pareto'] else ''}",
            f"{row['f1_macro']:.4f}",
            ms(row["latency_ms"]),
            str(row["params"]),
            str(row["input_size"]),
            row["reason"] or "chosen",
        )
    put(table, f"trial {summary['trial']} -> {summary['student']}")


def show_model(result: dict[str, Any]) -> None:
    table = new_table("", "layer", "module", "args", "shape", "parameters", "MACs")
    for row in result["layers"]:
        args = ", ".join(f"{k}={v}" for k, v in row["args"].items())
        shape = " x ".join(str(n) for n in row["shape"])
        table.add_row(str(row["layer"]), row["module"], args, shape, f"{row['params']:,}", f"{row['macs']:,}")
    put(
        table,
        f"{result['params']:,} parameters, {result['macs'] / 1e6:.1f} MMAC at {result['input_size']} px, "
        f"hash {result['hash']}",
    )


def show_data(result: dict[str, Any]) -> None:
    table = new_table(result["root"], "class", *result["counts"])
    for name in result["classes"]:
        table.add_row(name, *(str(counts[name]) for counts in result["counts"].values()))
    table.add_row("total", *(str(sum(counts.values())) for counts in result["counts"].values()))
    put(table)
    for path, reason in result["skipped"].items():
        put(f"skipped: {path}: {reason}")
    if result["identical_files"]:
        put(f"{result['identical_files']} files are byte for byte the same as another")
    for split, count in result["repeated"].items():
        put(f"{count} files of {split} stand in a split before it too, which flatters its figures")


def show_summary(summary: dict[str, Any]) -> None:
    """Any stage's summary as lines of key and value."""
    for key, value in summary.items():
        put(f"{key}: {value}")


def show_doctor(result: dict[str, Any]) -> None:
    host = result["host"]
    put(
        f"CPU: {host['cpu']}, {host['cores']} cores allowed, governor {host['governor'] or 'not told'}, "
        f"{host['memory_mib']} MiB of memory, clock in steps of {result['clock_ns']} ns",
        f"instruction sets: {' '.join(host['isa'])}",
        f"bf16: {'yes, with OpenVINO' if result['bf16'] else 'not on this CPU'}",
        ", ".join(f"{name} {version or 'missing'}" for name, version in result["versions"].items()),
    )
    tested = result["selftest"]
    if tested:
        smallest = "none up to 30 %" if tested["smallest"] is None else f"{tested['smallest']:.0%}"
        put(
            f"last selftest, {tested['when']}: false alarms {tested['false_alarms']:.1%}, smallest slowdown found "
            f"reliably {smallest}, spread between processes {tested['spread']:.2%}"
        )
    for problem in result["problems"]:
        put(f"problem: {problem}")
