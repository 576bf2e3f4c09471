"""The one way from file to array, on the files that the field brings."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from export.preprocess import ImageError, Preprocess, find_images
from tests.conftest import ROOT

P = Preprocess(32)


def save(path, image, **options):
    image.save(path, **options)
    return path


def halves(size=(64, 64), left=(255, 0, 0), right=(0, 0, 255)):
    image = Image.new("RGB", size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


def test_rgb_in_this_order_as_uint8(tmp_path):
    array = P.load(save(tmp_path / "a.png", halves()))
    assert (array.shape, array.dtype) == ((32, 32, 3), np.uint8)
    assert array[16, 2].tolist() == [255, 0, 0]
    assert array[16, 29].tolist() == [0, 0, 255]


def test_a_huge_photo_is_read_without_a_word_of_pillows(tmp_path):
    path = save(tmp_path / "huge.png", Image.new("1", (9600, 9600)))
    code = f"from export.preprocess import Preprocess; print(Preprocess(8).load({str(path)!r}).shape)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("(8, 8, 3)\n", "")


def test_exif_rotation_is_undone(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    array = P.load(save(tmp_path / "a.png", halves(), exif=exif))
    assert array[16, 2].tolist() == [0, 0, 255]


MODES = {
    "grey": Image.new("L", (20, 20), 200),
    "grey 16 bit": Image.fromarray(np.full((20, 20), 200 * 257, np.uint16)),
    "alpha": Image.new("RGBA", (20, 20), (200, 200, 200, 90)),
    "palette": Image.new("RGB", (20, 20), (200, 200, 200)).quantize(4),
    "one bit": Image.new("1", (20, 20), 1),
    "one pixel": Image.new("RGB", (1, 1), (200, 200, 200)),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb(mode, tmp_path):
    array = P.load(save(tmp_path / "a.png", MODES[mode]))
    assert array.shape == (32, 32, 3)
    assert np.abs(array.astype(int) - (255 if mode == "one bit" else 200)).max() <= 1


def test_cmyk_jpeg(tmp_path):
    array = P.load(save(tmp_path / "a.jpg", Image.new("CMYK", (20, 20), (0, 0, 0, 55))))
    assert np.abs(array.astype(int) - 200).max() <= 3


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (20, 20), c) for c in ((250, 0, 0), (0, 250, 0))]
    array = P.load(save(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:]))
    assert array[5, 5, 0] > 200


def test_fits(tmp_path):
    wide = save(tmp_path / "a.png", halves((128, 64)))
    squash, pad, crop = (Preprocess(32, fit).load(wide) for fit in ("squash", "pad", "crop"))
    assert squash[0, 0].tolist() == [255, 0, 0]
    assert pad[0, 0].tolist() == [114, 114, 114]
    assert pad[16, 0].tolist() == [255, 0, 0]
    assert crop[16, 0].tolist() == [255, 0, 0]
    assert (crop[16, 18:] == [0, 0, 255]).all()


def test_a_large_jpeg_is_decoded_small_and_looks_the_same(tmp_path):
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(
        (1600, 1200), Image.Resampling.BICUBIC
    )
    draft = P.load(save(tmp_path / "a.jpg", smooth, quality=95))
    full = P.load(save(tmp_path / "a.png", smooth))
    assert np.abs(draft.astype(int) - full.astype(int)).mean() < 3


BROKEN = {
    "truncated": lambda path: (halves((200, 200)).save(path, "JPEG"), path.write_bytes(path.read_bytes()[:900])),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no image"),
    "missing": lambda path: None,
    "a folder": lambda path: path.mkdir(),
    "an EPS, which would start another program": lambda path: halves((20, 20)).save(path, "EPS"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_an_error_that_names_it(kind, tmp_path):
    path = tmp_path / "broken.jpg"
    BROKEN[kind](path)
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        P.load(path)


def test_a_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match="too many pixels to decode safely"):
        P.load(save(tmp_path / "a.png", Image.new("L", (40, 40))))


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match="unknown preprocessing"):
        Preprocess(32, "stretch")


def test_images_are_found_sorted_and_nothing_else(tmp_path):
    for name in ("b.JPG", "a.png", "c.txt", "d/e.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [p.name for p in find_images(tmp_path)] == ["a.png", "b.JPG", "e.webp"]
    assert find_images(tmp_path / "a.png") == [tmp_path / "a.png"]
    with pytest.raises(ImageError, match="nowhere: this folder cannot be read"):
        find_images(tmp_path / "nowhere")
