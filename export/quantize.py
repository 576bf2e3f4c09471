"""INT8 by static quantization: ONNX Runtime's QDQ, and NNCF on the OpenVINO model. Calibrated on training images."""

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from export.artifact import METADATA_KEY, ModelCard
from export.errors import ExportError
from export.onnx_export import INPUT
from export.openvino_export import read_onnx, save_ir
from export.preprocess import Preprocess
from latency.runners.ov import explain


def calibration_images(paths: Sequence[Path], preprocess: Preprocess, count: int, seed: int) -> np.ndarray:
    """uint8 (n, size, size, 3): up to `count` of the images, drawn by the seed."""
    chosen = np.random.default_rng(seed).permutation(len(paths))[:count]
    return np.stack([preprocess.load(paths[i]) for i in sorted(chosen)])


def quantize_onnx(
    source: Path,
    images: np.ndarray,
    card: ModelCard,
    path: Path,
    per_channel: bool = True,
    unsigned: bool = False,
    reduce_range: bool = False,
    keep: Sequence[str] = (),
) -> None:
    """Static QDQ with signed 8-bit weights. images: uint8 (n, size, size, 3). Raises ExportError.

    unsigned: activations from 0 to 255 (U8S8) instead of -128 to 127 (S8S8). reduce_range: weights of 7 bits, so that
    U8S8 does not saturate on a CPU without 8-bit dot products (ONNX Runtime, "Quantize ONNX models"). keep: names of
    layers left in f32.
    """
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
        with _told_as_ours(f"{source}: ONNX Runtime cannot quantize it"):
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(path),
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=per_channel,
                reduce_range=reduce_range,
                activation_type=QuantType.QUInt8 if unsigned else QuantType.QInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=[*_input_nodes(prepared), *keep],
            )
    model = onnx.load_model(str(path))
    onnx.helper.set_model_props(model, {METADATA_KEY: card.to_json()})
    onnx.save_model(model, str(path))


def quantize_openvino(
    source: Path,
    images: np.ndarray,
    card: ModelCard,
    path: Path,
    fast: bool = False,
    keep: Sequence[str] = (),
    saturates: bool = False,
) -> None:
    """NNCF, with full bias correction or the fast one, which loses up to 15 points on small nets. keep: names of layers
    left in f32. saturates: see nncf_quantize. Raises ExportError."""
    model = nncf_quantize(read_onnx(source), [image[None] for image in images], str(source), fast, keep, saturates)
    save_ir(model, card, path)


def nncf_quantize(
    model: Any,
    samples: Sequence[Any],
    name: str,
    fast: bool = True,
    keep: Sequence[str] = (),
    saturates: bool = False,
) -> Any:
    """An OpenVINO or torch model with quantizers, their ranges from `samples` of its input. saturates: the CPU that it
    will run on sums products of 8 bits in 16, so weights keep to half of their range. Raises ExportError."""
    import nncf
    from nncf.quantization.advanced_parameters import OverflowFix

    logging.getLogger("nncf").setLevel(logging.ERROR)
    quietly = contextlib.redirect_stdout(io.StringIO())  # it shows a progress bar for each of its steps
    with _told_as_ours(f"{name}: NNCF cannot quantize it"), quietly:
        return nncf.quantize(
            model,
            nncf.Dataset(samples),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(samples),
            fast_bias_correction=fast,
            ignored_scope=nncf.IgnoredScope(names=list(keep)),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=OverflowFix.ENABLE if saturates else OverflowFix.FIRST_LAYER
            ),
        )


@contextlib.contextmanager
def _told_as_ours(what: str) -> Iterator[None]:
    """The errors of a quantizer, which share no base class, as an ExportError. A full disk is no fault of the
    network's."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise ExportError(f"{what}: {explain(error)}") from error


def layers_of(source: Path, runtime: str) -> list[str]:
    """Convolutions and matrix products of the f32 ONNX file, from the image on, by the names that `keep` takes."""
    if runtime == "openvino":
        kinds = ("Convolution", "GroupConvolution", "MatMul")
        return [op.get_friendly_name() for op in read_onnx(source).get_ordered_ops() if op.get_type_name() in kinds]
    import onnx

    graph = onnx.load_model(str(source), load_external_data=False).graph
    return [node.name for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]


def _input_nodes(path: Path) -> list[str]:
    """Names of the nodes from the image to the first convolution: cast, layout and normalisation stay exact."""
    import onnx

    reached, names = {INPUT}, []
    for node in onnx.load_model(str(path)).graph.node:
        if node.op_type != "Conv" and reached & set(node.input):
            reached |= set(node.output)
            names.append(node.name)
    return names
