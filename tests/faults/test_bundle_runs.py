"""Bundles in the sandbox: spoiled ones, each refused with its named cause, and good ones, which are not."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export import rehearsal
from export.artifact import Artifact
from export.bundle import write_bundle
from export.checks import Limits
from export.formats import FORMATS, Source, write_formats
from export.lock import lock, parse_pins, render_pins
from export.preflight import check
from export.preprocess import Preprocess
from latency.lock import timing_lock
from tests.conftest import ROOT
from tests.faults.bundles import cause, edit, needs_sandbox, refused, replace_text, seal


def other_mean(bundle):
    model = onnx.load(bundle / "model.onnx")
    subtracted = {i for n in model.graph.node if n.op_type == "Sub" for i in n.input}
    (mean,) = [t for t in model.graph.initializer if t.name in subtracted]
    mean.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(mean) - 5, mean.name))
    onnx.save(model, bundle / "model.onnx")


def other_std(bundle):
    """The division is folded into the first convolution."""
    model = onnx.load(bundle / "model.onnx")
    first = next(n for n in model.graph.node if n.op_type == "Conv")
    weight = next(t for t in model.graph.initializer if t.name == first.input[1])
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(0.9), weight.name))
    onnx.save(model, bundle / "model.onnx")


def bgr(bundle):
    replace_text(bundle / "predict.py", "preprocess.load(path)[None]", "preprocess.load(path)[None, :, :, ::-1]")


def other_filter(bundle):
    edit(bundle, lambda m: m["preprocess"].update(filter="bicubic"))


def no_exif(bundle):
    replace_text(bundle / "preprocess.py", "ImageOps.exif_transpose(image)", "image")


def swapped_labels(bundle):
    edit(bundle, lambda m: m.update(classes=m["classes"][::-1]))
    (bundle / "labels.txt").write_text("".join(f"{c}\n" for c in "fedcba"))


def missing_dependency(bundle):
    path = bundle / "requirements.txt"
    path.write_text(re.sub(r"^numpy==.*?(?=^\w)", "", path.read_text(), flags=re.MULTILINE | re.DOTALL))


def unlocked_import(bundle):
    replace_text(bundle / "predict.py", "import argparse", "import argparse\nimport scipy")


def wrong_version(bundle):
    path = bundle / "requirements.txt"
    path.write_text(re.sub(r"^onnxruntime==\S+", "onnxruntime==0.0.1", path.read_text(), flags=re.MULTILINE))


def missing_external_data(bundle):
    model = onnx.load(bundle / "model.onnx")
    onnx.save_model(model, bundle / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    (bundle / "weights.bin").unlink()


def nan_scores(bundle):
    replace_text(bundle / "predict.py", "float(exponents[best] / exponents.sum())", "float('nan')")


def lying_csv(bundle):
    old, new = 'table.writerow([path, label, f"{score:.6f}"])', 'table.writerow([path, "a", 1])'
    replace_text(bundle / "predict.py", old, new)


def nested_output(bundle):
    old = '    before = "[\\n"\n'
    replace_text(bundle / "predict.py", old, f'    out.write("[" * 60_000)\n    return\n{old}')


def output_that_is_a_link(bundle):
    code = (
        "    import os\n    os.unlink(out.name)\n    os.symlink('/disk/bundle/manifest.json', out.name)\n    return\n"
    )
    replace_text(bundle / "predict.py", '    before = "[\\n"\n', code)


def a_package_that_nothing_needs(bundle):
    (pin,) = [p for p in lock("openvino").pins if p.name == "openvino-telemetry"]
    path = bundle / "requirements.txt"
    path.write_text(render_pins([*parse_pins(path.read_bytes()), pin]))


def a_hash_of_another_wheel(bundle):
    path = bundle / "requirements.txt"
    path.write_text(render_pins([replace(p, hashes=("0" * 64,)) for p in parse_pins(path.read_bytes())]))


def newer_ir(bundle):
    model = onnx.load(bundle / "model.onnx")
    model.ir_version = 99
    onnx.save(model, bundle / "model.onnx")


def nan_outputs(bundle):
    model = onnx.load(bundle / "model.onnx")
    weight = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    weight.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(weight), np.nan), weight.name))
    onnx.save(model, bundle / "model.onnx")


def reaches_for_the_network(bundle):
    code = "import socket\nsocket.create_connection(('192.0.2.1', 80), timeout=5)\n"
    replace_text(bundle / "predict.py", "import argparse", f"{code}import argparse")


SPOILED = {
    other_mean: ("golden samples", "a logit of"),
    other_std: ("golden samples", "a logit of"),
    bgr: ("golden samples", "a logit of"),
    other_filter: ("golden samples", "only the drawn files differ: the preprocessing is another"),
    no_exif: ("golden samples", "turned.jpg", "the preprocessing is another"),
    swapped_labels: ("labels", "the recorded label is not that of its largest logit"),
    missing_dependency: ("dependencies", "numpy"),
    unlocked_import: ("dependencies", "the lock leaves out scipy"),
    wrong_version: ("dependencies", "onnxruntime"),
    missing_external_data: ("model",),
    nan_scores: ("outputs", "--json"),
    lying_csv: ("outputs", "--csv: its labels are not those of --json"),
    nested_output: ("outputs", "--json: JSON: "),
    output_that_is_a_link: ("outputs", "--json"),
    a_package_that_nothing_needs: ("dependencies", "names openvino-telemetry, which nothing in it needs"),
    a_hash_of_another_wheel: ("dependencies", "none of the hashes of the lock"),
    newer_ir: ("model", "99"),
    nan_outputs: ("outputs", "not finite"),
    reaches_for_the_network: ("golden", "Network is down"),
}


@pytest.mark.slow
@needs_sandbox
@pytest.mark.parametrize("spoil", SPOILED, ids=lambda spoil: spoil.__name__)
def test_a_spoiled_bundle_is_refused_by_its_cause(bundle, wheels, spoil):
    spoil(bundle)
    seal(bundle)
    name, *told = SPOILED[spoil]
    refused(bundle, name, *told, wheels=wheels)


@pytest.mark.slow
@needs_sandbox
def test_a_preprocessing_that_is_none_is_found_in_the_sandbox_not_here(bundle, wheels, photos):
    edit(bundle, lambda m: m["preprocess"].update(size=-1, filter="none"))
    seal(bundle)
    refused(bundle, "golden", "unknown preprocessing", wheels=wheels, photos=photos.paths)


@pytest.mark.slow
@needs_sandbox
def test_int8_that_was_calibrated_on_black_images_saturates(exported, evidence_of, locks, wheels, tmp_path, photos):
    """Packed as if it were the good INT8 file: its golden samples and its recorded labels are those of the good one."""
    black, right = np.zeros_like(exported.images[:8]), photos.arrays(exported.card)
    folders = {}
    for name, images in (("right", right), ("black", black)):
        source = Source(exported.folder / "model.onnx", exported.card, images)
        (written,) = write_formats(source, ["onnx-int8"], tmp_path / name)
        artifact = Artifact(Path(written.path), "onnxruntime", "int8")
        folders[name] = tmp_path / name / "bundle"
        evidence = evidence_of(artifact, exported.card)
        write_bundle(folders[name], artifact, exported.card, 1, locks["onnxruntime"], evidence)
    shutil.copy(folders["black"] / "model.onnx", folders["right"] / "model.onnx")
    seal(folders["right"])
    refused(folders["right"], "golden samples", "a logit of", wheels=wheels, photos=photos.paths)


@pytest.mark.slow
@needs_sandbox
@pytest.mark.parametrize("disk", [5_000_000, 60_000_000, 150_000_000])
def test_over_the_disk(good, wheels, disk):
    refused(good, "disk", f"{disk / 1e6:.0f} MB are not enough", limits=Limits(disk_bytes=disk), wheels=wheels)


@pytest.mark.slow
@needs_sandbox
def test_over_the_disk_by_what_predict_writes(bundle, wheels):
    code = "open('/disk/large', 'wb').write(bytes(400_000_000))\n"
    replace_text(bundle / "predict.py", "import argparse", f"{code}import argparse")
    seal(bundle)
    refused(bundle, "disk", "full at the step 'golden'", limits=Limits(disk_bytes=500_000_000), wheels=wheels)


@pytest.mark.slow
@needs_sandbox
def test_over_the_memory(bundle, wheels):
    replace_text(bundle / "predict.py", "HERE = ", "HOG = np.ones(100_000_000)\nHERE = ")
    seal(bundle)
    limits = Limits(memory_bytes=500_000_000)
    refused(bundle, "memory", "does not run in 500 MB; it held", limits=limits, wheels=wheels)


@pytest.mark.slow
@needs_sandbox
def test_over_the_time(bundle, wheels, monkeypatch):
    monkeypatch.setattr("export.checks._FEW_S", 8)
    replace_text(bundle / "predict.py", "HERE = ", "import time as _t\n_t.sleep(60)\nHERE = ")
    seal(bundle)
    refused(bundle, "time", "'golden' was ended after", limits=Limits(seconds=2), wheels=wheels)


@pytest.mark.slow
@needs_sandbox
def test_a_crash_on_many_images_is_no_answer(bundle, wheels, photos):
    """Exit code 1 is also what predict.py gives where some files cannot be read."""
    replace_text(bundle / "predict.py", "    unread = 0\n", "    unread = 0\n    assert len(images) < 50\n")
    seal(bundle)
    refused(bundle, "images", "code 1", "AssertionError", wheels=wheels, photos=photos.paths)


@pytest.mark.slow
@needs_sandbox
def test_labels_for_some_images_only_are_no_answer(bundle, wheels, photos):
    replace_text(bundle / "predict.py", "    rows = predict(images,", "    rows = predict(images[:40],")
    seal(bundle)
    refused(bundle, "outputs", "40 labels for 200 images", wheels=wheels, photos=photos.paths)


def only_foreign(found):
    """All is well but that predict.py is not edgebuild's own, so nobody knows what it does elsewhere."""
    assert found.verdict == "inconclusive"
    (reason,) = found.reasons
    assert reason.startswith("code: predict.py is not edgebuild's own"), reason


@pytest.fixture
def few_processes(monkeypatch):
    """For what is not about times: each process of the timing takes seconds."""
    monkeypatch.setattr("export.preflight.PROCESSES", 2)


ATTACK = """
import os, signal, time
driver = os.getppid()
for fd in range(30):
    try: open(f"/proc/{driver}/fd/{fd}", "w").write('{"steps": {}}\\n' * 9)
    except OSError: continue
    raise SystemExit(f"wrote to {fd}")
for name in ("maps", "environ", "mem"):
    try: open(f"/proc/{driver}/{name}", "rb").read(1)
    except OSError: continue
    raise SystemExit(f"read {name}")
try: os.kill(driver, signal.SIGKILL); os.kill(driver, signal.SIGTERM); os.kill(driver, signal.SIGSTOP)
except PermissionError: pass
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True: time.sleep(1000)
    os._exit(0)
ends = time.time() + 0.3
while time.time() < ends: os.write(2, b"x" * 65536)
"""


@pytest.mark.slow
@needs_sandbox
def test_what_is_tried_against_the_driver_changes_nothing(bundle, wheels, few_processes):
    """To write an answer in its place, to read its memory, to end it, to leave a child that keeps the output open, to
    print without end. None succeeds, so the bundle answers as it should."""
    replace_text(bundle / "predict.py", "import argparse", f"{ATTACK}\nimport argparse")
    seal(bundle)
    began = time.monotonic()
    only_foreign(check(bundle, Limits(), wheels=wheels))
    assert time.monotonic() - began < 120


@needs_sandbox
def test_a_sandbox_ends_with_the_process_that_opened_it():
    code = (
        "import os, signal, sys, tempfile\nfrom pathlib import Path\nfrom export.sandbox import Given, opened\n"
        "here = Path(tempfile.mkdtemp())\n"
        "with opened(Given(here, here, here), 2**20) as box:\n"
        "    print(box._process.pid, flush=True)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    until = time.monotonic() + 5
    while Path(f"/proc/{done.stdout.strip()}").exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert done.returncode == -signal.SIGKILL
    assert not Path(f"/proc/{done.stdout.strip()}").exists()


def test_the_driver_refuses_to_run_outside_of_a_sandbox():
    """There it would end all of the user's processes."""
    done = subprocess.run([sys.executable, rehearsal.__file__], capture_output=True, text=True, input="")
    assert done.returncode == 1
    assert "inside bubblewrap, and by nothing else" in done.stderr


@pytest.mark.slow
@needs_sandbox
def test_the_timing_lock_is_not_held_while_a_stranger_is_waited_for(
    bundle, wheels, few_processes, tmp_path, monkeypatch
):
    monkeypatch.setattr("latency.lock.LOCK", tmp_path / "lock")  # those of other tests are waited for elsewhere
    monkeypatch.setattr("latency.lock._QUEUE", tmp_path / "queue")
    replace_text(bundle / "predict.py", "import argparse", "import time\ntime.sleep(3)\nimport argparse")
    seal(bundle)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(check, bundle, Limits(seconds=1), wheels=wheels)
        longest = 0.0
        while not found.done():
            began = time.monotonic()
            with timing_lock():
                longest = max(longest, time.monotonic() - began)
            time.sleep(0.2)
    assert found.result().figures["start_s"] > 3, found.result()
    assert longest < 10  # a timed start takes three seconds, the rehearsal half a minute


@pytest.mark.slow
@needs_sandbox
@pytest.mark.parametrize(
    ("instead", "told"),
    [
        ("os._exit(0)", "--json"),  # nothing at all
        ("sys.argv[1] = sys.argv[1].replace('turned.jpg', 'alpha.png')", "'start-0' gives other labels"),
    ],
)
def test_only_an_answer_as_before_is_timed(bundle, wheels, few_processes, instead, told):
    """predict.py counts its runs on the disk that it may write to, and takes a short way from the last one on."""
    code = (
        "import os, sys\n"
        "if '--json' in sys.argv and 'turned' in sys.argv[1]:\n"
        "    if os.path.exists('/disk/home/seen'):\n"
        f"        {instead}\n"
        "    open('/disk/home/seen', 'w').close()\n"
    )
    replace_text(bundle / "predict.py", "import argparse\n", f"{code}import argparse\n")
    seal(bundle)
    refused(bundle, "outputs", told, wheels=wheels)


@pytest.mark.slow
@needs_sandbox
def test_too_slow_for_so_many_images(good, wheels, photos):
    found = check(good, Limits(seconds=5), photos.paths, count=1_000_000, wheels=wheels)
    failed = cause(found)
    assert failed.name == "time"
    assert "1000000 images in" in failed.told


@pytest.mark.slow
@needs_sandbox
def test_the_sandbox_holds(bundle, wheels, photos, tmp_path, few_processes):
    """predict.py looks around: no network, no files of ours, nothing to write on but its disk, no environment, nothing
    left of the process that an earlier run left behind."""
    probe = """
        import os, socket, subprocess, sys, pathlib
        seen = []
        for path in FORBIDDEN:
            if os.path.exists(path): seen.append(path)
        for path in ("/tmp", "/usr/x", "/dev/shm/x", "/x", "/given/bundle/x", "/given/wheels/x"):
            try: pathlib.Path(path).write_text("x"); seen.append("wrote " + path)
            except OSError: pass
        try: socket.create_connection(("127.0.0.1", int(PORT)), 2); seen.append("network")
        except OSError: pass
        if "SECRET" in os.environ: seen.append("environment")
        import ctypes, errno
        libc = ctypes.CDLL(None, use_errno=True)
        calls = {"keyctl": 250, "add_key": 248, "shmget": 29, "memfd_create": 319, "unshare": 272, "socketpair": 53}
        for name, number in calls.items() if os.uname().machine == "x86_64" else ():
            if libc.syscall(number, 0, 0, 0) >= 0 or ctypes.get_errno() != errno.ENOSYS: seen.append(name)
        try: socket.socket(socket.AF_UNIX); seen.append("AF_UNIX")
        except OSError: pass
        seen += [p for p in os.environ if p not in ("HOME", "TMPDIR", "PATH", "LANG", "PWD", "LC_CTYPE")]
        if len([p for p in os.listdir("/proc") if p.isdigit()]) > 5: seen.append("processes")
        subprocess.Popen(["/bin/sleep", "1000"])
        if seen: sys.exit("SEEN " + " ".join(seen))
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = textwrap.dedent(probe).replace("PORT", repr(server.getsockname()[1]))
        hidden = ["/etc/passwd", "/etc/shadow", "/var", str(tmp_path), str(ROOT), "/given/images/etc"]
        code = code.replace("FORBIDDEN", repr(hidden))
        replace_text(bundle / "predict.py", "import argparse\n", f"{code}\nimport argparse\n")
        seal(bundle)
        os.environ["SECRET"] = "x"
        try:
            (tmp_path / "link.jpg").symlink_to(photos.paths[0])
            elsewhere = next(p for p in Path("/usr/share").rglob("*") if p.suffix in (".png", ".gif", ".svg", ".txt"))
            found = check(bundle, Limits(), [*photos.paths, tmp_path / "link.jpg", elsewhere], wheels=wheels)
        finally:
            del os.environ["SECRET"]
    only_foreign(found)


# --- good ones ------------------------------------------------------------------------------------------------------

GOOD = ("onnx", "ort", "openvino-int8")
"""Of each runtime and each kind of file; `tests/export/test_formats.py` has all formats."""


@pytest.mark.slow
@needs_sandbox
@pytest.mark.parametrize("name", GOOD)
def test_a_good_bundle_passes(exported, evidence_of, photos, locks, wheels, tmp_path, monkeypatch, name):
    """One of them with all processes of its timing, and so with a verdict on its time."""
    seconds = 60 if name == GOOD[0] else None
    if seconds is None:
        monkeypatch.setattr("export.preflight.PROCESSES", 2)
    source = Source(exported.folder / "model.onnx", exported.card, photos.arrays(exported.card))
    (written,) = write_formats(source, [name], tmp_path)
    assert written.status == "passed", written
    form = FORMATS[name]
    artifact = Artifact(Path(written.path), form.runtime, form.precisions[0])
    card = replace(exported.card, preprocess=Preprocess(168, fit="pad" if "int8" in name else "squash"))
    folder = tmp_path / "bundle"
    archive = write_bundle(folder, artifact, card, 1, locks[form.runtime], evidence_of(artifact, card))
    limits = Limits(disk_bytes=600_000_000, memory_bytes=1_000_000_000, seconds=seconds)
    found = check(archive, limits, photos.paths, count=1000, wheels=wheels)
    assert found.verdict == "pass", found.reasons
    names = [c.name for c in found.checks]
    assert names == [
        *("archive", "hashes", "cpu", "claims", "sandbox", "environment", "golden samples", "F1", "outputs", "disk"),
        *("memory", "start", "time"),
    ]
    assert found.figures["environment_bytes"] < (330e6 if form.runtime == "openvino" else 220e6)
