"""The report in a real browser: needs no network, says what the records say, and strangers' text stays text."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline import run as pipeline_run
from pipeline.config import check_config, load_config
from pipeline.data import demo
from pipeline.errors import EnvironmentProblem
from pipeline.report import pictures
from pipeline.run import report, standing
from pipeline.stages import Run, run_config
from tests.browser import chromium, opened, until
from tests.conftest import ROOT
from tests.golden.make_run import seal

__all__ = ["chromium"]

GOLDEN = ROOT / "tests/golden/run"
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & 'rings' | **b**"
"""The name of a class, and so of folders, in place of rings."""
SECTIONS = ["search", "architecture", "training", "race", "latency", "quality", "preflight", "reproduce"]


def golden(folder: Path) -> Path:
    """The records of a real run, with a hostile class, and photos where they say."""
    run = folder / "run"
    shutil.copytree(GOLDEN, run)
    for file in run.rglob("*.json"):
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace('"rings"', json.dumps(HOSTILE)), encoding="utf-8")
    index = json.loads((run / "data/index.json").read_text())
    index["root"] = str(folder / "photos")
    rng = np.random.default_rng(0)
    for i, sample in enumerate(index["splits"]["test"]):
        if i % 2:
            sample["path"] = f"test/{i}<b onmouseover=alert(3)>.jpg"
        path = folder / "photos" / sample["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        demo.draw("dots", rng).save(path)
    (run / "data/index.json").write_text(json.dumps(index))
    return sealed(run)


def sealed(run: Path) -> Path:
    """As a run that had found what its records say now."""
    seal(run)
    return run


def opened_run(folder: Path) -> Run:
    return Run(sealed(folder), check_config(run_config(folder), "config.yaml"), print)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(path of the HTML, result.json)."""
    folder = golden(tmp_path_factory.mktemp("report"))
    run = opened_run(folder)
    result = standing(run)
    return report(run, result), result


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_it_renders_without_a_word_or_a_request_and_is_accessible(chromium, written, width, scheme):
    from axe_playwright_python.sync_playwright import Axe

    with opened(chromium, written[0], width, scheme) as seen:
        page = seen.page
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "it scrolls sideways"
        assert page.evaluate("document.querySelectorAll('.plot').length") >= 12
        empty = (
            "[...document.querySelectorAll('.plot')].filter(p => !p.querySelector('.trace, .hm, .points path, .bars'))"
        )
        assert page.evaluate(f"{empty}.map(p => p.id)") == []
        back = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert back == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 28)"}[scheme]
        found = Axe().run(page, options={"iframes": False}).response["violations"]
        assert [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")] == []
        assert seen.told == []
        assert seen.dialogs == []
        assert seen.requests == [written[0].as_uri()]


def test_it_is_small_enough_to_mail_and_holds_plotly_once(written):
    text = written[0].read_text(encoding="utf-8")
    assert len(text.encode()) < 6_000_000
    assert text.count("* plotly.js v") == 1
    assert not re.search(r"<(?:link|script|img|iframe)[^>]+(?:src|href)=\"(?!data:)", text)


@pytest.mark.slow
def test_a_search_of_a_thousand_fits_too(chromium, tmp_path):
    folder = golden(tmp_path)
    found = json.loads((folder / "search/trials.json").read_text())
    found["trials"] = [{**found["trials"][i % len(found["trials"])], "trial": i} for i in range(1000)]
    (folder / "search/trials.json").write_text(json.dumps(found))
    run = opened_run(folder)
    file = report(run, standing(run))
    assert file.stat().st_size < 6_000_000
    with opened(chromium, file) as seen:
        assert "The 1000 candidates that were timed" in seen.page.locator("#about-pareto").inner_text()


def test_it_says_what_the_record_says(chromium, written):
    file, result = written
    latency, quality = result["latency"], result["quality"]
    with opened(chromium, file) as seen:
        assert seen.page.title() == f"{result['verdict']}: run - edgebuild"
        assert seen.page.locator(".verdict").inner_text().lower() == result["verdict"]
        cards = seen.page.locator(".cards").inner_text()
        assert [s.get_attribute("id") for s in seen.page.locator("h2").all()] == SECTIONS
        rows = seen.page.locator("#race ~ .scroll tbody tr").count()
    for number in (
        f"{latency['p90_ms']:.3f} ms",
        f"{latency['p90_lower_ms']:.3f} to {latency['p90_upper_ms']:.3f} ms (99 %)",
        f"limit {latency['limit_ms']:g} ms",
        f"{quality['f1_macro']:.3f}",
        f"{result['model']['params']:,} parameters",
        f"{result['search']['rejected_untrained']} rejected untrained, {result['search']['trained']} trained",
    ):
        assert number in cards
    assert rows == len(json.loads((GOLDEN / "verify/manifest.json").read_text())["summary"]["race"])


def test_strangers_text_stays_text(chromium, written):
    with opened(chromium, written[0]) as seen:
        page = seen.page
        assert page.evaluate("document.querySelectorAll('script').length") == 3, "the figures, plotly, and ours"
        assert page.evaluate("document.querySelectorAll('img[src=x], [onmouseover], [onerror]').length") == 0
        assert HOSTILE[:23] + "…" in page.locator("#plot-confusion").text_content()
        names = page.locator(".photos .quiet").all_inner_texts()
        assert any("<b onmouseover=alert(3)>.jpg" in n for n in names)
        assert seen.dialogs == []
    markdown = written[0].with_suffix(".md").read_text(encoding="utf-8")
    (line,) = [row for row in markdown.splitlines() if "alert" in row]
    assert "<" not in line.replace("\\<", "")
    assert len(re.findall(r"(?<!\\)\|", line)) == 3, "a bar of a name ends no cell"


def test_a_script_that_got_in_would_not_run(chromium, written, tmp_path):
    """By the page's own policy: only the scripts whose hash it names, and no request at all."""
    text = written[0].read_text(encoding="utf-8")
    bad = "<script>document.title = 'taken'</script><img src='http://127.0.0.1:9/x.png'><main>"
    (tmp_path / "bad.html").write_text(text.replace("<main>", bad, 1), encoding="utf-8")
    with opened(chromium, tmp_path / "bad.html") as seen:
        assert "taken" not in seen.page.title()
        assert len(seen.told) == 2
        assert all("Content Security Policy" in line for line in seen.told)


def test_candidates_tell_their_fate_and_their_architecture(chromium, written):
    trials = json.loads((GOLDEN / "search/trials.json").read_text())
    states = {t["state"] for t in trials["trials"]}
    with opened(chromium, written[0]) as seen:
        page = seen.page
        legend = page.locator("#plot-pareto .legendtext").all_text_contents()
        names = {"trained": "trained", "stopped": "stopped early", "rejected": "rejected untrained"}
        assert {"front", "chosen", *(names[s] for s in states)} <= set(legend)
        star = page.locator("#plot-pareto .scatterlayer .trace").last.locator("path.point").first.bounding_box()
        page.mouse.move(star["x"] + star["width"] / 2, star["y"] + star["height"] / 2)
        until(page, "document.querySelector('#plot-pareto .hoverlayer .hovertext') !== null")
        told = page.locator("#plot-pareto .hoverlayer").text_content()
    chosen = yaml.safe_load((GOLDEN / "select/student.yaml").read_text())
    assert f"trial {chosen['trial']}" in told
    for _, module, _ in chosen["model"]["backbone"]:
        assert module in told


def test_the_colours_follow_the_screen(chromium, written):
    with opened(chromium, written[0], scheme="light") as seen:
        colour = "getComputedStyle(document.querySelector('#plot-pareto .xtick text')).fill"
        light = seen.page.evaluate(colour)
        seen.page.emulate_media(color_scheme="dark")
        until(seen.page, f"{colour} != '{light}'")


def test_the_weights_of_every_axis_are_those_of_the_record():
    """What is drawn, beside where it came from."""
    from pipeline.report import figures

    trials = json.loads((GOLDEN / "search/trials.json").read_text())
    rows, limit_ms = trials["trials"], trials["limit_ms"]
    chosen = yaml.safe_load((GOLDEN / "select/student.yaml").read_text())["trial"]
    groups = {t.name: t for t in figures.pareto(rows, limit_ms, chosen).figure.data}
    for state, name in (("trained", "trained"), ("rejected", "rejected untrained"), ("stopped", "stopped early")):
        assert list(groups[name].x) == [r["latency_ms"] for r in rows if r["state"] == state]
    assert list(groups["trained"].y) == [r["f1_macro"] for r in rows if r["state"] == "trained"]
    assert max(groups["rejected untrained"].y, default=-1) < 0
    front = list(zip(groups["front"].x, groups["front"].y, strict=True))
    assert front == sorted(front)
    assert [y for _, y in front] == sorted({y for _, y in front})
    f1, latency, params = figures.histories(rows, limit_ms)
    assert [v for v in latency.figure.data[0].y if v == v and v is not None] != []
    assert f1.title == "History: macro F1"
    assert params.name == "history-params"
    measurement = json.loads((GOLDEN / "gate/measurement.json").read_text())
    claim = json.loads((GOLDEN / "gate/manifest.json").read_text())["summary"]["latency"]
    lines = figures.by_process(measurement, claim).figure.data
    assert len(lines) == len(measurement["runs"])
    for line, process in zip(lines, measurement["runs"], strict=True):
        assert sum(line.y) == pytest.approx(1, abs=0.1), "the slowest percent of all is not shown"
        assert min(process["samples_ms"]) >= line.x[0] - 0.1


@pytest.mark.slow
def test_classes_whose_names_are_numbers_stay_classes(chromium, tmp_path):
    folder = golden(tmp_path)
    for file in folder.rglob("*.json"):
        text = file.read_text().replace('"weave"', '"1"').replace('"dots"', '"01"').replace('"waves"', '"1999-01-01"')
        file.write_text(text)
    run = opened_run(folder)
    with opened(chromium, report(run, standing(run))) as seen:
        for plot in ("confusion", "per-class"):
            labels = seen.page.locator(f"#plot-{plot} .ytick text").all_text_contents()
            assert {"1", "01", "1999-01-01"} <= set(labels)


def test_a_run_with_another_config_or_a_stage_done_anew_is_not_what_result_json_says(tmp_path):
    folder = golden(tmp_path)
    assert standing(opened_run(folder))["verdict"] == "pass"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["latency"]["limit_ms"] = 0.3
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert standing(opened_run(folder))["verdict"] == "unfinished"


def test_a_gate_without_bounds_claims_nothing(tmp_path):
    """latency.processes under 7."""
    folder = golden(tmp_path)
    for name, path in (("result.json", ("latency",)), ("gate/manifest.json", ("summary", "latency"))):
        record = json.loads((folder / name).read_text())
        claim = record
        for key in path:
            claim = claim[key]
        claim |= {"p90_lower_ms": None, "p90_upper_ms": None}
        (folder / name).write_text(json.dumps(record))
    run = opened_run(folder)
    text = report(run, standing(run)).read_text(encoding="utf-8")
    assert f"no bounds from {claim['processes']} fresh processes" in text
    assert "The claim" not in text
    assert "The band" not in text


def test_a_training_that_diverged_is_told(tmp_path):
    folder = golden(tmp_path)
    record = json.loads((folder / "distill/training.json").read_text())
    record["diverged"] = "the loss is no number any more at step 2 of epoch 19"
    nothing = {**record["history"][-1], "epoch": 18, "loss": None, "val_loss": None, "f1_macro": 0.0}
    record["history"].append(nothing)
    (folder / "distill/training.json").write_text(json.dumps(record))
    run = opened_run(folder)
    result = standing(run)
    result["stages"] = [s for s in result["stages"] if s["name"] != "teach"]
    text = report(run, result).read_text(encoding="utf-8")
    assert "(the loss is no number any more at step 2 of epoch 19)" in text
    assert "has the teacher&#39;s answers" not in text


def test_pictures_of_an_earlier_report_go_with_it(tmp_path):
    folder = golden(tmp_path)
    (folder / "report").mkdir()
    (folder / "report/pareto.png").write_bytes(b"old")
    run = opened_run(folder)
    path = report(run, standing(run))
    assert not (folder / "report").exists()
    assert "png" not in path.with_suffix(".md").read_text()


def test_a_photo_whose_name_is_not_utf_8(tmp_path):
    folder = golden(tmp_path)
    index = json.loads((folder / "data/index.json").read_text())
    for sample in index["splits"]["test"]:
        sample["path"] = sample["path"].removesuffix(".jpg") + "\udce4.jpg"
    (folder / "data/index.json").write_text(json.dumps(index))
    run = opened_run(folder)
    assert "\ufffd.jpg" in report(run, standing(run)).read_text(encoding="utf-8")


def test_a_report_that_fails_costs_a_run_nothing(tmp_path, monkeypatch):
    """Its verdict is out by then; what went wrong stands in the log."""
    said: list[str] = []
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setattr(pipeline_run, "STAGES", ())
    monkeypatch.setattr(pipeline_run.precheck, "check_before", lambda run: None)
    monkeypatch.setattr(pipeline_run, "report", lambda run, result: 1 / 0)
    result = pipeline_run.run_all(Run(folder, load_config("demo"), said.append))
    assert json.loads(json.dumps(result)) == json.loads((folder / "result.json").read_text())
    assert said[-1].startswith("report: it could not be written (why: ")
    assert "ZeroDivisionError" in (folder / "log.txt").read_text()


def test_a_run_that_is_not_finished_is_told_as_far_as_it_came(chromium, tmp_path):
    folder = golden(tmp_path)
    for stage in ("distill", "export", "quantize", "verify", "gate", "bundle", "preflight"):
        shutil.rmtree(folder / stage)
    (folder / "result.json").unlink()
    run = opened_run(folder)
    done = ["data", "search", "select", "teach"]
    result = json.loads((GOLDEN / "result.json").read_text())
    result |= dict.fromkeys(("model", "latency", "quality", "submission", "bundle", "preflight"))
    result["stages"] = [s for s in result["stages"] if s["name"] in done]
    result |= {"verdict": "unfinished", "reasons": ["not finished; distill is next"]}
    with opened(chromium, report(run, result), 390) as seen:
        assert seen.page.locator(".verdict").inner_text().lower() == "unfinished"
        shown = [s.get_attribute("id") for s in seen.page.locator("h2").all()]
        assert shown == ["search", "architecture", "training", "reproduce"]
        assert seen.told == []


@pytest.mark.parametrize("done", range(1, 11))
def test_a_report_can_be_written_after_any_stage(tmp_path, done):
    folder = golden(tmp_path)
    names = [
        "data",
        "search",
        "select",
        "teach",
        "distill",
        "export",
        "quantize",
        "verify",
        "gate",
        "bundle",
        "preflight",
    ]
    for stage in names[done:]:
        shutil.rmtree(folder / stage)
    (folder / "result.json").unlink()
    run = opened_run(folder)
    result = json.loads((GOLDEN / "result.json").read_text())
    result["stages"] = [s for s in result["stages"] if s["name"] in names[:done]]
    if done < names.index("gate") + 1:
        result |= dict.fromkeys(("model", "latency", "quality", "submission", "bundle", "preflight", "hint"))
    assert report(run, result).is_file()


@pytest.mark.slow
def test_pictures_for_a_readme(chromium, tmp_path):
    folder = golden(tmp_path)
    run = opened_run(folder)
    path = report(run, standing(run), pictures=True)
    pictures = sorted((folder / "report").glob("*.png"))
    assert len(pictures) >= 12
    assert all(p.read_bytes().startswith(b"\x89PNG") and p.stat().st_size > 5_000 for p in pictures)
    markdown = path.with_suffix(".md").read_text()
    assert {f"report/{p.name}" for p in pictures} == set(re.findall(r"\((report/[\w-]+\.png)\)", markdown))


def test_pictures_without_a_browser_are_an_error_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "_BROWSERS", ("no-such-browser",))
    run = opened_run(golden(tmp_path))
    with pytest.raises(EnvironmentProblem) as caught:
        report(run, standing(run), pictures=True)
    assert str(caught.value) == (
        "--png: no Chrome or Chromium was found, which draws the pictures: `apt-get install chromium`, or leave --png "
        "out; the HTML needs none"
    )


def test_a_photo_that_is_gone_or_broken_is_told_and_stops_nothing(tmp_path):
    folder = golden(tmp_path)
    for i, photo in enumerate(sorted((tmp_path / "photos").rglob("*.jpg"))):
        if i % 2:
            photo.unlink()
        else:
            photo.write_text("no photo")
    run = opened_run(folder)
    text = report(run, standing(run)).read_text(encoding="utf-8")
    assert "not there any more" in text
    assert "data:image/jpeg" not in text


def test_the_command_names_the_files_and_needs_a_run(cli, tmp_path):
    folder = golden(tmp_path)
    done = cli("report", "--run-dir", folder, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "html": str(folder / "report.html"),
        "markdown": str(folder / "report.md"),
        "verdict": json.loads((folder / "result.json").read_text())["verdict"],
    }
    done = cli("report", "--run-dir", tmp_path / "none")
    assert done.returncode == 2
    assert "no run folder (it has no config.yaml)" in done.stderr
