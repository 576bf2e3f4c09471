"""Errors of this package."""


class LatencyError(RuntimeError):
    """A file that cannot be timed, or a process that timed it and died. Never a verdict."""
