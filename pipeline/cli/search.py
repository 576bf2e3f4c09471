"""Commands that look for a network: search, narrow, select."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.edge import (
    ConfigOption,
    DeviceOption,
    JsonOption,
    RunDirOption,
    SetOption,
    check_writable,
    emit,
    guarded,
    opened,
    run_stage,
)


@guarded
def search_command(
    config: ConfigOption = None,
    overrides: SetOption = None,
    run_dir: RunDirOption = None,
    check_proxy: Annotated[
        int | None,
        typer.Option("--check-proxy", min=5, max=10_000, help="Then train N of its candidates in full.", metavar="N"),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, max=1000, help="Trainings side by side; needs edgebuild[ray].", metavar="N"),
    ] = None,
    ray: Annotated[
        str | None, typer.Option("--ray", help="A Ray cluster for the workers; its head's address, or auto.")
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> int:
    """Look for a student. Every candidate is exported and timed before it is trained.

    --check-proxy: does the short training rank candidates as a full one does? Prints the correlation of the ranks.

    Examples: edgebuild search -c build.yaml; edgebuild search --run-dir runs/build
    --check-proxy 8; edgebuild search -c build.yaml --ray auto --workers 8
    """
    from pipeline.show import results

    with opened(config, overrides, run_dir, default=None, device=device) as run:
        from dataclasses import replace

        from pipeline.run import run_one
        from pipeline.stages import Crew

        done = run_one("search", replace(run, crew=Crew(workers, ray))).summary
        if check_proxy is not None:
            from pipeline.search.check_proxy import check_proxy as check

            done = {**done, "proxy": check(run, check_proxy)}
    emit(done, as_json, lambda: results.show_search(done))
    return 0


@guarded
def narrow_command(
    config: ConfigOption = None,
    overrides: SetOption = None,
    run_dir: RunDirOption = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Config of round 2; default round2.yaml in the run folder."),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Say what matters in a search, and write a second round. It searches where the good candidates are.

    Example: edgebuild narrow --run-dir runs/build -o round2.yaml; edgebuild search -c round2.yaml
    """
    from dataclasses import asdict

    from pipeline.show.results import show_narrowed

    with opened(config, overrides, run_dir, default=None) as run:
        from pipeline.run import need
        from pipeline.search.narrow import narrow, write_round2

        need("narrow", "search", run)
        if output:
            check_writable("-o", output)
        found, path = narrow(run), output or run.folder / "round2.yaml"
        write_round2(run.config, found, path, str(run.folder))
    result = {"config": str(path), **asdict(found)}
    emit(result, as_json, lambda: show_narrowed(result))
    return 0


@guarded
def select_command(
    config: ConfigOption = None,
    overrides: SetOption = None,
    run_dir: RunDirOption = None,
    trial: Annotated[int | None, typer.Option(help="Overrule the rule: this trial.")] = None,
    as_json: JsonOption = False,
) -> int:
    """Choose one of the trained candidates by the rule. Prints them all, and writes student.yaml.

    --trial stays the run's choice until `--set select.trial=null` gives it back to the rule; go on with `edgebuild run
    --run-dir FOLDER`, without -c, which would set it back too.

    Example: edgebuild select --run-dir runs/build --trial 1
    """
    chosen = [f"select.trial={trial}"] if trial is not None else []
    run_stage("select", config, (overrides or []) + chosen, run_dir, as_json, "results.show_choice")
    return 0
