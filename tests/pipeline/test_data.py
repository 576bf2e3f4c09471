"""The labelled images: counted, split, and refused where they are of no use."""

import os
import shutil
import zlib

import numpy as np
import pytest
from PIL import Image

from export.preprocess import Preprocess
from pipeline.data import demo
from pipeline.data.index import Index, list_files, scan, summary
from pipeline.errors import PipelineError


def fill(root, **folders):
    """folders: path with __ for / -> how many images"""
    for name, count in folders.items():
        folder = root / name.replace("__", "/")
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            colour = zlib.crc32(f"{name} {i}".encode()).to_bytes(4, "big")[:3]
            Image.new("RGB", (20, 20), tuple(colour)).save(folder / f"{i:03d}.png")
    return root


GOOD = {"train__a": 6, "train__b": 4, "val__a": 2, "val__b": 2}


def test_counts_per_split_and_class(tmp_path):
    found = summary(scan(fill(tmp_path, **GOOD), 0))
    assert found["counts"] == {"train": {"a": 6, "b": 4}, "val": {"a": 2, "b": 2}}
    assert found["skipped"] == {}


def test_bad_files_are_reported_and_skipped(tmp_path):
    root = fill(tmp_path, **GOOD)
    whole = (root / "train/a/000.png").read_bytes()
    (root / "train/a/cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "train/a/text.jpg").write_text("no image")
    index = scan(root, 0)
    assert set(index.skipped) == {"train/a/cut.png", "train/a/text.jpg"}
    assert index.counts()["train"]["a"] == 6


def test_one_tree_is_split_stratified_by_the_seed(tmp_path):
    root = fill(tmp_path, a=40, b=20)
    index = scan(root, 1)
    assert index.counts() == {"train": {"a": 28, "b": 14}, "val": {"a": 6, "b": 3}, "test": {"a": 6, "b": 3}}
    assert index.hash == scan(root, 1).hash != scan(root, 2).hash
    paths = [s.path for samples in index.splits.values() for s in samples]
    assert len(paths) == len(set(paths)) == 60


def test_a_file_that_is_there_twice_lands_in_one_of_the_splits_drawn(tmp_path):
    root = fill(tmp_path, a=40, b=20)
    for i in range(20):
        shutil.copy(root / f"a/{i:03d}.png", root / f"a/again-{i:03d}.png")
    index = scan(root, 1)
    assert summary(index)["identical_files"] == 20
    assert summary(index)["repeated"] == {}
    paths = [s.path for samples in index.splits.values() for s in samples]
    assert len(paths) == len(set(paths)) == 80


def test_a_file_in_two_splits_of_the_users_own_is_left_there_and_told(tmp_path):
    root = fill(tmp_path, **GOOD, test__a=3, test__b=3)
    shutil.copy(root / "train/a/000.png", root / "val/a/000.png")
    shutil.copy(root / "val/b/001.png", root / "test/b/seen.png")
    found = summary(scan(root, 0))
    assert found["counts"]["val"] == {"a": 2, "b": 2}
    assert found["repeated"] == {"val": 1, "test": 1}


def test_without_val_some_of_train_is_held_out_and_test_is_left_alone(tmp_path):
    root = fill(tmp_path / "photos", train__a=40, train__b=20, later__a=5, later__b=5)
    (root / "test").symlink_to("later", target_is_directory=True)
    index = scan(root, 1)
    assert index.counts() == {"train": {"a": 34, "b": 17}, "val": {"a": 6, "b": 3}, "test": {"a": 5, "b": 5}}
    assert {s.path.split("/")[0] for split in ("train", "val") for s in index.splits[split]} == {"train"}
    assert index.hash == scan(root, 1).hash != scan(root, 2).hash


def test_a_change_behind_a_link_is_seen(tmp_path):
    root = fill(tmp_path / "photos", **GOOD)
    (root / "test").symlink_to(fill(tmp_path / "later", a=2, b=2), target_is_directory=True)
    (root / "val/a/loop").symlink_to(root)  # must end, and is not gone into
    before = list_files(root)
    assert len(before) == 18
    (tmp_path / "later/a/000.png").unlink()
    assert len(list_files(root)) == 17
    assert list_files(root) != before


def test_the_hash_is_of_the_bytes_and_not_of_the_place(tmp_path):
    a, b = (fill(tmp_path / x, **GOOD) for x in "ab")
    assert scan(a, 0).hash == scan(b, 0).hash
    Image.new("RGB", (20, 20), (9, 9, 9)).save(b / "train/a/000.png")
    assert scan(a, 0).hash != scan(b, 0).hash


def test_an_index_comes_back_from_its_file(tmp_path):
    index = scan(fill(tmp_path / "x", **GOOD, test__a=1, test__b=1), 0)
    index.save(tmp_path / "index.json")
    assert Index.load(tmp_path / "index.json") == index
    assert index.final_split == "test"


REFUSED = {
    "no folder": (None, "no such folder; give one with --set data.root=FOLDER"),
    "no image": ({"train__a": 0, "train__b": 0, "val__a": 0, "val__b": 0}, "no image found"),
    "one class": ({"train__a": 3, "val__a": 2}, r"found 1 class \(a\)"),
    "an empty class": ({**GOOD, "val__b": 0}, "val: no readable image of class b"),
    "another class list": ({**GOOD, "val__c": 2}, "val has c beside"),
    "a class that val lacks": ({"train__a": 3, "train__b": 3, "val__a": 2}, "val lacks b"),
    "too few to hold some out": ({"train__a": 30, "train__b": 3}, "class b: 3 images cannot be split into train, val"),
    "too few to split": ({"a": 3, "b": 30}, "class a: 3 images cannot be split"),
}


ALIASES = [
    ("Train", "Val", "Test"),
    ("training", "validation", "testing"),
    ("TRAIN", "valid", "test"),
    ("trn", "dev", "holdout"),
    ("train", "eval", "tst"),
]


@pytest.mark.parametrize("names", ALIASES, ids=str)
def test_splits_by_the_names_that_others_give_them(tmp_path, names):
    root = tmp_path / "photos"
    for name, count in zip(names, (6, 3, 2), strict=True):
        fill(root, **{f"{name}__a": count, f"{name}__b": count})
    counts = scan(root, 0).counts()
    assert counts == {"train": {"a": 6, "b": 6}, "val": {"a": 3, "b": 3}, "test": {"a": 2, "b": 2}}


LAYOUTS = {
    "two folders for one split": (
        {"train__a": 3, "val__a": 2, "valid__a": 2},
        "val/ and valid/ both mean val/; keep one of them",
    ),
    "no train": ({"valid__a": 3, "test__a": 3}, "it holds test/, valid/ but no train/"),
    "test beside classes": ({"a": 5, "b": 5, "Test__a": 3}, r"it holds Test/ but no train/ \(beside a/, b/\)"),
    "one folder around it": ({"data__train__a": 3, "data__val__a": 2}, "did you mean .*photos/data"),
    "detection": ({"images__x": 3, "labels__x": 1}, "look like a data set for detection"),
    "split below class": ({"a__train": 3, "a__test": 2, "b__train": 3, "b__test": 2}, "split above class"),
    "folds": (
        {"fold1__cat": 5, "fold1__dog": 5, "fold2__cat": 5, "fold2__dog": 5},
        r"fold1, fold2 hold the same folders \(cat, dog\), so they look like splits or groups",
    ),
    "one of them flat": (
        {"training_set__cats": 5, "training_set__dogs": 5, "test_set__cats": 5, "single": 3},
        "training_set, test_set|test_set, training_set",
    ),
    "folders around folders": (
        {"seg_train__seg_train__sea": 3, "seg_test__seg_test__sea": 3, "seg_pred__x": 1},
        "it holds one folder, of its own name; move what is in",
    ),
    "words for splits": ({"my_train__cats": 3, "my_test__birds": 3}, "look like splits; name them train/, test/"),
    "detection below the split": ({"train__images": 3, "train__labels": 0}, "look like a data set for detection"),
    "a split in a split": ({"train__train__a": 3, "val__val__a": 3}, "it holds one folder, train/, which is no class"),
    "years": ({"2019__x": 5, "2020__x": 5}, "hold the same folders"),
    "splits without classes": ({"training_set": 5, "test_set": 5}, "look like splits; name them train/, test/"),
    "splits with years": ({"train2017": 5, "val2017": 5}, "look like splits; name them train/, val/"),
    "splits in two words": ({"TrainData__a": 5, "TestData__b": 5}, "look like splits; name them train/, test/"),
    "splits before their names": ({"X_train": 5, "X_valid": 5, "X_test": 5}, "look like splits"),
    "domains": ({"trainA": 5, "trainB": 5, "testA": 5, "testB": 5}, "look like splits"),
    "classes in another case": ({"Field__Cat": 5, "Lab__cat": 5}, "hold the same folders"),
    "years below the split": (
        {
            "train__2023__cat": 3,
            "train__2023__dog": 3,
            "train__2024__cat": 3,
            "train__2024__dog": 3,
            "val__2023__cat": 2,
        },
        r"2023, 2024 hold the same folders \(cat, dog\), so these look like the classes",
    ),
}
CLEAR = {
    "a folder of images in each class": {"train__a__images": 3, "train__b__images": 3, "val__a": 2, "val__b": 2},
    "the same without splits": {"a__images": 9, "b__images": 9},
    "letters": {"train__a": 3, "train__A": 3, "val__a": 2, "val__A": 2},
    "one class that is named like a split": {
        "train": 0,
        "train__train": 5,
        "train__bus": 5,
        "val__train": 2,
        "val__bus": 2,
    },
    "a word that holds one": {"contest": 9, "latest": 9, "restrained": 9},
}


@pytest.mark.parametrize("case", CLEAR)
def test_a_layout_that_means_one_thing_is_read(tmp_path, case):
    assert len(scan(fill(tmp_path / "photos", **CLEAR[case]), 0).classes) > 1


@pytest.mark.parametrize("case", LAYOUTS)
def test_a_layout_that_means_two_things_is_refused(tmp_path, case):
    folders, told = LAYOUTS[case]
    with pytest.raises(PipelineError, match=told):
        scan(fill(tmp_path / "photos", **folders), 0)


def test_all_that_is_passed_over_is_named(tmp_path):
    root = fill(tmp_path / "photos", **GOOD, extra__x=2, train__a__nested=2)
    for name in ("train/a/.ipynb_checkpoints", "train/b/@eaDir", "train/__MACOSX", ".git"):
        (root / name).mkdir()
        (root / name / "x.png").write_bytes(b"x")
    for name in (
        "train/a/a.HEIC",
        "train/b/b.avif",
        "train/a/notes.txt",
        "README",
        "train/loose.jpg",
        "train/a/._x.jpg",
    ):
        (root / name).write_bytes(b"x")
    (root / "train/a/gone.jpg").symlink_to("nowhere")
    (root / "train/a/loop").symlink_to(root)
    index = scan(root, 0)
    assert index.counts() == {"train": {"a": 8, "b": 4}, "val": {"a": 2, "b": 2}}
    assert index.skipped == {}
    found = {reason: (v["count"], v["examples"]) for reason, v in index.passed_over.items()}
    assert found == {
        ".avif images, not read here: convert them to JPEG or PNG, for example with `magick mogrify -format jpg`": (
            1,
            ["train/b/b.avif"],
        ),
        ".heic images, not read here: convert them to JPEG or PNG, for example with `magick mogrify -format jpg`": (
            1,
            ["train/a/a.HEIC"],
        ),
        ".txt files": (1, ["train/a/notes.txt"]),
        "broken links": (1, ["train/a/gone.jpg"]),
        "files without a suffix": (1, ["README"]),
        "folders beside train/ that are no split": (1, ["extra/"]),
        "hidden, or left by a system": (5, [".git/", "train/__MACOSX/", "train/a/._x.jpg"]),
        "images that lie in no class folder": (1, ["train/loose.jpg"]),
        "links to folders, which are not followed": (1, ["train/a/loop"]),
    }


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    root = fill(tmp_path / "photos", **GOOD, train__a__locked=2)
    walk = os.walk

    def refuse(top, onerror=None, **more):
        for place, folders, files in walk(top, onerror=onerror, **more):
            if place.endswith("locked"):
                onerror(PermissionError(13, "Permission denied", place))
            else:
                yield place, folders, files

    monkeypatch.setattr(os, "walk", refuse)
    index = scan(root, 0)
    assert index.counts()["train"]["a"] == 6
    assert index.passed_over["cannot be read: Permission denied"]["examples"] == ["train/a/locked"]


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPG", ".JPEG"])
def test_jpeg_by_its_other_suffixes(tmp_path, suffix):
    root = fill(tmp_path, **GOOD)
    Image.new("RGB", (20, 20), "red").save(root / f"train/a/x{suffix}", format="JPEG")
    assert scan(root, 0).counts()["train"]["a"] == 7


def test_images_that_show_next_to_nothing_are_named(tmp_path):
    root = fill(tmp_path, **GOOD)
    ramp = np.linspace(0, 1, 64).reshape(8, 8)
    Image.fromarray((ramp * 4095).astype(np.uint16)).save(root / "train/a/twelve-bits.png")
    Image.fromarray((ramp * 65535).astype(np.uint16)).save(root / "train/a/sixteen-bits.png")
    Image.fromarray(ramp.astype(np.float32)).save(root / "train/a/float.tif")
    index = scan(root, 0)
    dark = index.noted["are nearly black or of a single colour"]
    assert "train/a/twelve-bits.png" in dark
    assert "train/a/000.png" in dark  # of one colour
    assert "train/a/sixteen-bits.png" not in dark
    assert "floating-point numbers, of which nothing says what is white" in index.skipped["train/a/float.tif"]


def test_images_of_several_frames_and_classes_alike_but_for_case_are_named(inside, tmp_path):
    root = fill(tmp_path, **{f"train/{c}": 4 for c in ("A", "a", "b")}, **{f"val/{c}": 2 for c in ("A", "a", "b")})
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 90, 180)]
    for suffix in ("gif", "png", "webp", "tif"):
        frames[0].save(root / f"train/b/moving.{suffix}", save_all=True, append_images=frames[1:])
    done = inside("data", "check", root)
    assert done.returncode == 0, done.stderr
    assert "4 images have several frames or pages; only the first is used (train/b/moving.gif" in done.stdout
    assert "the classes A and a differ only in case; they are kept separate" in done.stdout


@pytest.mark.parametrize(("photometric", "first"), [(1, 0), (0, 255)])
def test_a_tiff_of_16_bits_in_which_0_is_white(tmp_path, photometric, first):
    ramp = (np.linspace(0, 1, 64).reshape(8, 8) * 65535).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "x.tif")
    data = (tmp_path / "x.tif").read_bytes()
    entry = (262).to_bytes(2, "little") + (3).to_bytes(2, "little") + (1).to_bytes(4, "little")
    assert data.count(entry + b"\1") == 1
    (tmp_path / "x.tif").write_bytes(data.replace(entry + b"\1", entry + bytes([photometric])))
    assert Preprocess(8).load(tmp_path / "x.tif")[0, 0, 0] == first


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a\nb", "a line break"),
        ("caf\udce9", "is not UTF-8"),
        ("tab\there", "control character"),
        ("\u2028", "line break"),
        ("cat ", "whitespace"),
        ("c\u200bat", "invisible character"),
        ("\u202etac", "invisible character"),
    ],
)
def test_a_class_name_that_no_file_of_labels_can_hold(tmp_path, name, told):
    root = fill(tmp_path, **GOOD)
    (root / "train" / name).mkdir()
    with pytest.raises(PipelineError, match=told):
        scan(root, 0)


def test_a_class_name_in_two_unicode_forms_is_one_class(tmp_path):
    root = fill(tmp_path, train__café=6, train__b=6, val__café=2, val__b=2)
    assert scan(root, 0).classes == ("b", "caf\u00e9")


def test_the_same_images_in_all_classes_are_called_that(tmp_path):
    root = fill(tmp_path, a=20)
    shutil.copytree(root / "a", root / "b")
    with pytest.raises(PipelineError, match=r"byte for byte \(20 images have several labels, such as a/"):
        scan(root, 0)


def test_an_image_that_took_anothers_place_with_its_size_and_time_is_seen(tmp_path):
    root = fill(tmp_path, **GOOD)
    path, before = root / "train/a/000.png", list_files(root)
    data, stat = bytearray(path.read_bytes()), path.stat()
    data[-20] ^= 1
    path.unlink()
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    assert list_files(root) != before


@pytest.mark.parametrize("case", REFUSED)
def test_a_tree_of_no_use_is_refused(case, tmp_path):
    folders, text = REFUSED[case]
    root = tmp_path / "none" if folders is None else fill(tmp_path, **folders)
    with pytest.raises(PipelineError, match=text):
        scan(root, 0)


def test_the_demo_draws_the_same_bytes_for_a_seed():
    a, b, c = (np.asarray(demo.draw("waves", np.random.default_rng([s, 0, 0, 0]))) for s in (1, 1, 2))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo") / "set"
    demo.write(root, 0)
    return scan(root, 0)


def test_the_demo_is_imbalanced_whole_and_168_px(drawn):
    assert drawn.counts() == demo.COUNTS
    assert not drawn.skipped
    assert Image.open(drawn.paths("val")[0]).size == (168, 168)


def test_a_linear_model_on_pixels_stays_under_half(drawn):
    from sklearn.linear_model import LogisticRegression

    from export.parity import scores

    def pixels(split):
        return np.stack([Preprocess(32).load(p).ravel() / 255.0 for p in drawn.paths(split)])

    for strength in (1e-3, 1.0):
        model = LogisticRegression(C=strength, max_iter=300).fit(pixels("train"), drawn.labels("train"))
        f1, _ = scores(model.decision_function(pixels("val")), np.array(drawn.labels("val")))
        assert f1 < 0.5


@pytest.mark.slow
def test_a_small_network_passes_four_fifths_on_the_demo(drawn, tmp_path):
    from models.build import build
    from models.spec import ModelSpec
    from pipeline.data.images import decoded, train_size
    from pipeline.training.loop import Arrays, Recipe, fit

    arrays = Arrays(
        decoded(drawn, "train", Preprocess(train_size(168)), tmp_path),
        np.array(drawn.labels("train")),
        decoded(drawn, "val", Preprocess(168), tmp_path),
        np.array(drawn.labels("val")),
        (127.5,) * 3,
        (127.5,) * 3,
    )
    recipe = Recipe(epochs=12, optimizer="adamw", learning_rate=4e-3, batch=16)

    def passes(epoch):
        if epoch.f1_macro > 0.8:
            raise StopIteration

    with pytest.raises(StopIteration):
        fit(build(ModelSpec.load("cpu_small"), 0), arrays, recipe, 0, 6, on_epoch=passes)


def test_real_photos(trashnet):
    found = summary(scan(trashnet, 0))
    assert {s: sum(c.values()) for s, c in found["counts"].items()} == {"train": 1765, "val": 378}
    assert found["skipped"] == {}
