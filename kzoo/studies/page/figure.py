"""A figure: a chart with a name and the text that stands for it."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import altair
import vl_convert

from kzoo.errors import InputError
from kzoo.files import write
from kzoo.studies.page import style

WIDTH = 640  # pixels in a file; on the page a figure is as wide as its column
SCALE = 2  # of PNG
SAVED = ("svg", "png", "json")


def _version():
    """The Vega-Lite that draws altair's charts: that of altair, or the newest of its kind there."""
    wanted = altair.SCHEMA_VERSION.lstrip("v").rpartition(".")[0]
    there = vl_convert.get_vegalite_versions()
    alike = [each for each in there if each.partition(".")[0] == wanted.partition(".")[0]]
    return wanted if wanted in there or not alike else alike[-1]


VERSION = _version()


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure of a study, which shows itself in a notebook.

    Attributes:
        name: of its files.
        chart: of altair, to go on with; its colours are names that `spec` resolves.
        alternative: what is seen, in words, for those who do not see it.

    Example:
        >>> results.plot().save("curves.svg")
    """

    name: str
    chart: Any
    alternative: str

    @functools.cached_property
    def on_page(self) -> dict[str, Any]:
        """The Vega-Lite spec with the colours of the page's style sheet, which names the arms."""
        return _without_legends(self._styled)

    @functools.cached_property
    def _styled(self):
        return self.chart.configure(**style.config()).to_dict(validate=False)

    def spec(self) -> dict[str, Any]:
        """The Vega-Lite spec, complete: its data, its colours, its legend and its width."""
        fixed = style.literal(self._styled)
        if fixed.get("width") == "container":
            fixed["width"] = WIDTH
        return {**fixed, "background": "white"}

    @functools.cached_property
    def svg(self) -> str:
        """The figure as SVG."""
        return vl_convert.vegalite_to_svg(self.spec(), vl_version=VERSION)

    def png(self) -> bytes:
        """The figure as PNG, two pixels for each of the SVG."""
        return vl_convert.svg_to_png(self.svg, scale=SCALE)

    def save(self, path: Path) -> Path:
        """Write the figure as SVG, PNG, or Vega-Lite's JSON, by the end of the file's name.

        Args:
            path: that ends in `.svg`, `.png` or `.json`.

        Returns:
            The `Path` of the file.

        Raises:
            InputError: for another ending.
            OSError: if the file cannot be written.

        Example:
            >>> results.plot().save("curves.png").name
            'curves.png'
        """
        path = Path(path)
        kind = path.suffix.lower().lstrip(".")
        if kind not in SAVED:
            raise InputError(f"a figure is saved as {', '.join(SAVED)}. Received: {str(path)!r}")
        content = {"svg": lambda: self.svg, "png": self.png}.get(kind, self._json)()
        write(path, content)
        return path

    def _json(self):
        return altair.Chart.from_dict(self.spec()).to_json()

    def _repr_mimebundle_(self, include=None, exclude=None):
        """Vega-Lite where the notebook draws it; SVG elsewhere, which needs no network."""
        major = VERSION.partition(".")[0]
        return {
            f"application/vnd.vegalite.v{major}+json": self.spec(),
            "image/svg+xml": self.svg,
            "text/plain": self.alternative,
        }


def _without_legends(spec):
    if isinstance(spec, list):
        return [_without_legends(part) for part in spec]
    if not isinstance(spec, dict):
        return spec
    shown = {name: _without_legends(part) for name, part in spec.items()}
    return shown if "field" not in shown or "legend" not in shown else {**shown, "legend": None}


@functools.cache
def bundle() -> str:
    """The JavaScript of Vega, Vega-Lite and Vega-Embed: it needs no network."""
    named = "window.vegaEmbed = vegaEmbed;"
    return vl_convert.javascript_bundle(named, vl_version=VERSION).replace("</script", "<\\/script")
