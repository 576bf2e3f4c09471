"""What optuna-dashboard shows of a study besides its trials: notes, and each trained architecture as an artefact.

optuna-dashboard sqlite:///runs/NAME/study/study.db --artifact-dir runs/NAME/study/artifacts
"""

import tempfile
from pathlib import Path

import optuna
from optuna.artifacts import FileSystemArtifactStore, upload_artifact

from models.documents import dump_yaml
from models.spec import ModelSpec
from pipeline.config import BuildConfig

_ARTIFACTS = "artifacts"


def describe(study: optuna.Study, config: BuildConfig) -> None:
    """Once for each study."""
    from optuna_dashboard import get_note, save_note  # a second and a half: it imports scikit-learn

    if get_note(study):
        return
    search, latency = config.search, config.latency
    space = search.space if isinstance(search.space, str) else ", ".join(search.space)
    precisions = [p for p in latency.precisions if p != "int8"] or ["f32"]
    forms = ", ".join(search.measure or ()) or f"{', '.join(latency.runtimes)}; {', '.join(precisions)}"
    save_note(
        study,
        f"# edgebuild search: {space}\n\n"
        f"Three objectives: macro F1 on val/ after {search.epochs} epochs on {search.subset:.0%} of train/; p90 in ms "
        f"of the exported model, batch 1, {latency.threads} thread(s), the fastest of {forms}; parameters.\n\n"
        f"- The limit is **{latency.limit_ms:g} ms**. `over_limit` of a trial is its share over each limit: a "
        "candidate with one above 0 was told PRUNED without training.\n"
        "- A PRUNED trial with `f1_by_epoch` was trained and ended early, behind others that are as fast.\n"
        "- `details` holds every form that was timed, size, MACs and the network; the architecture of a trained trial "
        "is its artefact, `model.yaml`, which `edgebuild model show` prints.\n",
    )


def attach(trial: optuna.Trial, spec: ModelSpec, folder: Path) -> None:
    """The architecture, in the folder of artefacts beside the study."""
    store = folder / _ARTIFACTS
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "model.yaml"
        file.write_text(dump_yaml(spec.document(), default_flow_style=None))
        upload_artifact(artifact_store=FileSystemArtifactStore(store), file_path=str(file), study_or_trial=trial)
