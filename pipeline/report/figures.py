"""The figures of a report, drawn with plotly; the history of a search is Optuna's own.

No colours of text, paper or grid in here: the page sets them for a dark or a light screen. Names are strangers' text
and plotly reads some HTML in it, so they are escaped.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import optuna
import plotly.graph_objects as go
from optuna.trial import TrialState
from optuna.visualization import plot_optimization_history

from pipeline.search.tally import REJECTED, STOPPED, TRAINED
from pipeline.study import quiet_optuna

BLUE, ORANGE, GREEN, RED, GREY = "#3b82d6", "#d9730d", "#2a9d62", "#d64545", "#868b94"
"""Each at least 3 : 1 against white and against near-black (WCAG 2.2, 1.4.11)."""
_OBJECTIVES = {"F1": BLUE, "latency": ORANGE, "parameters": GREEN}
_BINS = 40
_MOST_PARAMETERS, _MOST_OPERATORS = 12, 14
_MOST_NUMBERS, _LONGEST = 20, 24
"""Classes whose confusions are told as numbers too; characters of a class's name on an axis."""
_BAR_PX, _FRAME_PX = 26, 130
_ENOUGH = 25
"""PED-ANOVA's documentation wants five trials at least in the best share, which is a fifth."""

Rows = Sequence[dict[str, Any]]
"""As `pipeline.search.tally.rows_of` has them."""


@dataclass(frozen=True)
class Chart:
    """name: its id in the page and its picture's. about: what is to be seen, in a sentence or two, for those who see
    it and those who do not."""

    name: str
    title: str
    about: str
    figure: go.Figure


def _figure(traces: Sequence[Any], x: str, y: str, height: int = 380, **layout: Any) -> go.Figure:
    figure = go.Figure(traces, go.Layout(template="none", height=height, margin={"l": 50, "r": 16, "t": 16, "b": 48}))
    figure.update_layout(legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0}, hovermode="closest")
    figure.update_layout(xaxis={"title": {"text": x}, "automargin": True}, yaxis={"title": {"text": y}})
    return figure.update_layout(yaxis_automargin=True, **layout)


def architecture(spec: dict[str, Any]) -> str:
    """The layers of a model's document, one a line, for a hover."""
    rows = spec["backbone"]
    if isinstance(rows, str):
        return escape(f"{rows} until {spec.get('until')}")
    return "<br>".join(
        escape(f"{repeat} x {module}({', '.join('-' if a is None else str(a) for a in args)})")
        for repeat, module, args in rows
    )


# --- search ----------------------------------------------------------------------------------------------------------


def pareto(rows: Rows, limit_ms: float, chosen: int | None) -> Chart:
    """F1 over latency. Rejected ones have no F1: they lie under the axis."""
    known = [r for r in rows if r["state"] == TRAINED]
    floor = -0.04
    styles = (
        ("trained", known, BLUE, "circle", 9),
        ("stopped early", [r for r in rows if r["state"] == STOPPED], GREY, "triangle-down", 8),
        ("rejected untrained", [r for r in rows if r["state"] == REJECTED], RED, "x-thin-open", 8),
        ("chosen", [r for r in known if r["trial"] == chosen], GREEN, "star", 16),
    )
    traces: list[Any] = [_front(known)]
    for name, group, colour, symbol, size in styles:
        traces.append(
            go.Scatter(
                name=name,
                mode="markers",
                x=[r["latency_ms"] for r in group],
                y=[r.get("f1_macro", floor) for r in group],
                marker={"color": colour, "symbol": symbol, "size": size, "line": {"color": colour, "width": 1.5}},
                text=[_told(r) for r in group],
                hovertemplate="%{text}<extra>" + name + "</extra>",
            )
        )
    figure = _figure(traces, "p90 in ms, as the search saw it", "macro F1 on val/", 460)
    figure.add_vline(limit_ms, line={"color": RED, "dash": "dash"}, annotation_text=f"limit {limit_ms:g} ms")
    about = (
        f"The {len(rows)} candidates that were timed. Those that were rejected, before any training, have no F1 and "
        "lie under 0; the line is the front, for each time the best F1 that was reached by then."
    )
    return Chart("pareto", "Candidates: F1 over latency", about, figure)


def _front(known: Rows) -> go.Scatter:
    x, y, best = [], [], -1.0
    for row in sorted(known, key=lambda r: (r["latency_ms"], -r["f1_macro"])):
        if row["f1_macro"] > best:
            best = row["f1_macro"]
            x.append(row["latency_ms"])
            y.append(best)
    line = {"color": BLUE, "width": 1.5, "shape": "hv"}
    return go.Scatter(name="front", mode="lines", x=x, y=y, line=line, hoverinfo="skip")


def _told(row: dict[str, Any]) -> str:
    f1 = f"F1 {row['f1_macro']:.4f}, " if "f1_macro" in row else ""
    head = f"<b>trial {row['trial']}</b>: {f1}{row['latency_ms']:.3f} ms {row['form']}"
    size = f"{row['params']:,} parameters, {row['macs'] / 1e6:.1f} MMAC, {row['input_size']} px"
    return f"{head}<br>{size}<br>{architecture(row['spec'])}"


def histories(rows: Rows, limit_ms: float) -> list[Chart]:
    """Optuna's optimization history of each objective, over all candidates of which it is known."""
    wanted = (
        ("history-f1", "macro F1", "maximize", lambda r: r.get("f1_macro"), "trainings, stopped ones too"),
        ("history-latency", "p90 in ms", "minimize", lambda r: r["latency_ms"], "candidates that were timed"),
        ("history-params", "parameters", "minimize", lambda r: r["params"], "candidates that were timed"),
    )
    charts = []
    for name, objective, direction, value, what in wanted:
        if all(value(r) is None for r in rows):
            continue
        figure = plot_optimization_history(_study(rows, direction, value), target_name=objective)
        plain = _figure(figure.data, "trial", objective, 320)
        if name == "history-latency":
            plain.add_hline(limit_ms, line={"color": RED, "dash": "dash"}, annotation_text="limit")
        about = f"Of all {what}, in the order in which they were asked for; those over a limit are grey."
        charts.append(Chart(name, f"History: {objective}", about, plain))
    return charts


def _study(rows: Rows, direction: Any, value: Any) -> optuna.Study:
    """The trials of a study again, under their numbers, with one objective; a rejected one counts as complete."""
    quiet_optuna()
    study, by_number = optuna.create_study(direction=direction), {r["trial"]: r for r in rows}
    for number in range(max(by_number, default=-1) + 1):
        row = by_number.get(number)
        known = None if row is None else value(row)
        if row is None or known is None:
            study.add_trial(optuna.create_trial(state=TrialState.FAIL))
        else:
            study.add_trial(optuna.create_trial(value=known, constraints=row["over_limit"]))
    return study


def curves(rows: Rows, chosen: int | None) -> Chart:
    """F1 by epoch of every candidate that was trained."""
    traces = []
    for row in (r for r in rows if "f1_by_epoch" in r):
        colour = GREEN if row["trial"] == chosen else BLUE if row["state"] == TRAINED else GREY
        traces.append(
            go.Scatter(
                mode="lines",
                x=list(range(1, len(row["f1_by_epoch"]) + 1)),
                y=row["f1_by_epoch"],
                line={"color": colour, "width": 3 if colour == GREEN else 1},
                hovertemplate=f"trial {row['trial']}, epoch %{{x}}: F1 %{{y:.4f}}<extra></extra>",
                showlegend=False,
            )
        )
    about = "macro F1 on val/ by epoch: the chosen one green, those that ended early grey."
    figure = _by_epoch(traces, "macro F1", max(len(t.x) for t in traces))
    return Chart("curves", "Candidates in training", about, figure)


def _by_epoch(traces: Sequence[Any], y: str, epochs: int) -> go.Figure:
    step = max(1, math.ceil(epochs / 10))
    return _figure(traces, "epoch", y, 340, xaxis_dtick=step, xaxis_tick0=step if step > 1 else 1)


def importances(shares: dict[str, dict[str, float]], candidates: int) -> Chart:
    """shares: objective -> parameter -> share."""
    most = {name: max(s.get(name, 0.0) for s in shares.values()) for of in shares.values() for name in of}
    names = sorted(most, key=lambda n: most[n])[-_MOST_PARAMETERS:]
    traces = [
        go.Bar(
            name=objective,
            orientation="h",
            y=[escape(n) for n in names],
            x=[share.get(n, 0.0) for n in names],
            marker={"color": _OBJECTIVES[objective]},
            hovertemplate="%{y}: %{x:.1%}<extra>" + objective + "</extra>",
        )
        for objective, share in shares.items()
        if share
    ]
    figure = _figure(traces, "share", "", _FRAME_PX + 2 * _BAR_PX * len(names), xaxis_tickformat=".0%")
    about = (
        "How much of what makes the best fifth the best hangs on each parameter (PED-ANOVA): latency and parameters "
        "over all candidates that were timed, F1 over those that were trained."
        + (f" Of {candidates} candidates it is a hint, no more." if candidates < _ENOUGH else "")
    )
    return Chart("importances", "What each objective hangs on", about, figure)


# --- training --------------------------------------------------------------------------------------------------------


def learning(records: dict[str, dict[str, Any]]) -> list[Chart]:
    """records: who -> the training's record (`pipeline.training.loop.Fit.record`)."""
    colours = dict(zip(records, (GREEN, BLUE), strict=False))
    f1, loss, told = [], [], []
    for who, record in records.items():
        history, best = [e for e in record["history"] if e["loss"] is not None], record["best"]
        x, line = [e["epoch"] + 1 for e in history], {"color": colours[who]}
        f1.append(go.Scatter(name=who, mode="lines", x=x, y=[e["f1_macro"] for e in history], line=line))
        marker = {"symbol": "star", "size": 13, "color": colours[who]}
        best_name = f"best of the {who}: epoch {best['epoch'] + 1}, F1 {best['f1_macro']:.4f}"
        f1.append(
            go.Scatter(name=best_name, mode="markers", x=[best["epoch"] + 1], y=[best["f1_macro"]], marker=marker)
        )
        for key, split, dash in (("loss", "train", "dot"), ("val_loss", "val", "solid")):
            y = [e[key] for e in history]
            loss.append(go.Scatter(name=f"{who}, {split}", mode="lines", x=x, y=y, line={**line, "dash": dash}))
        ended = f" ({record['diverged']})" if record.get("diverged") else ""
        told.append(f"the {who}'s best epoch is {best['epoch'] + 1}{ended}")
    longest = max(len(r["history"]) for r in records.values())
    apart = " The student's has the teacher's answers in it, so the two do not compare." if "teacher" in records else ""
    return [
        Chart(
            "learning-f1",
            "Learning: macro F1 on val/",
            f"The weights of the best epoch are kept: {'; '.join(told)}.",
            _by_epoch(f1, "macro F1", longest),
        ),
        Chart(
            "learning-loss",
            "Learning: loss",
            f"By epoch, on what is learnt from and on val/.{apart}",
            _by_epoch(loss, "loss", longest),
        ),
    ]


# --- latency ---------------------------------------------------------------------------------------------------------


def by_process(measurement: dict[str, Any], latency: dict[str, Any]) -> Chart:
    """How long inferences took, a line for each fresh process. latency: `latency.gate.claim`."""
    samples = [np.array(r["samples_ms"]) for r in measurement["runs"]]
    together = np.concatenate(samples)
    low, high = float(together.min()), float(np.percentile(together, 99))
    edges = np.linspace(low, max(high, 1.05 * latency["p90_ms"]), _BINS + 1)
    middles = (edges[:-1] + edges[1:]) / 2
    traces = [
        go.Scatter(
            mode="lines",
            x=middles.round(5).tolist(),
            y=(np.histogram(s, edges)[0] / len(s)).round(5).tolist(),
            line={"shape": "hvh", "width": 1.2, "color": BLUE},
            opacity=0.65,
            hovertemplate=f"process {i}: %{{y:.1%}} at %{{x:.3f}} ms<extra></extra>",
            showlegend=False,
        )
        for i, s in enumerate(samples, 1)
    ]
    figure = _figure(traces, "ms for one inference", "share of a process's inferences", 380, yaxis_tickformat=".0%")
    if latency["p90_lower_ms"] is not None:
        figure.add_vrect(
            latency["p90_lower_ms"], latency["p90_upper_ms"], fillcolor=GREEN, opacity=0.2, line_width=0,
            annotation_text="p90, 99 %", annotation_position="top left",
        )  # fmt: skip
    shown = latency["limit_ms"] <= 2 * edges[-1]
    if shown:
        figure.add_vline(
            latency["limit_ms"],
            line={"color": RED, "dash": "dash"},
            annotation_text=f"limit {latency['limit_ms']:g} ms",
            annotation_position="top right",
        )
    beyond = float((together > edges[-1]).mean())
    about = (
        f"{len(together)} inferences in {len(samples)} fresh processes, a line each; {beyond:.1%} of them took longer "
        f"than is shown, at most {together.max():.3f} ms."
        + ("" if latency["p90_lower_ms"] is None else " The band bounds the median process's p90.")
        + ("" if shown else f" The limit of {latency['limit_ms']:g} ms lies far to the right.")
    )
    return Chart("latency", "Latency by process", about, figure)


def operators(profile: dict[str, Any]) -> Chart:
    """profile: `latency.profile.Profile` as a dict."""
    shares: defaultdict[str, float] = defaultdict(float)
    for row in profile["rows"]:
        shares[f"{row['operator']} {row['precision']}"] += row["share"]
    most = sorted(shares.items(), key=lambda s: -s[1])
    rest = sum(share for _, share in most[_MOST_OPERATORS:])
    shown = [*most[:_MOST_OPERATORS], *([("all others", rest)] if rest else [])][::-1]
    bar = go.Bar(
        orientation="h",
        y=[escape(name) for name, _ in shown],
        x=[share for _, share in shown],
        marker={"color": BLUE},
        text=[f"{share:.1%}" for _, share in shown],
        hovertemplate="%{y}: %{x:.1%}<extra></extra>",
    )
    height = _FRAME_PX + _BAR_PX * len(shown)
    figure = _figure([bar], "share of the time in kernels", "", height, xaxis_tickformat=".0%")
    about = (
        f"By the profiler of {profile['runtime']}, which costs time itself: the shares are what to read. edgebuild "
        "latency profile has every kernel."
    )
    return Chart("operators", "Time by operator", about, figure)


def all_in(parts: dict[str, dict[str, float]], images: int, processes: int) -> Chart:
    """parts: read, decode, resize, infer -> p50_ms, p90_ms, mean_ms."""
    traces = [
        go.Bar(
            name=part,
            orientation="h",
            y=["one image"],
            x=[row["mean_ms"]],
            marker={"color": colour},
            text=[f"{row['mean_ms']:.3f}"],
            hovertemplate=f"{part}: %{{x:.3f}} ms on average; p90 {row['p90_ms']:.3f} ms<extra></extra>",
        )
        for (part, row), colour in zip(parts.items(), (GREY, ORANGE, GREEN, BLUE), strict=False)
    ]
    figure = _figure(traces, "ms, mean", "", 190, barmode="stack", yaxis_showticklabels=False)
    about = (
        f"From a file to a label, of {images} images in {processes} fresh processes, reading from the page cache: "
        + ", ".join(f"{part} {row['mean_ms']:.3f} ms" for part, row in parts.items())
        + "."
    )
    return Chart("all-in", "All in, by part", about, figure)


# --- quality ---------------------------------------------------------------------------------------------------------


def per_class(quality: dict[str, Any]) -> Chart:
    values = quality["f1_per_class"]
    bar = go.Bar(
        orientation="h",
        y=list(range(len(values))),
        x=list(values.values()),
        text=[f"{v:.3f}" for v in values.values()],
        textposition="inside",
        insidetextanchor="start",
        marker={"color": BLUE},
        hovertext=[escape(c) for c in values],
        hovertemplate="%{hovertext}: F1 %{x:.4f}<extra></extra>",
    )
    figure = _figure([bar], "F1", "", _FRAME_PX + _BAR_PX * len(values), xaxis_range=[0, 1])
    figure.update_layout(yaxis={**_names(values), "autorange": "reversed"})
    figure.add_vline(quality["f1_macro"], line={"color": GREEN, "dash": "dash"})
    worst = min(values, key=lambda c: values[c])
    about = (
        f"Of the shipped file on {quality['split']}/; the line is their mean, {quality['f1_macro']:.3f}, the least is "
        f"{worst} with {values[worst]:.3f}."
    )
    return Chart("per-class", "F1 by class", about, figure)


def confusion(quality: dict[str, Any]) -> Chart:
    classes, counts = list(quality["f1_per_class"]), np.array(quality["confusion"])
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    grid = go.Heatmap(
        z=shares.round(4).tolist(),
        text=counts.tolist(),
        texttemplate="%{text}" if len(classes) <= _MOST_NUMBERS else None,
        colorscale=[[0, "rgba(59,130,214,0)"], [1, BLUE]],
        showscale=False,
        hovertext=[[f"{escape(is_)} taken for {escape(for_)}" for for_ in classes] for is_ in classes],
        hovertemplate="%{hovertext}: %{text} (%{z:.0%})<extra></extra>",
    )
    figure = _figure([grid], "taken for", "is", 190 + 34 * min(len(classes), _MOST_NUMBERS))
    figure.update_layout(xaxis={**_names(classes), "showgrid": False})
    figure.update_layout(yaxis={**_names(classes), "showgrid": False, "autorange": "reversed"})
    about = f"{counts.sum()} images of {quality['split']}/: what each is, and what the shipped file takes it for."
    return Chart("confusion", "Confusion matrix", about, figure)


def _names(classes: Iterable[str]) -> dict[str, Any]:
    """Of an axis whose places are numbers: plotly would take classes like 1 and 01 for one."""
    short = [c if len(c) <= _LONGEST else c[: _LONGEST - 1] + "…" for c in classes]
    return {"tickvals": list(range(len(short))), "ticktext": [escape(c) for c in short]}
