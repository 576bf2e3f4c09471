"""Errors of this package."""


class ExportError(RuntimeError):
    """A model that cannot be exported, quantized, checked or packed; the text says what to do next."""


class FormatError(ValueError):
    """A format of `edgebuild export` that is not known."""
