"""ONNX file -> OpenVINO IR, with the card in its rt_info."""

from pathlib import Path
from typing import Any

from export.artifact import METADATA_KEY, ModelCard
from export.errors import ExportError


def read_onnx(path: Path) -> Any:
    """An openvino.Model. Raises ExportError."""
    import openvino as ov

    try:
        return ov.Core().read_model(path)
    except RuntimeError as error:
        raise ExportError(f"{path}: OpenVINO cannot read it: {error}") from error


def save_ir(model: Any, card: ModelCard, path: Path) -> None:
    """Write `path` (.xml) and its .bin; weights as they are, not compressed to 16 bits."""
    import openvino as ov

    model.set_rt_info(card.to_json(), [METADATA_KEY])
    ov.save_model(model, path, compress_to_fp16=False)
