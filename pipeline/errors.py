"""Errors of this package and the exit codes of the command line."""

PASS, FAILED_GATE, USAGE, INCONCLUSIVE, ENVIRONMENT, INTERRUPTED = 0, 1, 2, 3, 4, 130
VERDICT_CODES = {"pass": PASS, "fail": FAILED_GATE, "inconclusive": INCONCLUSIVE}


class PipelineError(RuntimeError):
    """What failed, where, what to do next; `exit_code` is the command's."""

    exit_code = USAGE


class EnvironmentProblem(PipelineError):
    """The machine, not the user's input: disk, network, a lock, a tool."""

    exit_code = ENVIRONMENT


class ChangedOutput(PipelineError):
    """A stage's file was changed since it was written, so nothing that is known about it holds."""


class OutOfMemory(EnvironmentProblem):
    """Of the CPU or the GPU, in a training; the text names the batch that fits."""


class NoCandidate(PipelineError):
    """The search or the rule of choice found nothing to ship: verdict fail."""

    exit_code = FAILED_GATE
