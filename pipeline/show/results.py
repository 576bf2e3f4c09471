"""Results for people, on stdout, with rich's tables."""

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise  # to the one handler of the command line; rich itself would exit with 1, which here means a missed limit


console = _Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 160)
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
            put(f"bundle: {folder / result['bundle']['archive']}")
        if result["preflight"]:
            told = "; ".join(result["preflight"]["reasons"])
            put(f"preflight: {result['preflight']['verdict']}{f': {told}' if told else ''}")
        if result.get("hint"):
            hint = result["hint"]
            put(f"hint: {hint['told']}: edgebuild run --run-dir {folder} --set select.trial={hint['trial']}")
    put(f"record: {folder / 'result.json'}", f"report: {folder / 'report.html'}")


def show_search(result: dict[str, Any]) -> None:
    show_summary({k: v for k, v in result.items() if k != "proxy"})
    if "proxy" in result:
        show_proxy(result["proxy"])


def show_proxy(found: dict[str, Any]) -> None:
    table = new_table(
        f"the short training ({found['short_epochs']} epochs, {found['short_subset']:.0%} of the photos) beside one in "
        f"full ({found['full_epochs']} epochs)",
        "trial",
        "F1, short",
        "F1, in full",
    )
    for pair in found["pairs"]:
        table.add_row(str(pair["trial"]), f"{pair['short']:.4f}", f"{pair['full']:.4f}")
    rank = found["rank"]
    if rank["spearman"] is None:
        put(table, "all candidates have the same F1 in one of the two, so their ranks cannot be compared")
        return
    put(
        table,
        f"correlation of the ranks: Spearman {rank['spearman']:.2f} (95 %: {rank['low']:.2f} to {rank['high']:.2f}), "
        f"Kendall {rank['kendall']:.2f}",
        f"the same candidate with other seeds: F1 differs by {found['repeat_sd']:.4f} (standard deviation); between "
        f"these candidates by {found['short_sd_between_candidates']:.4f}",
    )


def show_narrowed(result: dict[str, Any]) -> None:
    shares, changes = result["shares"], {c["name"]: c for c in result["changes"]}
    title = (
        f"what each objective hangs on (PED-ANOVA; latency and parameters over {result['measured']} measured "
        f"candidates, F1 over {result['trained']} trained)"
    )
    table = new_table(title, "parameter", *shares, "the best have", "round 2", "why")
    most = {name: max(s.get(name, 0.0) for s in shares.values()) for name in result["regions"]}
    for name in sorted(most, key=lambda n: -most[n]):
        change = changes.get(name, {"choice": "", "reason": ""})
        figures = (f"{s[name]:.1%}" if name in s else "-" for s in shares.values())
        table.add_row(name, *figures, result["regions"][name], str(change["choice"]), change["reason"])
    put(table, f"round 2 begins with {len(result['start'])} of the best -> {result['config']}")


def show_choice(summary: dict[str, Any]) -> None:
    if summary["trial"] is None:
        found = summary["measurement"]
        put(f"named by the config: p90 {ms(found['latency_ms'])} ms ({found['form']}) -> {summary['student']}")
        return
    rows = summary["table"]
    reckoned = {"submission_s": "submission s", "score": "score"}
    extra = {key: title for key, title in reckoned.items() if key in rows[0]}
    title = "trained candidates (* on the Pareto front; p90 of N fresh processes, else as the search saw it)"
    columns = ("trial", "F1", "p90 ms", "N", "form", "parameters", "kB", "px", *extra.values(), "why not")
    table = new_table(title, *columns)
    for row in rows:
        table.add_row(
            f"{row['trial']}{' *' if row['pareto'] else ''}",
            f"{row['f1_macro']:.4f}",
            ms(row["latency_ms"]),
            str(row["processes"] or "-"),
            row["form"],
            f"{row['params']:,}",
            f"{row['size_bytes'] / 1e3:.0f}",
            str(row["input_size"]),
            *(f"{row[key]:.4g}" for key in extra),
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
    for reason, found in result["passed_over"].items():
        put(f"passed over: {found['count']} {reason} ({', '.join(found['examples'])})")
    for what, paths in result["noted"].items():
        put(f"{len(paths)} images {what} ({', '.join(paths[:3])})")
    for names in result["alike_classes"]:
        put(f"the classes {' and '.join(names)} differ only in case; they are kept separate")
    for paths in result["contradictions"][:_MOST_GROUPS]:
        put(f"the same file under several labels: {' and '.join(paths[:3])}")
    _show_likeness(result)
    if result["identical_files"]:
        put(f"{result['identical_files']} files are byte for byte the same as another")
    for split, count in result["repeated"].items():
        put(f"{count} files of {split} stand in a split before it too, which flatters its figures")


_MOST_GROUPS = 20


def _show_likeness(result: dict[str, Any]) -> None:
    sizes = result["sizes"]
    first, last = sizes["smallest"][0], sizes["largest"][0]

    def px(size: list[int]) -> str:
        return f"{size[0]} x {size[1]}"

    if first["px"] == last["px"]:
        put(f"all photos are {px(first['px'])}")
    else:
        put(
            f"median {px(sizes['median_px'])}; smallest {px(first['px'])}, {first['photo']}; largest "
            f"{px(last['px'])}, {last['photo']}"
        )
    if sizes["small"]:
        put(f"{sizes['small']} photos are smaller than {sizes['small_px']} px and would be enlarged at that input size")
    for row in sizes["narrow"]:
        put(f"narrow: {row['photo']} is {px(row['px'])}: data.fit=squash distorts it; pad or crop do not")
    groups = result["near"]
    for group in groups[:_MOST_GROUPS]:
        other = f", labelled {' and '.join(group['classes'])}" if len(group["classes"]) > 1 else ""
        more = group["count"] - len(group["photos"])
        rest = f" and {more} more" if more else ""
        put(f"nearly the same: {' and '.join(group['photos'])}{rest}{other}")
    if len(groups) > _MOST_GROUPS:
        put(f"and {len(groups) - _MOST_GROUPS} more groups (--json has all)")
    across = sum(len(group["splits"]) > 1 for group in groups)
    if across:
        put(f"groups across splits: {across}, which flatters their figures: keep each group in one split")
    if result["near_within"]:
        put(f"photos that are nearly the same as another of their split and class: {result['near_within']}")


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
        ", ".join(f"{name} {version or 'missing'}" for name, version in result["versions"].items()),
    )
    memory, disk = result["memory_mib"], result["disk_gb"]
    put(
        f"memory free: {memory['available']} MiB; disk free: "
        + ", ".join(f"{free:g} GB in {folder}" for folder, free in disk.items())
        + f"; load {result['load']:g}",
        "tools: " + ", ".join(f"{tool} {'yes' if there else 'no'}" for tool, there in result["tools"].items()),
    )
    table = new_table("what the runtimes compute in", "runtime", "asked for", "used")
    table.columns[1].justify = table.columns[2].justify = "left"
    for row in result["precisions"]:
        table.add_row(row["runtime"], row["asked"], row["used"])
    put(table)
    tested = result["selftest"]
    if tested:
        smallest = "none up to 30 %" if tested["smallest"] is None else f"{tested['smallest']:.0%}"
        put(
            f"last selftest, {tested['when']}: false alarms {tested['false_alarms']:.1%}, smallest slowdown found "
            f"reliably {smallest}, spread between processes {tested['spread']:.2%}"
        )
    for problem in result["problems"]:
        put(f"problem: {problem}")
    for note in result["notes"]:
        put(f"note: {note}")
    if not result["problems"]:
        put("no problem was found")
