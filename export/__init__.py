"""What is shipped: preprocessing, ONNX, OpenVINO, INT8, parity, bundle."""

FORMAT = 1
"""Format number of the records stored by this package. 1: first."""
