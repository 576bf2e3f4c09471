"""Studies of Optuna as this project keeps them: opened without a password in any message, shared by workers that must
mean the same by a trial, and with trials that a killed worker left taken up again."""

import contextlib
import fcntl
import logging
import math
import os
import sqlite3
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from models.language import canonical_hash
from pipeline.errors import EnvironmentProblem, PipelineError
from pipeline.passwords import NO_URL, without_password
from pipeline.reread import DETAILS, reread

Direction = Literal["maximize", "minimize"]
HEARTBEAT_S, GRACE_S = 10, 60
"""A worker that gives no sign of life for the second is taken for dead, and its trial is tried again by another."""
_UNBORN = timedelta(minutes=5)
"""A trial that for so long has no worker yet lost it before its first sign of life."""
_RETRIES = 3
"""Retries of one trial. A trial whose worker was killed four times is set aside and tried once more at the end: it may
be the cause, or a healthy candidate on a machine that was switched off. Interrupts by the user do not count."""
_OPENED = 3
"""Two that find an empty database at once both make its tables, and one fails."""
FREE = "free"
"""The attribute of a trial whose training another search made, under other limits: the budget does not count it."""
MEASURED: dict[str, type] = {
    **dict.fromkeys(("params", "macs", "input_size", "size_bytes"), int),
    **dict.fromkeys(("graph", "timings"), list),
    **dict.fromkeys(("spec", "hyper"), dict),
    "form": str,
}
_WORKER, _MEANING, _TRIES, _AGAIN, _INTERRUPTED = "worker", "meaning", "tries", "again_of", "interrupted"
_SEARCH_AGAIN = "put the database aside and search again: measurements and trainings are kept"
_DAMAGED_FILE = ("not a database", "malformed")
"""In SQLite's words."""


def quiet_optuna() -> None:
    """Its own lines about studies and trials; ours say more."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", message="Heartbeat of storage")  # `alive` sends it, and not Study.optimize


def database_url(storage: str | None, folder: Path, name: str = "study.db") -> str:
    """The URL that SQLAlchemy takes: SQLite in the folder where none is given, psycopg 3 for PostgreSQL."""
    if storage is None:
        folder.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{folder / name}"
    scheme, separator, rest = storage.partition("://")
    return f"postgresql+psycopg://{rest}" if separator and scheme in ("postgresql", "postgres") else storage


def open_study(
    url: str, name: str, directions: Sequence[Direction], metrics: Sequence[str], meaning: dict[str, Any] | None = None
) -> optuna.Study:
    """Create a study, or go on with it. meaning: what all who take part must agree on. Raises PipelineError for another
    meaning or what is no URL, EnvironmentProblem where the database cannot be used."""
    quiet_optuna()
    if not url.startswith("sqlite"):
        _keep_time_in_utc()
    with told_of_databases(url), _told_of_damage(url):
        study = optuna.create_study(study_name=name, storage=_storage(url), directions=directions, load_if_exists=True)
        if meaning is not None:
            if _MEANING not in study.user_attrs and not study.get_trials(deepcopy=False):
                study.set_user_attr(_MEANING, {k: _short(v) for k, v in meaning.items()})
            agree(study, meaning)
        if study.metric_names is None:
            study.set_metric_names(list(metrics))
        _read_all(study)
        if [d.name.lower() for d in study.directions] != list(directions) or study.metric_names != list(metrics):
            raise ValueError(f"it has not the objectives {', '.join(metrics)}")
    return study


@contextlib.contextmanager
def _told_of_damage(url: str) -> Iterator[None]:
    """Optuna believes what it reads, and fails in many ways on what was changed by hand or by another version."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        if "?" in url:  # its options go to the database's driver, which raises whatever it likes
            raise PipelineError(
                f"search.storage: {without_password(url)}: an option of the URL is wrong, or the study "
                f"in it is damaged ({error!r:.200})"
            ) from error
        raise EnvironmentProblem(
            f"search.storage: {without_password(url)}: the study in it is damaged ({error!r:.200}); {_SEARCH_AGAIN}"
        ) from error


def _keep_time_in_utc() -> None:
    """Optuna stores this process's local time without its zone, and those who share a server may be in several."""
    os.environ["TZ"] = "UTC"
    time.tzset()


class _Connection(sqlite3.Connection):
    """Optuna commits each parameter of a trial by itself. With a log written ahead that takes a tenth of the time; what
    was committed outlives its process as before, and at worst the last of it is lost with the machine's power."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.execute("PRAGMA journal_mode=WAL")
        self.execute("PRAGMA synchronous=NORMAL")


def _storage(url: str) -> RDBStorage:
    from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

    # A server closes connections that idle through a long training, or was started again.
    sqlite = {"connect_args": {"timeout": 60, "factory": _Connection}}
    for tries in range(_OPENED):
        try:
            return RDBStorage(
                url,
                engine_kwargs=sqlite if url.startswith("sqlite") else {"pool_pre_ping": True},
                heartbeat_interval=HEARTBEAT_S,
                grace_period=GRACE_S,
                heartbeat_stale_trial_callback=_try_again,
            )
        except (IntegrityError, OperationalError, ProgrammingError) as error:
            if tries + 1 == _OPENED or "exist" not in str(error):
                raise
            time.sleep(1)
    raise AssertionError


def load_study(url: str, name: str) -> optuna.Study:
    """One that is there. Raises PipelineError."""
    quiet_optuna()
    with told_of_databases(url), _told_of_damage(url):
        try:
            study = optuna.load_study(study_name=name, storage=RDBStorage(url))
        except KeyError as error:
            raise PipelineError(
                f"search.storage: {without_password(url)}: it holds no study {name!r}; search again, or give the "
                "database that the search was made with"
            ) from error
        _read_all(study)
    return study


def _read_all(study: optuna.Study) -> None:
    """Find out now whether all trials can be read."""
    trials = study.get_trials(deepcopy=False)
    if any(t.number >= len(trials) for t in trials):
        raise ValueError("its trials are not numbered from 0")


def agree(study: optuna.Study, meaning: dict[str, Any]) -> None:
    """Raises PipelineError where the study was begun with another meaning."""
    known = study.user_attrs.get(_MEANING)
    known = known if isinstance(known, dict) else {}
    different = [k for k, v in meaning.items() if known.get(k) != _short(v)]
    if different:
        raise PipelineError(
            f"search.study: the study {study.study_name!r} was begun with another {', another '.join(different)}; all "
            "who take part in a study need the same: give theirs, or another name"
        )


def _short(value: Any) -> Any:
    return value if isinstance(value, int | float | str) else canonical_hash(value)


@contextlib.contextmanager
def told_of_databases(url: str) -> Iterator[None]:
    """A database's errors in our words, without the password that some of theirs hold."""
    import sqlalchemy

    shown = without_password(url)
    if shown == NO_URL:
        raise PipelineError(
            "search.storage: no database URL; expected one like postgresql://user@host/database, where @, : and / of a "
            "password are quoted"
        )
    try:
        yield
    except sqlalchemy.exc.NoSuchModuleError as error:
        raise PipelineError(f"search.storage: {shown}: SQLAlchemy knows no such database; take postgresql") from error
    except ImportError as error:
        raise EnvironmentProblem(
            f"search.storage: {shown}: the driver of that database is missing; for PostgreSQL: pip "
            "install 'edgebuild[postgresql]'"
        ) from error
    except (sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
        reason = _reason(error, url)
        if "disk is full" in reason:
            raise  # told by whoever tells of full disks
        cure = f"; {_SEARCH_AGAIN}" if any(text in reason for text in _DAMAGED_FILE) else ""
        raise EnvironmentProblem(f"search.storage: {shown}: cannot be used: {reason}{cure}") from error
    except RuntimeError as error:
        if not any(text in str(error) for text in ("optuna storage upgrade", "runtime optuna version")):
            raise
        raise EnvironmentProblem(
            f"search.storage: {shown}: its tables are of another version of Optuna than {optuna.__version__}; after a "
            "copy of it was put aside, `optuna storage upgrade --storage URL` brings an older one up to date"
        ) from error


def _reason(error: BaseException, url: str) -> str:
    """Its first line, in the database's own words, without the password."""
    from sqlalchemy.engine import make_url

    cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
    lines = str(getattr(cause, "orig", None) or cause).strip().splitlines() or [type(cause).__name__]
    password = make_url(url).password
    return lines[0].replace(str(password), "***") if password else lines[0]


@contextlib.contextmanager
def one_at_a_time(url: str) -> Iterator[None]:
    """For what SQLite, which locks no rows, would give to two processes at once: a trial that waits."""
    if not url.startswith("sqlite:///"):
        yield
        return
    with Path(url.removeprefix("sqlite:///") + ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def alive(study: optuna.Study, trial: optuna.Trial, worker: str) -> Iterator[None]:
    """Signs of life of a trial while it is worked at. What it is told later than that by another is dropped."""
    storage, ended = study._storage, threading.Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT_S):
            with contextlib.suppress(Exception):  # a database out of reach for a moment; the next beat may get there
                storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        trial.set_user_attr(_WORKER, worker)
        storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]
        yield
    except UpdateFinishedTrialError:
        pass  # taken for dead meanwhile, and tried again by another
    except KeyboardInterrupt:
        with contextlib.suppress(Exception):  # it ends all the same
            trial.set_user_attr(_INTERRUPTED, True)
        raise
    finally:
        ended.set()
        thread.join()


def mark_interrupted(study: optuna.Study, worker: str) -> None:
    """What this worker's crew has in hand was ended by the user."""
    for left in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if str(left.user_attrs.get(_WORKER)).startswith(f"{worker}/"):
            study._storage.set_trial_user_attr(left._trial_id, _INTERRUPTED, True)


def take_up(study: optuna.Study, worker: str, alone: bool, retries: int | None = _RETRIES) -> None:
    """Try again what this worker, or one of its crew, left RUNNING when it was killed. alone: nobody else takes part,
    so all that is RUNNING was left. retries: of one trial; None: without end."""
    for left in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        owner = left.user_attrs.get(_WORKER)
        if alone or owner == worker or str(owner).startswith(f"{worker}/"):
            _fail(study, left, retries)


def take_up_lost(study: optuna.Study) -> None:
    """The same of what any worker left that gave no sign of life for GRACE_S, or died before its first."""
    optuna.storages.fail_stale_trials(study)
    for left in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        begun = left.datetime_start
        if _WORKER not in left.user_attrs and begun is not None and datetime.now() - begun > _UNBORN:
            _fail(study, left)


def _fail(study: optuna.Study, left: FrozenTrial, retries: int | None = _RETRIES) -> None:
    with contextlib.suppress(UpdateFinishedTrialError):  # by another, who tries it again
        if study._storage.set_trial_state_values(left._trial_id, state=TrialState.FAIL):
            _try_again(study, left, retries)


def _try_again(study: optuna.Study, left: FrozenTrial, retries: int | None = _RETRIES) -> None:
    """Its parameters, and what it was planned as: all else is found out anew."""
    tries = _tries(left) + (_INTERRUPTED not in left.user_attrs)
    if retries is None or tries <= retries:
        _enqueue_again(study, left, tries)


def _enqueue_again(study: optuna.Study, left: FrozenTrial, tries: int) -> None:
    planned = {k: v for k, v in left.user_attrs.items() if k == FREE}
    study.enqueue_trial(known_params(left), user_attrs={**planned, _TRIES: tries, _AGAIN: left.number})


def try_set_aside(study: optuna.Study) -> int:
    """Enqueue the trials that were set aside for a last try. Returns how many there are."""
    found = [
        t
        for t in own_trials(study)
        if t.state == TrialState.FAIL and "error_kind" not in t.user_attrs and _tries(t) == _RETRIES
    ]
    for left in found:
        _enqueue_again(study, left, _RETRIES + 1)
    return len(found)


def is_last_try(trial: FrozenTrial) -> bool:
    return _tries(trial) > _RETRIES


def _tries(trial: FrozenTrial) -> int:
    tries = trial.user_attrs.get(_TRIES, 0)
    return tries if isinstance(tries, int) else 0


def known_params(trial: FrozenTrial) -> dict[str, Any]:
    """What it was asked to try, and what it drew."""
    asked = trial.system_attrs.get("fixed_params")
    return {**(asked if isinstance(asked, dict) else {}), **trial.params}


def bring_back(study: optuna.Study, rejected: FrozenTrial) -> None:
    """Try a trial again that was rejected on evidence which was found to be wrong."""
    _enqueue_again(study, rejected, _tries(rejected))


def own_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The study's trials, except those that are tried again and those that another program finished, with all
    latencies as they are known to be now."""
    trials = study.get_trials(deepcopy=False)
    again = {number for t in trials if (number := _again_of(t)) is not None}
    return reread([t for t in trials if t.number not in again and not foreign(t)])


def _again_of(trial: FrozenTrial) -> int | None:
    """The number of the earlier trial that this one tries again."""
    number = trial.user_attrs.get(_AGAIN)
    return number if isinstance(number, int) and _TRIES in trial.user_attrs and number < trial.number else None


def foreign(trial: FrozenTrial) -> bool:
    """Whether a finished trial lacks what a search records: it was added by hand or by another program."""
    attrs = trial.user_attrs
    if not trial.state.is_finished():
        return False
    if trial.state == TrialState.FAIL:  # it may have failed before it was measured, or before it was trained
        measured, trained = not attrs.keys().isdisjoint(("latency_ms", "over_limit", DETAILS)), "f1_by_epoch" in attrs
    else:
        measured, trained = True, trial.state == TrialState.COMPLETE or not attrs.keys().isdisjoint(_OF_TRAINING)
    return not ((not measured or _is_measured(attrs)) and (not trained or _is_trained(attrs)))


_OF_TRAINING = ("training", "f1_by_epoch")


def _is_measured(attrs: dict[str, Any]) -> bool:
    details, over = attrs.get(DETAILS), attrs.get("over_limit")
    latency_ms: Any = attrs.get("latency_ms")
    return (
        isinstance(details, dict)
        and all(isinstance(details.get(name), kind) for name, kind in MEASURED.items())
        and "backbone" in details["spec"]
        and isinstance(over, dict)
        and bool(over)
        and all(_is_number(share) for share in over.values())
        and _is_number(latency_ms)
        and latency_ms > 0
    )


def _is_trained(attrs: dict[str, Any]) -> bool:
    curve = attrs.get("f1_by_epoch")
    if not (isinstance(curve, list) and curve and isinstance(attrs.get("training"), str)):
        return False
    return all(_is_number(f1) and 0 <= f1 <= 1 for f1 in (*curve, attrs.get("f1_macro")))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
