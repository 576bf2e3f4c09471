"""`edgebuild init`: a build.yaml that runs as it is, from what the photos and the CPU are like."""

import io
import json

import pytest
import yaml
from PIL import Image

from pipeline import init
from pipeline.config import load_config
from pipeline.data.index import Index, Sample
from tests.conftest import draw_photos
from tests.hub import Hub, serve

BUFFER = io.BytesIO()
Image.new("RGB", (20, 20), "red").save(BUFFER, "PNG")
PNG = BUFFER.getvalue()
NO_HUB = {"HF_ENDPOINT": "http://127.0.0.1:9"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("init")
    draw_photos(folder / "my photos", train=16, val=6)
    return folder / "my photos"


@pytest.mark.slow
def test_without_a_hub_and_a_limit_it_proposes_networks_from_scratch(cli, photos, tmp_path):
    done = cli("init", photos, "-o", tmp_path / "build.yaml", "--json", env=NO_HUB)
    assert done.returncode == 0, done.stderr
    told, config = json.loads(done.stdout), load_config(tmp_path / "build.yaml")
    assert told["weights"] == "none"
    assert 0.05 < told["limit_ms"] == config.latency.limit_ms < 50
    assert "no --limit-ms was given: timing 12 networks of the space cpu, to propose one" in done.stderr
    assert "the hub does not answer" in done.stderr
    assert (config.data.root, config.distill.weight, config.search.space) == (str(photos), 0, "cpu")
    text = (tmp_path / "build.yaml").read_text()
    assert "of 12 networks of the space cpu keep it here" in text
    assert "# 48 photos in train/, 18 photos in val/\n# 3 classes: checks, dots, stripes\n" in text


def test_where_the_hub_answers_students_begin_with_weights(cli, photos, tmp_path):
    with serve(Hub({})) as hub:
        done = cli(
            "init", photos, "-o", tmp_path / "b.yaml", "--limit-ms", "1.4", env=hub.environment(tmp_path / "hub")
        )
        assert done.returncode == 0, done.stderr
        assert any(path.startswith("/api/models/timm/tf_efficientnet_lite0") for _, path, _ in hub.requests)
    config = load_config(tmp_path / "b.yaml")
    assert (config.student.weights, config.teacher.weights) == ("hub", "hub")
    assert (config.latency.limit_ms, config.search.sampler) == (1.4, "sweep")
    assert done.stdout == f"{tmp_path}/b.yaml: limit 1.4 ms; edgebuild run -c {tmp_path}/b.yaml\n"


def test_the_submission_and_weights_of_a_file_are_taken_over(inside, photos, tmp_path):
    weights = tmp_path / 'odd "name".safetensors'
    weights.write_bytes(b"")
    more = ("--images", "5217", "--limit-s", "60", "--weights", weights, "--limit-ms", "2")
    done = inside("init", photos, "-o", tmp_path / "b.yaml", *more)
    assert done.returncode == 0, done.stderr
    config = load_config(tmp_path / "b.yaml")
    assert (config.submission.images, config.submission.limit_s) == (5217, 60.0)
    assert config.student.weights == config.teacher.weights == str(weights)


@pytest.mark.parametrize(("photos", "epochs"), [(300, 60), (5_000, 20), (100_000, 6)])
def test_more_photos_get_fewer_epochs(tmp_path, photos, epochs):
    """About 100,000 views in all, within reason."""
    (tmp_path / "one.png").write_bytes(PNG)
    samples = tuple(Sample("one.png", i % 2, "") for i in range(photos))
    found = init._of_photos(Index(str(tmp_path), ("a", "b"), {"train": samples, "val": samples[:2]}, {}))
    assert found["epochs"] == epochs
    assert 4 <= found["teacher_epochs"] <= 14
    assert (found["most"], found["least"]) == (photos / 2, photos / 2)


@pytest.mark.parametrize("name", ["b: #c", "photos😀", "no-break\u00a0space", '"quoted"', "-", "{{ 1 }}"])
def test_odd_names_of_classes_and_folders_stay_text(tmp_path, name):
    root = tmp_path / name.replace("/", "")
    for split in ("train", "val"):
        for kind in ("a", name):
            (root / split / kind).mkdir(parents=True)
            (root / split / kind / "0.png").write_bytes(PNG)
    init.write_build(root, tmp_path / "b.yaml", 1.0, "none", None, None, lambda text: None)
    assert load_config(tmp_path / "b.yaml").data.root == str(root)


def test_long_photos_are_padded(tmp_path):
    for split, count in (("train", 6), ("val", 4)):
        for kind in ("a", "b"):
            (tmp_path / "long" / split / kind).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (60 + i % 3, 20)).save(tmp_path / "long" / split / kind / f"{i}.png")
    init.write_build(tmp_path / "long", tmp_path / "b.yaml", 1.0, "none", None, None, lambda text: None)
    assert load_config(tmp_path / "b.yaml").data.fit == "pad"


def test_a_folder_named_like_the_drawn_set_is_the_folder(inside, tmp_path):
    draw_photos(tmp_path / "demo", train=2, val=2)
    done = inside("init", "demo", "--limit-ms", "5", "--weights", "none", "-o", "b.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert load_config(tmp_path / "b.yaml").data.root == "./demo"
    done = inside("data", "check", "-c", "demo", "--json", cwd=tmp_path)
    assert len(json.loads(done.stdout)["classes"]) == 6, done.stderr


def test_what_exists_is_not_overwritten(inside, photos, tmp_path):
    (tmp_path / "build.yaml").write_text("mine")
    done = inside("init", photos, "-o", tmp_path / "build.yaml", "--limit-ms", "1")
    assert done.returncode == 2
    assert done.stderr == (f"edgebuild: {tmp_path}/build.yaml: exists already; give another with -o, or remove it\n")
    assert (tmp_path / "build.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (
            ("--limit-ms", "0"),
            "--limit-ms: give the limit in milliseconds, a number over 0, for example --limit-ms 1.4",
        ),
        (
            ("--limit-ms", "1", "--weights", "gone.safetensors"),
            "--weights gone.safetensors: no such file; give hub, none, or a .safetensors file of tf_efficientnet_lite0",
        ),
    ],
)
def test_what_cannot_be_used_is_told(inside, photos, tmp_path, more, told):
    done = inside("init", photos, "-o", tmp_path / "b.yaml", *more, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, f"edgebuild: {told}\n")
    assert not (tmp_path / "b.yaml").exists()


def test_a_config_is_shown_with_all_its_keys(inside, tmp_path):
    done = inside("config", "show", "-c", "demo", "--set", "latency.limit_ms=0.7")
    assert done.returncode == 0, done.stderr
    shown = yaml.safe_load(done.stdout)
    assert shown["latency"]["limit_ms"] == 0.7
    assert shown["search"]["sampler"] == "ehvi"
    (tmp_path / "all.yaml").write_text(done.stdout)
    assert load_config(tmp_path / "all.yaml") == load_config("demo", ["latency.limit_ms=0.7"])


def test_the_schema_takes_every_shipped_config_and_refuses_a_typo(inside, tmp_path):
    import jsonschema

    schema = json.loads(inside("config", "schema").stdout)
    for name in ("demo", "trashnet", "trashnet-quick", "lineage-round1", "lineage-round2"):
        document = yaml.safe_load(inside("config", "show", "-c", name, "--set", "data.root=x").stdout)
        jsonschema.validate(document, schema)
    document["latency"]["limt_ms"] = 1
    with pytest.raises(jsonschema.ValidationError, match="limt_ms"):
        jsonschema.validate(document, schema)
