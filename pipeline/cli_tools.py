"""Commands that stand beside the job: model, data, latency."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.edge import ConfigOption, JsonOption, SetOption, emit, guarded
from pipeline.errors import PipelineError

model_app = typer.Typer(
    no_args_is_help=True, help="Look at a model written in the model language.", rich_markup_mode=None
)
data_app = typer.Typer(no_args_is_help=True, help="Look at labelled images, or draw the demo's.", rich_markup_mode=None)
latency_app = typer.Typer(no_args_is_help=True, help="Time exported files on this CPU.", rich_markup_mode=None)


def timing_target(file: Path, runtime: str | None, precision: str, threads: int) -> Any:
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

    found = measure([timing_target(f, runtime, precision, threads) for f in files], processes)
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
