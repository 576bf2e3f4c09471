"""Whatever a file holds, it is read or refused in our words: configs, architectures, search spaces, records, bundles.

A fixed seed and a budget of about 20 seconds. What a search of a night finds goes into the tests beside this one.
"""

import contextlib
import json
import shutil

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export.checks import Checks, Ended
from export.errors import ExportError
from export.examine import examine, unpacked
from latency.errors import LatencyError
from latency.host import this_host
from models.build import profile
from models.documents import dump_yaml, parse_yaml
from models.language import BLOCKS, SpecError
from models.space import SPACES, SearchSpace
from models.spec import ZOO, ModelSpec
from pipeline.config import CONFIGS, check_config, load_config
from pipeline.errors import PipelineError
from pipeline.files import write_record
from pipeline.report.facts import gather
from pipeline.run import standing
from pipeline.stages import Run, run_config
from tests.conftest import ROOT

GOLDEN = ROOT / "tests/golden/run"
OURS = (PipelineError, SpecError, ExportError, LatencyError)


def fuzz(examples):
    """examples: a share of the 20 seconds."""
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-3, 300),
    st.floats(),
    st.sampled_from(
        ["", "no", "2020-01-01", "1:30", "0x10", "1e5", "~", "\0", "a\nb", "\ud800", "../x", "-", "*a", "x" * 300]
    ),
    st.text(max_size=8),
)
VALUES = st.recursive(
    SCALARS,
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5) | SCALARS, v, max_size=3),
    max_leaves=6,
)
TOKENS = st.one_of(
    st.sampled_from(["!!int ", "!!python/object:os.system ", "&a ", "*a", "{", "}", "[", "]", ": ", "- ", "\t", "\0"]),
    st.sampled_from(["'", '"', "<<: ", "? ", "\n", "\n  ", "# ", "%YAML 9.9\n", "---\n", "...", ".nan", "1e999", "-1"]),
    st.sampled_from(["true", "\ufeff", "\u2028", "é", "9" * 60]),
)


@st.composite
def texts(draw, paths):
    """A text that ships, with a few things put in, taken out or said twice."""
    text = draw(st.sampled_from(paths)).read_text()
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        end = min(len(text), at + draw(st.sampled_from([0, 1, 5, 40])))
        what = draw(TOKENS | st.just(text[at:end] * 2) | st.text(max_size=4))
        text = text[:at] + what + text[end:]
    return text


@st.composite
def documents(draw, paths):
    """A document that ships, with a few of its values, keys and items replaced."""
    document = parse_yaml(draw(st.sampled_from(paths)).read_text(), "shipped")
    for _ in range(draw(st.integers(1, 3))):
        place = document
        while isinstance(place, dict | list) and place:
            keys = list(place) if isinstance(place, dict) else range(len(place))
            key = draw(st.sampled_from(keys))
            if not isinstance(place[key], dict | list) or draw(st.integers(0, 3)) == 0:
                place[key] = draw(VALUES)
                break
            place = place[key]
    return document


def written(path, text):
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return path


@fuzz(150)
@given(texts(sorted(CONFIGS.glob("*.yaml"))))
def test_a_text_of_a_config(tmp_path, text):
    with contextlib.suppress(PipelineError):
        load_config(written(tmp_path / "build.yaml", text), ["data.root=x"])


@fuzz(400)
@given(documents(sorted(CONFIGS.glob("*.yaml"))))
def test_a_document_of_a_config_is_read_back_as_it_is_written(document):
    try:
        config = check_config(document, "fuzz")
    except PipelineError:
        return
    kept = config.model_dump(mode="json")
    assert check_config(parse_yaml(dump_yaml(kept), "again"), "again") == config


@fuzz(300)
@given(
    st.sampled_from(["search.trials", "latency.limit_ms", "data", "search.values", "a.b.c", "teacher.tune", ""]),
    st.text(),
)
def test_a_value_of_the_command_line(key, value):
    with contextlib.suppress(PipelineError):
        load_config("demo", [f"{key}={value}"])


@fuzz(100)
@given(texts(sorted(ZOO.glob("*.yaml"))))
def test_a_text_of_an_architecture(tmp_path, text):
    with contextlib.suppress(SpecError):
        ModelSpec.load(written(tmp_path / "model.yaml", text))


ARGS = st.one_of(
    st.integers(-1, 70), st.sampled_from([0.5, 1e9, 65536, None, True, "ReLU", "resnet18", "layer1"]), SCALARS
)
LAYERS = st.tuples(
    st.sampled_from([1, 1, 2, 65536]) | SCALARS,
    st.sampled_from([*BLOCKS]) | st.text(max_size=3),
    st.lists(ARGS, max_size=6),
)


@fuzz(250)
@given(st.lists(LAYERS.map(list), max_size=4), st.sampled_from([0.1, 1.0, 64]), st.sampled_from([16, 64, 2048]))
def test_an_architecture_is_built_or_refused(rows, multiple, size):
    rows = [*rows, [1, "GlobalAvgPool", []], [1, "FixedConv", [6, 1]]]
    document = {"INPUT_SIZE": [size, size], "depth_multiple": multiple, "width_multiple": multiple, "backbone": rows}
    with contextlib.suppress(SpecError):
        spec = ModelSpec.parse(document)
        assert ModelSpec.parse(parse_yaml(dump_yaml(spec.document()), "again")).hash == spec.hash
        profile(spec)


@fuzz(60)
@given(documents(sorted(SPACES.glob("*.yaml"))), st.integers(0, 99))
def test_a_search_space_is_drawn_from_or_refused(tmp_path_factory, document, seed):
    path = tmp_path_factory.getbasetemp() / "space.yaml"
    try:
        path.write_text(dump_yaml(document), encoding="utf-8")
    except UnicodeEncodeError:
        return
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    with contextlib.suppress(SpecError):
        SearchSpace.load(path).suggest(study.ask(), 6)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The golden run, its result as its report would say it, and each of its files."""
    folder = tmp_path_factory.mktemp("fuzz") / "run"
    shutil.copytree(GOLDEN, folder)
    files = sorted(p.relative_to(folder) for p in folder.rglob("*.*") if p.is_file())
    return folder, _standing(folder), files


def _standing(folder):
    run = Run(folder, check_config(run_config(folder), "config.yaml"), lambda text: None)
    result = standing(run)
    gather(run, result, [], {})
    return result


@st.composite
def damages(draw):
    """bytes -> other bytes."""
    kind, share, value = (
        draw(st.sampled_from(["cut", "flip", "insert", "empty", "digit"])),
        draw(st.floats(0, 0.99)),
        draw(VALUES),
    )

    def damage(data):
        at = int(share * len(data))
        if kind == "cut":
            return data[:at]
        if kind == "flip":
            return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        if kind == "empty":
            return b""
        if kind == "digit":
            return data[:at] + data[at:].replace(b"1", b"9", 3)
        return data[:at] + json.dumps(str(value)).encode() + data[at:]

    return damage


@fuzz(50)
@given(st.integers(0, 10**6), damages())
def test_a_damaged_record_of_a_run_is_noticed(finished, which, damage):
    """A report shows the figures as they were, or says that they are not there."""
    folder, whole, files = finished
    path = folder / files[which % len(files)]
    data = path.read_bytes()
    changed = damage(data)
    path.write_bytes(changed)
    try:
        found = _standing(folder)
    except OURS:
        found = {"verdict": "unfinished"}
    finally:
        path.write_bytes(data)
    if changed != data and path.name != "config.yaml":
        same = found == whole
        assert (
            found["verdict"] == "unfinished"
            or (same and path.name == "result.json")
            or _figures(found) == _figures(whole)
        )


def _figures(result):
    return result["verdict"], result["quality"], result["latency"]


@fuzz(60)
@given(st.integers(0, 10**6), damages())
def test_a_damaged_bundle_is_refused_by_reading_it(good, tmp_path_factory, which, damage):
    source = good.with_name("bundle")
    files = sorted(p.relative_to(source) for p in source.rglob("*") if p.is_file())
    folder = tmp_path_factory.mktemp("fuzzed") / "bundle"
    shutil.copytree(source, folder)
    path = folder / files[which % len(files)]
    data = path.read_bytes()
    path.write_bytes(damage(data))
    checks = Checks()
    with contextlib.suppress(Ended):
        examine(unpacked(folder, folder.with_name("copy"), checks), this_host(), checks)
    shutil.rmtree(folder.parent)
    verdicts = {c.verdict for c in checks.found}
    unchanged = damage(data) == data or (path.name == "manifest.json" and json_of(damage(data)) == json_of(data))
    assert unchanged or "pass" not in verdicts or len(verdicts) > 1, checks.found


def json_of(data):
    try:
        return json.loads(data)
    except ValueError:
        return None


@fuzz(200)
@given(st.dictionaries(st.text(max_size=4), VALUES, max_size=3))
def test_records_come_back_as_they_were_written(tmp_path, value):
    from pipeline.files import read_record

    try:
        write_record(tmp_path / "x.json", value)
    except (TypeError, ValueError):
        return
    assert read_record(tmp_path / "x.json") is not None
