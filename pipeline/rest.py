"""What a run folder knows of the host at rest: every timing of the control that lies in it."""

from latency.calm import calm_of, seen_in
from latency.records import Measurement, ProcessRun
from pipeline.files import read_record
from pipeline.stages import Run


def control_runs(run: Run, runtime: str) -> list[ProcessRun]:
    """Every run of this folder, on what times it, in which the control was timed in a runtime, with the threads of the
    config."""
    # Their names hold the form; a study may have thousands.
    paths = sorted((run.folder / "study" / "measurements").glob(f"*-{runtime}-*.json"))
    records = [read_record(path) for path in paths]
    found = [r for r in records if r and "runs" in r]
    for stage in ("select", "verify"):
        if run.has(stage, "measurements.json"):
            found += run.read(stage, "measurements.json")
    here = (runtime, run.config.latency.threads, run.host.key)
    measured = [Measurement.from_dict(r) for r in found]
    return [r for m in measured if (m.subject.runtime, m.subject.threads, m.host["key"]) == here for r in m.runs]


def p90s_at_rest_ms(run: Run, measured: list[Measurement]) -> list[float]:
    """The p90 of each measured file as it would be with the host at rest, judged by the control in this folder and in
    these measurements."""
    calm = {}
    for runtime in {m.subject.runtime for m in measured}:
        own = [r for m in measured if m.subject.runtime == runtime for r in m.runs]
        calm[runtime] = calm_of(seen_in([*control_runs(run, runtime), *own]))
    return [calm[m.subject.runtime].estimate(m.runs).p90_ms for m in measured]
