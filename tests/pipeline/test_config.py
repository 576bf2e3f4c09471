"""What the user sets: shipped configs load, wrong keys and values are refused in the words of the file."""

import re

import pytest

from pipeline.config import CONFIGS, check_config, load_config
from pipeline.errors import PipelineError

MINIMAL = "data: {root: photos}\nlatency: {limit_ms: 1.4}\n"


def write(tmp_path, text):
    file = tmp_path / "build.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize("name", [p.stem for p in CONFIGS.glob("*.yaml")])
def test_shipped_configs_load_and_begin_with_their_command(name):
    load_config(name, ["data.root=photos"])
    text = (CONFIGS / f"{name}.yaml").read_text()
    assert text.startswith(f"# edgebuild run -c {name}")
    assert "scored" in text or "Not run" in text


def test_the_shipped_names():
    assert {p.stem for p in CONFIGS.glob("*.yaml")} == {
        "demo",
        "trashnet",
        "trashnet-quick",
        "lineage-round1",
        "lineage-round2",
    }


def test_defaults_are_the_documented_ones(tmp_path):
    config = load_config(write(tmp_path, MINIMAL))
    assert (config.latency.threads, config.latency.processes) == (1, 9)
    assert (config.select.f1_band, config.select.latency_band, config.select.input_size) == (0.02, 0.10, 168)
    assert (config.quantize.max_f1_drop, config.search.space) == (0.01, "cpu")
    assert (config.teacher.name, config.teacher.weights) == ("efficientnet_b0", "hub")


def test_overrides_reach_every_depth(tmp_path):
    config = load_config(write(tmp_path, MINIMAL), ["latency.limit_ms=2", "select.input_size=null", "seed=7"])
    assert (config.latency.limit_ms, config.select.input_size, config.seed) == (2.0, None, 7)


REFUSED = {
    "an unknown key": (
        "latncy: {limit_ms: 1}",
        "latncy: unknown key (did you mean 'latency'?); known here: seed, target, data",
    ),
    "a deep unknown key": ("search: {trails: 3}", "search.trails: unknown key (did you mean 'trials'?)"),
    "a wrong type": ("search: {trials: many}", "search.trials: Input should be a valid integer"),
    "an unknown runtime": (
        "latency: {limit_ms: 1, runtimes: [tflite]}",
        "expected onnxruntime, openvino, got 'tflite'",
    ),
    "a share over one": ("search: {subset: 1.5}", "search.subset: Input should be less than or equal to 1"),
    "a missing root": ("data: {}", "data.root: missing; set it in the file or with --set data.root=VALUE"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_config_is_refused_by_file_and_key(case, tmp_path):
    text, message = REFUSED[case]
    with pytest.raises(PipelineError) as caught:
        load_config(write(tmp_path, text + "\n"))
    assert "build.yaml: " in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("limit", ["0", "-1", ".nan", ".inf", "fast"])
def test_a_limit_must_be_a_number_over_zero(limit, tmp_path):
    with pytest.raises(PipelineError, match=r"latency\.limit_ms"):
        load_config(write(tmp_path, MINIMAL), [f"latency.limit_ms={limit}"])


@pytest.mark.parametrize("override", ["latency.limit_ms", "=3", "seed.x=3"])
def test_a_wrong_override_is_refused(override, tmp_path):
    with pytest.raises(PipelineError, match="--set"):
        load_config(write(tmp_path, "seed: 1\n" + MINIMAL), [override])


def test_an_unknown_config_names_the_shipped():
    with pytest.raises(PipelineError, match=r"did you mean 'demo'\?\); shipped: demo, lineage-round1"):
        load_config("dmeo")


def test_a_text_that_is_no_yaml(tmp_path):
    with pytest.raises(PipelineError, match="not readable as YAML"):
        load_config(write(tmp_path, "a: [1"))


def test_of_many_mistakes_the_first_are_told():
    with pytest.raises(PipelineError) as caught:
        check_config({f"wrong{i}": "x" * 5000 for i in range(1000)}, "build.yaml")
    lines = str(caught.value).splitlines()
    assert len(lines) == 11
    assert re.fullmatch(r"build\.yaml: and 99\d more", lines[-1])
    assert max(map(len, lines)) < 600
