"""SearchSpace: what may be chosen, read from YAML, and the function trial -> Candidate. No torch in here.

    format: 1
    flat: true               # every parameter is suggested in every trial; false: only those that the draw uses
    max_strides: 5           # how many modules may have stride 2; a further one gets 1
    hyper:                   # hyper-parameters of training, and the input size
      optimizer: [adam, sgd]
      ...
    model:                   # depth_multiple, width_multiple
    modules:
    - name: m1
      params:                # name -> a choice; a plain value is a constant
        repeat: {low: 1, high: 3}
        type: [Conv, Pass]
        out: {low: 16, high: 64, step: 16}
        stride: {choices: [1, 2], two_if: 0}
      layers:                # type -> args of models.language.BLOCKS, `$name` stands for a parameter
        Conv: [$out, 3, $stride]

A choice is a list, or {low, high, step} of whole numbers, or {low, high, step|log} of floats. `two_if: n` on a stride
makes it 2 where n modules before had stride 2. `Pass` leaves the module out. In `head`, `$classes` is the number of
classes.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from models.documents import read_yaml
from models.language import BLOCKS, KINDS, SpecError, canonical_hash, nearest
from models.spec import ModelSpec, find_yaml

SPACES = Path(__file__).parent / "spaces"
PASS = "Pass"
_HYPER = ("optimizer", "learning_rate", "batch", "n_select", "input_size")
_MODEL = ("depth_multiple", "width_multiple")
_MOST_VALUES = 100_000


class Suggester(Protocol):
    """The part of optuna.Trial that a space needs."""

    def suggest_categorical(self, name: str, choices: Any) -> Any: ...
    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...
    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...


@dataclass(frozen=True)
class Hyper:
    """How a candidate is trained. optimizer: a name of timm's; n_select: operations of RandAugment, 0 for none."""

    optimizer: str
    learning_rate: float
    batch: int
    n_select: int

    def as_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)


@dataclass(frozen=True)
class Candidate:
    spec: ModelSpec
    hyper: Hyper


@dataclass(frozen=True)
class SearchSpace:
    document: dict[str, Any]
    source: str

    @classmethod
    def load(
        cls,
        name: str | Path,
        input_sizes: Sequence[int] | None = None,
        stages: Mapping[str, Sequence[str]] | None = None,
        values: Mapping[str, Any] | None = None,
    ) -> "SearchSpace":
        """A space that ships (cpu, lineage, pretrained) or a YAML file. Raises SpecError.

        input_sizes replaces its own; stages the `network` and `until` of a space that begins with a network of timm;
        values any choice, by the name that a trial has for it (`m5/type`).
        """
        file = find_yaml(name, SPACES, "search space")
        document = read_yaml(file)
        if input_sizes and isinstance(document, dict) and isinstance(document.get("hyper"), dict):
            document["hyper"]["input_size"] = list(input_sizes)
        _check(document, str(file))
        for key, names in (stages or {}).items():
            params = document["modules"][0]["params"] if document["modules"] else {}
            if key not in params:
                raise SpecError(f"student.{key}: the search space {name} does not begin with a network of timm")
            params[key] = list(names)
        for name, choice in (values or {}).items():
            _replace(document, name, choice, str(file))
        if values:
            _check(document, str(file))
        return cls(document, str(file))

    @property
    def name(self) -> str:
        return Path(self.source).stem

    @property
    def hash(self) -> str:
        return canonical_hash(self.document)

    @property
    def flat(self) -> bool:
        return bool(self.document["flat"])

    @property
    def networks(self) -> list[str]:
        """The networks of timm that its own may begin with."""
        return self._begin("network")

    @property
    def cuts(self) -> list[str]:
        """The stages of these behind which they may be cut."""
        return self._begin("until")

    @property
    def optimizers(self) -> list[str]:
        return all_of(self.document["hyper"]["optimizer"]) or []

    @property
    def input_sizes(self) -> list[int]:
        return all_of(self.document["hyper"]["input_size"]) or []

    def _begin(self, key: str) -> list[str]:
        choices = [m["params"].get(key, []) for m in self.document["modules"] if "Timm" in m["layers"]]
        return [value for choice in choices for value in (all_of(choice) or [])]

    @property
    def choices(self) -> dict[str, Any]:
        """What is to be chosen: name of the parameter -> its choice, as the file has it. Constants are left out."""
        free = {name: choice for _, name, choice in _choices(self.document)}
        free = {k: c["choices"] if isinstance(c, dict) and "choices" in c else c for k, c in free.items()}
        return {k: c for k, c in free.items() if isinstance(c, dict) or (isinstance(c, list) and len(c) > 1)}

    @property
    def names(self) -> list[str]:
        """Of all parameters, constants too."""
        return [name for _, name, _ in _choices(self.document)]

    @property
    def size(self) -> int:
        """How many combinations there are. Raises SpecError for a range of floats."""
        return math.prod(len(values) for values in self._lists().values())

    def combinations(self) -> list[dict[str, Any]]:
        """Every combination of its choices, as a trial's parameters. Raises SpecError for a range of floats."""
        names = self._lists()
        return [dict(zip(names, values, strict=True)) for values in itertools.product(*names.values())]

    def _lists(self) -> dict[str, list[Any]]:
        """What is to be chosen, and all that it may be."""
        names: dict[str, list[Any]] = {}
        for _, name, choice in _choices(self.document):
            values = all_of(choice)
            if values is None:
                raise SpecError(f"{self.source}: {name}: a range of floats has no end of values; list those to try")
            if len(values) > 1:
                names[name] = values
        return names

    def suggest(self, trial: Suggester, classes: int) -> Candidate:
        """Draw one candidate. Raises SpecError where the draw is no valid network."""
        hyper = {k: _draw(trial, k, self.document["hyper"][k]) for k in _HYPER}
        model = {k: _draw(trial, k, v) for k, v in self.document["model"].items()}
        strides = 0
        backbone: list[list[Any]] = []
        for module in self.document["modules"]:
            values = _Values(trial, module["name"], module["params"])
            if self.flat:
                values.draw_all()
            kind = values["type"]
            if kind == PASS:
                continue
            if "stride" in module["params"]:
                stride_choice, stride = module["params"]["stride"], values["stride"]
                if isinstance(stride_choice, dict) and strides == stride_choice.get("two_if"):
                    stride = 2
                stride = 1 if strides >= self.document["max_strides"] else stride
                strides += stride > 1
                values.fix("stride", stride)
            args = [values[a[1:]] if _is_reference(a) else a for a in module["layers"][kind]]
            backbone.append([values["repeat"], kind, args])
        head = _Values(trial, "head", self.document["head"]["params"])
        head.fix("classes", classes)
        for repeat, kind, template in self.document["head"]["layers"]:
            backbone.append([repeat, kind, [head[a[1:]] if _is_reference(a) else a for a in template]])
        size = hyper.pop("input_size")
        document = {"INPUT_SIZE": [size, size], **model, "backbone": backbone}
        return Candidate(ModelSpec.parse(document, source="candidate"), Hyper(**hyper))


class _Values:
    """The parameters of one module, drawn when first asked for."""

    def __init__(self, trial: Suggester, module: str, params: dict[str, Any]) -> None:
        self._trial, self._module, self._params = trial, module, params
        self._values: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._values:
            self._values[name] = _draw(self._trial, f"{self._module}/{name}", self._params.get(name, 1))
        return self._values[name]

    def fix(self, name: str, value: Any) -> None:
        self._values[name] = value

    def draw_all(self) -> None:
        for name in self._params:
            _ = self[name]


def _draw(trial: Suggester, name: str, choice: Any) -> Any:
    if isinstance(choice, list):
        if len(choice) == 1:
            return choice[0]
        return from_trial(lambda: trial.suggest_categorical(name, choice), name)
    if not isinstance(choice, dict):
        return choice
    if "choices" in choice:
        return _draw(trial, name, choice["choices"])
    low, high = choice["low"], choice["high"]
    draw: Callable[..., Any] = trial.suggest_float if _has_float(choice) else trial.suggest_int
    extra = {k: choice[k] for k in ("step", "log") if k in choice}
    return from_trial(lambda: draw(name, low, high, **extra), name)


def from_trial(draw: Callable[[], Any], name: str) -> Any:
    """Draw a value. Raises SpecError if the trial was given a value that is not one of the choices."""
    try:
        return draw()
    except (ValueError, TypeError, OverflowError) as error:
        raise SpecError(f"{name}: {error}; expected a value of this search space") from error


def all_of(choice: Any) -> list[Any] | None:
    """All that a choice may be; None for a range of floats."""
    if isinstance(choice, list):
        return choice
    if not isinstance(choice, dict):
        return [choice]
    if "choices" in choice:
        return all_of(choice["choices"])
    return None if _has_float(choice) else list(range(choice["low"], choice["high"] + 1, choice.get("step", 1)))


def _has_float(choice: dict[str, Any]) -> bool:
    return any(isinstance(choice[k], float) for k in ("low", "high", "step") if k in choice)


def _is_reference(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("$")


def _check(document: Any, source: str) -> None:
    """Refuse a space that no trial could draw from, in the words of the file."""
    keys = ("format", "flat", "max_strides", "hyper", "model", "modules", "head")
    if not isinstance(document, dict):
        raise SpecError(f"{source}: expected a mapping with the keys {', '.join(keys)}")
    _same_keys(document, keys, source)
    _check_shape(document, source)
    if document["format"] != 1 or not isinstance(document["format"], int) or document["format"] is True:
        raise SpecError(f"{source}: format: expected 1, got {document['format']!r}")
    _same_keys(document["hyper"], _HYPER, f"{source}: hyper")
    _same_keys(document["model"], _MODEL, f"{source}: model")
    for where, _, choice in _choices(document):
        _check_choice(choice, f"{source}: {where}")
    for part, expected in (("hyper", _HYPER_VALUES), ("model", dict.fromkeys(_MODEL, KINDS["ratio"]))):
        for name, kind in expected.items():
            _check_values(document[part][name], kind, f"{source}: {part}.{name}")
    for module in document["modules"]:
        where = f"{source}: module {module['name']}"
        if "type" not in module["params"]:
            raise SpecError(f"{where}: type: missing in params; a block of layers, or {PASS}")
        for name in ("repeat", "stride"):
            _check_values(module["params"].get(name, 1), KINDS["positive"], f"{where}: {name}")
        for name, choice in module["params"].items():
            _check_two_if(name, choice, f"{where}: {name}")
        for kind in all_of(module["params"]["type"]) or []:
            if kind != PASS and kind not in module["layers"]:
                raise SpecError(f"{where}: type {kind!r} has no entry in layers{nearest(kind, module['layers'])}")
        for kind, args in module["layers"].items():
            _check_layer(kind, args, module["params"], where)
    if "classes" in document["head"]["params"]:
        raise SpecError(f"{source}: head: classes: the data gives their number; remove it from params")
    for repeat, kind, args in document["head"]["layers"]:
        _check_values(repeat, KINDS["positive"], f"{source}: head: {kind}: repeat")
        _check_layer(kind, args, {**document["head"]["params"], "classes": 1}, f"{source}: head")


def _replace(document: dict[str, Any], name: str, choice: Any, source: str) -> None:
    """Give a parameter another choice; what else its entry says (two_if) stays."""
    module, _, key = name.rpartition("/")
    places = [document["head"]["params"]] if module == "head" else []
    places += [m["params"] for m in document["modules"] if m["name"] == module]
    places += [] if module else [document["hyper"], document["model"]]
    place = next((p for p in places if key in p), None)
    if place is None:
        known = [n for _, n, _ in _choices(document)]
        raise SpecError(f"{source}: no parameter {name!r}{nearest(name, known)}; known: {', '.join(known)}")
    if isinstance(place[key], dict) and "choices" in place[key]:
        choice = {**place[key], "choices": choice}
    place[key] = choice


def _choices(document: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(where it stands, what a trial calls it, the choice)"""
    for part in ("hyper", "model"):
        yield from ((f"{part}.{k}", k, v) for k, v in document[part].items())
    for module in document["modules"]:
        name = module["name"]
        yield from ((f"module {name}: {k}", f"{name}/{k}", v) for k, v in module["params"].items())
    yield from ((f"head: {k}", f"head/{k}", v) for k, v in document["head"]["params"].items())


_HYPER_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "optimizer": (lambda v: isinstance(v, str) and bool(v), "the name of an optimizer"),
    "learning_rate": (lambda v: _is_number(v) and 0 < v <= 100, "a number over 0, up to 100"),
    "batch": KINDS["positive"],
    "n_select": KINDS["non_negative"],
    "input_size": (lambda v: KINDS["positive"][0](v) and 16 <= v <= 2048, "a whole number from 16 to 2048"),
}


def _ends(choice: Any) -> list[Any]:
    """All values of a list, or both ends of a range."""
    if isinstance(choice, dict) and "choices" not in choice:
        return [choice["low"], choice["high"]]
    return all_of(choice) or []


def _check_shape(document: dict[str, Any], source: str) -> None:
    """Check that mappings, lists and plain values are where they belong. Their contents are checked afterwards."""
    places = (
        (bool, "flat", document["flat"]),
        (int, "max_strides", document["max_strides"]),
        *((dict, key, document[key]) for key in ("hyper", "model", "head")),
        (list, "modules", document["modules"]),
    )
    for kind, where, value in places:
        _is_a(kind, value, f"{source}: {where}")
    for i, module in enumerate(document["modules"]):
        where = f"{source}: module {i}"
        _same_keys(module, ("name", "params", "layers"), where)
        _is_a(str, module["name"], f"{where}: name")
        _is_a(dict, module["params"], f"{where}: params")
        _is_a(dict, module["layers"], f"{where}: layers")
        for kind, args in module["layers"].items():
            _is_a(list, args, f"{where}: layers: {kind}")
    names = [module["name"] for module in document["modules"]]
    if len(set(names)) < len(names):
        raise SpecError(f"{source}: modules: two have the same name")
    _same_keys(document["head"], ("params", "layers"), f"{source}: head")
    _is_a(dict, document["head"]["params"], f"{source}: head: params")
    _is_a(list, document["head"]["layers"], f"{source}: head: layers")
    for row in document["head"]["layers"]:
        if not (isinstance(row, list) and len(row) == 3 and isinstance(row[1], str) and isinstance(row[2], list)):
            raise SpecError(f"{source}: head: layers: expected [repeat, module, args], got {row!r}")


_WORDS = {bool: "true or false", int: "a whole number", str: "text", dict: "a mapping", list: "a list"}


def _is_a(kind: type, value: Any, where: str) -> None:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise SpecError(f"{where}: expected {_WORDS[kind]}, got {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_choice(choice: Any, where: str) -> None:
    if isinstance(choice, list) and not choice:
        raise SpecError(f"{where}: an empty list leaves nothing to choose")
    if isinstance(choice, list) and any(isinstance(value, dict | list) for value in choice):
        raise SpecError(f"{where}: expected a list of plain values, got {choice!r}")
    if not isinstance(choice, dict):
        return
    known = ("choices", "two_if") if "choices" in choice else ("low", "high", "step", "log")
    for key in choice:
        if key not in known:
            raise SpecError(f"{where}: unknown key {key!r}{nearest(key, known)}; known: {', '.join(known)}")
    if "choices" in choice:
        _check_choice(choice["choices"], where)
    elif not ("low" in choice and "high" in choice):
        raise SpecError(f"{where}: a range needs low and high, got {choice!r}")
    elif not all(_is_number(choice[k]) for k in ("low", "high")) or choice["low"] > choice["high"]:
        raise SpecError(f"{where}: low and high: expected numbers with low <= high, got {choice!r}")
    elif "step" in choice and not (_is_number(choice["step"]) and choice["step"] > 0):
        raise SpecError(f"{where}: step: expected a number over 0, got {choice['step']!r}")
    elif not isinstance(choice.get("log", False), bool):
        raise SpecError(f"{where}: log: expected true or false, got {choice['log']!r}")
    elif (choice["high"] - choice["low"]) / choice.get("step", 1) > _MOST_VALUES:
        raise SpecError(f"{where}: a range of more than {_MOST_VALUES} values, got {choice!r}; give a larger step")
    elif choice.get("log") and ("step" in choice or choice["low"] <= 0):
        raise SpecError(f"{where}: log: needs a low over 0 and no step, got {choice!r}")


def _check_layer(kind: str, args: list[Any], params: dict[str, Any], where: str) -> None:
    if kind not in BLOCKS:
        raise SpecError(f"{where}: unknown block {kind!r}{nearest(kind, BLOCKS)}; known: {', '.join(BLOCKS)}")
    for value in args:
        if _is_reference(value) and value[1:] not in params:
            raise SpecError(
                f"{where}: {kind}: {value} names no parameter{nearest(value[1:], params)}; known: {', '.join(params)}"
            )
    for value, arg in zip(args, BLOCKS[kind].args, strict=False):
        choice = params[value[1:]] if _is_reference(value) else value
        _check_values(choice, KINDS[arg.kind], f"{where}: {value[1:] if _is_reference(value) else kind}")


def _check_values(choice: Any, kind: tuple[Callable[[Any], bool], str], where: str) -> None:
    """Refuse a choice that may be a value the kind does not allow. kind: (test, what is expected in words)."""
    test, words = kind
    for value in _ends(choice):
        if not test(value):
            raise SpecError(f"{where}: expected {words}, got {value!r}")


def _check_two_if(name: str, choice: Any, where: str) -> None:
    if isinstance(choice, dict) and "two_if" in choice:
        if name != "stride":
            raise SpecError(f"{where}: two_if: only a stride can have it")
        test, words = KINDS["non_negative"]
        if not test(choice["two_if"]):  # one number, where a parameter may be a list of them
            raise SpecError(f"{where}: two_if: expected {words}, got {choice['two_if']!r}")


def _same_keys(mapping: Any, keys: tuple[str, ...], where: str) -> None:
    if not isinstance(mapping, dict):
        raise SpecError(f"{where}: expected a mapping with the keys {', '.join(keys)}, got {mapping!r}")
    for key in mapping:
        if key not in keys:
            raise SpecError(f"{where}: unknown key {key!r}{nearest(key, keys)}; known: {', '.join(keys)}")
    for key in keys:
        if key not in mapping:
            raise SpecError(f"{where}: the key {key!r} is missing")
