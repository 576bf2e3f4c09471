"""What is exported, raced and rehearsed, for people, on stdout."""

from typing import Any

from pipeline.show.results import colour, console, ms, new_table, put, show_verdict


def show_formats(rows: list[dict[str, Any]]) -> None:
    table = new_table("", "format", "file", "precisions", "read by", "needs", "")
    for row in rows:
        lacking = f" (missing: {', '.join(row['missing'])})" if row["missing"] else ""
        precisions, needs = ", ".join(row["precisions"]), ", ".join(row["needs"]) + lacking
        table.add_row(row["format"], row["file"], precisions, row["read_by"], needs, row["about"])
    put(table)


def show_written(rows: list[dict[str, Any]]) -> None:
    table = new_table("", "format", "file", "kB", "", "")
    for row in rows:
        table.add_row(row["format"], row["path"] or "-", f"{row['size_bytes'] / 1e3:.0f}", row["status"], row["reason"])
    put(table)


def show_race(summary: dict[str, Any]) -> None:
    table = new_table(
        f"torch: macro F1 {summary['torch']['f1_macro']:.4f}",
        *("file", "F1", "change, 95 %", "top-1 agrees", "logit diff", "kB", "start ms", "p50 ms", "p90 ms", ""),
    )
    for row in summary["race"]:
        table.add_row(
            f"{row['format']} {row['precision']}",
            f"{row['f1_macro']:.4f}",
            f"{row['f1_change']:+.4f} ({row['f1_change_low']:+.3f}..{row['f1_change_high']:+.3f})",
            f"{row['agreement']:.4f}",
            f"{row['max_diff']:.2g}",
            f"{row['size_bytes'] / 1e3:.0f}",
            f"{row['load_ms'] + row['cold_ms']:.0f}",
            ms(row["p50_ms"]),
            ms(row["p90_ms"]),
            row["verdict"],
        )
    put(table, summary["why"])
    for slow in summary["slow_int8"]:
        costs = "; ".join(f"{o['operator']} {o['share']:.0%}: {o['advice']}" for o in slow["operators"])
        put(f"{slow['file']} is no faster than f32 ({ms(slow['p90_ms'])} against {ms(slow['f32_p90_ms'])} ms): {costs}")
    for control in summary["accuracy_control"]:
        put(f"INT8 that keeps its F1, {control['runtime']}, {control['how']}: {control['status']}: {control['told']}")


def show_gate(summary: dict[str, Any]) -> None:
    show_verdict(summary)
    found = summary["portability"]
    if found["images"]:
        put(
            f"on an older CPU ({found['how']}, {found['images']} images): F1 changes by {found['f1_change']:+.4f}, "
            f"top-1 agrees {found['agreement']:.4f}"
        )
    else:
        put(f"on an older CPU: not tried: {found['how']}")
    for need in found["relies_on"]:
        put(f"relies on {need['what']}")


def show_preflight(result: dict[str, Any]) -> None:
    table = new_table("", "check", "", "")
    table.columns[-1].justify = "left"
    for check in result["checks"]:
        table.add_row(check["name"], check["verdict"], check["told"])
    put(table)
    console.print(f"[bold {colour(result['verdict'])}]preflight: {result['verdict']}[/]")
