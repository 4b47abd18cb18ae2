"""kzoo generate: continue a prompt."""

import sys

from kzoo.cli.arguments import (
    add_command,
    add_running,
    leave_tensorflow,
    name,
    positive,
    print_json,
    say_backend,
    seed,
    words,
)
from kzoo.errors import InputError


def add(commands):
    help = "continue a prompt, token by token"
    more = "The model is a preset with random weights, or one that was saved."
    generate = add_command(commands, "generate", help, _generate, more=more)
    generate.add_argument("model", type=name, metavar="PRESET_OR_DIR")
    generate.add_argument(
        "--prompt", type=words, required=True, metavar="TEXT", help="- reads it from stdin"
    )
    generate.add_argument(
        "--max-length", type=positive, metavar="N", help="tokens in all, the prompt included"
    )
    generate.add_argument("--sampler", default="top_k", metavar="NAME")
    generate.add_argument("--seed", type=seed, metavar="N", help="of a sampler that draws")
    add_running(generate)


def _generate(options):
    leave_tensorflow([])
    from kzoo import presets
    from kzoo.models.generation import ONE_BY_ONE, get_sampler

    sampler = get_sampler(options.sampler, options.seed)
    prompt = _stdin() if options.prompt == "-" else options.prompt
    model = presets.load(options.model)
    say_backend(options)
    settings = {"max_length": options.max_length, "sampler": sampler}
    if options.sampler in ONE_BY_ONE:
        pieces = model.stream(prompt, **settings)
    else:
        pieces = [model.generate(prompt, strip_prompt=True, **settings)]
    text = []
    for piece in pieces:
        text.append(piece)
        if not options.json:
            print(piece, end="", flush=True)
    if options.json:
        result = {"model": options.model, "prompt": prompt, "text": "".join(text)}
        print_json({**result, "sampler": options.sampler, "seed": options.seed})
    else:
        print()


def _stdin():
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise InputError(
            f"the prompt must be text in UTF-8. Received: invalid bytes at {error.start}"
        ) from None
