"""Studies of Optuna as this project keeps them: opened without a password in any message, shared by workers that must
mean the same by a trial, and with trials that a killed worker left taken up again."""

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState

from models.language import canonical_hash
from pipeline.config import without_password
from pipeline.errors import EnvironmentProblem, PipelineError

Direction = Literal["maximize", "minimize"]
HEARTBEAT_S, GRACE_S = 10, 60
"""A worker that is stopped for longer than the second is taken for dead, and its trial is tried again by another."""
_RETRIES = 3
"""Of one trial: what kills its worker four times is no accident."""
_WORKER, _MEANING, _TRIES, REAPED = "worker", "meaning", "tries", "reaped"


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
    with _told(url):
        storage = RDBStorage(
            url,
            heartbeat_interval=HEARTBEAT_S,
            grace_period=GRACE_S,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(_RETRIES),
        )
        study = optuna.create_study(study_name=name, storage=storage, directions=directions, load_if_exists=True)
        _agree(study, meaning)
        if study.metric_names is None:
            study.set_metric_names(list(metrics))
    return study


def load_study(url: str, name: str) -> optuna.Study:
    """One that is there. Raises PipelineError."""
    quiet_optuna()
    with _told(url):
        try:
            return optuna.load_study(study_name=name, storage=RDBStorage(url))
        except KeyError as error:
            raise PipelineError(
                f"search.storage: {without_password(url)}: it holds no study {name!r}; search again, or give the "
                "database that the search was made with"
            ) from error


def _agree(study: optuna.Study, meaning: dict[str, Any] | None) -> None:
    if meaning is None:
        return
    known = study.user_attrs.get(_MEANING)
    if known is None and not study.get_trials(deepcopy=False):
        study.set_user_attr(_MEANING, {k: _short(v) for k, v in meaning.items()})
        known = study.user_attrs[_MEANING]
    ours = {k: _short(v) for k, v in meaning.items()}
    different = [k for k in ours if (known or {}).get(k) != ours[k]]
    if different:
        raise PipelineError(
            f"search.study: the study {study.study_name!r} was begun with another {', another '.join(different)}; all "
            "who take part in a study need the same: give theirs, or another name"
        )


def _short(value: Any) -> Any:
    return value if isinstance(value, int | float | str) else canonical_hash(value)


@contextlib.contextmanager
def _told(url: str) -> Iterator[None]:
    """A database's errors in our words, without the password that some of theirs hold."""
    import sqlalchemy

    shown = without_password(url)
    try:
        yield
    except sqlalchemy.exc.NoSuchModuleError as error:
        raise PipelineError(f"search.storage: {shown}: SQLAlchemy knows no such database; take postgresql") from error
    except sqlalchemy.exc.ArgumentError as error:
        raise PipelineError("search.storage: no database URL; expected one like sqlite:///study.db") from error
    except ImportError as error:
        raise EnvironmentProblem(
            f"search.storage: {shown}: the driver of that database is missing; for PostgreSQL: pip "
            "install 'edgebuild[postgresql]'"
        ) from error
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise EnvironmentProblem(f"search.storage: {shown}: cannot be opened: {_reason(error, url)}") from error
    except RuntimeError as error:
        if "optuna storage upgrade" not in str(error):
            raise
        raise EnvironmentProblem(
            f"search.storage: {shown}: its tables are of another version of Optuna than {optuna.__version__}; after a "
            "copy of it was put aside, `optuna storage upgrade --storage URL` brings an older one up to date"
        ) from error


def _reason(error: Exception, url: str) -> str:
    lines = str(getattr(error, "orig", None) or error).strip().splitlines() or [type(error).__name__]
    _, _, rest = url.partition("://")
    _, colon, password = rest.rpartition("@")[0].partition(":")
    return lines[0].replace(password, "***") if colon and password else lines[0]


@contextlib.contextmanager
def alive(study: optuna.Study, trial: optuna.Trial, worker: str) -> Iterator[None]:
    """Signs of life of a trial while it is worked at. What it is told later than that by another is dropped."""
    trial.set_user_attr(_WORKER, worker)
    storage, ended = study._storage, threading.Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT_S):
            with contextlib.suppress(Exception):  # a database out of reach for a moment; the next beat may get there
                storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]

    storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    except UpdateFinishedTrialError:
        pass  # taken for dead meanwhile, and tried again by another
    finally:
        ended.set()
        thread.join()


def take_up(study: optuna.Study, worker: str) -> None:
    """Try again what this worker, or one of its crew, left RUNNING when it was killed. What others left is found once
    it has given no sign of life for GRACE_S (optuna.storages.fail_stale_trials)."""
    for left in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        owner = str(left.user_attrs.get(_WORKER))
        if owner == worker or owner.startswith(f"{worker}/"):
            trial = optuna.trial.Trial(study, left._trial_id)
            trial.set_user_attr(REAPED, True)
            study.tell(trial, state=TrialState.FAIL)
            tries = left.user_attrs.get(_TRIES, 0) + 1
            if (params := known_params(left)) and tries <= _RETRIES:
                study.enqueue_trial(params, user_attrs={_TRIES: tries})


def known_params(trial: FrozenTrial) -> dict[str, Any]:
    """What it was asked to try, and what it drew."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def own_trials(study: optuna.Study) -> list[FrozenTrial]:
    """All but those that were given up when their worker died, for they are tried again."""
    trials = study.get_trials(deepcopy=False)
    again = {n for t in trials for n in t.system_attrs.get("retry_history", [])}
    return [t for t in trials if REAPED not in t.user_attrs and t.number not in again]
