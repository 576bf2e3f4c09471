"""Commands that stand beside the job: init, config, doctor, model, data."""

import contextlib
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.edge import (
    ConfigOption,
    JsonOption,
    SetOption,
    chatter_to_stderr,
    check_writable,
    emit,
    guarded,
    say,
)
from pipeline.errors import PipelineError

model_app = typer.Typer(
    no_args_is_help=True, help="Look at a model written in the model language.", rich_markup_mode=None
)
config_app = typer.Typer(no_args_is_help=True, help="Look at configs and their keys.", rich_markup_mode=None)
data_app = typer.Typer(no_args_is_help=True, help="Look at labelled images, fetch or draw some.", rich_markup_mode=None)


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
    from pipeline.show.results import show_model

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
    """Look the photos over. Classes by split, what cannot be read, is there twice or nearly so, odd sizes.

    Example: edgebuild data check photos
    """
    from pipeline.config import DRAWN
    from pipeline.data import demo
    from pipeline.data.index import scan, summary
    from pipeline.data.likeness import look_closer
    from pipeline.show.results import show_data

    seed = 0
    if root is None:
        if config is None:
            raise PipelineError("give a folder, or -c CONFIG with data.root")
        from pipeline.config import load_config

        build = load_config(config, overrides)
        root, seed = Path(build.data.root), build.seed
    with contextlib.ExitStack() as stack:
        if config is not None and str(root) == DRAWN:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory())) / DRAWN
            demo.write(root, seed)
        index = scan(root, seed)
        result = {**summary(index), **look_closer(index)}
    emit(result, as_json, lambda: show_data(result))
    return 0


@data_app.command("fetch")
@guarded
def data_fetch(
    name: Annotated[str, typer.Argument(help="Known: trashnet.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The new folder; default NAME.")] = None,
    as_json: JsonOption = False,
) -> int:
    """Fetch a data set from the Hugging Face hub. Checked by its hash, laid out as train/, val/ and test/; a download
    that was stopped goes on.

    Example: edgebuild data fetch trashnet -o photos
    """
    from models.language import nearest
    from pipeline.data.fetch import SOURCES, fetch

    if name not in SOURCES:
        raise PipelineError(f"no data set {name!r}{nearest(name, SOURCES)}; known: {', '.join(SOURCES)}")
    if not (output or Path(name)).exists():
        check_writable("-o", output or Path(name))
    result = fetch(SOURCES[name], output or Path(name), say)

    def show() -> None:
        for split, counts in result["counts"].items():
            typer.echo(f"{result['folder']}/{split}: {sum(counts.values())} photos of {len(counts)} classes")
        typer.echo(f"left out, for they stand under two labels: {', '.join(result['left_out']) or 'none'}")
        typer.echo(f"licence: {result['licence']}")

    emit(result, as_json, show)
    return 0


@data_app.command("demo")
@guarded
def data_demo(
    folder: Annotated[Path, typer.Argument(help="Where to draw it.")],
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Another one draws other images.")] = 0,
    as_json: JsonOption = False,
) -> int:
    """Draw the demo's images, six kinds of texture.

    Example: edgebuild data demo textures
    """
    from pipeline.data import demo

    if folder.exists():
        raise PipelineError(f"{folder}: exists already; give a new folder")
    check_writable("FOLDER", folder)
    demo.write(folder, seed)
    emit({"folder": str(folder), "counts": demo.COUNTS}, as_json, lambda: typer.echo(str(folder)))
    return 0


@guarded
def init_command(
    root: Annotated[Path, typer.Argument(help="The labelled images.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The config to write.")] = Path("build.yaml"),
    limit_ms: Annotated[
        float | None, typer.Option(help="The limit: p90 of one inference in ms; default: one that fits this CPU.")
    ] = None,
    weights: Annotated[
        str, typer.Option(help="hub, none, or a .safetensors file; auto: hub where it answers.")
    ] = "auto",
    images: Annotated[int | None, typer.Option(min=1, max=10**9, help="Images of a submission.")] = None,
    limit_s: Annotated[float | None, typer.Option(min=0.001, max=1e9, help="Seconds for all of them, all in.")] = None,
    as_json: JsonOption = False,
) -> int:
    """Write a build.yaml for your photos and this CPU. It is commented and runs as it is.

    Examples: edgebuild init photos; edgebuild init photos --limit-ms 1.4 -o build.yaml
    """
    from pipeline.init import write_build

    if limit_ms is not None and not 0 < limit_ms < float("inf"):
        raise PipelineError("--limit-ms: give the limit in milliseconds, a number over 0, for example --limit-ms 1.4")
    if not output.exists():  # write_build has a word for one that is there
        check_writable("-o", output)
    with chatter_to_stderr():
        result = write_build(root, output, limit_ms, weights, images, limit_s, say)
    why = "" if limit_ms is not None else f" ({result['limit_why']})"
    told = f"{output}: limit {result['limit_ms']:g} ms{why}; edgebuild run -c {output}"
    emit(result, as_json, lambda: typer.echo(told))
    return 0


@config_app.command("show")
@guarded
def config_show(
    config: Annotated[str, typer.Option("--config", "-c", help="A build.yaml, or the name of a shipped config.")],
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> int:
    """Print a config with every key that it leaves to its default.

    Example: edgebuild config show -c demo --set latency.limit_ms=1.0
    """
    from models.documents import dump_yaml
    from pipeline.config import load_config

    document = load_config(config, overrides).model_dump(mode="json")
    emit(document, as_json, lambda: typer.echo(dump_yaml(document), nl=False))
    return 0


@config_app.command("schema")
@guarded
def config_schema(as_json: JsonOption = True) -> int:
    """Print the JSON schema of a config, for an editor.

    Example: edgebuild config schema > build.schema.json
    """
    from pipeline.config import BuildConfig

    emit(BuildConfig.model_json_schema(), True, lambda: None)
    return 0


@guarded
def doctor_command(as_json: JsonOption = False) -> int:
    """Show what this machine can run, and what is amiss. Whether its timings can be trusted, and what to do.

    Example: edgebuild doctor
    """
    from pipeline.doctor import examine
    from pipeline.show.results import show_doctor

    result = examine()
    emit(result, as_json, lambda: show_doctor(result))
    return 0
