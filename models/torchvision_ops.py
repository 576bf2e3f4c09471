"""timm imports torchvision, whose compiled operators do not load beside a torch of another build.

`import torchvision` then fails with 'operator torchvision::nms does not exist', although we use its Python parts only.
Where the library's own operators did not load, the two schemas that its import looks up are defined here, empty.
"""

import importlib.util
import logging

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_NAMES = ("nms", "qnms")
_log = logging.getLogger("edgebuild")
_library: torch.library.Library | None = None


def operators_load() -> bool:
    """Whether torchvision's own compiled operators load beside this torch."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return False
    for folder in spec.submodule_search_locations:
        extension = importlib.machinery.PathFinder.find_spec("_C", [folder])
        if extension is not None and extension.origin:
            try:
                torch.ops.load_library(extension.origin)
            except OSError:
                return False
            return True
    return False


def ensure() -> None:
    """Make `import torchvision` succeed; a no-op where it does by itself, or where this ran before."""
    global _library
    if _library is not None or operators_load():
        return
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for name in _NAMES:
        if not hasattr(torch.ops.torchvision, name):
            _library.define(name + _SCHEMA)
    _log.info(
        "torchvision's compiled operators do not load beside torch %s; only its Python parts are used, "
        "so empty schemas for %s stand in",
        torch.__version__,
        ", ".join(f"torchvision::{n}" for n in _NAMES),
    )
