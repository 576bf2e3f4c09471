"""The edge of the command line: options that commands share, the run they work on, output, and errors as messages and
exit codes."""

import contextlib
import errno
import functools
import inspect
import json
import math
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal, TextIO

import typer

from pipeline.errors import ENVIRONMENT, INTERRUPTED, USAGE, PipelineError
from pipeline.show.live import be_quiet, is_quiet


def _configs(incomplete: str) -> list[str]:
    """For a shell's completion: shipped configs, and files here."""
    from pipeline.config import CONFIGS

    files = [str(p) for p in Path().glob("*.yaml")]
    return [n for n in sorted([*(p.stem for p in CONFIGS.glob("*.yaml")), *files]) if n.startswith(incomplete)]


def _keys(incomplete: str) -> list[str]:
    """For a shell's completion: the keys of a config."""
    from pipeline.config import all_keys

    return [f"{key}=" for key in all_keys() if key.startswith(incomplete)]


ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config",
        "-c",
        help="A build.yaml, or the name of a shipped config.",
        metavar="CONFIG",
        autocompletion=_configs,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Set a config key; may be repeated.", metavar="KEY=VALUE", autocompletion=_keys),
]
RunDirOption = Annotated[
    Path | None, typer.Option("--run-dir", help="The run folder; default runs/CONFIG.", metavar="FOLDER")
]
DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda"],
    typer.Option("--device", help="What trains: auto is the GPU where there is one. Timing is always on the target."),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Show results and errors only.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


_OF_THE_SYSTEM = (errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE, errno.EMFILE, errno.ENFILE)


def explain(error: BaseException) -> tuple[str, int] | None:
    """(what to tell the user, exit code) for an error that is expected; None for one that keeps its traceback."""
    from export.errors import ExportError, FormatError
    from export.preprocess import ImageError
    from latency.errors import InputError, LatencyError
    from models.language import SpecError

    if isinstance(error, KeyboardInterrupt):
        return "interrupted; what was finished is kept, the same command goes on from there", INTERRUPTED
    if isinstance(error, PipelineError):
        return str(error), error.exit_code
    if isinstance(error, SpecError | InputError | ImageError | FormatError):
        return str(error), USAGE
    if isinstance(error, LatencyError | ExportError):
        return str(error), ENVIRONMENT
    if (cause := _disk_full(error)) is not None:
        where = getattr(cause, "filename", None)
        return (
            f"the disk is full{f' (writing {where})' if where else ''}; free some space, or give a --run-dir on "
            "another disk; what was finished is kept, the same command goes on from there"
        ), ENVIRONMENT
    if type(error).__name__ == "StorageInternalError":  # of Optuna, which is not loaded for every command
        return (
            "search.storage: the database can be used no more: it went away, or refuses to be written; what was told "
            "is kept, the same command goes on from there"
        ), ENVIRONMENT
    if isinstance(error, FileNotFoundError) and "No usable temporary directory" in str(error):
        return ("no folder for temporary files can be written: free some space, or name one in TMPDIR"), ENVIRONMENT
    if isinstance(error, OSError) and error.filename is not None:
        return f"{_printable(error.filename)}: {error.strerror}", ENVIRONMENT
    if isinstance(error, OSError) and error.errno in _OF_THE_SYSTEM:  # a write does not know its file's name
        return f"a file could not be read or written: {error.strerror}; what was finished is kept", ENVIRONMENT
    # torch's, of a GPU; and of a CPU, which is a plain RuntimeError
    no_memory = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    if isinstance(error, MemoryError) or no_memory:
        return "out of memory; lower the batch sizes or the input size", ENVIRONMENT
    return None


def _printable(name: Any) -> str:
    return (
        "".join(c if c.isprintable() else " " for c in os.fsdecode(name))
        if isinstance(name, str | bytes)
        else f"{name}"
    )


def check_writable(option: str, path: Path) -> None:
    """Check that a file or folder can be created, before any work is done for it. Raises PipelineError."""
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        if not path.parent.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "its folder does not exist")
        if path.exists():
            path.open("ab").close()
        else:
            path.open("xb").close()
            path.unlink()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        why = error.strerror if isinstance(error, OSError) else error
        raise PipelineError(
            f"{option} {_printable(str(path))}: it cannot be written ({why}); nothing was done"
        ) from error


def _finite(values: dict[str, Any]) -> None:
    """Refuse NaN and infinity, which pass some of click's ranges. Raises PipelineError."""
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise PipelineError(f"--{name.replace('_', '-')}: expected a number, got {value}")


def _disk_full(error: BaseException | None) -> BaseException | None:
    """The full disk behind an error, through whatever libraries wrapped it."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return error
        if any(text in str(error) for text in ("No space left on device", "database or disk is full")):
            return error
        error = error.__cause__ or error.__context__
    return None


def guarded(command: Callable[..., int | None]) -> Callable[..., None]:
    """The one handler: our own errors become a message and an exit code, anything else keeps its traceback. Gives every
    command the option --quiet."""

    @functools.wraps(command)
    def wrapper(*args: Any, quiet: bool = False, **kwargs: Any) -> None:
        be_quiet(quiet)
        sys.unraisablehook = _unraisable
        signal.signal(signal.SIGTERM, _interrupt)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else a shell has it ignored, behind it
            signal.signal(signal.SIGINT, _interrupt)
        try:
            _finite(kwargs)
            code = command(*args, **kwargs)
            sys.stdout.flush()
        except typer.Exit:
            raise
        except BrokenPipeError:  # the reader of the output, such as `head`, has closed it
            _discard(sys.stdout, sys.stderr)
            raise typer.Exit(_PIPE_CLOSED) from None
        except BaseException as error:
            _interrupted.clear()
            known = explain(error)
            if known is None:  # Python's own code would be 1, which here means that a limit was not kept
                traceback.print_exc()
                raise typer.Exit(ENVIRONMENT) from None
            typer.echo(f"edgebuild: {known[0]}", err=True)
            try:
                sys.stdout.flush()
            except OSError:
                _discard(sys.stdout)
            raise typer.Exit(known[1]) from None
        raise typer.Exit(code or 0)

    told = inspect.signature(command)
    more = inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=QuietOption)
    wrapper.__signature__ = told.replace(parameters=[*told.parameters.values(), more])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {**command.__annotations__, "quiet": QuietOption}
    return wrapper


def _discard(*streams: TextIO) -> None:
    """What could not be written: at its end Python would try once more, and end with a code of its own."""
    for stream in streams:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


_PIPE_CLOSED = 128 + 13
"""The exit code that shells report for a program killed by SIGPIPE."""
_interrupted = threading.Event()
_CATCHES_ALL = "onnxsim"
"""Its C++ calls Python back, and prints what is raised in there as a traceback of its own, and goes on."""


def _interrupt(_: int, frame: FrameType | None) -> None:
    _interrupted.set()
    while frame is not None:
        if str(frame.f_globals.get("__name__")).partition(".")[0] == _CATCHES_ALL:
            return  # the next line told raises it
        frame = frame.f_back
    raise KeyboardInterrupt


def _unraisable(lost: Any) -> None:
    """Python's words about what a destructor raised; not about an interrupt, which is told when it is raised again."""
    if not issubclass(lost.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(lost)


def say(text: str) -> None:
    """Tell how a command gets on. Raises the interrupt again that got lost on its way up, in a destructor or in a
    library that catches everything."""
    if not is_quiet():
        typer.echo(text, err=True)
    if _interrupted.is_set():
        raise KeyboardInterrupt


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


@contextlib.contextmanager
def opened(
    config: str | None, overrides: list[str] | None, folder: Path | None, default: str | None, device: str = "auto"
) -> Iterator[Any]:
    """A Run from -c, or from the config in --run-dir, or from the default config."""
    os.environ["EDGEBUILD_DEVICE"] = device  # no key of the config: the same config runs on both
    from pipeline.config import check_config, config_name, load_config, override
    from pipeline.show.log import log
    from pipeline.stages import open_run, run_config

    if config is None and folder is None and default is None:
        raise PipelineError("give -c CONFIG, or --run-dir of a run that was begun")
    if config is None and folder is not None:
        document = run_config(folder)
        for text in overrides or []:
            override(document, text)
        build = check_config(document, str(folder / "config.yaml"))
    else:
        name = config or default or ""
        build = load_config(name, overrides)
        folder = folder or Path("runs") / config_name(name)
    with chatter_to_stderr(), open_run(folder, build, say) as run:
        try:
            yield run
        except BaseException as error:
            known = explain(error)
            log(folder, f"ended: {known[0] if known else traceback.format_exc()}")
            raise


@contextlib.contextmanager
def watched(config: str | None, folder: Path | None) -> Iterator[Any]:
    """A Run to be read, with the config that its folder keeps, while another process may be at work on it."""
    from pipeline.config import check_config, config_name
    from pipeline.files import refuse_odd_files, refuse_other_folder
    from pipeline.stages import Run, run_config

    if folder is None and config is None:
        raise PipelineError("give --run-dir of a run that was begun, or the CONFIG it was begun with")
    folder = folder or Path("runs") / config_name(config or "")
    with chatter_to_stderr():
        config_of_run = run_config(folder)
        refuse_other_folder(folder)
        refuse_odd_files(folder)
        yield Run(folder, check_config(config_of_run, str(folder / "config.yaml")), say)


def run_stage(
    name: str,
    config: str | None,
    overrides: list[str] | None,
    run_dir: Path | None,
    as_json: bool,
    show: str = "results.show_summary",
    device: str = "auto",
) -> dict[str, Any]:
    """One stage of a run, and its summary shown. show: MODULE.FUNCTION of pipeline.show that prints it."""
    with opened(config, overrides, run_dir, default=None, device=device) as run:
        from pipeline.run import run_one

        done = run_one(name, run)
    module, function = show.split(".")
    emit(done.summary, as_json, lambda: getattr(import_module(f"pipeline.show.{module}"), function)(done.summary))
    return done.summary
