"""Several search spaces in one study: a trial draws a space first, then in it. No torch in here."""

from dataclasses import dataclass
from typing import Any

from models.language import SpecError, canonical_hash
from models.space import Candidate, SearchSpace, Suggester, from_trial

SPACE = "space"


@dataclass(frozen=True)
class JoinedSpace:
    """One space as it is; of several, the parameters of each have its name before them (`cpu/s1/type`), since a study
    knows a parameter by its name alone. Raises SpecError for two of one name."""

    parts: tuple[SearchSpace, ...]

    def __post_init__(self) -> None:
        names = [p.name for p in self.parts]
        if len(set(names)) < len(names):
            raise SpecError(f"search.space: two spaces of one name: {', '.join(names)}; rename a file")

    @property
    def hash(self) -> str:
        return self.parts[0].hash if len(self.parts) == 1 else canonical_hash([[p.name, p.hash] for p in self.parts])

    @property
    def source(self) -> str:
        return ", ".join(p.source for p in self.parts)

    @property
    def flat(self) -> bool:
        """Whether every trial has every parameter."""
        return len(self.parts) == 1 and self.parts[0].flat

    @property
    def networks(self) -> list[str]:
        return [name for p in self.parts for name in p.networks]

    @property
    def optimizers(self) -> list[str]:
        return list(dict.fromkeys(name for p in self.parts for name in p.optimizers))

    @property
    def input_sizes(self) -> list[int]:
        return sorted({size for p in self.parts for size in p.input_sizes})

    @property
    def choices(self) -> dict[str, Any]:
        """As SearchSpace.choices, by the names that this study has for them."""
        own = {self._prefix(p) + name: choice for p in self.parts for name, choice in p.choices.items()}
        return own if len(self.parts) == 1 else {SPACE: [p.name for p in self.parts], **own}

    @property
    def names(self) -> list[str]:
        """As SearchSpace.names."""
        own = [self._prefix(p) + name for p in self.parts for name in p.names]
        return own if len(self.parts) == 1 else [SPACE, *own]

    @property
    def size(self) -> int:
        return sum(p.size for p in self.parts)

    def combinations(self) -> list[dict[str, Any]]:
        """Every combination of its choices, as a trial's parameters. Raises SpecError for a range of floats."""
        return [
            ({} if len(self.parts) == 1 else {SPACE: p.name}) | {self._prefix(p) + k: v for k, v in params.items()}
            for p in self.parts
            for params in p.combinations()
        ]

    def suggest(self, trial: Suggester, classes: int) -> Candidate:
        """Draw one candidate. Raises SpecError where the draw is no valid network."""
        if len(self.parts) == 1:
            return self.parts[0].suggest(trial, classes)
        chosen = from_trial(lambda: trial.suggest_categorical(SPACE, [p.name for p in self.parts]), SPACE)
        part = next(p for p in self.parts if p.name == chosen)
        return part.suggest(_Prefixed(trial, self._prefix(part)), classes)

    def _prefix(self, part: SearchSpace) -> str:
        return "" if len(self.parts) == 1 else f"{part.name}/"


@dataclass(frozen=True)
class _Prefixed:
    trial: Suggester
    prefix: str

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self.trial.suggest_categorical(self.prefix + name, choices)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return self.trial.suggest_int(self.prefix + name, low, high, step=step, log=log)

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return self.trial.suggest_float(self.prefix + name, low, high, step=step, log=log)
