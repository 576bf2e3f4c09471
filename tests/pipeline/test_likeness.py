"""What `data check` finds beyond what can be read."""

import json

import numpy as np
import pytest
from PIL import Image

from pipeline.data import demo
from pipeline.data.index import scan
from pipeline.data.likeness import look_closer


@pytest.fixture
def photos(tmp_path):
    """Two classes in two splits, no two photos alike."""
    rng = np.random.default_rng(1)
    for split in ("train", "val"):
        for kind in ("checks", "dots"):
            (tmp_path / split / kind).mkdir(parents=True)
            for i in range(4):
                demo.draw(kind, rng).save(tmp_path / split / kind / f"{i}.jpg")
    return tmp_path


def look(root):
    return look_closer(scan(root, 0))


def test_photos_that_differ_are_not_called_alike(photos):
    found = look(photos)
    assert found["near"] == []
    assert found["near_within"] == 0


def test_the_same_photo_at_another_size_and_quality_is_found_across_splits(photos):
    image = Image.open(photos / "train/dots/1.jpg")
    image.resize((image.width // 2, image.height // 2)).save(photos / "val/dots/again.jpg", quality=60)
    (pair,) = look(photos)["near"]
    assert sorted(pair["photos"]) == ["train/dots/1.jpg", "val/dots/again.jpg"]
    assert pair["splits"] == ["train", "val"]


def test_the_same_photo_under_two_labels_is_found_in_one_split_too(photos):
    Image.open(photos / "train/dots/1.jpg").save(photos / "train/checks/same.png")
    (pair,) = look(photos)["near"]
    assert set(pair["classes"]) == {"checks", "dots"}


def test_the_same_photo_twice_in_one_class_is_counted_only(photos):
    Image.open(photos / "train/dots/1.jpg").save(photos / "train/dots/same.png")
    found = look(photos)
    assert (found["near"], found["near_within"]) == ([], 1)


def test_a_photo_turned_by_exif_is_the_photo_as_it_is_shown(photos):
    image = Image.open(photos / "train/dots/1.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    image.transpose(Image.Transpose.ROTATE_90).resize((64, 96)).save(photos / "val/dots/turned.jpg", exif=exif)
    found = look(photos)
    assert [sorted(p["photos"]) for p in found["near"]] == [["train/dots/1.jpg", "val/dots/turned.jpg"]]
    assert {"photo": "val/dots/turned.jpg", "px": [96, 64]} in found["sizes"]["smallest"]


def test_plain_photos_that_differ_in_colour_alone_are_no_pair_by_chance(photos):
    """The hash of a plain photo is noise: it must be confirmed."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        grey = rng.normal(128, 2, (96, 96, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(grey).save(photos / split / "dots/plain.png")
    assert look(photos)["near"] == []


def test_sizes_that_stand_out(photos):
    Image.new("RGB", (900, 100), "red").save(photos / "train/dots/strip.png")
    sizes = look(photos)["sizes"]
    assert sizes["largest"][0] == {"photo": "train/dots/strip.png", "px": [900, 100]}
    assert sizes["narrow"] == [{"photo": "train/dots/strip.png", "px": [900, 100]}]
    assert sizes["small"] == sum(min(Image.open(p).size) < 168 for p in photos.rglob("*.*"))


def test_the_command_tells_of_it(cli, photos):
    Image.open(photos / "train/dots/1.jpg").save(photos / "val/checks/same.png")
    done = cli("data", "check", photos)
    assert done.returncode == 0
    assert "nearly the same: train/dots/1.jpg and val/checks/same.png, labelled dots and checks\n" in done.stdout
    assert "pairs across splits: 1, which flatters their figures: keep one photo of each pair\n" in done.stdout
    assert json.loads(cli("data", "check", photos, "--json").stdout)["near"][0]["splits"] == ["train", "val"]


def test_trashnet_has_the_pairs_that_its_source_tells_of(trashnet):
    """Of the 11 of all three splits, 4 of them across; test/ is not there."""
    found = look(trashnet)
    assert len(found["near"]) == 3
    assert found["near_within"] == 6
    assert all(len(set(p["classes"])) == 1 for p in found["near"])
