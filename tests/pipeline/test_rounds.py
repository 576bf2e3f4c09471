"""Two rounds of a search, end to end on the small config: limits, check of the proxy, narrow, round 2, the choice."""

import json

import optuna
import pytest
import yaml
from optuna_dashboard import get_note

from pipeline.study import database_url

pytestmark = pytest.mark.slow
SPACES = ["search.space=[cpu, pretrained]", "student.weights=none", "student.network=mobilenetv3_small_050"]
SPACES += ["student.until=[blocks.1, blocks.2]"]


def done(cli, command, *args, settings=(), code=0):
    found = cli(command, *args, "--json", *(part for s in settings for part in ("--set", s)))
    assert found.returncode == code, found.stderr
    return json.loads(found.stdout) if code == 0 else found.stderr, found.stderr


@pytest.fixture(scope="module")
def round1(cli, tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rounds") / "one"
    settings = [*SPACES, "search.trials=12", "limits.params=100000", "limits.size=3MB", "latency.limit_ms=0.3"]
    settings += ["search.epochs=2", "distill.epochs=3", "search.stop.share=0"]
    result, said = done(cli, "search", "-c", tiny, "--run-dir", folder, "--check-proxy", "5", settings=settings)
    return folder, result, said


def test_two_spaces_in_one_study_under_three_limits(round1):
    folder, result, said = round1
    assert result["trained"] + result["stopped_early"] >= 12
    assert result["over_limit_trained"] == 0
    rows = json.loads((folder / "search/trials.json").read_text())["trials"]
    assert {r["parameters"]["space"] for r in rows} == {"cpu", "pretrained"}
    for row in rows:
        assert set(row["over_limit"]) == {"latency", "params", "size"}
        assert (row["state"] == "rejected") == (max(row["over_limit"].values()) > 0)
        assert ("f1_by_epoch" in row) == (row["state"] != "rejected")
        assert row["params"] / 100_000 - 1 == pytest.approx(row["over_limit"]["params"])
        assert row["size_bytes"] / 3e6 - 1 == pytest.approx(row["over_limit"]["size"])
    assert any(r["state"] == "rejected" for r in rows)
    assert " asked, " in said
    assert "hypervolume 0." in said


def test_a_dashboard_finds_names_notes_and_artefacts(round1):
    folder, result, _ = round1
    study = optuna.load_study(study_name=result["study"], storage=database_url(None, folder / "study"))
    assert study.metric_names == ["macro F1", "p90 [ms]", "parameters"]
    assert "The limit is **0.3 ms**" in get_note(study)
    trained = [t for t in study.trials if t.values]
    for trial in trained:
        (meta,) = optuna.artifacts.get_all_artifact_meta(trial, storage=study._storage)
        store = folder / "study" / "artifacts" / meta.artifact_id
        assert yaml.safe_load(store.read_text()) == trial.user_attrs["details"]["spec"]


def test_the_proxy_is_checked_once(round1, cli):
    folder, result, _ = round1
    proxy = result["proxy"]
    assert len(proxy["pairs"]) == 5
    rank = proxy["rank"]
    assert rank["spearman"] is None or -1 <= rank["low"] <= rank["spearman"] <= rank["high"] <= 1
    assert [len(r["f1_by_seed"]) for r in proxy["repeats"]] == [4, 4, 4]
    assert proxy["repeat_sd"] >= 0
    before = {p: p.stat().st_mtime_ns for p in (folder / "study/trained/again").iterdir()}
    again, _ = done(cli, "search", "--run-dir", folder, "--check-proxy", "5")
    assert again["proxy"]["pairs"] == proxy["pairs"]
    assert {p: p.stat().st_mtime_ns for p in (folder / "study/trained/again").iterdir()} == before
    few, _ = done(cli, "search", "--run-dir", folder, "--check-proxy", "3", code=2)
    assert "--check-proxy" in few
    told, _ = done(cli, "search", "--run-dir", folder, "--check-proxy", "99", code=2)
    assert "--check-proxy 99: the search trained" in told


def test_round_2_begins_with_the_best_of_round_1(round1, cli, tmp_path):
    folder, first, _ = round1
    found, _ = done(cli, "narrow", "--run-dir", folder, "-o", tmp_path / "round2.yaml")
    assert found["measured"] > found["trained"] >= 10
    assert set(found["shares"]) == {"F1", "latency", "parameters"}
    second = yaml.safe_load((tmp_path / "round2.yaml").read_text())
    assert second["search"]["start"]
    result, _ = done(
        cli, "search", "-c", tmp_path / "round2.yaml", "--run-dir", tmp_path / "two", settings=["search.trials=2"]
    )
    rows = json.loads((tmp_path / "two/search/trials.json").read_text())["trials"]
    assert result["study"] != first["study"]
    wanted = second["search"]["start"][0]
    assert {k: rows[0]["parameters"][k] for k in wanted} == wanted


def test_the_choice_is_measured_again_and_says_why_the_others_lost(round1, cli):
    folder, _, _ = round1
    settings = ["select.finalists=2", "select.processes=3", "select.seeds=2", "submission.images=5217"]
    settings += ["submission.score={time_weight: 0.5, reference_s: 43.135, slope: 20, f1: 0.7}"]
    result, said = done(cli, "select", "--run-dir", folder, settings=settings)
    table = result["table"]
    again = [r for r in table if r["processes"]]
    assert len(again) >= 2
    assert all(r["processes"] == 3 for r in again)
    (chosen,) = [r for r in table if not r["reason"]]
    assert chosen["trial"] == result["trial"]
    assert chosen in again
    assert all(r["submission_s"] > 5217 * r["latency_ms"] / 1e3 for r in table)
    assert all(r["score"] > 0 for r in table)
    student = yaml.safe_load((folder / "select/student.yaml").read_text())
    measured = student["measurement"]
    assert student["trial"] == chosen["trial"]
    assert student["study"].startswith("edgebuild-")
    assert student["rule"]["finalists"] == 2
    assert len(measured["p90s_ms"]) == 3
    assert measured["latency_ms"] == chosen["latency_ms"]
    assert len(measured["f1_by_seed"]) == 2
    assert measured["f1_by_seed"][1] == pytest.approx(chosen["f1_macro"])
    assert said.count("by 3 fresh processes") == len(again)
    person, _ = done(cli, "select", "--run-dir", folder, "--trial", table[-1]["trial"])
    assert person["trial"] == table[-1]["trial"]


def test_of_limits_that_nothing_keeps_the_nearest_miss_and_what_would_help_are_told(cli, tiny, tmp_path):
    settings = ["limits.memory=20MB", "search.max_asked=12"]
    result, said = done(cli, "search", "-c", tiny, "--run-dir", tmp_path / "r", settings=settings)
    assert (result["asked"], result["rejected_untrained"], result["trained"]) == (12, 12, 0)
    assert "memory " in said
    assert "none of 12 candidates keeps the limits: the nearest of 12 measured candidates takes" in said
    assert "memory hangs most on" in said
    told, _ = done(cli, "select", "--run-dir", tmp_path / "r", code=1)
    assert "no candidate keeps the limit: the nearest of 12" in told
    assert "memory" in told
