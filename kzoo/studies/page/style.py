"""Colours and lines: one set of names, with a value in light and one in dark.

Figures on the page name a colour as the CSS variable, so that they follow the page; in files they
have its light value.
"""

import json
import re

import altair

from kzoo.config import Config
from kzoo.studies.page import labels

# Arms: after Okabe and Ito, told apart by the colour-blind, all of them at least 3:1 against the
# page; the tenth is the ink.
LIGHT = {
    **{"page": "#fcfcfa", "card": "#ffffff", "ink": "#22252a", "soft": "#5c626b"},
    **{"line": "#dcdfe2", "wash": "#f0f1ef", "alarm": "#a33a12", "link": "#00598c"},
    **{"arm-0": "#0072b2", "arm-1": "#c94f00", "arm-2": "#00805c", "arm-3": "#b3478a"},
    **{"arm-4": "#2b8bc0", "arm-5": "#9a6f00", "arm-6": "#5e3c99", "arm-7": "#767676"},
    **{"arm-8": "#8c564b", "arm-9": "#111111"},
    **{"hidden": "#e9ecef", "visible": "#33658a", "source": "#d98324"},
    **{"yes": "#00805c", "no": "#c94f00", "same": "#0072b2", "open": "#767676"},
}
DARK = {
    **{"page": "#17191c", "card": "#1d2024", "ink": "#e3e5e8", "soft": "#a3aab4"},
    **{"line": "#363a41", "wash": "#23262b", "alarm": "#f0945f", "link": "#7cc4f5"},
    **{"arm-0": "#56b4e9", "arm-1": "#ff8f45", "arm-2": "#2fc79a", "arm-3": "#e793c3"},
    **{"arm-4": "#a6d8ff", "arm-5": "#e6b93f", "arm-6": "#b39ddb", "arm-7": "#a8a8a8"},
    **{"arm-8": "#cf9b8e", "arm-9": "#f4f4f4"},
    **{"hidden": "#2c3036", "visible": "#6fa8d0", "source": "#f0a04b"},
    **{"yes": "#2fc79a", "no": "#ff8f45", "same": "#56b4e9", "open": "#a8a8a8"},
}
ARM_COLOURS = 10
# What arms of one family may differ in: they share a colour.
WITHIN_FAMILY = ("mechanism", "seed", "max_sequence_length")
SOLID, DASHES = [1, 0], ([6, 3], [6, 3, 1.5, 3], [1.5, 2.5])
# The name of a row, above its marks, where it has the whole width; longer ones are cut short.
NAME = {"align": "left", "baseline": "middle", "fontSize": 11.5, "limit": altair.expr("width")}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'Noto Sans CJK SC', sans-serif"


def colour(name):
    """A colour as figures name it."""
    return f"var(--{name})"


def css(colours):
    """The declarations of the variables."""
    return " ".join(f"--{name}: {value};" for name, value in colours.items())


def literal(spec):
    """A Vega-Lite spec (a dict) with the light value of every colour, for files."""
    text = json.dumps(spec)
    return json.loads(re.sub(r"var\(--([\w-]+)\)", lambda match: LIGHT[match[1]], text))


def arm_styles(records):
    """Arm -> (colour, dash): one colour per family, the default mechanism solid."""
    families, dashes, styles = {}, {}, {}
    for record in records:
        config = record["config"]
        rest = {field: value for field, value in config.items() if field not in WITHIN_FAMILY}
        family = families.setdefault(json.dumps(rest, sort_keys=True), len(families))
        mechanism, dash = labels.mechanism(config), SOLID
        if mechanism != Config.mechanism:
            dash = DASHES[dashes.setdefault(mechanism, len(dashes)) % len(DASHES)]
        styles[record["arm"]] = colour(f"arm-{family % ARM_COLOURS}"), dash
    return styles


def config():
    """The Vega-Lite config of all figures."""
    soft, ink, line = colour("soft"), colour("ink"), colour("line")
    text = {"labelColor": soft, "titleColor": soft, "labelFontSize": 11, "titleFontSize": 12}
    return {
        "background": colour("card"),
        "font": FONT,
        "axis": {
            **text,
            **{"gridColor": line, "domainColor": line, "tickColor": line, "titleFontWeight": 400},
            **{"labelLimit": 200, "labelOverlap": "greedy"},
        },
        "legend": {**text, "title": None, "orient": "bottom", "labelLimit": 300, "columns": 2},
        "title": {
            **{"color": ink, "fontSize": 12, "fontWeight": 600, "anchor": "start"},
            **{"subtitleColor": soft, "subtitleFontSize": 11},
        },
        "text": {"color": ink},
        "view": {"stroke": None},
        "aria": False,  # each figure has one text that tells what it shows
    }
