"""Commands that stand beside the job: model, data, doctor."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.edge import ConfigOption, JsonOption, SetOption, emit, guarded
from pipeline.errors import PipelineError

model_app = typer.Typer(
    no_args_is_help=True, help="Look at a model written in the model language.", rich_markup_mode=None
)
data_app = typer.Typer(no_args_is_help=True, help="Look at labelled images, or draw the demo's.", rich_markup_mode=None)


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


@guarded
def doctor_command(as_json: JsonOption = False) -> int:
    """Show this machine as the timings see it, and what the last selftest said of it.

    Example: edgebuild doctor
    """
    from pipeline.doctor import examine
    from pipeline.show import show_doctor

    result = examine()
    emit(result, as_json, lambda: show_doctor(result))
    return 0
