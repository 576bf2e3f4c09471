"""Several spaces in one study."""

import optuna
import pytest
from optuna.trial import FixedTrial

from models.joined import JoinedSpace
from models.language import SpecError
from models.space import SearchSpace

BOTH = JoinedSpace((SearchSpace.load("cpu"), SearchSpace.load("pretrained", [96, 112])))


def test_a_space_alone_is_as_it_was():
    alone = JoinedSpace((SearchSpace.load("cpu"),))
    assert alone.hash == SearchSpace.load("cpu").hash
    assert alone.flat
    assert "s1/type" in alone.choices


def test_a_trial_draws_a_space_first_and_then_in_it():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(12):
        trial = study.ask()
        spec = BOTH.suggest(trial, 6).spec
        own = trial.params["space"]
        seen.add(own)
        assert {name.partition("/")[0] for name in trial.params} == {"space", own}
        assert (spec.network is not None) == (own == "pretrained")
        study.tell(trial, 0.0)
    assert seen == {"cpu", "pretrained"}
    assert not BOTH.flat


def test_its_choices_are_named_as_a_trial_names_them():
    assert BOTH.choices["space"] == ["cpu", "pretrained"]
    assert BOTH.choices["pretrained/input_size"] == [96, 112]
    assert BOTH.choices["cpu/s1/repeat"] == {"low": 1, "high": 2}
    assert BOTH.input_sizes == [96, 112, 168]
    assert BOTH.networks == ["tf_efficientnet_lite0"]


def test_combinations_are_those_of_each():
    small = JoinedSpace((SearchSpace.load("pretrained", [96]),))
    assert small.size == len(small.combinations()) == 24
    sizes = {small.suggest(FixedTrial(p), 6).spec.hash for p in small.combinations()}
    assert len(sizes) == 16  # without a neck its width says nothing


def test_two_of_one_name_are_refused():
    with pytest.raises(SpecError, match="two spaces of one name: cpu, cpu"):
        JoinedSpace((SearchSpace.load("cpu"), SearchSpace.load("cpu")))
