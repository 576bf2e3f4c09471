"""The formats of `edgebuild export`, known without torch."""

from pipeline.errors import PipelineError

FORMATS = {"onnx": "model.onnx", "openvino": "model.xml"}
"""Format -> the file it is written to."""


def parse_formats(text: str) -> tuple[str, ...]:
    """Names separated by commas. Raises PipelineError naming the known ones."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        raise PipelineError(
            f"--format {','.join(unknown) or 'nothing'}: expected some of {', '.join(FORMATS)}, separated by commas"
        )
    return names
