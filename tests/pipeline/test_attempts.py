"""A run that does not end with the first file that fails: attempts, files, candidates, and what is kept of them."""

import json
import shutil
from contextlib import contextmanager
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from export.parity import Parity, keeps_f1
from latency.calm import Calm
from latency.gate import judge
from pipeline import attempts
from pipeline.attempts import Attempt, SetAside, add_attempt, read_attempts, set_aside, take_back
from pipeline.config import load_config
from pipeline.errors import PipelineError
from pipeline.files import write_record
from pipeline.run import run_all
from pipeline.search.choose import Row, Rule, choose, keeps
from pipeline.ship import candidates
from pipeline.ship import gate as stage
from pipeline.ship.candidates import Candidate
from pipeline.stages import Stage, open_run, perform
from tests.latency.test_calm import at, measured

ATTEMPT = Attempt(1, 3, "onnx f32", "0" * 64, "fail", 1.5, 1.45, 1.6, 9, 0.25, 0.24, ("over the limit",))


@contextmanager
def opened(folder, *settings):
    with open_run(folder, load_config("demo", list(settings)), lambda text: None) as run:
        yield run


def test_attempts_outlive_stages_and_belong_to_one_limit(tmp_path):
    with opened(tmp_path / "run") as run:
        add_attempt(run, ATTEMPT)
        add_attempt(run, replace(ATTEMPT, number=2, verdict="pass"))
        assert [a.verdict for a in read_attempts(run).made] == ["fail", "pass"]
        assert "trial 3, onnx f32: fail, p90 1.500 ms (1.450 to 1.600) in 9 processes" in ATTEMPT.told
    with opened(tmp_path / "run") as run:
        assert len(read_attempts(run).made) == 2
    with opened(tmp_path / "run", "latency.limit_ms=9") as run:
        assert read_attempts(run).made == ()
        add_attempt(run, ATTEMPT)
    with opened(tmp_path / "run") as run:
        assert len(read_attempts(run).made) == 2, "another limit between does not let the count begin anew"


@pytest.mark.parametrize("content", ["", "{}", '{"limits": []}'])
def test_attempts_that_cannot_be_counted_are_no_first_one(content, tmp_path):
    with opened(tmp_path / "run") as run:
        add_attempt(run, ATTEMPT)
        (run.folder / "attempts.json").write_text(content)
        with pytest.raises(PipelineError, match=r"attempts\.json: damaged; .* begin in another run folder"):
            read_attempts(run)


def test_attempts_that_a_finished_gate_made_are_missed(tmp_path):
    def gated(run, work):
        add_attempt(run, ATTEMPT)
        (work / "gate.json").write_text(json.dumps({"attempts": [asdict(ATTEMPT)]}))
        return {}

    with opened(tmp_path / "run") as run:
        perform(Stage("gate", (), lambda run: {}, gated), run)
        assert len(read_attempts(run).made) == 1
        path = run.folder / "attempts.json"
        path.unlink()
        with pytest.raises(PipelineError, match=r"attempts\.json: missing"):
            read_attempts(run)
        (run.folder / "gate/manifest.json").unlink()
        with pytest.raises(PipelineError, match=r"attempts\.json: missing"):
            read_attempts(run)
        write_record(path, {"limits": []})
        with pytest.raises(
            PipelineError, match=r"attempts\.json: older than the records in .*gate, which name attempts"
        ):
            read_attempts(run)


@pytest.mark.parametrize("left", ["gate.json", "manifest.json"])
def test_one_record_of_a_finished_gate_is_enough_to_miss_them(left, tmp_path):
    def gated(run, work):
        add_attempt(run, ATTEMPT)
        (work / "gate.json").write_text(json.dumps({"attempts": [asdict(ATTEMPT)]}))
        return {"attempts": [asdict(ATTEMPT)]}

    with opened(tmp_path / "run") as run:
        perform(Stage("gate", (), lambda run: {}, gated), run)
        (run.folder / "attempts.json").unlink()
        for name in {"gate.json", "manifest.json"} - {left}:
            (run.folder / "gate" / name).unlink()
        with pytest.raises(PipelineError, match=r"attempts\.json: missing"):
            read_attempts(run)


def test_an_interrupted_attempt_is_counted(scripted, tmp_path):
    def interrupted(file, attempt):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scripted(interrupted)
    _, asked = scripted(lambda file, attempt: [at(2.0)] * 30)
    assert asked == [("fast", 2)]


@pytest.mark.parametrize("limits", [["x"], [5], [{}], [{"belongs_to": {}, "search": None, "made": None, "aside": []}]])
def test_attempts_of_another_shape_are_damaged_though_their_digest_was_computed_anew(limits, tmp_path):
    with opened(tmp_path / "run") as run:
        write_record(run.folder / "attempts.json", {"limits": limits})
        with pytest.raises(PipelineError, match=r"attempts\.json: damaged"):
            read_attempts(run)


def test_what_was_set_aside_beside_work_is_tried_again(tmp_path):
    calm, busy = SetAside(1, 1.2, True, "too slow"), SetAside(2, 1.1, False, "disturbed")
    with opened(tmp_path / "run") as run:
        set_aside(run, calm)
        set_aside(run, busy)
        assert take_back(run) == [busy]
        assert read_attempts(run).aside == (calm,)
        assert take_back(run, calm) == [calm]
        assert read_attempts(run).aside == ()


def test_what_was_set_aside_is_of_one_search(tmp_path, monkeypatch):
    with opened(tmp_path / "run") as run:
        monkeypatch.setattr(attempts, "_search_of", lambda run: "one")
        add_attempt(run, ATTEMPT)
        set_aside(run, SetAside(1, 1.2, True, "too slow"))
        monkeypatch.setattr(attempts, "_search_of", lambda run: "another")
        assert (len(read_attempts(run).made), read_attempts(run).aside) == (1, ())


RULE = Rule(1.4, 0.4, 0.0, 0.1, None, {0: "trial 0 was set aside"}, slower=1.2)


def test_the_next_candidate_is_one_that_the_gate_may_let_pass():
    rows = [Row(0, 0.9, 1.3, 9, 96), Row(1, 0.8, 1.25, 9, 96), Row(2, 0.7, 1.1, 9, 96)]
    chosen, table = choose(rows, RULE)
    assert chosen.trial == 2
    why = {r.trial: r.reason for r in table}
    assert why[0] == "trial 0 was set aside"
    assert why[1] == "1.250 ms would be 1.500 ms in the gate, which saw trial 0 take 1.20 times as long as was reckoned"
    assert [keeps(r, RULE) for r in rows] == [False, False, True]


def test_a_stage_that_comes_back_to_what_it_was_is_not_done_again(tmp_path):
    done = []
    asked = {"x": 1}

    def work(run, folder):
        done.append(asked["x"])
        (folder / "out.txt").write_text(str(asked["x"]))
        return {"x": asked["x"]}

    kept = Stage("distill", (), lambda run: dict(asked), work, kept=True)
    with opened(tmp_path / "run") as run:
        for x in (1, 2, 1, 2):
            asked["x"] = x
            assert perform(kept, run).summary == {"x": x}
            assert run.file("distill", "out.txt").read_text() == str(x)
        assert done == [1, 2]
        (place,) = (run.folder / ".aside").iterdir()
        (place / "out.txt").write_text("damaged")
        asked["x"] = 1
        assert perform(kept, run).summary == {"x": 1}
        assert done == [1, 2, 1]


def parity(low, high):
    return Parity(0.1, 0.9, 1, 0.8, 0.8, (low + high) / 2, low, high)


@pytest.mark.parametrize(
    ("low", "high", "kept"), [(-0.03, 0.0, True), (-0.05, -0.005, True), (-0.05, -0.02, False), (0.0, 0.0, True)]
)
def test_f1_is_lost_where_its_interval_says_so(low, high, kept):
    assert keeps_f1(parity(low, high), 0.01) == kept


def test_files_are_compared_as_they_are_with_the_host_at_rest(monkeypatch, tmp_path):
    """What was timed beside work, and so looks slower than another file, is the faster one."""
    found = [measured([at(4.0, 0.5)] * 3), measured([at(3.0, 0.25)] * 3)]
    monkeypatch.setattr(candidates, "measure", lambda *_, **more: found)
    files = [Candidate(name, SimpleNamespace(subject=lambda threads: None), parity(0, 0)) for name in "ab"]
    with opened(tmp_path / "run") as run:
        timed = candidates.time_in_turn(run, files)
    assert [c.p90_ms for c in timed] == pytest.approx([2.0, 3.0])


# --- the files of one candidate --------------------------------------------------------------------------------------


LIMIT_MS = 3.0
FILES = {"fast": 2.0, "slower": 2.5, "hopeless": 9.0}
REST = Calm(0.25, 0.25)


@pytest.fixture
def scripted(monkeypatch, tmp_path):
    """Let each gate see the runs of `script(file, attempt)`; what was asked."""

    def use(script, comes_to_rest=True):
        asked = []
        order = [
            {"name": n, "path": f"export/{n}", "runtime": "onnxruntime", "precision": "f32", "sha256": n, "p90_ms": ms}
            for n, ms in FILES.items()
        ]
        run = SimpleNamespace(
            config=load_config("demo", [f"latency.limit_ms={LIMIT_MS}"]),
            read=lambda *_: {"order": order},
            file=lambda *_: None,
            say=lambda text: None,
            machine=None,
            host=SimpleNamespace(key="host"),
            folder=tmp_path,
            has=lambda *_: False,
        )

        def gate(subject, limit_ms, processes, plan, machine, tick, attempt, calm):
            asked.append((subject.path, attempt))
            found = measured(script(subject.path, attempt))
            found = replace(found, subject=replace(found.subject, sha256=subject.sha256))
            return judge(found, limit_ms, stage_look(attempt), calm), found

        def artifact(run, entry):
            subject = replace(measured([]).subject, path=entry["name"], sha256=entry["name"])
            return SimpleNamespace(subject=lambda threads: subject, size_bytes=1, path=entry["name"])

        for name, value in {
            "gate": gate,
            "artifact_of": artifact,
            "chosen_trial": lambda run: 0,
            "control_runs": lambda run, runtime: [at(1.0, REST.p50_ms)] * 20,
            "wait_for_calm": lambda *_: comes_to_rest,
            "load_checkpoint": lambda path: (None, None, None),
            "profile": lambda spec: SimpleNamespace(params=1),
            "shipped_over": lambda *_: [],
        }.items():
            monkeypatch.setattr(stage, name, value)
        return stage._until_one_passes(run), asked

    return use


def stage_look(attempt):
    from latency.bounds import plan_looks

    return plan_looks(30, attempt)[0]


def test_the_first_that_passes_ends_it(scripted):
    gated, asked = scripted(lambda file, attempt: [at(2.0)] * 30)
    assert asked == [("fast", 1)]
    assert [g.outcome for g in gated] == ["pass"]


def test_a_disturbed_file_is_gated_again_once_the_host_rests(scripted):
    gated, asked = scripted(lambda file, attempt: [at(2.0)] * 30 if attempt > 1 else [at(6.0, 0.75)] * 30)
    assert asked == [("fast", 1), ("fast", 2)]
    assert [g.outcome for g in gated] == ["pass"]


def test_a_file_is_gated_as_often_as_the_host_disturbs_it(scripted):
    gated, asked = scripted(lambda file, attempt: [at(2.0)] * 30 if attempt > 3 else [at(6.0, 0.75)] * 30)
    assert asked == [("fast", attempt) for attempt in range(1, 5)]
    assert [g.outcome for g in gated] == ["pass"]


def test_a_host_that_disturbs_for_ever_ends_the_attempts(scripted):
    gated, asked = scripted(lambda file, attempt: [at(6.0, 0.75)] * 30)
    assert [file for file, _ in asked] == ["fast"] * 5 + ["slower"] * 5
    assert [g.outcome for g in gated] == ["inconclusive"] * 2


def test_a_file_that_is_too_slow_in_the_calm_processes_is_not_gated_again(scripted):
    few = [at(4.0)] * 5 + [at(6.0, 0.75)] * 25
    gated, asked = scripted(lambda file, attempt: few if file == "fast" else [at(2.0)] * 30)
    assert asked == [("fast", 1), ("slower", 2)]
    assert [g.outcome for g in gated] == ["inconclusive", "pass"]


def test_a_file_that_fails_at_rest_is_not_gated_again_and_the_next_is(scripted):
    gated, asked = scripted(lambda file, attempt: [at(4.0 if file == "fast" else 2.5)] * 30)
    assert asked == [("fast", 1), ("slower", 2)]
    assert [g.outcome for g in gated] == ["fail", "pass"]


def test_a_host_that_never_rests_fails_nothing(scripted):
    gated, asked = scripted(lambda file, attempt: [at(6.0, 0.75)] * 30, comes_to_rest=False)
    assert asked == [("fast", 1), ("slower", 2)], "what was far over in its race is not gated"
    assert [g.outcome for g in gated] == ["inconclusive", "inconclusive"]


# --- the whole -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_where_no_file_passes_the_next_candidate_is_distilled(tiny, tiny_run, tmp_path, monkeypatch):
    """Real stages on real files; only the verdicts on the first choice are written over."""
    folder, said = shutil.copytree(tiny_run, tmp_path / "run"), []
    own, tried = stage.gate, []

    def gate(subject, limit_ms, *more):
        verdict, measurement = own(subject, limit_ms, *more)
        tried.append(stage.chosen_trial(run))
        if tried[-1] == tried[0]:
            verdict = replace(verdict, verdict="fail", reasons=("slow",))
        return verdict, measurement

    monkeypatch.setattr(stage, "gate", gate)
    shutil.rmtree(folder / "gate")
    (folder / "attempts.json").unlink()
    with open_run(folder, load_config(tiny, ["gate.more_minutes=60", "latency.precisions=[f32]"]), said.append) as run:
        result = run_all(run)
        kept = read_attempts(run)
    first = tried[0]
    assert [a.trial for a in kept.aside] == [first]
    assert {a.trial for a in kept.made if a.verdict == "fail"} == {first}
    chosen = json.loads((folder / "select/manifest.json").read_text())["summary"]["trial"]
    assert chosen != first
    assert any(f"trial {first} was set aside: the gate said fail" in line for line in said)
    assert any((folder / ".aside").glob("distill-*"))
    assert result["verdict"] in ("pass", "inconclusive")
    assert result["verdict"] == "inconclusive" or result["bundle"]
    told = (folder / "report.html").read_text(encoding="utf-8")
    assert f"trial {first} was set aside" in told
