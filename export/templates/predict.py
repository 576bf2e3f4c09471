"""Label images with the model in this folder: python predict.py PATH...

PATH is an image or a folder of images, one image at a time. The table (path, label, score) goes to stdout, or to files:
  --csv FILE      the table
  --json FILE     an array of the same, with the logits of each class
  --output FILE   one JSON object in the shape of the lineage's output.csv: inference, time, macs
Needs what requirements.txt names and nothing else. Exit code: 0 all labelled, 1 some files could not be read (each is
reported) or --check failed, 2 no image found or wrong use. `python predict.py --check` compares the files' hashes with
the manifest, and what the golden samples give with what was recorded.
"""

import sys

if __name__ == "__main__":
    import os  # which Python has loaded already

    # No file in this folder is ever imported by its name.
    _here = os.path.realpath(__file__).rpartition(os.sep)[0]
    sys.path[:] = [p for p in sys.path if os.path.realpath(p or os.curdir) != _here]

import argparse
import collections
import contextlib
import csv
import hashlib
import json
import signal
import time
import types
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent


def from_source(name):
    """Load a module of this folder from its source, ignoring compiled code beside it."""
    module = sys.modules[name] = types.ModuleType(name)
    path = HERE / f"{name}.py"
    exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    return module


preprocess = from_source("preprocess")
ImageError, Preprocess, find_images = preprocess.ImageError, preprocess.Preprocess, preprocess.find_images
NAMES = "surrogateescape"  # file names are bytes, which may not be UTF-8


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


def predict(paths, manifest, report):
    """(path, label, score, logits, seconds of inference) of each file; report(error) for one that cannot be read."""
    infer, preprocess, labels = load(manifest), Preprocess(**manifest["preprocess"]), manifest["classes"]
    for path in paths:
        try:
            array = preprocess.load(path)[None]
        except ImageError as error:
            report(error)
            continue
        began = time.perf_counter()
        logits = infer(array)[0]
        took = time.perf_counter() - began
        if not np.isfinite(logits).all():
            sys.exit(f"{path}: the model's output is not finite; its file is damaged, or this CPU cannot run it")
        exponents = np.exp(logits - logits.max())
        best = int(logits.argmax())
        yield path, labels[best], float(exponents[best] / exponents.sum()), logits, took


def write_csv(out, rows):
    table = csv.writer(out)
    table.writerow(["path", "label", "score"])
    for path, label, score, _, _ in rows:
        table.writerow([path, label, f"{score:.6f}"])


def write_json(out, rows):
    before = "[\n"
    for path, label, score, logits, _ in rows:
        row = {"path": str(path), "label": label, "score": score, "logits": [float(v) for v in logits]}
        out.write(before + json.dumps(row))
        before = ",\n"
    out.write("\n]\n" if before == ",\n" else "[]\n")


def write_output(out, rows, evidence, images):
    """The shape of the lineage's output.csv, which is JSON: label and seconds by file name, by path where several files
    have that name."""
    alone = collections.Counter(path.name for path in set(images))
    began, inference, seconds = time.monotonic(), {}, {}
    for path, label, _, _, took in rows:
        name = path.name if alone[path.name] == 1 else str(path)
        inference[name], seconds[name] = label, took
    runtime = {"all": time.monotonic() - began, "inference_only": sum(seconds.values())}
    profile = {"cuda": 0.0, "cpu": evidence["latency"]["p50_ms"] / 1e3}
    times = {"profile": profile, "runtime": runtime, "inference": seconds}
    json.dump({"inference": inference, "time": times, "macs": evidence["macs"]}, out)


def check(manifest):
    """Check the files' hashes, that there are no other files, and the logits and labels of the golden samples."""
    present = {p.relative_to(HERE).as_posix() for p in HERE.rglob("*") if p.is_symlink() or not p.is_dir()}
    others = sorted(present - {"manifest.json", *manifest["files"]})
    if others:
        sys.exit(f"{', '.join(others[:5])}: not in the manifest; move it out of this folder")
    for name, digest in manifest["files"].items():
        if not (HERE / name).is_file() or hashlib.sha256((HERE / name).read_bytes()).hexdigest() != digest:
            sys.exit(f"{name}: differs from the manifest")
    samples, tolerance = manifest["golden"]["samples"], manifest["golden"]["tolerance"]
    worst, wrong = 0.0, 0
    for path, label, _, logits, _ in predict([HERE / name for name in samples], manifest, sys.exit):
        recorded = samples[path.relative_to(HERE).as_posix()]
        worst = max(worst, float(np.abs(logits - recorded["logits"]).max()))
        wrong += label != recorded["label"] and not recorded["near_tie"]
    agreed = worst <= tolerance and not wrong
    print(
        f"{len(samples)} golden samples: largest difference of a logit {worst:.2g}, allowed {tolerance:.2g}; ", end=""
    )
    print(f"{wrong} labels differ: {'they agree' if agreed else 'THEY DISAGREE'}")
    return 0 if agreed else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", help="images or folders")
    parser.add_argument("--csv", metavar="FILE", help="write the table to this file")
    parser.add_argument("--json", metavar="FILE", help="write JSON, with all logits, to this file (- for stdout)")
    parser.add_argument("--output", metavar="FILE", help="write JSON in the shape of the lineage's output.csv")
    parser.add_argument("--check", action="store_true", help="verify files and golden samples")
    args = parser.parse_args()
    if hasattr(signal, "SIGPIPE"):  # Windows has none
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    manifest = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
    if args.check:
        return check(manifest)
    wanted = [(w, f) for w, f in (("csv", args.csv), ("json", args.json), ("output", args.output)) if f]
    if len(wanted) > 1:
        parser.error("give one of --csv, --json and --output")
    missing = [p for p in args.paths if not Path(p).exists()]
    if missing or not args.paths:
        parser.error("no such file or folder: " + ", ".join(missing) if missing else "give at least one PATH")
    try:
        images = [image for path in args.paths for image in find_images(path)]
    except ImageError as error:
        parser.error(str(error))
    if not images:
        parser.error("no image found under " + ", ".join(args.paths))

    unread = 0

    def report(error):
        nonlocal unread
        unread += 1
        print(f"skipped: {error}", file=sys.stderr)

    rows = predict(images, manifest, report)
    shape, file = wanted[0] if wanted else ("csv", "-")
    with contextlib.ExitStack() as stack:
        out = sys.stdout
        if file == "-":
            out.reconfigure(errors=NAMES)
        else:
            try:
                out = stack.enter_context(Path(file).open("w", newline="", encoding="utf-8", errors=NAMES))
            except OSError as error:
                parser.error(f"{file}: cannot be written: {error.strerror}")
        if shape == "csv":
            write_csv(out, rows)
        elif shape == "json":
            write_json(out, rows)
        else:
            write_output(out, rows, manifest["evidence"], images)
    print(f"{len(images) - unread} images labelled, {unread} skipped", file=sys.stderr)
    return 1 if unread else 0


if __name__ == "__main__":
    sys.exit(main())
