"""Errors of this package, and pydantic's in a line."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class ExportError(RuntimeError):
    """A model that cannot be exported, quantized, checked or packed; the text says what to do next."""


class FormatError(ValueError):
    """A format of `edgebuild export` that is not known."""


def first_problem(error: "ValidationError") -> tuple[str, str]:
    """Where the first problem of a document is (`JSON` if it is the whole document), and what pydantic says of it."""
    first = error.errors(include_url=False, include_context=False)[0]
    what = first["msg"] if first["type"] != "string_pattern_mismatch" else "not of the form that is expected here"
    return ".".join(map(str, first["loc"])) or "JSON", what
