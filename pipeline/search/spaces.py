"""The search space of a config, and what of it can be refused before a search begins."""

from collections.abc import Mapping, Sequence
from typing import Any

from models.joined import SPACE, JoinedSpace
from models.language import SpecError, nearest
from models.pretrained import channels
from models.space import SearchSpace, all_of
from pipeline.config import BuildConfig
from pipeline.errors import PipelineError


def search_space(config: BuildConfig) -> JoinedSpace:
    """Raises SpecError."""
    search = config.search
    names = (search.space,) if isinstance(search.space, str) else search.space
    stages = {"network": config.student.network and [config.student.network], "until": config.student.until}
    wanted = {k: v for k, v in stages.items() if v}
    plain = [SearchSpace.load(name) for name in names]
    if wanted and len(plain) > 1 and not any(p.networks for p in plain):
        raise SpecError(f"student.{next(iter(wanted))}: no search space given begins with a network of timm")
    values = _by_space(search.values, plain)
    return JoinedSpace(
        tuple(
            SearchSpace.load(n, search.input_sizes, wanted if p.networks or len(plain) == 1 else None, values[p.name])
            for n, p in zip(names, plain, strict=True)
        ),
    )


def _by_space(values: Mapping[str, Any], parts: Sequence[SearchSpace]) -> dict[str, dict[str, Any]]:
    """Name of each space -> its own; of several, each parameter has its space before it."""
    if len(parts) == 1:
        return {parts[0].name: dict(values)}
    own: dict[str, dict[str, Any]] = {p.name: {} for p in parts}
    for key, value in values.items():
        space, _, name = key.partition("/")
        if space not in own:
            raise SpecError(
                f"search.values: {key!r} is of none of the spaces; of several, each parameter has its space before it: "
                f"{', '.join(f'{n}/' for n in own)}{nearest(key, [SPACE])}"
            )
        own[space][name] = value
    return own


def check_space(space: JoinedSpace, config: BuildConfig) -> None:
    """What else would show only when all candidates were tried. Raises PipelineError or SpecError."""
    size = config.select.input_size
    if size is not None and size not in space.input_sizes:
        searched = ", ".join(map(str, space.input_sizes))
        raise PipelineError(
            f"select.input_size: {size} px, but the input sizes searched are {searched}: set it to one of these, or to "
            "null for any"
        )
    if config.search.sampler == "sweep" and space.size > config.search.max_asked:
        raise PipelineError(
            f"search.sampler: a sweep of {space.source} tries {space.size} combinations, search.max_asked is "
            f"{config.search.max_asked}: raise it, name fewer values, or take another sampler"
        )
    for params in config.search.start:
        for name, value in params.items():
            if name not in space.names:
                raise PipelineError(f"search.start: the space has no parameter {name!r}{nearest(name, space.names)}")
            if not _allowed(space.choices.get(name), value):
                raise PipelineError(
                    f"search.start: {name}: {value!r} is none of what the space has: {space.choices[name]}"
                )
    named = config.student.until or ()
    for part in space.parts:
        refusals = {(name, until): _refusal(name, until) for name in part.networks for until in part.cuts}
        for name in part.networks:  # each shall have one of the cuts
            _one_fits([refusals[name, until] for until in part.cuts])
        for until in (c for c in part.cuts if c in named):  # and each named that search.values left shall be one's
            _one_fits([refusals[name, until] for name in part.networks])


def _allowed(choice: Any, value: Any) -> bool:
    """Whether a trial may begin with it; what the space has as a constant is left out."""
    if isinstance(choice, dict):
        number = isinstance(value, int | float) and choice["low"] <= value <= choice["high"]
        values = all_of(choice)
        return number and (values is None or value in values)
    return choice is None or value in choice


def _one_fits(refusals: list[SpecError | None]) -> None:
    if refusals and refusals[0] and all(refusals):
        raise refusals[0]


def _refusal(network: str, until: str) -> SpecError | None:
    try:
        channels(network, until)
    except SpecError as error:
        return error
    return None
