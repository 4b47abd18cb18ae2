"""kzoo list, kzoo show: presets from their JSON, without Keras."""

import dataclasses
import json
import sys

from kzoo.cli.arguments import add_command, add_overrides, overrides, path
from kzoo.errors import InputError, unknown
from kzoo.files import check_folder, whole

WORDS = ("mask", "objective")


def add(commands):
    help = "list the presets: their sizes, masks and objectives; or the mechanisms and their masks"
    listed = add_command(commands, "list", help, _list)
    listed.add_argument("what", nargs="?", choices=("presets", "mechanisms"), default="presets")
    help = "print a preset's complete config, or draw its masks"
    show = add_command(commands, "show", help, _show)
    show.add_argument("preset", metavar="NAME", help="of a preset, or FILE.json:SIZE")
    show.add_argument("--masks", action="store_true", help="draw which keys each query sees")
    show.add_argument("--png", type=path, metavar="FILE", help="with --masks: a picture")
    add_overrides(show)


def _list(options):
    from rich.console import Console

    table = _mechanisms() if options.what == "mechanisms" else _presets()
    # A pipe has no width; do not wrap lines, so that `grep` finds whole ones.
    console = Console(markup=False, width=None if sys.stdout.isatty() else 200)
    console.print(table)


def _mechanisms():
    """The masks that each mechanism follows, and its fields."""
    from rich.table import Table

    from kzoo import masks, mechanisms

    kinds = [masks.bidirectional(), masks.causal(), masks.reversed(), masks.prefix()]
    kinds += [masks.block(16), masks.permuted(), masks.custom(max)]
    table = Table(box=None, pad_edge=False)
    names = (getattr(kind, "name", "custom") for kind in kinds)
    for column in ("mechanism", *names, "fields"):
        table.add_column(column, no_wrap=True)
    for name in mechanisms.names():
        cls = mechanisms.REGISTRY[name]
        fields = ", ".join(field.name for field in dataclasses.fields(cls))
        table.add_row(name, *(_follows(cls, kind) for kind in kinds), fields)
    return table


def _follows(cls, mask):
    try:
        cls().check([mask])
    except (InputError, TypeError):  # or a mechanism of somebody's has fields without a default
        return "no"
    return "yes"


def _presets():
    from rich.table import Table

    from kzoo import presets
    from kzoo.config import count_parameters

    table = Table(box=None, pad_edge=False)
    for column in ("preset", "parameters", "layers", "width", "length"):
        table.add_column(column, justify="left" if column == "preset" else "right", no_wrap=True)
    table.add_column("mask")
    table.add_column("objective")
    for name in presets.names():
        config = presets.config(name)
        sizes = (config[field] for field in ("num_layers", "hidden_dim", "max_sequence_length"))
        words = (config[f] if isinstance(config[f], str) else json.dumps(config[f]) for f in WORDS)
        table.add_row(name, f"{count_parameters(config):,}", *map(str, sizes), *words)
    return table


def _show(options):
    from kzoo import mechanisms, presets
    from kzoo.config import count_parameters

    if options.png and not options.masks:
        raise InputError(f"--png needs --masks. Received: --png {options.png}")
    config = presets.config(options.preset, **overrides(options.set))
    if not options.masks:
        about = presets.describe(options.preset)
        print(f"{options.preset}: {about['description']}\n{about['paper']}")
        print(f"{count_parameters(config):,} parameters, weights random (seed {config['seed']})")
        print(json.dumps(config, indent=2))
        across = mechanisms.get(config["mechanism"]).across
        if across and config["stack"] != "single":
            print(across)
        return
    if options.png:
        check_folder(options.png.parent)
    from kzoo.analysis import draw_masks, terminal_masks

    stack = (config["mask"], config["num_layers"], config["num_heads"])
    if options.png:
        figure = draw_masks(*stack)
        kind = _kind(figure, options.png)
    if config["stack"] != "single":
        print(
            "The encoder. The decoder is causal, and its cross-attention sees all of the source.\n"
        )
    print(terminal_masks(*stack))
    if options.png:
        options.png.parent.mkdir(parents=True, exist_ok=True)
        with whole(options.png) as part:
            figure.savefig(part, format=kind, dpi=150)
        print(options.png)


def _kind(figure, file):
    """The format of a picture, from its file's name."""
    kinds = figure.canvas.get_supported_filetypes()
    kind = file.suffix[1:].lower() or "png"
    if kind not in kinds:
        raise unknown("kind of picture", kind, kinds)
    return kind
