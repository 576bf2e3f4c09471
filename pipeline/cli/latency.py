"""Commands that time: latency measure, compare, check, profile, selftest, calibrate."""

import contextlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli.edge import JsonOption, check_writable, emit, guarded, say
from pipeline.errors import VERDICT_CODES, PipelineError

latency_app = typer.Typer(no_args_is_help=True, help="Time exported files on this CPU.", rich_markup_mode=None)

RuntimeOption = Annotated[str | None, typer.Option(help="onnxruntime or openvino; default by the suffix.")]
PrecisionOption = Annotated[
    str | None, typer.Option(help="f32 (the default), bf16, or int8 (a quantized file as it is).")
]
ThreadsOption = Annotated[int | None, typer.Option(min=1, max=256, help="Default 1.")]
BatchOption = Annotated[int | None, typer.Option(min=1, max=100_000, help="For files whose first dimension is open.")]
PinOption = Annotated[str | None, typer.Option(help="CPUs to hold the timing processes to, as in 0 or 0,2.")]
TargetOption = Annotated[str, typer.Option(help="local, or ssh://user@host[:port][/path/of/its/python].")]
ProcessesOption = Annotated[int, typer.Option(min=1, max=10_000, help="Fresh processes.")]


def subject(
    file: Path, runtime: str | None, precision: str | None, threads: int | None, batch: int | None, pin: str | None
) -> Any:
    """An exported file, or a bundle's folder, as what is timed; a bundle knows its runtime, precision and threads."""
    from latency.records import Subject

    if (file / "manifest.json").is_file():
        from export.bundle import read_bundle

        bundle = read_bundle(file)
        file, runtime = bundle.artifact.path, runtime or bundle.artifact.runtime
        precision, threads = precision or bundle.artifact.precision, threads or bundle.threads
    return Subject.of(file, runtime, precision or "f32", threads or 1, batch, _cpus(pin))


def _each(text: str | None) -> list[str | None]:
    return [part.strip() for part in text.split(",")] if text else [None]


def _cpus(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise PipelineError(f"--pin {text!r}: expected numbers of CPUs, as in 0 or 0,2") from None


def machine(target: str) -> Any:
    from export.all_in import MODULES
    from latency.target import machine_of

    return machine_of(target, MODULES)


@latency_app.command("measure")
@guarded
def measure_command(
    files: Annotated[list[Path], typer.Argument(help="Exported files or bundles; several are timed in turn.")],
    runtime: RuntimeOption = None,
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    batch: BatchOption = None,
    pin: PinOption = None,
    processes: ProcessesOption = 9,
    images: Annotated[Path | None, typer.Option(help="For one bundle: time these images all in, by part.")] = None,
    count: Annotated[
        int | None, typer.Option(min=1, max=10**9, help="Images of a submission; default those in --images.")
    ] = None,
    target: TargetOption = "local",
    as_json: JsonOption = False,
) -> int:
    """Time files in fresh processes, in turn. An untouched control is timed along.

    --runtime and --precision may be several, separated by commas: each is a row of its own.

    Examples: edgebuild latency measure a.onnx b.xml; edgebuild latency measure b.xml --precision f32;
    edgebuild latency measure runs/build/bundle/bundle --images photos --count 5217
    """
    from latency.measure import measure
    from pipeline.show.latency import show_measurements
    from pipeline.show.live import bar

    place = machine(target)
    subjects = [
        subject(file, one_runtime, one_precision, threads, batch, pin)
        for file in files
        for one_runtime in _each(runtime)
        for one_precision in _each(precision)
    ]
    all_in = None
    if images is not None:
        if len(files) != 1 or not (files[0] / "manifest.json").is_file():
            raise PipelineError(
                "--images: give one bundle's folder (it holds manifest.json): its preprocessing is timed"
            )
        if any(option is not None for option in (runtime, precision, threads, batch, pin)):
            raise PipelineError("--images: a bundle is timed as it will run; leave runtime, threads and the like out")
        all_in = _all_in(files[0], images, count, place)
    with bar("measuring in fresh processes") as tick:
        found = measure(subjects, processes, machine=place, tick=tick)
    result = {"measurements": [m.as_dict() for m in found], "host": found[0].host, "all_in": all_in}
    emit(result, as_json, lambda: show_measurements(found, all_in))
    return 0


def _all_in(folder: Path, images: Path, count: int | None, place: Any) -> dict[str, Any]:
    from export.all_in import IMAGES, measure_all_in
    from export.bundle import read_bundle
    from export.preprocess import find_images

    bundle = read_bundle(folder)
    paths = find_images(images)
    if not paths:
        raise PipelineError(f"--images {images}: no image found there")
    say(f"timing {min(len(paths), IMAGES)} images all in")
    found = measure_all_in(bundle.artifact, bundle.preprocess, paths, bundle.threads, place)
    low, predicted, high = found.predict_s(count or len(paths))
    return {
        **found.summary(),
        "submission": {
            "images": count or len(paths),
            "predicted_s": predicted,
            "predicted_lower_s": low,
            "predicted_upper_s": high,
        },
    }


@latency_app.command("compare")
@guarded
def compare_command(
    a: Annotated[Path, typer.Argument(help="An exported file or a bundle.")],
    b: Annotated[Path, typer.Argument(help="Another one: the ratio is B/A.")],
    runtime: RuntimeOption = None,
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    batch: BatchOption = None,
    pin: PinOption = None,
    processes: ProcessesOption = 16,
    band: Annotated[float, typer.Option(min=0.0, max=1.0, help="Within this share two files are the same.")] = 0.02,
    target: TargetOption = "local",
    as_json: JsonOption = False,
) -> int:
    """Say whether B is faster or slower than A. Both are timed in turn in the same fresh processes.

    Exit code 0: faster, slower or same; 3: inconclusive.

    Example: edgebuild latency compare a.onnx b.onnx
    """
    from latency.compare import compare
    from pipeline.show.latency import show_comparison
    from pipeline.show.live import bar

    first, second = (subject(f, runtime, precision, threads, batch, pin) for f in (a, b))
    place = machine(target)
    with bar("comparing in fresh processes") as tick:
        found, measured = compare(first, second, processes, band, place, tick)
    host = place.host().as_dict()
    result = {**asdict(found), "measurements": [m.as_dict() for m in measured], "host": host}
    emit(result, as_json, lambda: show_comparison(result))
    return VERDICT_CODES.get(found.verdict, 0)


@latency_app.command("check")
@guarded
def check_command(
    files: Annotated[list[Path], typer.Argument(help="Head files; with --build, where the command leaves them.")],
    base: Annotated[list[Path] | None, typer.Option(help="The base file of each, in the same order.")] = None,
    build: Annotated[str | None, typer.Option(help="Shell command that makes the files in a checkout.")] = None,
    base_rev: Annotated[str | None, typer.Option(help="Git revision to build the base files from.")] = None,
    head_rev: Annotated[str | None, typer.Option(help="The same for the head; default this checkout as it is.")] = None,
    baseline: Annotated[Path | None, typer.Option(help="What `latency measure --json` printed before.")] = None,
    allow: Annotated[float, typer.Option(min=0.0, max=10.0, help="Slowdown that is let through.")] = 0.02,
    runtime: RuntimeOption = None,
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    batch: BatchOption = None,
    pin: PinOption = None,
    processes: ProcessesOption = 12,
    target: TargetOption = "local",
    markdown: Annotated[Path | None, typer.Option(help="Write a table for a pull request.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML.")] = None,
    as_json: JsonOption = False,
) -> int:
    """Say whether a file has become slower, for CI. pass (exit 0), fail (1), or inconclusive (3).

    Examples: edgebuild latency check b.onnx --base a.onnx;
    edgebuild latency check out/model.onnx --build 'make model' --base-rev main;
    edgebuild latency check model.onnx --baseline measured.json
    """
    from pipeline.regression import Arm, as_junit, as_markdown, built, check_arms, read_baseline, worst
    from pipeline.show.latency import show_check
    from pipeline.show.live import bar

    for option, report in (("--markdown", markdown), ("--junit", junit)):
        if report:
            check_writable(option, report)
    if markdown and junit and markdown.resolve() == junit.resolve():
        raise PipelineError("--markdown and --junit name the same file: give each its own")
    if sum(bool(x) for x in (base, base_rev, baseline)) != 1:
        raise PipelineError("give the base by one of --base FILE, --base-rev REV (with --build), --baseline JSON")
    if bool(base_rev) != bool(build) or (head_rev and not build):
        raise PipelineError("--build, --base-rev and --head-rev go together: the command makes the files of a revision")
    place = machine(target)

    def timed(file: Path) -> Any:
        return subject(file, runtime, precision, threads, batch, pin)

    with contextlib.ExitStack() as stack:
        if build and base_rev:
            head_files, base_files = stack.enter_context(built(files, build, base_rev, head_rev, say))
        else:
            head_files, base_files = files, base or []
        heads = [timed(f) for f in head_files]
        bases = read_baseline(baseline, heads) if baseline else [timed(f) for f in base_files]
        if len(bases) != len(heads):
            raise PipelineError(f"{len(heads)} head files and {len(bases)} base files: give one --base for each")
        arms = [Arm(str(name), head, b) for name, head, b in zip(files, heads, bases, strict=True)]
        with bar("checking in fresh processes") as tick:
            rows = check_arms(arms, allow, processes, place, tick)
        result = {"verdict": worst(rows), "files": rows, "host": place.host().as_dict()}
        emit(result, as_json, lambda: show_check(result))
        if markdown:
            markdown.write_text(as_markdown(result), encoding="utf-8")
        if junit:
            junit.write_bytes(as_junit(result))
    return VERDICT_CODES[result["verdict"]]


@latency_app.command("profile")
@guarded
def profile_command(
    file: Annotated[Path | None, typer.Argument(help="An exported file or a bundle.")] = None,
    runtime: RuntimeOption = None,
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    batch: BatchOption = None,
    pin: PinOption = None,
    runs: Annotated[int, typer.Option(min=1, max=100_000, help="Inferences to average.")] = 50,
    blocks: Annotated[
        bool, typer.Option(help="Instead of a file: time each block of the model language here.")
    ] = False,
    channels: Annotated[int, typer.Option(min=8, max=4096, help="For --blocks: channels in and out.")] = 64,
    size: Annotated[int, typer.Option(min=16, max=2048, help="For --blocks: height and width of the map.")] = 28,
    target: TargetOption = "local",
    as_json: JsonOption = False,
) -> int:
    """Show time by kernel, to see why it is slow. From the runtime's own profiler.

    Examples: edgebuild latency profile model.onnx; edgebuild latency profile --blocks --channels 64 --size 28
    """
    from pipeline.show.latency import show_blocks, show_profile
    from pipeline.show.live import bar

    if (file is None) != blocks:
        raise PipelineError("give a FILE, or --blocks")
    place = machine(target)
    if file is None:
        from pipeline.block_costs import block_costs

        with bar("timing blocks") as tick:
            costs = block_costs(channels, size, threads or 1, place, tick)
        emit(costs, as_json, lambda: show_blocks(costs))
        return 0
    from latency.profile import profile

    found = profile(subject(file, runtime, precision, threads, batch, pin), runs, place)
    result = {**asdict(found), "host": place.host().as_dict()}
    emit(result, as_json, lambda: show_profile(result))
    return 0


@latency_app.command("selftest")
@guarded
def selftest_command(
    file: Annotated[Path | None, typer.Argument(help="A file to test with; default a small network of ours.")] = None,
    runtime: RuntimeOption = None,
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    rounds: Annotated[int, typer.Option(min=16, max=10_000, help="Fresh processes.")] = 40,
    target: TargetOption = "local",
    as_json: JsonOption = False,
) -> int:
    """Find what can be seen on this host now. Rounds of a file against itself, and with an injected slowdown.

    Example: edgebuild latency selftest
    """
    from latency.machine import CONTROL
    from latency.selftest import remember, selftest
    from pipeline.show.latency import show_selftest
    from pipeline.show.live import bar

    timed = subject(file or CONTROL, runtime, precision, threads, None, None)
    place = machine(target)
    with bar("testing in fresh processes") as tick:
        found = selftest(timed, rounds, place, tick=tick)
    if file is None:
        found = replace(found, path=CONTROL.name)
    result = asdict(found)
    emit(result, as_json, lambda: show_selftest(result))
    remember(found)
    return 0


@latency_app.command("calibrate")
@guarded
def calibrate_command(
    pair: Annotated[list[str], typer.Option(help="MS,SECONDS: a local time and that of the submission there.")],
    limit_s: Annotated[float, typer.Option(help="Seconds that the submission may take there.")],
    as_json: JsonOption = False,
) -> int:
    """Find the local limit that keeps a limit elsewhere.

    Example: edgebuild latency calibrate --pair 1.3223,54.565 --limit-s 60
    """
    from latency.calibrate import calibrate
    from pipeline.show.latency import show_calibration

    result = asdict(calibrate([_pair(text) for text in pair], limit_s))
    emit(result, as_json, lambda: show_calibration(result))
    return 0


def _pair(text: str) -> tuple[float, float]:
    try:
        ms, seconds = (float(part) for part in text.split(","))
    except ValueError:
        raise PipelineError(f"--pair {text!r}: expected MS,SECONDS, as in 1.3223,54.565") from None
    return ms, seconds
