"""Label images with the model in this folder: python predict.py PATH... [--csv FILE]

PATH is an image or a folder of images. Needs what requirements.txt names and nothing else. Without --csv the table goes
to stdout. Exit code: 0 all labelled, 1 some files could not be read (each is reported), 2 no image found or wrong use.
`python predict.py --check` runs the golden samples and compares with the recorded logits.
"""

import argparse
import contextlib
import csv
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from preprocess import ImageError, Preprocess, find_images

HERE = Path(__file__).resolve().parent


def load(manifest):
    """The model as a function: uint8 (1, size, size, 3) -> logits (1, classes)."""
    model = manifest["model"]
    path = HERE / model["path"]
    if model["runtime"] == "onnxruntime":
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = model["threads"]
        options.inter_op_num_threads = 1
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda images: session.run(None, {name: images})[0]
    import openvino as ov

    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if model["precision"] == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": model["threads"],
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = ov.Core().compile_model(str(path), "CPU", settings).create_infer_request()
    inputs, outputs = request.get_input_tensor().data, request.get_output_tensor(0).data

    def infer(images):
        inputs[...] = images  # bound once: a dict of inputs would cost 45 us a call
        request.infer(share_outputs=True)
        return outputs

    return infer


def softmax(logits):
    exponents = np.exp(logits - logits.max())
    return exponents / exponents.sum()


def check(manifest, infer):
    """Hashes of the files and logits of the golden samples."""
    for name, digest in manifest["files"].items():
        if hashlib.sha256((HERE / name).read_bytes()).hexdigest() != digest:
            sys.exit(f"{name}: differs from the manifest")
    golden = np.load(HERE / "golden.npz")
    logits = np.concatenate([infer(image[None]).copy() for image in golden["images"]])
    difference = float(np.abs(logits - golden["logits"]).max())
    same = bool((logits.argmax(1) == golden["logits"].argmax(1)).all())
    print(f"{len(logits)} golden samples: largest difference {difference:.2g}, labels {'agree' if same else 'DIFFER'}")
    return 0 if same else 1


def label(images, manifest, out):
    """One row an image; the number of files that could not be read."""
    infer, preprocess, labels = load(manifest), Preprocess(**manifest["preprocess"]), manifest["classes"]
    table = csv.writer(out)
    table.writerow(["path", "label", "score"])
    unread = 0
    for path in images:
        try:
            scores = softmax(infer(preprocess.load(path)[None])[0])
        except ImageError as error:
            unread += 1
            print(f"skipped: {error}", file=sys.stderr)
            continue
        best = int(scores.argmax())
        table.writerow([path, labels[best], f"{scores[best]:.6f}"])
    return unread


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", help="images or folders")
    parser.add_argument("--csv", help="write the table to this file instead of stdout")
    parser.add_argument("--check", action="store_true", help="verify files and golden samples")
    args = parser.parse_args()
    manifest = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
    if args.check:
        return check(manifest, load(manifest))
    missing = [p for p in args.paths if not Path(p).exists()]
    if missing or not args.paths:
        parser.error("no such file or folder: " + ", ".join(missing) if missing else "give at least one PATH")
    images = [image for path in args.paths for image in find_images(path)]
    if not images:
        parser.error("no image found under " + ", ".join(args.paths))
    with contextlib.ExitStack() as stack:
        csv_file = Path(args.csv) if args.csv else None
        out = stack.enter_context(csv_file.open("w", newline="", encoding="utf-8")) if csv_file else sys.stdout
        unread = label(images, manifest, out)
    print(f"{len(images) - unread} images labelled, {unread} skipped", file=sys.stderr)
    return 1 if unread else 0


if __name__ == "__main__":
    sys.exit(main())
