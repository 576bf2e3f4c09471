"""What long work shows while it is done: one bar on a terminal, with stage, step, images/s, best so far and time left;
nothing but the lines that are said elsewhere; not even these with --quiet.

A terminal is one for all of a process, so its state lies here, and is not handed through every function.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

Tick = Callable[[int, int | None], None]
"""(done, of so many in all)"""


@dataclass
class _Shown:
    """stage: 'distill, 5 of 11'. best: the best so far of what the stage looks for, in words."""

    quiet: bool = False
    stage: str = ""
    best: str = ""


_shown = _Shown()


def be_quiet(quiet: bool) -> None:
    _shown.quiet = quiet


def is_quiet() -> bool:
    return _shown.quiet


def enter_stage(name: str) -> None:
    _shown.stage, _shown.best = name, ""


def best_so_far(text: str) -> None:
    _shown.best = text


@contextmanager
def bar(step: str, unit: str = "") -> Iterator[Tick]:
    """For a step of the stage. unit: what is counted, told by the second."""
    from rich.console import Console  # 50 ms that `--help` can do without
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    errors = Console(stderr=True)
    if _shown.quiet or not errors.is_terminal:
        if not (_shown.quiet or _shown.stage):  # a stage has said that it begins
            errors.print(step, highlight=False)
        yield lambda done, total: None
        return
    columns = (
        TextColumn("{task.fields[stage]}{task.description}"),
        BarColumn(20),
        TaskProgressColumn() if unit else MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}{task.fields[best]}"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=errors, transient=True) as progress:
        tasks: list[TaskID] = []

        def tick(done: int, total: int | None) -> None:
            if not tasks:  # where it was resumed counts for the bar, not for the speed
                stage = f"{_shown.stage}: " if _shown.stage else ""
                tasks.append(progress.add_task(step, total=total, completed=done, stage=stage, speed="", best=""))
            speed = progress.tasks[0].speed if unit else None
            told = f"{speed:.0f} {unit}/s " if speed else ""
            progress.update(tasks[0], completed=done, total=total, speed=told, best=_shown.best)

        if not unit:
            tick(0, None)
        yield tick
