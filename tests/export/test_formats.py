"""Every format is written, checked, and told of; one that fails stops no other."""

from dataclasses import replace

import numpy as np
import pytest

from export import formats
from export.artifact import Artifact, remove_model
from export.errors import ExportError, FormatError
from export.formats import FORMATS, Source, parse_formats, table, write_formats
from export.parity import change_interval, compare, f1_interval, logits_of, scores, tolerance
from export.portability import on_older_cpu, relies_on
from latency.host import this_host


@pytest.fixture(scope="module")
def source(exported, photos):
    return Source(exported.folder / "model.onnx", exported.card, photos.arrays(exported.card))


@pytest.fixture(scope="module")
def written(source, tmp_path_factory):
    return {w.format: w for w in write_formats(source, list(FORMATS), tmp_path_factory.mktemp("formats"))}


@pytest.mark.parametrize("name", FORMATS)
def test_each_is_written_and_runs_in_each_of_its_precisions(name, written, source):
    assert written[name].status == "passed", written[name]
    for precision in FORMATS[name].precisions:
        if precision == "bf16" and not this_host().has_bf16:
            continue
        logits = logits_of(Artifact(_path(written, name), FORMATS[name].runtime, precision), source.images)
        assert np.isfinite(logits).all()


def _path(written, name):
    from pathlib import Path

    return Path(written[name].path)


def test_weights_of_16_bits_halve_the_file(written):
    assert written["openvino-f16"].size_bytes < 0.6 * written["openvino"].size_bytes


def test_bias_correction_is_done_and_its_kinds_differ(written, source):
    """NNCF recognises no bias in a graph whose constants are not folded, and says nothing."""
    found = [
        logits_of(Artifact(_path(written, n), "openvino", "int8"), source.images)
        for n in ("openvino-int8", "openvino-int8-fast")
    ]
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_one_that_fails_takes_no_file_of_another_with_it(source, tmp_path):
    """model-int8.bin is the weights of OpenVINO's file, and stands beside the .onnx file of that name."""
    for name in ("model-int8.xml", "model-int8.bin", "model-int8.onnx"):
        (tmp_path / name).write_text(name)
    (failed,) = write_formats(replace(source, images=None), ["onnx-int8"], tmp_path)
    assert failed.status == "failed"
    remove_model(tmp_path / "model-int8.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model-int8.bin", "model-int8.xml"]


def test_weights_of_7_bits_where_the_cpu_would_saturate(source, tmp_path):
    import onnx
    from onnx import numpy_helper

    def largest(saturates):
        (row,) = write_formats(replace(source, saturates=saturates), ["onnx-int8-u8"], tmp_path)
        weights = [t for t in onnx.load(row.path).graph.initializer if t.data_type == onnx.TensorProto.INT8]
        return max(int(np.abs(numpy_helper.to_array(t).astype(int)).max()) for t in weights if t.dims)

    assert largest(saturates=False) == 127
    assert largest(saturates=True) == 64


def test_a_format_that_fails_and_one_that_is_wrong_stop_no_other(source, tmp_path, monkeypatch):
    def fails(_source, _path, _keep):
        raise ExportError("a reason")

    def writes_rubbish(_source, path, _keep):
        path.write_text("rubbish")

    monkeypatch.setitem(formats.FORMATS, "openvino", replace(FORMATS["openvino"], write=fails))
    monkeypatch.setitem(formats.FORMATS, "ort", replace(FORMATS["ort"], write=writes_rubbish))
    monkeypatch.setitem(formats.FORMATS, "openvino-int8", replace(FORMATS["openvino-int8"], needs=("no_such_package",)))
    rows = write_formats(source, ["openvino", "ort", "openvino-int8", "onnx"], tmp_path)
    assert [r.status for r in rows] == ["failed", "exported-but-invalid", "failed", "passed"]
    assert rows[0].reason == "a reason"
    assert "ONNX Runtime cannot load it" in rows[1].reason
    assert rows[2].reason == "needs no_such_package: pip install no_such_package"


def test_a_file_that_answers_otherwise_is_invalid(source, exported, tmp_path, monkeypatch):
    import onnx
    from onnx import numpy_helper

    def shifted(_source, path, _keep):
        model = onnx.load(exported.folder / "model.onnx")
        weight = max(model.graph.initializer, key=lambda t: len(t.raw_data))
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.01, weight.name))
        onnx.save(model, path)

    monkeypatch.setitem(formats.FORMATS, "ort", replace(FORMATS["ort"], file="model-x.onnx", write=shifted))
    (row,) = write_formats(source, ["ort"], tmp_path)
    assert row.status == "exported-but-invalid"
    assert "largest difference of a logit" in row.reason


def test_the_table_names_what_each_needs():
    rows = {r["format"]: r for r in table()}
    assert set(rows) == set(FORMATS)
    assert rows["openvino-int8"]["needs"] == ["openvino", "nncf"]
    assert rows["onnx"]["missing"] == []


def test_names_of_formats():
    assert parse_formats("onnx, openvino") == ("onnx", "openvino")
    with pytest.raises(FormatError, match="--format onx: expected some of onnx, ort"):
        parse_formats("onx")


# --- parity and portability -------------------------------------------------------------------------------------------


def test_a_near_tie_may_flip_and_nothing_else():
    reference = np.array([[1.0, 1.0 + 1e-4, 0], [1.0, 1.5, 0], [3.0, 0, 0]], np.float32)
    other = np.array([[1.0 + 2e-4, 1.0, 0], [1.5, 1.0, 0], [3.0, 0, 0]], np.float32)
    parity = compare(reference, other, np.array([0, 1, 0]))
    assert parity.flipped == 1
    assert parity.agreement == pytest.approx(1 / 3)


def test_the_tolerance_follows_large_logits_only():
    assert tolerance(np.array([[5.0]])) == 1e-4
    assert tolerance(np.array([[-50.0]])) == pytest.approx(5e-4)


def test_the_interval_of_a_change_is_paired():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 400)
    before = np.where(rng.random(400) < 0.8, labels, rng.integers(0, 4, 400))
    after = before.copy()
    after[:8] = (labels[:8] + 1) % 4
    low, high = change_interval(labels, before, after, 4)
    change = scores(np.eye(4)[after], labels)[0] - scores(np.eye(4)[before], labels)[0]
    assert low < change < high < 0
    assert high - low < 0.04, "of two independent sets of images it would be three times as wide"
    assert change_interval(labels, before, before, 4) == (0.0, 0.0)


def test_the_interval_of_f1_holds_what_many_draws_of_the_photos_give():
    """A guesser that is right four times in five: of 200 sets of 400 photos, about 19 in 20 intervals hold its F1."""
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(200):
        labels = rng.integers(0, 3, 400)
        guesses = np.where(rng.random(400) < 0.8, labels, (labels + rng.integers(1, 3, 400)) % 3)
        low, high = f1_interval(labels, guesses, 3)
        held += low <= 0.8 <= high
    assert 180 <= held <= 198


def test_openvino_int8_without_the_newer_instructions(written, source):
    if "avx512f" not in this_host().isa:
        pytest.skip("this CPU has nothing newer to switch off")
    artifact = Artifact(_path(written, "openvino-int8"), "openvino", "int8")
    older = on_older_cpu(artifact, source.images, this_host())
    assert older.how == "OpenVINO held to AVX2"
    assert older.logits.shape == (len(source.images), 6)
    here = logits_of(artifact, source.images)
    assert not np.array_equal(here, older.logits), "other kernels ran"
    assert np.abs(here - older.logits).max() < np.abs(here).max()


def test_onnx_runtime_int8_in_an_emulated_older_cpu(written, source):
    artifact = Artifact(_path(written, "onnx-int8"), "onnxruntime", "int8")
    older = on_older_cpu(artifact, source.images[:4], this_host())
    if older.logits is None:
        pytest.skip(older.how)
    assert older.how == "ONNX Runtime in qemu-x86_64 -cpu Haswell"
    assert older.logits.shape == (4, 6)


def test_a_file_for_bf16_does_not_run_on_an_older_cpu(written, source):
    if not this_host().has_bf16:
        pytest.skip("no bf16 here")
    with pytest.raises(ExportError, match=r"OpenVINO held to AVX2: .*no bf16"):
        on_older_cpu(Artifact(_path(written, "openvino"), "openvino", "bf16"), source.images, this_host())


def test_what_could_not_be_tried_is_relied_on():
    assert relies_on("f32", False) == []
    assert relies_on("int8", True) == []
    assert "avx512_vnni" in relies_on("int8", False)[0]["any_of"]
    assert "avx512_bf16" in relies_on("bf16", False)[0]["any_of"]
