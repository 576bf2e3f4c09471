"""BuildConfig: all that the user sets. YAML file or the name of a shipped one, then `--set key=value`."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
)
from pydantic_core import PydanticCustomError

from models.documents import parse_yaml, read_yaml
from models.language import SpecError, nearest
from models.spec import find_yaml
from pipeline.errors import PipelineError
from pipeline.passwords import without_password

CONFIGS = Path(__file__).parent / "configs"
DRAWN = "demo"
"""data.root of the embedded set, which the stage `data` draws."""
NO_FILE = ("hub", "none")
"""Weights that are not the path of a file."""

_MOST = 1e9
"""Upper limit of counts and measures. Anything larger is a typing error."""
Positive = Annotated[float, Field(gt=0, le=_MOST)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=int(_MOST))]
Epochs = Annotated[int, Field(ge=1, le=100_000)]
Batch = Annotated[int, Field(ge=1, le=65_536)]
Operations = Annotated[int, Field(ge=0, le=100)]
Alpha = Annotated[float, Field(ge=0, le=100)]
Rate = Positive


def _whole_size(value: Any) -> Any:
    """pydantic reads the beginning of a text and leaves the rest: 1 of 1,5GB."""
    if isinstance(value, str) and not _SIZE.fullmatch(value):
        raise PydanticCustomError("size", "expected a size, such as 500MB or 1.5GB")
    return value


_SIZE = re.compile(r"\s*(\d+|\d*\.\d+)\s*[A-Za-z]*\s*", re.ASCII)
Bytes = Annotated[ByteSize, BeforeValidator(_whole_size), Field(gt=0, le=2**50)]
Text = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]
Runtime = Literal["onnxruntime", "openvino"]
Precision = Literal["f32", "bf16", "int8"]
Form = Literal["onnxruntime-f32", "onnxruntime-int8", "openvino-f32", "openvino-bf16", "openvino-int8"]
Sampler = Literal["ehvi", "tpe", "gp", "nsga2", "nsga3", "random", "sweep"]
Balance = Literal["inverse", "effective", "logits", "sampling", "none"]
Size = Annotated[int, Field(ge=16, le=2048)]


class Section(BaseModel):
    # Defaults are validated too: 60 and 60.0 would be one value and two hashes.
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        validate_default=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_yes_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic would read true as 1."""
        kinds = str(cls.model_fields[str(info.field_name)].annotation)
        if "bool" not in kinds and "Any" not in kinds and any(isinstance(v, bool) for v in _flat(value)):
            raise PydanticCustomError("no_number", "expected a number or a name, not true or false")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _each_once(cls, value: Any) -> Any:
        plain = [v for v in value if isinstance(v, str | int | float)] if isinstance(value, tuple) else []
        if len(set(plain)) < len(plain):
            raise PydanticCustomError("twice", "the same value is there twice")
        return value


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _flat(item)
    else:
        yield value


class Data(Section):
    """The labelled images."""

    root: Text
    """An ImageFolder tree (train/, optionally val/ and test/; or one tree of classes), or `demo` for the drawn set."""
    fit: Literal["squash", "pad", "crop"] = "squash"
    """An image to a square: squash ignores its aspect ratio, pad puts it on grey, crop cuts the middle out."""
    balance: Balance = "inverse"
    """How rare classes are helped: inverse or effective (weights in the cross-entropy), logits (logit adjustment),
    sampling (drawn more often), none."""


class Latency(Section):
    """The limit, and how the shipped file will run."""

    limit_ms: Positive
    """p90 of one inference in a typical fresh process."""
    runtimes: Annotated[tuple[Runtime, ...], Field(min_length=1)] = ("onnxruntime", "openvino")
    """What a file may be run by; both race."""
    precisions: Annotated[tuple[Precision, ...], Field(min_length=1)] = ("f32", "bf16", "int8")
    """bf16 is left out where the CPU or the runtime lacks it."""
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    """Of one inference, here and in the bundle."""
    processes: Annotated[int, Field(ge=1, le=1000)] = 9
    """Fresh processes of the gate's first look; fewer than 7 cannot give a verdict."""


class Limits(Section):
    """What else a candidate and the shipped file may take; checked before training, and by the gate. null: no limit."""

    params: Count | None = None
    """Of the network."""
    size: Bytes | None = None
    """Of the file, in the form in which it is timed: 500kB, 1MiB."""
    memory: Bytes | None = None
    """Peak of a fresh process that loads and runs it, the runtime and Python included: about 100MB are theirs."""


class Score(Section):
    """score = time_weight * t / reference_s + sigmoid(slope * (f1 - f1_macro)) with the student's f1_macro; lower is
    better."""

    time_weight: Annotated[float, Field(ge=0, le=_MOST)]
    """What a second of the submission costs, over reference_s."""
    reference_s: Positive
    """Seconds that count as one."""
    slope: Positive
    """How steeply the score falls with F1."""
    f1: Share
    """The F1 at which it falls the most."""


class Submission(Section):
    """How many images will be scored, in how many seconds at most, all in; without them nothing is claimed."""

    images: Count | None = None
    """How many will be scored."""
    limit_s: Positive | None = None
    """Seconds for all of them, from files to labels; the gate judges it too."""
    score: Score | None = None
    """For a table of candidates by the score of a competition."""


class Student(Section):
    """What is known of the student before any search."""

    model: Text | None = None
    """An architecture to train as it is, instead of a search: a YAML file, or one that ships."""
    optimizer: Text = "adamw"
    """A name of timm's. This and the next three are how `model` is trained; a search takes them from its space."""
    learning_rate: Rate | None = None
    """null: 3e-3 for a network from scratch, 3e-4 for one that begins with weights."""
    batch: Batch = 32
    """Images of a step."""
    n_select: Operations = 0
    """Operations of RandAugment in its training."""
    network: Text | None = None
    """For a space whose networks begin with one of timm's: replaces the space's."""
    until: Annotated[tuple[Text, ...], Field(min_length=1)] | None = None
    """Stages behind which it may be cut, by timm's names (of resnet18: layer2.1); replaces the space's list, which is
    for EfficientNets. Where none fits, those that exist are named."""
    weights: Text = "hub"
    """Of that network: hub, none, or the path of a .safetensors file."""


class Stop(Section):
    """When a candidate's training ends early. Its latency is known by then, so only its F1 is open: it is hopeless
    where it lies in the worst `share` of the earlier candidates that are as fast or faster, after as many epochs."""

    share: Annotated[float, Field(ge=0, lt=1)] = 0.33
    """Worst share of the comparable ones, in which a training is ended; 0: never."""
    epochs: Epochs = 2
    """No training is ended before this many epochs."""
    least: Count = 6
    """Nor while fewer earlier candidates can be compared."""
    similar: Annotated[float, Field(ge=1, le=_MOST)] = 1.15
    """A candidate counts as equally fast if it takes at most this many times as long."""


class Search(Section):
    """Which candidates are tried, how they are timed and trained, and when it ends."""

    space: Text | Annotated[tuple[Text, ...], Field(min_length=1)] = "cpu"
    """A space that ships or a YAML file; or several, in one study."""
    values: dict[str, Any] = {}
    """Replaces choices of the space, by the name that a trial has for them: `m5/type: [Conv, Pass]`."""
    start: tuple[dict[str, Any], ...] = ()
    """Parameters of trials to begin with; `edgebuild narrow` writes round 1's best."""
    sampler: Sampler = "ehvi"
    """ehvi (expected hypervolume improvement) and tpe (Optuna's, multivariate) learn from candidates that were
    rejected; Optuna's gp, nsga2, nsga3 and random do not. sweep: all combinations are measured, then those that keep
    the limit are trained, the slowest first; the last of `trials` is one that takes at most 80 % of it."""
    measure: Annotated[
        Literal["auto"] | Annotated[tuple[Form, ...], Field(min_length=1)],
        BeforeValidator(lambda value: "auto" if value is None else value),
    ] = "auto"
    """Forms to time a candidate in; the fastest counts. auto: the first few candidates in all of latency.runtimes and
    latency.precisions, the others in those that win on this CPU."""
    input_sizes: Annotated[tuple[Size, ...], Field(min_length=1)] | None = None
    """Replaces the space's own list."""
    trials: Count = 20
    """Candidates to train; those over the limit are rejected untrained and do not count."""
    max_asked: Count = 200
    """Candidates in all, the rejected ones too."""
    max_minutes: Positive = 60
    """Of all candidates together; looked at before each. What a sweep measures first does not count."""
    epochs: Epochs = 10
    """Of each candidate."""
    subset: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the training images that a candidate is trained on."""
    stop: Stop = Stop()
    storage: Text | None = None
    """An Optuna storage URL, such as postgresql://user@host/database; the default is SQLite in the run folder. A
    password is not kept in the run folder: PGPASSWORD and ~/.pgpass are read."""
    study: Text | None = None
    """Name of the study, where several take part in one; null: made of what gives it its meaning."""

    @field_serializer("storage")
    def _without_password(self, url: str | None) -> str | None:
        return url and without_password(url)


class Select(Section):
    """Of the trained candidates that keep limit, floor and input size: those within f1_band of the best F1; of these,
    those within latency_band of the fastest; of these, the one with most parameters."""

    f1_floor: Share = 0.4
    """Less macro F1 than this is not chosen."""
    f1_band: Share = 0.02
    """Candidates within so much of the best F1 count as equally good."""
    latency_band: Share = 0.10
    """Of these, those within such a share of the fastest count as equally fast."""
    input_size: Size | None = 168
    """Only candidates of this size are chosen; null: of any."""
    finalists: Count = 3
    """So many of the best by the rule are timed again before one is chosen, in fresh processes, in turn."""
    processes: Annotated[int, Field(ge=1, le=1000)] = 5
    """Fresh processes of each finalist."""
    seeds: Count = 1
    """Trainings of each finalist, that of the search included; the mean F1 of the further ones counts."""
    trial: Annotated[int, Field(ge=0, le=int(_MOST))] | None = None
    """Overrules the rule by a trial's number."""


class Augment(Section):
    """Random changes to photos in training. With mixup and cutmix both, either is done to half of the images."""

    least_area: Annotated[float, Field(gt=0, le=1)] = 0.35
    """Of a random crop, as a share of the image."""
    turns: bool = False
    """Upside down and on its side as well: for photos that have no up."""
    n_select: Operations = 0
    """Operations of RandAugment, drawn for each image; timm applies each of them half the time."""
    mixup: Alpha = 0.0
    """Alpha of the Beta distribution of shares; 0: none."""
    cutmix: Alpha = 0.0
    """The same for patches of another image."""


class Tune(Section):
    """What a further trial of the teacher may have, beside the values of `teacher` itself."""

    learning_rate: tuple[Rate, Rate] = (1e-4, 3e-3)
    """From, to; drawn by its logarithm."""
    epochs: tuple[Epochs, ...] = (5, 8, 12)
    """Beside `teacher.epochs`."""
    input_size: tuple[Size, ...] = ()
    """None beside its own by default: what a larger one costs in time only you can say."""
    batch: tuple[Batch, ...] = (16, 32)
    """Beside `teacher.batch`."""
    n_select: tuple[Operations, ...] = (0, 2)
    """Beside `teacher.augment.n_select`."""
    mixup: tuple[Alpha, ...] = (0.0, 0.2)
    """Beside `teacher.augment.mixup`."""

    @field_validator("learning_rate")
    @classmethod
    def _low_before_high(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] >= value[1]:
            raise PydanticCustomError("reversed", "the first must be lower than the second")
        return value


class Teacher(Section):
    """The network that the student learns from."""

    name: Text = "efficientnet_b0"
    """A network of timm's."""
    weights: Text = "hub"
    """hub, none, or the path of a .safetensors file."""
    epochs: Epochs = 8
    """At most; see patience."""
    input_size: Size | None = None
    """null: the student's."""
    learning_rate: Rate = 2e-4
    """For a network with weights; from scratch, ten times as much and more."""
    batch: Batch = 32
    """Images of a step."""
    freeze: Text | None = None
    """Stage up to which it keeps the weights that it came with, blocks.2 for example: few photos hardly change these,
    and training takes half the time."""
    patience: Count = 3
    """Epochs without a better F1 before it stops."""
    augment: Augment = Augment()
    """Of its trainings."""
    trials: Count = 1
    """Trainings with different hyper-parameters, of which the best is kept; the first has those given here."""
    tune: Tune = Tune()


class Distill(Section):
    """The student's training, from the teacher's answers and the labels."""

    epochs: Epochs = 60
    """Of the student that was chosen."""
    temperature: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """1 follows a good teacher closely; one that is often wrong wants 3."""
    weight: Share = 0.7
    """Share of the distillation loss; the rest is cross-entropy, balanced as data.balance says."""
    views: Count | None = 8
    """Random views stored of each image, for which the teacher is asked once; null: new ones in each epoch, for which
    it is asked each time."""
    augment: Augment = Augment()
    """Of the student's training; n_select comes from the chosen candidate."""


class Quantize(Section):
    """INT8 files, and what they may lose."""

    max_f1_drop: Share = 0.01
    """A file may lose so much macro F1 on val/ against the trained network; more is not shipped."""
    images: Count = 200
    """Training images to calibrate on."""
    epochs: Annotated[int, Field(ge=0, le=100_000)] = 4
    """Of training as INT8 (OpenVINO), where that is the fastest but loses too much; 0: none."""
    seconds: Annotated[float, Field(ge=0, le=_MOST)] = 60
    """If that does not reach it: for finding the layers that must stay in f32."""


class Gate(Section):
    """What is done where the file that was chosen does not pass: the same file again on a calm host, the other files,
    then the next candidate, which is distilled."""

    wait_minutes: Annotated[float, Field(ge=0, le=_MOST)] = 5
    """How long to keep waiting for a disturbed host to calm down and gating the same files again, in total for each
    candidate."""
    more_minutes: Annotated[float, Field(ge=0, le=_MOST)] = 60
    """How long further candidates may be tried, counted from the first gate. One is begun only if it is likely to
    finish in time; 0: none."""


class Preflight(Section):
    """What the place where it lands allows: 500MB, 1GiB."""

    disk: Bytes | None = None
    """All that may be written, the environment included."""
    memory: Bytes | None = None
    """Of each process, as it reserves it."""
    seconds: Positive | None = None
    """For all images of the submission, all in; null: submission.limit_s."""


class BuildConfig(Section):
    """All that a build is made from."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Decides every random choice: splits, weights, candidates, augmentation."""
    target: Text = "local"
    """What times: local, or ssh://user@host[:port][/path/of/its/python]."""
    data: Data
    latency: Latency
    limits: Limits = Limits()
    submission: Submission = Submission()
    student: Student = Student()
    search: Search = Search()
    select: Select = Select()
    teacher: Teacher = Teacher()
    distill: Distill = Distill()
    quantize: Quantize = Quantize()
    gate: Gate = Gate()
    preflight: Preflight = Preflight()


def all_keys(section: type[BaseModel] = BuildConfig, prefix: str = "") -> Iterator[str]:
    """`latency.limit_ms` and all others, in the order of the file."""
    for name, field in section.model_fields.items():
        kinds = (field.annotation, *get_args(field.annotation))
        inner = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
        if inner is None:
            yield f"{prefix}{name}"
        else:
            yield from all_keys(inner, f"{prefix}{name}.")


def load_config(name: str | Path, overrides: list[str] | None = None) -> BuildConfig:
    """A path or a shipped name, with `key=value` overrides. Raises PipelineError naming the file and key."""
    try:
        path = find_yaml(name, CONFIGS, "config")
        document = read_yaml(path)
    except SpecError as error:
        raise PipelineError(str(error)) from error
    document = {} if document is None else document
    if not isinstance(document, dict):
        raise PipelineError(f"{path}: expected a mapping of config keys, got {type(document).__name__}")
    for text in overrides or []:
        override(document, text)
    return check_config(document, str(path))


_MOST_TOLD, _LONGEST = 10, 500
"""How many problems of a config are reported, and how many characters of each."""


def check_config(document: dict[str, Any], source: str) -> BuildConfig:
    try:
        return BuildConfig.model_validate(document)
    except ValidationError as error:
        found = error.errors()
        lines = [_explain(dict(e))[:_LONGEST] for e in found[:_MOST_TOLD]]
        if len(found) > _MOST_TOLD:
            lines.append(f"and {len(found) - _MOST_TOLD} more")
        raise PipelineError(f"{source}: " + f"\n{source}: ".join(lines)) from error


def anchored(config: BuildConfig) -> BuildConfig:
    """The same config with whole paths, so that a run folder means the same from every directory."""

    def whole(text: str, *names: str) -> str:
        return text if text in names else str(Path(text).absolute())

    def yaml(text: str) -> str:
        return whole(text) if Path(text).is_file() else text

    space = config.search.space
    changed: dict[str, dict[str, Any]] = {
        "data": {"root": whole(config.data.root, DRAWN)},
        "student": {
            "weights": whole(config.student.weights, *NO_FILE),
            "model": config.student.model and yaml(config.student.model),
        },
        "search": {"space": yaml(space) if isinstance(space, str) else tuple(yaml(s) for s in space)},
        "teacher": {"weights": whole(config.teacher.weights, *NO_FILE)},
    }
    return config.model_copy(
        update={name: getattr(config, name).model_copy(update=values) for name, values in changed.items()}
    )


def parse_bytes(option: str, text: str | None) -> int | None:
    """500MB, 1GiB, 1000000. Raises PipelineError."""
    try:
        return None if text is None else int(TypeAdapter(Bytes).validate_python(text))
    except ValidationError as error:
        raise PipelineError(f"{option} {text}: expected a size such as 500MB or 1GiB") from error


def config_name(name: str | Path) -> str:
    return Path(name).stem


def override(document: dict[str, Any], text: str) -> None:
    key, equals, written = text.partition("=")
    if not equals or not key:
        raise PipelineError(f"--set {text!r}: expected key=value, for example --set latency.limit_ms=1.4")
    try:
        value = parse_yaml(written, f"--set {text!r}")
    except SpecError as error:
        raise PipelineError(str(error)) from error
    *parents, last = key.split(".")
    for parent in parents:
        document = document.setdefault(parent, {})
        if not isinstance(document, dict):
            raise PipelineError(f"--set {text!r}: {parent} is not a section")
    document[last] = value


def _explain(error: dict[str, Any]) -> str:
    location = [str(part) for part in error["loc"]]
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        section: Any = BuildConfig
        for part in location[:-1]:
            section = section.model_fields[part].annotation
            section = section if isinstance(section, type) else Score
        known = list(section.model_fields)
        return f"{key}: unknown key{nearest(location[-1], known)}; known here: {', '.join(known)}"
    if error["type"] == "literal_error":
        known = re.findall(r"'([^']+)'", error["ctx"]["expected"])
        return f"{key}: expected {', '.join(known)}, got {error['input']!r}{nearest(str(error['input']), known)}"
    if error["type"] == "missing":
        return f"{key}: missing; set it in the file or with --set {key}=VALUE"
    return f"{key}: {error['msg']}, got {error['input']!r}"
