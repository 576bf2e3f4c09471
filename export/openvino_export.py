"""ONNX file -> OpenVINO IR, with the card in its rt_info."""

from pathlib import Path
from typing import Any

from export.artifact import METADATA_KEY, ModelCard
from export.errors import ExportError
from latency.runners.ov import explain


def read_onnx(path: Path) -> Any:
    """An openvino.Model, its constants folded. Raises ExportError.

    Unfolded, a bias is a Reshape of a constant, which NNCF does not recognise: its bias correction then does nothing,
    fast or full, and says nothing.
    """
    import openvino as ov
    from openvino.passes import ConstantFolding, Manager

    try:
        model = ov.Core().read_model(path)
    except RuntimeError as error:
        raise ExportError(f"{path}: OpenVINO cannot read it: {explain(error)}") from error
    passes = Manager()
    passes.register_pass(ConstantFolding())
    passes.run_passes(model)
    return model


def save_ir(model: Any, card: ModelCard, path: Path, f16: bool = False) -> None:
    """Write `path` (.xml) and its .bin. f16: weights are stored in 16 bits and computed with in the run's precision."""
    import openvino as ov

    model.set_rt_info(card.to_json(), [METADATA_KEY])
    # OpenVINO numbers what it names itself (constants, the two halves of a ReLU6) through the life of a process; by
    # position the same model gives the same bytes.
    for i, op in enumerate(model.get_ordered_ops()):
        if op.get_type_name() == "Constant" or op.get_friendly_name() == op.get_name():
            op.set_friendly_name(f"{op.get_type_name()}_{i}")
    ov.save_model(model, path, compress_to_fp16=f16)
