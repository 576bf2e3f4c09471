"""What `data check` finds beyond what can be read."""

import json

import numpy as np
import pytest
from PIL import Image

from pipeline.data import demo, likeness
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
    (group,) = look(photos)["near"]
    assert sorted(group["photos"]) == ["train/dots/1.jpg", "val/dots/again.jpg"]
    assert group["splits"] == ["train", "val"]


def test_the_same_photo_under_two_labels_is_found_in_one_split_too(photos):
    Image.open(photos / "train/dots/1.jpg").save(photos / "train/checks/same.png")
    (group,) = look(photos)["near"]
    assert group["classes"] == ["checks", "dots"]


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
    assert "nearly the same: train/dots/1.jpg and val/checks/same.png, labelled checks and dots\n" in done.stdout
    assert "groups across splits: 1, which flatters their figures: keep each group in one split\n" in done.stdout
    assert json.loads(cli("data", "check", photos, "--json").stdout)["near"][0]["splits"] == ["train", "val"]


def test_trashnet_has_the_pairs_that_its_source_tells_of(trashnet):
    """Of the 11 of all three splits, 4 of them across; test/ is not there."""
    found = look(trashnet)
    assert [g["count"] for g in found["near"]] == [2, 2, 2]
    assert found["near_within"] == 6
    assert all(len(g["classes"]) == 1 for g in found["near"])


def test_frames_of_a_video_are_one_group_and_not_a_million_pairs(tmp_path):
    """Each frame is nearly the same as the one before it, and the last is not like the first."""
    rng = np.random.default_rng(0)
    base = demo.draw("dots", rng).resize((128, 96))
    for i in range(600):
        split = "train" if i % 2 else "val"
        (tmp_path / split / "dots").mkdir(parents=True, exist_ok=True)
        frame = base.resize((100, 90), Image.Resampling.BICUBIC, box=(i / 60, 0, 100 + i / 60, 90))
        frame.save(tmp_path / split / f"dots/{i:03}.jpg")
    for split in ("train", "val"):
        (tmp_path / split / "checks").mkdir()
        demo.draw("checks", rng).save(tmp_path / split / "checks/0.jpg")
    (group,) = look(tmp_path)["near"]
    assert group["count"] == 600
    assert len(group["photos"]) == 2
    assert group["splits"] == ["train", "val"]
    assert group["classes"] == ["dots"]


@pytest.mark.parametrize("chunk", [1, 7, 2**22])
def test_groups_are_the_same_however_they_are_reckoned(monkeypatch, chunk):
    """Against a plain search of the pairs."""
    monkeypatch.setattr(likeness, "_CHUNK", chunk)
    rng = np.random.default_rng(3)
    base = rng.integers(0, 256, (12, 400))
    grey = np.clip(base[rng.integers(0, 12, 40)] + rng.normal(0, 8, (40, 400)), 0, 255).astype(np.uint8)
    grey[7], grey[8] = 50, 50  # of one grey throughout
    hashes = np.packbits(grey[:, :256] > 127, axis=1).view(np.uint64)
    alike = np.abs(np.corrcoef(np.delete(grey, [7, 8], 0))) >= 0.98
    bits = np.bitwise_count(hashes[:, None] ^ hashes[None]).sum(2) <= 20
    rest = [i for i in range(40) if i not in (7, 8)]
    expected = set()
    for i in range(38):
        members = {rest[j] for j in range(38) if alike[i, j] and bits[rest[i], rest[j]]}
        if len(members) > 1:
            expected.add(frozenset(members))
    assert {frozenset(g) for g in likeness._groups(hashes, grey)} == expected
    assert len(expected) > 5
