"""A PNG of each figure, drawn by a browser that is there."""

import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.errors import EnvironmentProblem

_WIDTH, _SCALE = 900, 2
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")


def browser() -> str | None:
    """A Chrome or Chromium that kaleido can draw with."""
    return next(filter(None, map(shutil.which, _BROWSERS)), None)


def write_pictures(folder: Path, charts: Iterable[Any]) -> None:
    """charts: `pipeline.report.figures.Chart`. Raises EnvironmentProblem where there is no browser."""
    if browser() is None:
        raise EnvironmentProblem(
            "--png: no Chrome or Chromium was found, which draws the pictures: `apt-get install chromium`, or leave "
            "--png out; the HTML needs none"
        )
    import kaleido

    # As kaleido closes the browser, its pipe can log its own farewell, "{bye}", as a JSONError with a traceback; an
    # answer that is really missing is raised.
    logging.getLogger("choreographer.channels.pipe").setLevel(logging.CRITICAL)
    folder.mkdir(exist_ok=True)
    drawn = []
    for chart in charts:
        figure = chart.figure.to_dict()
        figure["layout"] |= {"title": {"text": chart.title}, "margin": {"l": 60, "r": 30, "t": 90, "b": 60}}
        size = {"width": _WIDTH, "height": figure["layout"]["height"] + 60, "scale": _SCALE}
        drawn.append({"fig": figure, "path": folder / f"{chart.name}.png", "opts": {"format": "png", **size}})
    kaleido.write_fig_from_object_sync(drawn)
