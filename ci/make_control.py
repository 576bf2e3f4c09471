"""Writes latency/control.onnx, the fixed network that is timed along with every file.

Not run by the build: the file is committed, so that every host times the same bytes. `python ci/make_control.py`
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTHS = (16, 24, 32, 48, 64)
SIZE = 112


def network(widths: tuple[int, ...], size: int) -> onnx.ModelProto:
    """A stem, and for each further width a depthwise, a pointwise and a full convolution."""
    rng = np.random.default_rng(2026)
    nodes, weights = [], []

    def conv(name: str, source: str, cin: int, cout: int, kernel: int, stride: int, groups: int = 1) -> str:
        scale = (2.0 / (cin // groups * kernel * kernel)) ** 0.5
        weight = (rng.standard_normal((cout, cin // groups, kernel, kernel)) * scale).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"{name}_w"))
        pad = kernel // 2
        nodes.append(
            helper.make_node(
                "Conv",
                [source, f"{name}_w"],
                [name],
                kernel_shape=[kernel] * 2,
                strides=[stride] * 2,
                pads=[pad] * 4,
                group=groups,
            )
        )
        nodes.append(helper.make_node("Relu", [name], [f"{name}_r"]))
        return f"{name}_r"

    x = conv("stem", "images", 3, widths[0], 3, 2)
    for i, (cin, cout) in enumerate(pairwise(widths)):
        x = conv(f"dw{i}", x, cin, cin, 3, 2, groups=cin)
        x = conv(f"pw{i}", x, cin, cout, 1, 1)
        x = conv(f"full{i}", x, cout, cout, 3, 1)
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["features"]))
    graph = helper.make_graph(
        nodes,
        "control",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, size, size])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [1, widths[-1]])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> None:
    onnx.save(network(WIDTHS, SIZE), Path(__file__).parent.parent / "latency" / "control.onnx")


if __name__ == "__main__":
    main()
