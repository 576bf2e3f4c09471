"""A first `build.yaml`: from what the photos and this CPU are like."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image

from export.preprocess import DECODERS, ImageError
from latency.host import INT8_DOT, Host, this_host
from models.language import first_line
from models.spec import ModelSpec
from pipeline.config import DRAWN, NO_FILE, load_config
from pipeline.data.index import Index, scan
from pipeline.data.tree import SPLITS
from pipeline.errors import PipelineError
from pipeline.files import refuse_odd_path, templates, write_text
from pipeline.stages import Say

NETWORK = "tf_efficientnet_lite0"
"""Of those of timm that are quick on a CPU in INT8 (no squeeze-excite, ReLU6), the one with the best student here."""
_TEMPLATES = Path(__file__).parent / "templates"
_ROOM = 1.15
"""Without a limit given: so many times what the middle one of these networks takes here. In INT8 more keep it."""
_BACKBONES = (NETWORK, "mobilenetv2_100", "mobilenetv3_large_100")
_UNTIL, _CUT_SIZES, _DRAWS = ("blocks.3", "blocks.5"), (112, 160), 12
_NO_LIMIT_MS = 1e3
_STUDENT_VIEWS, _TEACHER_VIEWS, _SEARCH_VIEWS = 100_000, 22_000, 3_500
"""Photos that are learnt from in all, as `trashnet` has them (1,500 photos: 60, 14 and 4 epochs)."""
_LONG = 1.6
"""Longer over shorter side of the middle photo, above which squashing it to a square is a distortion."""
_SAMPLE, _NAMED = 200, 8


def write_build(
    root: Path, file: Path, limit_ms: float | None, weights: str, images: int | None, limit_s: float | None, say: Say
) -> dict[str, Any]:
    """Write `file` and check it; {"config", "limit_ms", "weights", "classes", "counts"}. weights: auto, hub, none or a
    .safetensors file of NETWORK. Raises PipelineError."""
    for path in (root, file):
        refuse_odd_path(path)
    if file.exists():
        raise PipelineError(f"{file}: exists already; give another with -o, or remove it")
    index, host = scan(root, 0), this_host()
    found = weights if weights != "auto" else ("hub" if hub_answers(say) else "none")
    if found not in NO_FILE and not Path(found).is_file():
        raise PipelineError(f"--weights {found}: no such file; give hub, none, or a .safetensors file of {NETWORK}")
    limit, why = (limit_ms, "as you said") if limit_ms is not None else proposed_limit(found != "none", host, say)
    facts = {
        "file": file,
        "root": f"./{root}" if str(root) == DRAWN else str(root),
        "images": images,
        "limit_s": limit_s,
        "limit_ms": repr(limit).removesuffix(".0"),
        "limit_why": why,
        "weights": found,
        "pretrained": found != "none",
        "network": NETWORK,
        **_of_photos(index),
        **_of_host(host),
    }
    environment = templates(_TEMPLATES)
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}  # PyYAML reads no surrogate pairs
    write_text(file, environment.get_template("build.yaml").render(facts) + "\n")
    try:
        config = load_config(file)
    except PipelineError:
        file.unlink()
        raise
    return {
        "config": str(file),
        "limit_ms": config.latency.limit_ms,
        "limit_why": why,
        "weights": found,
        "classes": list(index.classes),
        "counts": index.counts(),
    }


def _of_photos(index: Index) -> dict[str, Any]:
    """What the template says of the photos, and the epochs that suit their number."""
    train = len(index.splits["train"])
    by_class = index.counts()["train"]
    shape = _shape(index.paths("train"))
    epochs = _clamp(_STUDENT_VIEWS / train, 6, 60)
    subset = 0.5 if train >= 600 else 1.0
    return {
        "classes": _named(index.classes),
        "photos": ", ".join(f"{len(index.splits[s])} photos in {s}/" for s in SPLITS if s in index.splits),
        "train": train,
        "seen": epochs * train,
        "fit": "pad" if shape > _LONG else "squash",
        "shape": f"{shape:.2f}",
        "most": max(by_class.values()),
        "least": min(by_class.values()),
        "epochs": epochs,
        "views": max(1, epochs // 3),
        "teacher_epochs": _clamp(_TEACHER_VIEWS / train, 4, 14),
        "search_epochs": _clamp(_SEARCH_VIEWS / (subset * train), 2, 8),
        "subset": subset,
        "f1_floor": round(min(0.4, 1.5 / len(index.classes)), 2),
        "chance": f"{1 / len(index.classes):.2f}",
    }


def _named(classes: Sequence[str]) -> str:
    """On a line of a comment."""
    more = f" and {len(classes) - _NAMED} more" if len(classes) > _NAMED else ""
    names = "".join(c if c.isprintable() else " " for c in ", ".join(classes[:_NAMED]))
    return f"{len(classes)} classes: {names}{more}"


def _shape(paths: Sequence[Path]) -> float:
    """Longer over shorter side of the middle photo."""
    found = []
    for path in paths[:: max(1, len(paths) // _SAMPLE)]:
        try:
            with Image.open(path, formats=DECODERS) as image:
                found.append(max(image.size) / min(image.size))
        except OSError as error:
            raise ImageError(f"{path}: {error}") from error
    return median(found)


def _clamp(value: float, low: int, high: int) -> int:
    return max(low, min(high, round(value)))


def _of_host(host: Host) -> dict[str, Any]:
    told = ["f32", *(["bf16"] if host.has_bf16 else []), "INT8" if host.has_any(INT8_DOT) else "INT8 (slow here)"]
    return {
        "cpu": host.cpu,
        "cores": host.cores,
        "arithmetic": ", ".join(told),
    }


def proposed_limit(pretrained: bool, host: Host, say: Say) -> tuple[float, str]:
    """(a limit in ms that half of what a search would try keep here at rest with room, what it is made of)."""
    import tempfile

    from pipeline.search.measured import CandidateTimer, forms
    from pipeline.training.checkpoint import student_card

    specs = _cuts() if pretrained else _from_scratch()
    what = f"{len(specs)} {f'cuts of {_listed(_BACKBONES)}' if pretrained else 'networks of the space cpu'}"
    say(f"no --limit-ms was given: timing {what}, to propose one")
    wanted = forms(("onnxruntime", "openvino"), ("f32", "bf16"), host)
    with tempfile.TemporaryDirectory() as folder, CandidateTimer(Path(folder), wanted, 1, _NO_LIMIT_MS) as timer:
        cards = [student_card(spec, ("a", "b"), "squash") for spec in specs]
        for spec, card in zip(specs, cards, strict=True):
            timer.time(spec, card, 0)
        # Each is known by now, and so is what the host takes at rest.
        p90s_ms = [timer.time(spec, card, 0)[0].p90_ms for spec, card in zip(specs, cards, strict=True)]
    limit_ms = float(f"{_ROOM * median(p90s_ms):.2g}")
    kept = sum(p90_ms <= limit_ms for p90_ms in p90s_ms)
    return limit_ms, f"{kept} of {what} keep it here, in {' or '.join(map(str, wanted))}: put yours"


def _cuts() -> list[ModelSpec]:
    layers = [
        (size, [1, "Timm", [network, until]]) for network in _BACKBONES for until in _UNTIL for size in _CUT_SIZES
    ]
    head = [[1, "GlobalAvgPool", []], [1, "Linear", [2]]]
    return [ModelSpec.parse({"INPUT_SIZE": [size, size], "backbone": [layer, *head]}) for size, layer in layers]


def _from_scratch() -> list[ModelSpec]:
    import optuna

    from models.space import SearchSpace
    from pipeline.study import quiet_optuna

    quiet_optuna()
    study, space = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)), SearchSpace.load("cpu")
    return [space.suggest(study.ask(), 2).spec for _ in range(_DRAWS)]


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def hub_answers(say: Say) -> bool:
    """Whether weights can be had from the hub."""
    from httpx2 import HTTPError
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(f"timm/{NETWORK}.in1k", timeout=5)
    except (OSError, HTTPError) as error:
        say(f"the hub does not answer ({first_line(error)}): networks from scratch; or give --weights FILE")
        return False
    return True
