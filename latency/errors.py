"""Errors of this package."""


class LatencyError(RuntimeError):
    """The environment failed: a runtime that is missing, a process that died or hung, a machine out of reach. Never a
    verdict."""


class InputError(LatencyError):
    """What was given cannot be timed: no model, a wrong input, an unknown runtime or CPU."""
