"""Search spaces: the lineage's exactly, the rules of strides, and refusals."""

import math
import random

import pytest
import yaml

from models.build import profile
from models.language import SpecError
from models.space import SPACES, SearchSpace


class Draw:
    """A suggester that draws at random and remembers what it was asked for."""

    def __init__(self, seed):
        self.random, self.asked = random.Random(seed), {}

    def _put(self, name, value, what):
        self.asked[name] = what
        return value

    def suggest_categorical(self, name, choices):
        return self._put(name, self.random.choice(choices), tuple(choices))

    def suggest_int(self, name, low, high, *, step=1, log=False):
        return self._put(name, self.random.randrange(low, high + 1, step), (low, high, step))

    def suggest_float(self, name, low, high, *, step=None, log=False):
        value = low + step * self.random.randrange(round((high - low) / step) + 1) if step else low
        return self._put(name, value, (low, high, step, log))


def all_asked(name, draws):
    asked, space = {}, SearchSpace.load(name)
    for seed in range(draws):
        draw = Draw(seed)
        space.suggest(draw, 6)
        asked |= draw.asked
    return asked


MOBILE = ("Conv", "DWConv", "InvertedResidualv2", "InvertedResidualv3", "Pass")
LINEAGE = {
    # module: types, repeat, conv out, v2 out, v2 expansion, v3 out
    "m1": (("Conv", "DWConv"), 3, (16, 64, 16), None, None, None),
    "m2": (MOBILE, 5, (16, 128, 16), (16, 32, 16), (1, 4, 1), (16, 40, 8)),
    "m3": (MOBILE, 5, (16, 128, 16), (8, 32, 8), (1, 8, 1), (8, 40, 8)),
    "m4": (MOBILE, 5, (16, 256, 16), (8, 64, 8), (1, 8, 1), (8, 80, 8)),
    "m5": (MOBILE, 5, (16, 256, 16), (16, 128, 16), (1, 8, 1), (16, 80, 16)),
    "m6": (MOBILE, 5, (16, 512, 16), (16, 128, 16), (1, 8, 1), (16, 160, 16)),
    "m7": (MOBILE, 5, (128, 1024, 128), (16, 160, 16), (1, 8, 1), (8, 160, 8)),
}


def test_the_lineage_space_is_the_lineages():
    asked = all_asked("lineage", 400)
    assert asked["optimizer"] == ("adam", "sgd")
    assert asked["n_select"] == (0, 2, 4, 6)
    assert asked["batch"] == (16, 32)
    assert asked["input_size"] == (96, 112, 168, 224)
    assert asked["learning_rate"] == (1e-4, 1e-1, None, True)
    assert asked["depth_multiple"] == asked["width_multiple"] == (0.25, 0.5, 0.75, 1.0)
    assert asked["head/last_dim"] == (128, 1024, 128)
    for module, (types, repeat, conv, v2, expansion, v3) in LINEAGE.items():
        assert asked[f"{module}/type"] == types
        assert asked[f"{module}/repeat"] == (1, repeat, 1)
        assert asked[f"{module}/out"] == conv
        assert asked[f"{module}/activation"] == ("ReLU", "Hardswish")
        assert asked[f"{module}/stride"] == (1, 2)
        if v2:
            assert asked[f"{module}/kernel"] == (1, 3, 5)
            assert asked[f"{module}/v2_out"] == v2
            assert asked[f"{module}/v2_expansion"] == expansion
            assert asked[f"{module}/v3_out"] == v3
            assert asked[f"{module}/v3_kernel"] == (3, 5)
            assert asked[f"{module}/v3_expansion"] == (1.0, 6.0, 0.1, False)
            assert asked[f"{module}/v3_se"] == asked[f"{module}/v3_hs"] == (0, 1)


def strides(spec):
    """Modules with stride 2, by layer."""
    return [any(u.args.get("stride") == 2 for u in spec.units if u.layer == i) for i in range(len(spec.backbone))]


def test_lineage_has_at_most_five_strides():
    space = SearchSpace.load("lineage")
    for seed in range(300):
        spec = space.suggest(Draw(seed), 6).spec
        assert sum(strides(spec)) <= 5


class Fixed(Draw):
    """Answers from a table, else the first choice."""

    def __init__(self, **answers):
        super().__init__(0)
        self.answers = answers

    def suggest_categorical(self, name, choices):
        return self.answers.get(name, choices[0])

    def suggest_int(self, name, low, high, *, step=1, log=False):
        return self.answers.get(name, low)


def test_the_forced_stride_of_m6_falls_on_m6():
    answers = {f"m{i}/stride": 1 for i in range(1, 8)} | {"m1/stride": 2, "m3/stride": 2}
    spec = SearchSpace.load("lineage").suggest(Fixed(**answers), 6).spec
    assert strides(spec)[:7] == [True, False, True, False, False, True, False]


def test_pass_leaves_the_module_out():
    answers = {f"m{i}/type": "Pass" for i in range(2, 8)}
    spec = SearchSpace.load("lineage").suggest(Fixed(**answers), 6).spec
    assert [row.module for row in spec.backbone] == ["Conv", "Conv", "GlobalAvgPool", "FixedConv"]


def test_cpu_is_flat_and_at_168_px():
    names = set()
    space = SearchSpace.load("cpu")
    for seed in range(40):
        draw = Draw(seed)
        candidate = space.suggest(draw, 6)
        names.add(frozenset(draw.asked))
        assert candidate.spec.input_size == 168
    assert len(names) == 1, "every parameter is suggested in every trial"


@pytest.mark.parametrize("name", [p.stem for p in SPACES.glob("*.yaml")])
def test_every_draw_is_a_network(name):
    space = SearchSpace.load(name)
    for seed in range(30):
        spec = space.suggest(Draw(seed), 4).spec
        assert math.prod(profile(spec).units[-1].shape) == 4


def test_most_of_cpu_is_small_and_most_of_lineage_is_not():
    def macs(name):
        space = SearchSpace.load(name)
        return [profile(space.suggest(Draw(s), 6).spec).macs / 1e6 for s in range(50)]

    assert sum(m < 60 for m in macs("cpu")) > 0.8 * 50
    assert sum(m < 60 for m in macs("lineage")) < 0.4 * 50


def test_input_sizes_of_the_config_replace_the_spaces():
    draw = Draw(0)
    assert SearchSpace.load("cpu", [96]).suggest(draw, 6).spec.input_size == 96
    assert "input_size" not in draw.asked


def changed(tmp_path, change):
    document = yaml.safe_load((SPACES / "cpu.yaml").read_text())
    change(document)
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(document))
    return file


def test_every_range_is_the_users_to_change(tmp_path):
    def narrow(document):
        document["hyper"]["optimizer"] = ["sgd"]
        document["modules"][1]["params"]["out"] = {"low": 16, "high": 16}

    candidate = SearchSpace.load(changed(tmp_path, narrow)).suggest(Draw(3), 6)
    assert candidate.hyper.optimizer == "sgd"


REFUSED = {
    "an unknown key": (lambda d: d.update(haed=1), "unknown key 'haed' (did you mean 'head'?)"),
    "an unknown block": (lambda d: d["modules"][0]["layers"].update(Konv=["$out"]), "unknown block 'Konv'"),
    "a reference to nothing": (lambda d: d["modules"][0]["layers"].update(Conv=["$outt"]), "did you mean 'out'?"),
    "an upside-down range": (lambda d: d["hyper"].update(batch={"low": 9, "high": 1}), "low <= high"),
    "an empty choice": (lambda d: d["hyper"].update(batch=[]), "hyper.batch: an empty list"),
    "a type without a layer": (lambda d: d["modules"][0]["params"].update(type=["Fire"]), "type 'Fire' has no entry"),
    "another format": (lambda d: d.update(format=2), "format: expected 1, got 2"),
    "a format that is true": (lambda d: d.update(format=True), "format: expected 1, got True"),
    "a stride in words": (lambda d: d["modules"][0]["params"].update(stride=["1", 2]), "stride: expected a whole"),
    "a stride of nothing": (lambda d: d["modules"][0]["params"].update(stride=[None, 2]), "stride: expected a whole"),
    "an endless repeat": (lambda d: d["modules"][0]["params"].update(repeat=10**30), "repeat: expected a whole"),
    "channels in words": (lambda d: d["modules"][0]["params"].update(out=["wide"]), "out: expected a whole number"),
    "a repeat of the head that is none": (lambda d: d["head"]["layers"][0].__setitem__(0, "$x"), "repeat: expected"),
    "classes of its own": (lambda d: d["head"]["params"].update(classes=3), "the data gives their number"),
    "a two_if in words": (
        lambda d: d["modules"][0]["params"].update(stride={"choices": [1, 2], "two_if": "x"}),
        "two_if: expected a whole number",
    ),
    "a two_if of what is no stride": (
        lambda d: d["modules"][0]["params"].update(repeat={"choices": [1, 2], "two_if": 0}),
        "two_if: only a stride can have it",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_space_is_refused(case, tmp_path):
    change, text = REFUSED[case]
    with pytest.raises(SpecError) as caught:
        SearchSpace.load(changed(tmp_path, change))
    assert text in str(caught.value)


def test_an_unknown_space_names_the_known_ones():
    with pytest.raises(SpecError, match=r"no shipped one of that name \(did you mean 'lineage'\?\); shipped: cpu"):
        SearchSpace.load("linage")


def test_the_config_may_replace_any_choice_by_its_name():
    space = SearchSpace.load("lineage", values={"m5/type": ["Conv", "Pass"], "m4/stride": [2], "batch": 16})
    assert space.choices["m5/type"] == ["Conv", "Pass"]
    assert "batch" not in space.choices
    stride = next(m for m in space.document["modules"] if m["name"] == "m4")["params"]["stride"]
    assert stride == {"choices": [2], "two_if": 1}  # what else is said of it stays
    assert space.hash != SearchSpace.load("lineage").hash


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"m5/typ": ["Conv"]}, "no parameter 'm5/typ' (did you mean 'm5/type'?)"),
        ({"m5/type": ["Fire"]}, "type 'Fire' has no entry in layers"),
        ({"m5/type": []}, "an empty list leaves nothing to choose"),
        ({"m1/stride": ["1", None]}, "stride: expected a whole number of at least 1, got '1'"),
        ({"m5/out": [16.5]}, "out: expected a whole number of at least 1, got 16.5"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(values, text):
    with pytest.raises(SpecError) as caught:
        SearchSpace.load("lineage", values=values)
    assert text in str(caught.value)
