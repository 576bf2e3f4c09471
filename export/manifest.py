"""The manifest of a bundle, validated before use, because it may be a stranger's."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field, FiniteFloat, ValidationError

from export.errors import ExportError, first_problem

MANIFEST = "manifest.json"
FORMAT = 3
"""1: golden samples as arrays, no hashes of packages, no recorded labels. 2: golden samples as files, labels of up to
500 images. 3: the labels of all images, the subject of the timing, the version that packed it."""
MAX_BYTES = 2**24

PLAIN = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
"""A name of a file or folder that means nothing special to a shell or a program."""
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=rf"^{PLAIN}(/{PLAIN})*$", max_length=200)]
"""A path in the bundle: no part of it begins with a dot."""
_UNSEEN = r"\p{Cc}\p{Zl}\p{Zp}[\p{Cf}--[\u200c\u200d]]"
"""Control characters, line breaks, and what has no shape of its own or turns the text around it; not the joiners that
some scripts need."""
Label = Annotated[str, Field(pattern=rf"^[^{_UNSEEN}\s]([^{_UNSEEN}]*[^{_UNSEEN}\s])?$", max_length=1000)]
"""A class name that is on one line, as labels.txt has it, and looks like no other by what cannot be seen."""
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
Positive = Annotated[FiniteFloat, Field(gt=0)]
Count = Annotated[int, Field(ge=1, le=2**31)]
Text = Annotated[str, Field(pattern=rf"^[^{_UNSEEN}]*$", max_length=300)]
"""A line that goes into the model card."""
Runtime = Literal["onnxruntime", "openvino"]
Precision = Literal["f32", "bf16", "int8"]


class Part(BaseModel):
    # Strict: "1" is no number. What is not known here is refused, for nothing compares it with anything.
    model_config = ConfigDict(strict=True, frozen=True, protected_namespaces=(), extra="forbid")


class Sample(Part):
    label: Label
    logits: Annotated[list[FiniteFloat], FailFast(), Field(min_length=2)]
    near_tie: bool


class Golden(Part):
    tolerance: Positive
    samples: Annotated[dict[Name, Sample], Field(min_length=1)]


class Need(Part):
    what: Text
    any_of: Annotated[list[Text], FailFast(), Field(max_length=50)]


class Subject(Part):
    """A model file and how it is run."""

    runtime: Runtime
    precision: Precision
    threads: Count
    sha256: Digest


class Model(Subject):
    path: Name


class Host(Part):
    key: Text
    cpu: Text
    cores: Count
    system: Text
    versions: Annotated[dict[Text, Text], Field(max_length=50)]


class Portability(Part):
    how: Text
    images: Annotated[int, Field(ge=0)] = 0
    f1_change: Annotated[FiniteFloat, Field(ge=-1, le=1)] = 0.0
    agreement: Share = 1.0
    max_diff: Annotated[FiniteFloat, Field(ge=0)] = 0.0


class Latency(Part):
    """attempts: how many gates the limit had on that host, this one included; all of them share the error."""

    subject: Subject
    p50_ms: Positive
    p90_ms: Positive
    p90_lower_ms: Positive
    p90_upper_ms: Positive
    limit_ms: Positive
    processes: Count
    attempts: Count = 1


class Quality(Part):
    f1_macro: Share
    f1_low: Share
    f1_high: Share
    accuracy: Share
    split: Literal["val", "test"]
    selected_on: bool
    f1_per_class: dict[str, Share]


class Claims(Part):
    """What the packer says about the file."""

    verdict: Literal["pass"]
    latency: Latency
    quality: Quality
    host: Host
    portability: Portability
    params: Annotated[int, Field(ge=0, le=2**53)]
    macs: Annotated[int, Field(ge=0, le=2**53)]


class Preprocessing(Part):
    """As far as the model card needs it. `preprocess.py` itself runs in the sandbox only, and validates the rest."""

    model_config = ConfigDict(extra="ignore")

    size: Annotated[int, Field(ge=-(2**31), le=2**31)]
    fit: Text
    filter: Text


class Manifest(Part):
    """recorded: (sha256 of the image file, class, predicted label) of each image of the split on which
    `evidence.quality` was measured. edgebuild: the version that packed the bundle."""

    format: Literal[3]
    edgebuild: Text
    model: Model
    classes: Annotated[list[Label], FailFast(), Field(min_length=2)]
    preprocess: Preprocessing
    relies_on: Annotated[list[Need], FailFast()]
    golden: Golden
    recorded: Annotated[list[tuple[Digest, str, str]], FailFast(), Field(min_length=2)]
    evidence: Claims
    files: dict[Name, Digest]


def known_part(kind: type[Part], values: dict[str, Any]) -> dict[str, Any]:
    """The fields of `values` that a manifest has there, in the order of the manifest."""
    found: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        if name in values:
            inner: Any = field.annotation
            nested = isinstance(inner, type) and issubclass(inner, Part)
            found[name] = known_part(inner, values[name]) if nested else values[name]
    return found


def parse_manifest(content: str | bytes, name: str = MANIFEST) -> Manifest:
    """Raises ExportError: no JSON, or not whole."""
    try:
        manifest = Manifest.model_validate_json(content)
        json.loads(content, object_pairs_hook=_each_once)
        return manifest
    except ExportError as error:
        raise ExportError(f"{name}: {error}") from error
    except (ValueError, RecursionError) as error:
        if not isinstance(error, ValidationError):
            raise ExportError(f"{name}: JSON: {error}") from error
        where, what = first_problem(error)
        if error.errors()[0]["type"] == "json_invalid":
            raise ExportError(f"{name}: {what}") from error
        got = str(error.errors()[0]["input"])[:60]
        hint = "; pack it again with this version of edgebuild" if where == "format" else ""
        raise ExportError(f"{name}: {where}: {what}, got {got!r}{hint}") from error


def _each_once(pairs: list[tuple[str, Any]]) -> None:
    """Refuse duplicate keys, of which readers take different ones. Raises ExportError."""
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise ExportError(f"the key {key[:60]!r} is there twice")
        seen.add(key)


def read_manifest(path: Path) -> Manifest:
    """Raises ExportError: no file, too large, no JSON, or not whole."""
    try:
        if path.is_symlink() or path.stat().st_size > MAX_BYTES:
            raise ExportError(f"{path.name}: a link, or larger than {MAX_BYTES / 1e6:.0f} MB")
        return parse_manifest(path.read_bytes(), path.name)
    except OSError as error:
        raise ExportError(f"{path}: not readable: {error.strerror}") from error
