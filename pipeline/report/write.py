"""Write a report: `report.html`, which opens without a network, `report.md`, and pictures in `report/`.

The page may load nothing and run nothing but the scripts that are in it, by hash (its Content-Security-Policy); all
that comes from photos, labels and YAML goes through Jinja's autoescape, or plotly's data.
"""

import base64
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from pipeline.errors import EnvironmentProblem
from pipeline.files import write_text
from pipeline.report.facts import Facts

TEMPLATES = Path(__file__).parent / "templates"
HTML, MARKDOWN, PICTURES = "report.html", "report.md", "report"
_PNG_WIDTH, _PNG_SCALE = 900, 2
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")


def write_report(folder: Path, facts: Facts, pictures: bool = False) -> Path:
    """The HTML's path; the Markdown lies beside it. pictures: a PNG of each figure too, which the Markdown shows.
    Raises EnvironmentProblem where there is no browser to draw them."""
    shutil.rmtree(folder / PICTURES, ignore_errors=True)  # of figures that were others
    if pictures:
        _write_pictures(folder, facts)
    charts = [c for group in facts.charts.values() for c in group]
    plots = {c.name: json.loads(c.figure.to_json()) for c in charts}
    scripts = [Markup(get_plotlyjs()), Markup((TEMPLATES / "report.js").read_text(encoding="utf-8"))]
    page = _template("report.html").render(
        facts=facts,
        plots=plots,
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        scripts=scripts,
        policy=" ".join(f"'sha256-{_digest(s)}'" for s in scripts),
    )
    write_text(folder / HTML, page)
    drawn = charts if pictures else []
    write_text(folder / MARKDOWN, _template("report.md").render(facts=facts, pictures=drawn, folder=PICTURES))
    return folder / HTML


def _write_pictures(folder: Path, facts: Facts) -> None:
    if browser() is None:
        raise EnvironmentProblem(
            "--png: no Chrome or Chromium was found, which draws the pictures: `apt-get install chromium`, or leave "
            "--png out; the HTML needs none"
        )
    import kaleido

    (folder / PICTURES).mkdir(exist_ok=True)
    charts = [c for group in facts.charts.values() for c in group]
    paths = [folder / PICTURES / f"{c.name}.png" for c in charts]
    drawn = []
    for chart, path in zip(charts, paths, strict=True):
        figure = chart.figure.to_dict()
        figure["layout"] |= {"title": {"text": chart.title}, "margin": {"l": 60, "r": 30, "t": 90, "b": 60}}
        size = {"width": _PNG_WIDTH, "height": figure["layout"]["height"] + 60, "scale": _PNG_SCALE}
        drawn.append({"fig": figure, "path": path, "opts": {"format": "png", **size}})
    kaleido.write_fig_from_object_sync(drawn)


def browser() -> str | None:
    """A Chrome or Chromium that kaleido can draw with."""
    return next(filter(None, map(shutil.which, _BROWSERS)), None)


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _template(name: str) -> Any:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = _cell
    return environment.get_template(name)


def _cell(text: Any) -> str:
    """A stranger's text in a table of Markdown."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|" else c for c in " ".join(str(text).split()))
