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

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from pipeline.files import templates, write_text
from pipeline.report.facts import Facts
from pipeline.report.pictures import write_pictures

TEMPLATES = Path(__file__).parent / "templates"
HTML, MARKDOWN, PICTURES = "report.html", "report.md", "report"


def write_report(folder: Path, facts: Facts, pictures: bool = False) -> Path:
    """The HTML's path; the Markdown lies beside it. pictures: a PNG of each figure too, which the Markdown shows.
    Raises EnvironmentProblem where there is no browser to draw them."""
    shutil.rmtree(folder / PICTURES, ignore_errors=True)  # of figures that were others
    charts = [c for group in facts.charts.values() for c in group]
    if pictures:
        write_pictures(folder / PICTURES, charts)
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


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _template(name: str) -> Any:
    environment = templates(TEMPLATES, autoescape=name.endswith(".html"))
    environment.filters["cell"] = _cell
    return environment.get_template(name)


def _cell(text: Any) -> str:
    """A stranger's text in a table of Markdown."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|" else c for c in " ".join(str(text).split()))
