"""The manifest of a stranger's bundle, checked before anything is made of it."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from export.errors import ExportError

MAX_BYTES = 2**24

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*$", max_length=200)]
"""A path in the bundle: no part of it begins with a dot."""


class Part(BaseModel):
    # `extra` stays open: a later format may say more. Strict: "1" is no number.
    model_config = ConfigDict(strict=True, frozen=True, protected_namespaces=())


class Sample(Part):
    label: str
    logits: Annotated[list[FiniteFloat], Field(min_length=1)]
    near_tie: bool


class Golden(Part):
    tolerance: Annotated[FiniteFloat, Field(gt=0)]
    samples: Annotated[dict[Name, Sample], Field(min_length=1)]


class Need(Part):
    what: str
    any_of: list[str]


class Model(Part):
    path: Name
    runtime: Literal["onnxruntime", "openvino"]
    precision: Literal["f32", "bf16", "int8"]
    threads: Annotated[int, Field(ge=1)]
    sha256: Digest


class Host(Part):
    key: str


class Portability(Part):
    images: int = 0
    f1_change: Annotated[float, Field(ge=-1, le=1)] = 0.0


class Evidence(Part):
    host: Host
    portability: Portability


class Manifest(Part):
    """What a rehearsal reads of it; `slice`: sha256 of a photo -> its class and the label that it was given."""

    format: Literal[2]
    model: Model
    classes: Annotated[list[str], Field(min_length=2)]
    preprocess: dict[str, Any]
    relies_on: list[Need]
    golden: Golden
    slice: dict[Digest, Annotated[list[str], Field(min_length=2, max_length=2)]]
    evidence: Evidence
    files: dict[Name, Digest]


def read_manifest(path: Path) -> Manifest:
    """Raises ExportError: no file, too large, no JSON, or not whole."""
    try:
        if path.is_symlink() or path.stat().st_size > MAX_BYTES:
            raise ExportError(f"{path.name}: a link, or larger than {MAX_BYTES / 1e6:.0f} MB")
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ExportError(f"{path}: not readable: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "JSON"
        raise ExportError(f"{path.name}: {where}: {first['msg']}, got {str(first['input'])[:60]!r}") from error
