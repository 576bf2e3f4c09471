"""How a training gets on: a bar with images a second and the time left on a terminal, nothing elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

OnStep = Callable[[int, int], None]
"""(images learnt from, of so many in all epochs)"""


@contextmanager
def training_bar(name: str) -> Iterator[OnStep]:
    errors = Console(stderr=True)
    if not errors.is_terminal:
        yield lambda done, total: None
        return
    columns = (
        TextColumn(name),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors, transient=True) as bar:
        tasks: list[TaskID] = []

        def step(done: int, total: int) -> None:
            if not tasks:  # where it was resumed counts for the bar, not for the speed
                tasks.append(bar.add_task(name, total=total, completed=done, speed=""))
            speed = bar.tasks[0].speed
            bar.update(tasks[0], completed=done, speed=f"{speed:.0f} images/s" if speed else "")

        yield step
