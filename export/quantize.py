"""INT8 by static quantization: ONNX Runtime's QDQ, and NNCF on the OpenVINO model. Calibrated on training images."""

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from export.artifact import METADATA_KEY, ModelCard
from export.errors import ExportError
from export.onnx_export import INPUT
from export.openvino_export import read_onnx, save_ir

CALIBRATION_IMAGES = 200


def quantize_onnx(source: Path, images: np.ndarray, card: ModelCard, path: Path) -> None:
    """Static QDQ, signed activations and weights, per channel. images: uint8 (n, size, size, 3). Raises ExportError."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches: Iterator[np.ndarray] = (image[None] for image in images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self._batches, None)
            return None if batch is None else {INPUT: batch}

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(path),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_input_nodes(prepared),
        )
    model = onnx.load_model(str(path))
    onnx.helper.set_model_props(model, {METADATA_KEY: card.to_json()})
    onnx.save_model(model, str(path))


def quantize_openvino(source: Path, images: np.ndarray, card: ModelCard, path: Path) -> None:
    """NNCF with full bias correction (the fast one loses up to 15 points on small nets). Raises ExportError."""
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    dataset = nncf.Dataset([image[None] for image in images])
    try:
        model = nncf.quantize(
            read_onnx(source),
            dataset,
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(images),
            fast_bias_correction=False,
        )
    except (RuntimeError, ValueError, nncf.ValidationError) as error:
        raise ExportError(f"{source}: NNCF cannot quantize it: {error}") from error
    save_ir(model, card, path)


def _input_nodes(path: Path) -> list[str]:
    """Names of the nodes from the image to the first convolution: cast, layout and normalisation stay exact."""
    import onnx

    reached, names = {INPUT}, []
    for node in onnx.load_model(str(path)).graph.node:
        if node.op_type != "Conv" and reached & set(node.input):
            reached |= set(node.output)
            names.append(node.name)
    return names
