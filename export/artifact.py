"""Artifact: a file that can be timed and shipped. Input is uint8 NHWC RGB; the rest is nodes of the graph."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

from export import FORMAT
from export.errors import ExportError
from export.preprocess import Preprocess
from latency.files import model_files
from latency.records import Subject

METADATA_KEY = "edgebuild"
_MOST = 2**14
"""Pixels of a side, or images of a batch. Anything larger is a typing error."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class ModelCard:
    """What a file says of itself: stored in the ONNX metadata, in the IR's rt_info and in checkpoints.

    mean and std are of pixel values from 0 to 255, by channel.
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")

    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    input_size: Annotated[int, Field(ge=1, le=_MOST)]
    preprocess: Preprocess
    mean: Annotated[tuple[FiniteFloat, ...], Field(min_length=3, max_length=3)]
    std: Annotated[tuple[Annotated[FiniteFloat, Field(gt=0)], ...], Field(min_length=3, max_length=3)]
    spec_hash: str
    batch: Annotated[int, Field(ge=1, le=_MOST)] = 1
    format: int = FORMAT

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "ModelCard":
        """Raises ExportError for what `to_json` did not write."""
        try:
            values = json.loads(text)
            if isinstance(values, dict) and values.get("format") != FORMAT:
                raise ExportError(f"model card of format {values.get('format')!r}; this version reads {FORMAT}")
            card: ModelCard = TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            raise ExportError(f"no model card: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        except (ValueError, TypeError, RecursionError) as error:
            raise ExportError(f"no model card: {error}") from error
        return card


@dataclass(frozen=True)
class Artifact:
    """path: .onnx, or .xml with its .bin beside it. precision: how it is run, see latency.runners.PRECISIONS."""

    path: Path
    runtime: str
    precision: str

    @property
    def name(self) -> str:
        return f"{self.runtime}-{self.precision}"

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(model_files(self.path))

    @property
    def size_bytes(self) -> int:
        return sum(f.stat().st_size for f in self.files)

    def subject(self, threads: int) -> Subject:
        return Subject.of(self.path, self.runtime, self.precision, threads)

    def as_dict(self) -> dict[str, Any]:
        return {
            "path": self.path.name,
            "runtime": self.runtime,
            "precision": self.precision,
            "size_bytes": self.size_bytes,
        }


def remove_model(path: Path) -> None:
    """The file, and the weights beside an OpenVINO IR, as far as they are there."""
    path.unlink(missing_ok=True)
    if path.suffix == ".xml":
        path.with_suffix(".bin").unlink(missing_ok=True)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def evenly(items: Sequence[_T], count: int) -> list[_T]:
    """Up to `count` of them, from the first to the last, at even distances."""
    count = min(count, len(items))
    return [items[round(i * (len(items) - 1) / max(1, count - 1))] for i in range(count)]
