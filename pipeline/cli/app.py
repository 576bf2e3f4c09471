"""The command line. Heavy packages are imported inside the commands: `edgebuild --help` loads none of them.

Results go to stdout, everything else to stderr; with --json the result is one JSON document.
"""

import contextlib
import io
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli.edge import (
    ConfigOption,
    DeviceOption,
    JsonOption,
    RunDirOption,
    SetOption,
    chatter_to_stderr,
    emit,
    explain,
    guarded,
    opened,
    run_stage,
    watched,
)
from pipeline.cli.latency import (
    BatchOption,
    PinOption,
    PrecisionOption,
    RuntimeOption,
    TargetOption,
    ThreadsOption,
    latency_app,
    machine,
    subject,
)
from pipeline.cli.search import narrow_command, search_command, select_command
from pipeline.cli.tools import config_app, data_app, doctor_command, init_command, model_app
from pipeline.errors import VERDICT_CODES, PipelineError

GATE_PROCESSES = 9

app = typer.Typer(
    name="edgebuild",
    help="From labelled images and a time limit to a small image classifier, proven on this CPU to keep the limit.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        from latency.host import version_of

        typer.echo(f"edgebuild {version_of('edgebuild')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


app.command("init")(init_command)
app.command("doctor")(doctor_command)
app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")
app.add_typer(model_app, name="model")
app.add_typer(latency_app, name="latency")


@app.command("run")
@guarded
def run_command(
    config: ConfigOption = None,
    overrides: SetOption = None,
    run_dir: RunDirOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> int:
    """Every stage to a verdict. PASS (exit 0), FAIL (1) or INCONCLUSIVE (3). Goes on where it was stopped.

    Without -c it runs the demo.

    Example: edgebuild run -c build.yaml
    """
    from pipeline.show.results import show_result

    with opened(config, overrides, run_dir, default="demo", device=device) as run:
        from pipeline.run import run_all  # 3 s of torch and timm, which a mistake in the config need not wait for

        result = run_all(run)
    emit(result, as_json, lambda: show_result(result, run.folder))
    return VERDICT_CODES[result["verdict"]]


def _stage_command(name: str, doc: str, show: str = "results.show_summary") -> None:
    def command(
        config: ConfigOption = None,
        overrides: SetOption = None,
        run_dir: RunDirOption = None,
        device: DeviceOption = "auto",
        as_json: JsonOption = False,
    ) -> int:
        run_stage(name, config, overrides, run_dir, as_json, show, device)
        return 0

    command.__doc__ = doc
    app.command(name)(guarded(command))


app.command("search")(search_command)
app.command("narrow")(narrow_command)
app.command("select")(select_command)
_stage_command(
    "teach",
    """Train the teacher, a timm network.

    Example: edgebuild teach --run-dir runs/build
    """,
)
_stage_command(
    "distill",
    """Train the student, from the teacher's answers and the labels.

    Example: edgebuild distill --run-dir runs/build
    """,
)


@app.command("train")
@guarded
def train_command(
    config: ConfigOption = None,
    overrides: SetOption = None,
    run_dir: RunDirOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> int:
    """Train the student without a teacher.

    It is distill with distill.weight=0. The run folder keeps that: go on with `edgebuild run --run-dir FOLDER`,
    without -c, which would set it back.

    Example: edgebuild train -c build.yaml --set student.model=cpu_small
    """
    run_stage("distill", config, [*(overrides or []), "distill.weight=0"], run_dir, as_json, device=device)
    return 0


@app.command("export")
@guarded
def export_command(
    config: ConfigOption = None,
    overrides: SetOption = None,
    run_dir: RunDirOption = None,
    checkpoint: Annotated[Path | None, typer.Option(help="A student.safetensors, instead of a run.")] = None,
    model: Annotated[Path | None, typer.Option(help="The YAML of the checkpoint's network.")] = None,
    formats: Annotated[str, typer.Option("--format", help="Some of --list, separated by commas.")] = "onnx",
    images: Annotated[Path | None, typer.Option(help="Training images, to calibrate INT8 of a checkpoint.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the files; of a run: its folder `exports`.")
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="Print the formats and what each needs.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Write the student as files that a runtime reads. Each is loaded and compared; exit code 4 where one is not right.

    Examples: edgebuild export --format onnx --run-dir runs/build; edgebuild export --list;
    edgebuild export --format onnx,openvino-int8 --checkpoint student.safetensors --images photos/train -o out
    """
    from pipeline.errors import ENVIRONMENT
    from pipeline.show import shipping

    if show_list:
        from export.formats import table

        rows = table()
        emit({"formats": rows}, as_json, lambda: shipping.show_formats(rows))
        return 0
    from export.formats import parse_formats

    wanted = parse_formats(formats)
    if checkpoint is None:
        with opened(config, overrides, run_dir, default=None) as run:
            from pipeline.export_files import export_run

            written = export_run(run, wanted, output)
    else:
        with chatter_to_stderr():
            from pipeline.export_files import export_checkpoint

            written = export_checkpoint(checkpoint, model, wanted, images, output or Path())
    result = {"files": {w["path"]: w["size_bytes"] for w in written if w["path"]}, "formats": written}
    emit(result, as_json, lambda: shipping.show_written(written))
    return 0 if all(w["status"] == "passed" for w in written) else ENVIRONMENT


_stage_command(
    "quantize",
    """Write INT8 files, calibrated on training images.

    Example: edgebuild quantize --run-dir runs/build
    """,
)
_stage_command(
    "verify",
    """Compare every file with torch, time them, choose which ships.

    Example: edgebuild verify --run-dir runs/build
    """,
    "shipping.show_race",
)


@app.command("gate")
@guarded
def gate_command(
    file: Annotated[Path | None, typer.Argument(help="An exported file, instead of a run.")] = None,
    limit_ms: Annotated[float | None, typer.Option(help="The limit for FILE: p90 in ms.")] = None,
    runtime: RuntimeOption = None,
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    batch: BatchOption = None,
    pin: PinOption = None,
    target: TargetOption = "local",
    processes: Annotated[
        int | None,
        typer.Option(min=1, max=10_000, help=f"Fresh processes of the first look; default {GATE_PROCESSES}."),
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    run_dir: RunDirOption = None,
    as_json: JsonOption = False,
) -> int:
    """Judge whether a file keeps its limit here. pass (exit 0), fail (1) or inconclusive (3).

    Examples: edgebuild gate --run-dir runs/build; edgebuild gate model.onnx --limit-ms 1.4
    """
    from pipeline.show.results import show_verdict

    if file is None:
        of_file = (limit_ms, runtime, precision, threads, batch, pin, processes)
        if any(option is not None for option in of_file) or target != "local":
            raise PipelineError(
                "gate: --limit-ms, --processes, --target and the like are of a FILE; for a run set its config, for "
                "example --set latency.limit_ms=1.4"
            )
        result = run_stage("gate", config, overrides, run_dir, as_json, "shipping.show_gate")
        return VERDICT_CODES[result["verdict"]]
    if limit_ms is None or not 0 < limit_ms < float("inf"):
        raise PipelineError("--limit-ms: give the limit in milliseconds, a number over 0, for example --limit-ms 1.4")
    from dataclasses import asdict

    from latency.gate import claim, gate
    from pipeline.show.live import bar

    timed = subject(file, runtime, precision, threads, batch, pin)
    with bar("gating in fresh processes") as tick:
        verdict, measurement = gate(timed, limit_ms, processes or GATE_PROCESSES, machine=machine(target), tick=tick)
    result = {
        "verdict": verdict.verdict,
        "reasons": list(verdict.reasons),
        "latency": claim(verdict, measurement),
        "submission": None,
        **asdict(measurement.subject),
        "host": measurement.host,
    }
    emit(result, as_json, lambda: show_verdict(result))
    return VERDICT_CODES[verdict.verdict]


_stage_command(
    "bundle",
    """Pack the proven file with all it needs to run elsewhere.

    Example: edgebuild bundle --run-dir runs/build
    """,
)


@app.command("report")
@guarded
def report_command(
    config: ConfigOption = None,
    run_dir: RunDirOption = None,
    png: Annotated[bool, typer.Option("--png", help="A picture of each figure too; needs Chrome or Chromium.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Write report.html and report.md of a run. It may be finished, failed or still at work; the HTML needs no network.

    Examples: edgebuild report --run-dir runs/build; edgebuild report -c build.yaml --png
    """
    with watched(config, run_dir) as run:
        from pipeline.run import report, standing

        result = standing(run)
        path = report(run, result, png)
    written = {"html": str(path), "markdown": str(path.with_suffix(".md")), "verdict": result["verdict"]}
    emit(written, as_json, lambda: typer.echo(str(path)))
    return 0


@app.command("preflight")
@guarded
def preflight_command(
    bundle: Annotated[Path | None, typer.Argument(help="A bundle: its archive or folder; instead of a run.")] = None,
    disk: Annotated[str | None, typer.Option(help="All that may be written, with the environment: 500MB.")] = None,
    memory: Annotated[str | None, typer.Option(help="What a process may reserve: 1GB.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.001, max=1e9, help="For all images, all in.")] = None,
    images: Annotated[Path | None, typer.Option(help="Photos to label; the recorded ones are checked.")] = None,
    count: Annotated[
        int | None, typer.Option(min=1, max=10**9, help="Images of a submission; default: those given.")
    ] = None,
    wheels: Annotated[Path | None, typer.Option(help="A folder of the lock's packages, instead of the index.")] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    run_dir: RunDirOption = None,
    as_json: JsonOption = False,
) -> int:
    """Rehearse a submission in a sandbox. Empty environment, no network, limits: pass (0), fail (1), inconclusive (3).

    Example: edgebuild preflight bundle.tar.gz --disk 500MB --memory 1GB --seconds 60 --images photos
    """
    from pipeline.show.shipping import show_preflight

    if bundle is None:
        if any(option is not None for option in (disk, memory, seconds, images, count, wheels)):
            raise PipelineError(
                "preflight: --disk, --images and the like are of a BUNDLE; for a run set its config, for example --set "
                "preflight.disk=500MB"
            )
        found = run_stage("preflight", config, overrides, run_dir, as_json, "shipping.show_preflight")
        return VERDICT_CODES[found["verdict"]]
    for option, path in (("BUNDLE", bundle), ("--images", images), ("--wheels", wheels)):
        if path is not None and not path.exists():
            raise PipelineError(f"{option} {path}: no such file or folder")
    from export.checks import Limits
    from export.preflight import preflight
    from export.preprocess import find_images
    from pipeline.config import parse_bytes

    limits = Limits(parse_bytes("--disk", disk), parse_bytes("--memory", memory), seconds)
    photos = find_images(images) if images else []
    if images and not photos:
        raise PipelineError(f"--images {images}: no image found there")
    result = preflight(bundle, limits, photos, count, wheels).as_dict()
    emit(result, as_json, lambda: show_preflight(result))
    return VERDICT_CODES[result["verdict"]]


class _Forgiving(io.FileIO):
    """Writes what it can. A message that cannot be written must not change the exit code of what it is about."""

    def write(self, content: Any, /) -> int:
        with contextlib.suppress(OSError):
            return super().write(content)
        return memoryview(content).nbytes


def main() -> None:
    if isinstance(sys.stderr, io.TextIOWrapper):
        raw = io.BufferedWriter(_Forgiving(sys.stderr.fileno(), "w", closefd=False))
        sys.stderr = io.TextIOWrapper(raw, sys.stderr.encoding, line_buffering=True)
    if isinstance(sys.stdout, io.TextIOWrapper) and isinstance(sys.stdout.buffer, io.RawIOBase):
        # As PYTHONUNBUFFERED has it, where Python does not see that the system took a part only.
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(sys.stdout.buffer), sys.stdout.encoding, line_buffering=True)
    for stream in (sys.stdout, sys.stderr):  # names may contain characters that the terminal cannot show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # A handler of our own: libraries that call logging.basicConfig would add a prefix to our lines.
    ours = logging.getLogger("latency")
    ours.addHandler(logging.StreamHandler())
    ours.propagate = False
    try:
        Path.cwd()
    except FileNotFoundError:
        typer.echo("edgebuild: the current folder was removed; change to another one", err=True)
        sys.exit(2)
    try:
        app()
    except OSError as error:  # of --help and --version, which no command's handler sees
        known = explain(error)
        if known is None:
            raise
        typer.echo(f"edgebuild: {known[0]}", err=True)
        os._exit(known[1])  # Python would try to write the rest once more
