"""Answers of predict.py that say something else than its logits, or than its other forms: judged from what the real one
wrote, with a part of it changed."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from export.checks import Checks, Ended
from export.golden import golden_tolerance
from export.judge import judge_forms, judge_golden, judge_others, judge_recorded, rows_of
from export.manifest import read_manifest
from export.preflight import FORMS
from export.sandbox import Step


@pytest.fixture(scope="module")
def answers(good, photos, tmp_path_factory):
    """form -> what a good bundle says of the photos; its manifest."""
    bundle, out = good.with_name("bundle"), tmp_path_factory.mktemp("answers") / "out"
    found = {}
    for form in ("json", *FORMS):
        form_args = [] if form == "stdout" else [f"--{form}", str(out)]
        command = [sys.executable, str(bundle / "predict.py"), str(photos.folder), *form_args]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
        found[form] = done.stdout if form == "stdout" else out.read_text()
    return found, read_manifest(bundle / "manifest.json")


def step(wrote):
    return Step(code=0, seconds=1, peak_bytes=1, said="", wrote=wrote)


def failed(judge, *args, verdict="fail"):
    checks = Checks()
    with pytest.raises(Ended):
        judge(*args, checks)
    (check,) = [c for c in checks.found if c.verdict != "pass"]
    assert check.verdict == verdict
    return check


def rows(answers, images=20):
    found, manifest = answers
    return rows_of(step(found["json"]), manifest, images, Checks())


def test_the_real_answers_agree(answers):
    found, manifest = answers
    labelled = rows(answers)
    for form in FORMS:
        judge_forms(form, step(found[form]), labelled, manifest, Checks())


def _relabelled(text):
    found = json.loads(text)
    found[3]["label"] = "a" if found[3]["label"] != "a" else "b"
    return json.dumps(found)


def _changed(key, value):
    def change(text):
        found = json.loads(text)
        found[3][key] = value
        return json.dumps(found)

    return change


JSON = {
    "a label of another class": (_relabelled, "labels", "its largest logit is that of another class"),
    "a certain score": (_changed("score", 1.0), "outputs", "its logits give"),
    "a score that is no number": (_changed("score", float("nan")), "outputs", "--json"),
    "a score over one": (_changed("score", 9.0), "outputs", "3.score"),
    "a score in words": (_changed("score", "0.5"), "outputs", "3.score"),
    "a logit that is no number": (_changed("logits", [float("inf")] * 6), "outputs", "--json"),
    "too few logits": (_changed("logits", [1.0, 2.0]), "outputs", "2 logits, of 6 classes"),
    "no label": (lambda text: text.replace('"label"', '"other"'), "outputs", "0.label"),
    "an image too few": (lambda text: json.dumps(json.loads(text)[1:]), "outputs", "19 labels for 20 images"),
    "nesting": (lambda text: "[" * 60_000, "outputs", "JSON"),
    "a number of a million digits": (lambda text: "[" + "9" * 1_000_000 + "]", "outputs", "--json"),
    "nothing": (lambda text: "", "outputs", "JSON"),
    "no text": (lambda text: None, "outputs", "JSON"),
    "an object": (lambda text: "{}", "outputs", "JSON"),
}


@pytest.mark.parametrize("what", JSON)
def test_json_that_does_not_follow_from_its_logits(answers, what):
    change, name, told = JSON[what]
    found, manifest = answers
    check = failed(rows_of, step(change(found["json"])), manifest, 20)
    assert check.name == name
    assert told in check.told


FORM = {
    "a label in --csv": ("csv", lambda t: t.replace(",e,", ",a,", 1), "--csv: its labels are not those of --json"),
    "a score in --csv": ("csv", lambda t: t.replace(",0.", ",1.", 1), "--csv: its scores are not those of --json"),
    "a score in --csv that is no number": ("csv", lambda t: t.replace(",0.", ",nan", 1), "--csv"),
    "a line too few in --csv": ("csv", lambda t: t[: t.rindex("/")], "--csv"),
    "other columns in --csv": ("csv", lambda t: t.replace("label", "class"), "it is no table of path, label and score"),
    "an endless cell in --csv": ("csv", lambda t: f'{t}"' + "x" * 200_000, "--csv"),
    "a label in the table": ("stdout", lambda t: t.replace(",e,", ",a,", 1), "the table: its labels"),
    "no table": ("stdout", lambda t: "", "the table: "),
    "a label in --output": ("output", lambda t: t.replace('": "e"', '": "a"', 1), "--output: its labels"),
    "an image too many in --output": ("output", lambda t: t.replace('{"inf', '{"x": 1, "inf', 1)[:-1], "--output: "),
    "other macs in --output": ("output", lambda t: t.replace('"macs": 2000', '"macs": 2'), "--output: macs 2"),
    "nesting in --output": ("output", lambda t: '{"inference": ' * 60_000, "--output: JSON"),
}


@pytest.mark.parametrize("what", FORM)
def test_a_form_that_says_something_else_than_json(answers, what):
    form, change, told = FORM[what]
    found, manifest = answers
    assert change(found[form]) != found[form]
    check = failed(judge_forms, form, step(change(found[form])), rows(answers), manifest)
    assert check.name == "outputs"
    assert told in check.told


def recorded(answers, photos, shift):
    """The rows under the hashes of photos that are `shift` further: as many labels of each kind as before."""
    _, manifest = answers
    found = rows(answers)
    digests = [digest for digest, *_ in manifest.recorded]
    return manifest, {row.path: digests[(i + shift) % len(digests)] for i, row in enumerate(found)}, {}, found


def test_recorded_labels_that_are_given_again(answers, photos):
    checks = Checks()
    judge_recorded(*recorded(answers, photos, 0), checks)
    assert "20 of 20 recorded images labelled again, 0 labels differ" in checks.found[0].told


def test_as_many_labels_of_each_kind_on_other_photos_are_no_pass(answers, photos):
    check = failed(judge_recorded, *recorded(answers, photos, 1))
    assert check.name == "F1"
    assert "of them clearly" in check.told


def tied(row, manifest):
    """The same image, whose second class is as good as the first and a little better."""
    logits = np.array(row.logits)
    first, second = np.argsort(logits)[::-1][:2]
    logits[second] = logits[first] + manifest.golden.tolerance / 2
    return row.model_copy(update={"logits": logits.tolist(), "label": manifest.classes[int(second)]})


def test_a_near_tie_may_fall_the_other_way_and_not_all_of_them(answers, photos):
    manifest, digests, _, found = recorded(answers, photos, 0)
    checks = Checks()
    judge_recorded(manifest, digests, {}, [tied(found[0], manifest), *found[1:]], checks)
    assert "1 labels differ" in checks.found[0].told
    assert checks.found[0].verdict == "pass"
    check = failed(judge_recorded, manifest, digests, {}, [*(tied(r, manifest) for r in found[:2]), *found[2:]])
    assert "2 labels differ, 0 of them clearly" in check.told


def test_a_constant_on_all_logits_makes_no_near_ties():
    logits = np.array([[1.0, 0.2, -0.5], [0.1, 0.9, 0.0]])
    assert golden_tolerance("f32", logits + 1e4, 0.0) == pytest.approx(golden_tolerance("f32", logits, 0.0))


def test_images_in_folders_of_other_classes_than_recorded(answers, photos):
    manifest, digests, _, found = recorded(answers, photos, 0)
    truth = {digest: {name} for digest, name, _ in manifest.recorded}
    judge_recorded(manifest, digests, truth, found, Checks())
    digest = next(iter(truth))
    wrong = truth | {digest: {"a" if truth[digest] != {"a"} else "b"}}
    check = failed(judge_recorded, manifest, digests, wrong, found)
    assert "so the claimed F1 is not that of these classes" in check.told


def test_an_image_recorded_as_its_class_and_as_another(answers, photos):
    """A packer may add rows in which wrong answers are right."""
    manifest, digests, _, found = recorded(answers, photos, 0)
    truth = {digest: {name} for digest, name, _ in manifest.recorded}
    digest, name, guess = manifest.recorded[0]
    other = "a" if name != "a" else "b"
    more = manifest.model_copy(update={"recorded": [*manifest.recorded, (digest, other, guess)]})
    check = failed(judge_recorded, more, digests, truth, found, verdict="inconclusive")
    assert f"an image of the folder {name} is recorded as {other} as well" in check.told
    judge_recorded(more, digests, truth | {digest: {name, other}}, found, Checks())


def said(judge, *args):
    """The verdicts and the text of all that was judged."""
    checks = Checks()
    judge(*args, checks)
    return [c.verdict for c in checks.found], " ".join(c.told for c in checks.found)


def test_classes_that_only_some_folders_are_named_after_cannot_be_compared(answers, photos):
    """A packer may rename a class, so that its images would be compared with none."""
    manifest, digests, _, found = recorded(answers, photos, 0)
    truth = {digest: name for digest, name, _ in manifest.recorded}
    renamed = {digest: {name.replace("a", "a.")} for digest, name in truth.items()}
    verdicts, told = said(judge_recorded, manifest, digests, renamed, found)
    assert "inconclusive" in verdicts
    assert "in folders that are no class of this model (a.)" in told
    verdicts, told = said(judge_recorded, manifest, digests, {digest: {"unsorted"} for digest in truth}, found)
    assert verdicts == ["pass"]
    assert "their true classes are the packer's word" in told


def test_images_that_the_packer_left_out_are_labelled_too(answers, photos):
    manifest, _, _, found = recorded(answers, photos, 0)
    right = {row.path: row.label for row in found}
    wrong = {row.path: "a" if row.label != "a" else "b" for row in found}
    assert said(judge_others, manifest, right, found)[0] == ["pass"]
    verdicts, told = said(judge_others, manifest, wrong, found)
    assert verdicts == ["inconclusive"]
    assert "0 of 20 images that are not recorded get the class of their folder" in told
    assert "did not label all photos" in failed(judge_others, manifest, right, found[1:]).told


def test_golden_samples_that_were_not_labelled(answers):
    _, manifest = answers
    check = failed(judge_golden, manifest, rows(answers)[:2])
    assert "did not answer for all of them" in check.told
