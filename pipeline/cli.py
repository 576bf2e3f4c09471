"""The command line. Heavy packages are imported inside the commands: `edgebuild --help` loads none of them.

Results go to stdout, everything else to stderr; with --json the result is one JSON document.
"""

import contextlib
import errno
import functools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.errors import ENVIRONMENT, INTERRUPTED, USAGE, PipelineError

app = typer.Typer(
    name="edgebuild",
    help="From labelled images and a time limit to a small image classifier, proven on this CPU to keep the limit.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
model_app = typer.Typer(
    no_args_is_help=True, help="Look at a model written in the model language.", rich_markup_mode=None
)
data_app = typer.Typer(no_args_is_help=True, help="Look at labelled images, or draw the demo's.", rich_markup_mode=None)
latency_app = typer.Typer(no_args_is_help=True, help="Time exported files on this CPU.", rich_markup_mode=None)
app.add_typer(model_app, name="model")
app.add_typer(data_app, name="data")
app.add_typer(latency_app, name="latency")

ConfigOption = Annotated[
    str | None, typer.Option("--config", "-c", help="A build.yaml, or the name of a shipped config.", metavar="CONFIG")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Set a config key; may be repeated.", metavar="KEY=VALUE")
]
RunDirOption = Annotated[
    Path | None, typer.Option("--run-dir", help="The run folder; default runs/CONFIG.", metavar="FOLDER")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


# --- the edge --------------------------------------------------------------------------------------------------------


def explain(error: BaseException) -> tuple[str, int] | None:
    """(what to tell the user, exit code) for an error that is expected; None for one that keeps its traceback."""
    from export.errors import ExportError
    from latency.errors import LatencyError
    from models.language import SpecError

    if isinstance(error, KeyboardInterrupt):
        return "interrupted; what was finished is kept, the same command goes on from there", INTERRUPTED
    if isinstance(error, PipelineError):
        return str(error), error.exit_code
    if isinstance(error, SpecError):
        return str(error), USAGE
    if isinstance(error, LatencyError | ExportError):
        return str(error), ENVIRONMENT
    if (cause := _disk_full(error)) is not None:
        where = getattr(cause, "filename", None)
        return (
            f"the disk is full{f' (writing {where})' if where else ''}; free some space, or give a --run-dir on "
            "another disk; what was finished is kept, the same command goes on from there"
        ), ENVIRONMENT
    if isinstance(error, MemoryError):
        return "out of memory; lower the batch sizes or the input size", ENVIRONMENT
    return None


def _disk_full(error: BaseException | None) -> BaseException | None:
    """The full disk behind an error, through whatever libraries wrapped it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return error
        if any(text in str(error) for text in ("No space left on device", "database or disk is full")):
            return error
        error = error.__cause__ or error.__context__
    return None


def guarded(command: Callable[..., int | None]) -> Callable[..., None]:
    """The one handler: our own errors become a message and an exit code, anything else keeps its traceback."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            code = command(*args, **kwargs)
        except typer.Exit:
            raise
        except BaseException as error:
            known = explain(error)
            if known is None:
                raise
            typer.echo(f"edgebuild: {known[0]}", err=True)
            raise typer.Exit(known[1]) from None
        raise typer.Exit(code or 0)

    return wrapper


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def say(text: str) -> None:
    typer.echo(text, err=True)


@contextlib.contextmanager
def chatter_to_stderr() -> Iterator[None]:
    """Libraries print; stdout is for the result. Also below Python, where C++ prints."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)


def emit(result: Any, as_json: bool, text: Callable[[], None]) -> None:
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        text()


# --- the whole job and its stages ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(config: str | None, overrides: list[str] | None, folder: Path | None, default: str | None) -> Iterator[Any]:
    """A Run from -c, or from the config in --run-dir, or from the default config."""
    from pipeline.config import check_config, config_name, load_config, override
    from pipeline.stages import open_run, run_config

    if config is None and folder is not None and (folder / "config.yaml").is_file():
        document = run_config(folder)
        for text in overrides or []:
            override(document, text)
        build = check_config(document, str(folder / "config.yaml"))
    elif config is not None or default is not None:
        name = config or default
        assert name is not None
        build = load_config(name, overrides)
        folder = folder or Path("runs") / config_name(name)
    elif folder is not None:
        run_config(folder)
        raise AssertionError("run_config refuses a folder without a config")
    else:
        raise PipelineError("give -c CONFIG, or --run-dir of a run that was begun")
    with chatter_to_stderr(), open_run(folder, build, say) as run:
        yield run


@app.command("run")
@guarded
def run_command(
    config: ConfigOption = None, overrides: SetOption = None, run_dir: RunDirOption = None, as_json: JsonOption = False
) -> int:
    """Every stage to a verdict: PASS (exit 0), FAIL (1) or INCONCLUSIVE (3). Goes on where it was stopped.

    Example: edgebuild run -c build.yaml --set latency.limit_ms=1.4. Without -c: the demo.
    """
    from pipeline.run import EXIT_CODES, run_all
    from pipeline.show import show_result

    with _opened(config, overrides, run_dir, default="demo") as run:
        result = run_all(run)
    emit(result, as_json, lambda: show_result(result, run.folder))
    return EXIT_CODES[result["verdict"]]


def _stage_command(name: str, doc: str, show: str = "show_summary") -> None:
    def command(
        config: ConfigOption = None,
        overrides: SetOption = None,
        run_dir: RunDirOption = None,
        as_json: JsonOption = False,
    ) -> int:
        _run_stage(name, config, overrides, run_dir, as_json, show)
        return 0

    command.__doc__ = doc
    app.command(name)(guarded(command))


def _run_stage(
    name: str,
    config: str | None,
    overrides: list[str] | None,
    run_dir: Path | None,
    as_json: bool,
    show: str = "show_summary",
) -> dict[str, Any]:
    from pipeline import show as shows
    from pipeline.run import run_one

    with _opened(config, overrides, run_dir, default=None) as run:
        done = run_one(name, run)
    emit(done.summary, as_json, lambda: getattr(shows, show)(done.summary))
    return done.summary


_stage_command(
    "search",
    """Look for architectures and hyper-parameters; every candidate is timed before it is trained.

    Example: edgebuild search -c build.yaml --set search.trials=40
    """,
)


@app.command("select")
@guarded
def select_command(
    config: ConfigOption = None,
    overrides: SetOption = None,
    run_dir: RunDirOption = None,
    trial: Annotated[int | None, typer.Option(help="Overrule the rule: this trial.")] = None,
    as_json: JsonOption = False,
) -> int:
    """Print the trained candidates and choose one by the rule; writes student.yaml.

    Example: edgebuild select --run-dir runs/build --trial 17
    """
    chosen = [f"select.trial={trial}"] if trial is not None else []
    _run_stage("select", config, (overrides or []) + chosen, run_dir, as_json, "show_choice")
    return 0


_stage_command(
    "teach",
    """Train the teacher, a timm network.

    Example: edgebuild teach --run-dir runs/build --set teacher.epochs=12
    """,
)
_stage_command(
    "distill",
    """Train the chosen student, from the teacher's answers and the labels.

    Example: edgebuild distill --run-dir runs/build
    """,
)


@app.command("export")
@guarded
def export_command(
    config: ConfigOption = None,
    overrides: SetOption = None,
    run_dir: RunDirOption = None,
    checkpoint: Annotated[Path | None, typer.Option(help="A student.safetensors, instead of a run.")] = None,
    model: Annotated[Path | None, typer.Option(help="The YAML of the checkpoint's network.")] = None,
    formats: Annotated[str, typer.Option("--format", help="Of onnx, openvino; separated by commas.")] = "onnx",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for a checkpoint's files.")] = Path(),
    as_json: JsonOption = False,
) -> int:
    """Write the student as files that a runtime reads.

    Examples: edgebuild export --format onnx --run-dir runs/build;
    edgebuild export --format onnx,openvino --checkpoint student.safetensors -o out
    """
    from pipeline.show import show_summary

    if checkpoint is None:
        _run_stage("export", config, overrides, run_dir, as_json)
        return 0
    from pipeline.ship import export_formats, load_checkpoint, restore

    with chatter_to_stderr():
        spec, card, state = load_checkpoint(checkpoint, model)
        wanted = tuple(f.strip() for f in formats.split(",") if f.strip())
        files = export_formats(restore(spec, state, checkpoint), card, wanted, output)
    result = {"files": {str(f): f.stat().st_size for f in files}}
    emit(result, as_json, lambda: show_summary(result))
    return 0


_stage_command(
    "quantize",
    """Write INT8 files, calibrated on training images.

    Example: edgebuild quantize --run-dir runs/build
    """,
)
_stage_command(
    "verify",
    """Compare every file with torch, time them in turn, and choose the one to ship.

    Example: edgebuild verify --run-dir runs/build
    """,
    "show_race",
)


@app.command("gate")
@guarded
def gate_command(
    file: Annotated[Path | None, typer.Argument(help="An exported file, instead of a run.")] = None,
    limit_ms: Annotated[float | None, typer.Option(help="The limit for FILE: p90 in ms.")] = None,
    runtime: Annotated[str | None, typer.Option(help="onnxruntime or openvino; default by the suffix.")] = None,
    precision: Annotated[str, typer.Option(help="f32, bf16 or int8 (a quantized file as it is).")] = "f32",
    threads: Annotated[int, typer.Option(min=1)] = 1,
    processes: Annotated[int, typer.Option(min=1, help="Fresh processes of the first look.")] = 9,
    config: ConfigOption = None,
    overrides: SetOption = None,
    run_dir: RunDirOption = None,
    as_json: JsonOption = False,
) -> int:
    """Does the file keep its limit on this CPU? pass (exit 0), fail (1) or inconclusive (3).

    Examples: edgebuild gate --run-dir runs/build; edgebuild gate model.onnx --limit-ms 1.4
    """
    from pipeline.run import EXIT_CODES
    from pipeline.show import show_verdict

    if file is None:
        result = _run_stage("gate", config, overrides, run_dir, as_json, "show_verdict")
        return EXIT_CODES[result["verdict"]]
    if limit_ms is None or not 0 < limit_ms < float("inf"):
        raise PipelineError("--limit-ms: give the limit in milliseconds, a number over 0, for example --limit-ms 1.4")
    from dataclasses import asdict

    from latency.gate import gate

    verdict, measurement = gate(_target(file, runtime, precision, threads), limit_ms, processes)
    measured = measurement.summary()
    result = {
        "verdict": verdict.verdict,
        "reasons": list(verdict.reasons),
        "latency": {
            **measured,
            "limit_ms": limit_ms,
            "p90_lower_ms": verdict.p90_lower_ms,
            "p90_upper_ms": verdict.p90_upper_ms,
            "effective_precision": measurement.effective_precision,
        },
        "submission": None,
        **asdict(measurement.target),
        "host": measurement.host,
    }
    emit(result, as_json, lambda: show_verdict(result))
    return EXIT_CODES[verdict.verdict]


_stage_command(
    "bundle",
    """Pack the proven file with all it needs to run elsewhere.

    Example: edgebuild bundle --run-dir runs/build
    """,
)


# --- tools -----------------------------------------------------------------------------------------------------------


def _target(file: Path, runtime: str | None, precision: str, threads: int) -> Any:
    from latency.records import Target
    from latency.runners import runtime_of

    if not file.is_file():
        raise PipelineError(f"{file}: no such file; give an exported .onnx or .xml")
    return Target.of(file, runtime or runtime_of(file), precision, threads)


@latency_app.command("measure")
@guarded
def measure_command(
    files: Annotated[list[Path], typer.Argument(help="Exported files; several are timed in turn.")],
    runtime: Annotated[str | None, typer.Option(help="onnxruntime or openvino; default by the suffix.")] = None,
    precision: Annotated[str, typer.Option(help="f32, bf16 or int8 (a quantized file as it is).")] = "f32",
    threads: Annotated[int, typer.Option(min=1)] = 1,
    processes: Annotated[int, typer.Option(min=1)] = 9,
    as_json: JsonOption = False,
) -> int:
    """Time files in fresh processes, in turn.

    Example: edgebuild latency measure a.onnx b.onnx --processes 9
    """
    from latency.measure import measure
    from pipeline.show import show_measurements

    found = measure([_target(f, runtime, precision, threads) for f in files], processes)
    result = {"measurements": [m.as_dict() for m in found], "host": found[0].host}
    emit(result, as_json, lambda: show_measurements(result))
    return 0


@model_app.command("show")
@guarded
def model_show(
    file: Annotated[str, typer.Argument(help="A model YAML, a student.yaml, or a name of the zoo.")],
    as_json: JsonOption = False,
) -> int:
    """Layers with shapes, parameters and MACs.

    Example: edgebuild model show mobilenetv3_small
    """
    from models.spec import ModelSpec

    spec = ModelSpec.load(file)
    from models.build import profile
    from pipeline.show import show_model

    result = profile(spec).as_dict()
    emit(result, as_json, lambda: show_model(result))
    return 0


@data_app.command("check")
@guarded
def data_check(
    root: Annotated[Path | None, typer.Argument(help="A folder of images; default data.root of the config.")] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> int:
    """Count classes per split and find files that cannot be read.

    Example: edgebuild data check photos
    """
    from pipeline.data import scan, summary
    from pipeline.show import show_data

    seed = 0
    if root is None:
        if config is None:
            raise PipelineError("give a folder, or -c CONFIG with data.root")
        from pipeline.config import load_config

        build = load_config(config, overrides)
        root, seed = Path(build.data.root), build.seed
    result = summary(scan(root, seed))
    emit(result, as_json, lambda: show_data(result))
    return 0


@data_app.command("demo")
@guarded
def data_demo(
    folder: Annotated[Path, typer.Argument(help="Where to draw it.")],
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: JsonOption = False,
) -> int:
    """Draw the demo's images: six kinds of texture, for trying the tool.

    Example: edgebuild data demo /tmp/demo
    """
    from pipeline import demo_data

    if folder.exists():
        raise PipelineError(f"{folder}: exists already; give a new folder")
    demo_data.write(folder, seed)
    emit({"folder": str(folder), "counts": demo_data.COUNTS}, as_json, lambda: typer.echo(str(folder)))
    return 0


def main() -> None:
    app()
