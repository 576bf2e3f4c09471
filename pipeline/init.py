"""A first `build.yaml`: from what the photos and this CPU are like."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image

from export.preprocess import DECODERS, ImageError
from latency.host import INT8_DOT, Host, this_host
from models.language import first_line
from pipeline.config import load_config
from pipeline.data.index import Index, scan
from pipeline.data.stage import DRAWN
from pipeline.data.tree import SPLITS
from pipeline.errors import PipelineError
from pipeline.files import templates, write_text
from pipeline.stages import Say

NETWORK = "tf_efficientnet_lite0"
"""Of those of timm that are quick on a CPU in INT8 (no squeeze-excite, ReLU6), the one with the best student here."""
_TEMPLATES = Path(__file__).parent / "templates"
_REFERENCE, _ROOM = "cpu_small", 1.5
"""Without a limit given: so many times what this network of the zoo takes here."""
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
    if file.exists():
        raise PipelineError(f"{file}: exists already; give another with -o, or remove it")
    try:
        str(root).encode()
    except UnicodeEncodeError as error:
        raise PipelineError(f"{str(root)!a}: this path is not UTF-8, so no config can name it: rename it") from error
    index, host = scan(root, 0), this_host()
    found = weights if weights != "auto" else ("hub" if hub_answers(say) else "none")
    if found not in ("hub", "none") and not Path(found).is_file():
        raise PipelineError(f"--weights {found}: no such file; give hub, none, or a .safetensors file of {NETWORK}")
    known = limit_ms is not None
    limit = limit_ms if limit_ms is not None else proposed_limit_ms(host, say)
    facts = {
        "file": file,
        "root": f"./{root}" if str(root) == DRAWN else str(root),
        "images": images,
        "limit_s": limit_s,
        "limit_ms": f"{limit:g}",
        "limit_why": "as you said" if known else f"{_ROOM:g} times what the zoo's {_REFERENCE} takes: put yours",
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
        "forms": [f"openvino-{'bf16' if host.has_bf16 else 'f32'}", "openvino-int8"],
    }


def proposed_limit_ms(host: Host, say: Say) -> float:
    """A limit that a small network keeps here, with two digits."""
    import tempfile

    from models.spec import ModelSpec
    from pipeline.search.measured import CandidateTimer, forms
    from pipeline.training.checkpoint import student_card

    say(f"no --limit-ms was given: timing {_REFERENCE} of the zoo, to propose one")
    spec = ModelSpec.load(_REFERENCE)
    wanted = forms(("onnxruntime", "openvino"), ("f32", "bf16"), host, None)
    with tempfile.TemporaryDirectory() as folder, CandidateTimer(Path(folder), wanted, 1, 1e3) as timer:
        timings = timer.time(spec, student_card(spec, ("a", "b"), "squash"), 0)
    return float(f"{_ROOM * timings[0].p90_ms:.2g}")


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
