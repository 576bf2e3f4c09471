"""Fresh processes, one after the other, several files in turn; and the warm process of a search."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType

from latency.errors import LatencyError
from latency.files import file_hash
from latency.machine import LOCAL, Machine, Worker
from latency.records import Measurement, ProcessRun, Subject
from latency.sampling import Plan

Tick = Callable[[int, int], None]


def measure(
    subjects: Iterable[Subject],
    processes: int,
    plan: Plan | None = None,
    machine: Machine = LOCAL,
    together: bool = False,
    slowdowns: Sequence[float] = (),
    tick: Tick = lambda done, total: None,
) -> list[Measurement]:
    """Time each subject in `processes` fresh processes.

    Each has a process to itself, in turn, and each round begins with the next. together: all share each process, in
    blocks that go forth and back, for ratios of which the unit is the process; each process loads another one first.
    slowdowns: shares of real work added to the subjects, see `latency.sampling.slow_down`.
    `tick(done, total)` is called after each process. Raises LatencyError.
    """
    subjects, plan = list(subjects), plan or Plan()
    runs: dict[int, list[ProcessRun]] = {i: [] for i in range(len(subjects))}
    shares = list(slowdowns) or [0.0] * len(subjects)
    size = len(subjects) if together else 1
    turns = [[(i + j) % len(subjects) for j in range(len(subjects))] for i in range(processes)]
    groups = [turn[k : k + size] for turn in turns for k in range(0, len(turn), size)]
    with machine.lock():
        for done, group in enumerate(groups, 1):
            with Worker(machine) as worker:
                found = worker.time([subjects[i] for i in group], plan, [shares[i] for i in group])
            for i, run in zip(group, found, strict=True):
                runs[i].append(run)
            tick(done, len(groups))
    for subject in subjects:
        refuse_changed(subject)
    host = machine.host().as_dict()
    return [Measurement(s, tuple(runs[i]), plan, host) for i, s in enumerate(subjects)]


def refuse_changed(subject: Subject) -> None:
    """Raises LatencyError where a file is not the one that was to be timed."""
    if file_hash(Path(subject.path)) != subject.sha256:
        raise LatencyError(f"{subject.path}: it was changed while it was timed; time it again once it is written")


def extend(measurement: Measurement, more: Measurement) -> Measurement:
    """One measurement of both; they must be of the same file on the same host by the same plan."""
    ours, theirs = ((m.subject, m.plan, m.host["key"]) for m in (measurement, more))
    if ours != theirs:
        raise LatencyError("measurements of different files, plans or hosts cannot be put together")
    return Measurement(measurement.subject, measurement.runs + more.runs, measurement.plan, measurement.host)


class WarmTimer:
    """Times the candidates of a search in one warm process, which is started again where it died."""

    def __init__(self, machine: Machine = LOCAL) -> None:
        self._machine = machine
        self._worker: Worker | None = None

    def __enter__(self) -> "WarmTimer":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self._worker:
            self._worker.close()

    def time(self, subject: Subject, plan: Plan) -> Measurement:
        """One measurement with a single run. Raises LatencyError."""
        with self._machine.lock():
            if self._worker is None:
                self._worker = Worker(self._machine)
            try:
                (run,) = self._worker.time([subject], plan)
            except LatencyError:
                self._worker.close()
                self._worker = None
                raise
        return Measurement(subject, (run,), plan, self._machine.host().as_dict())
