"""kzoo evaluate: a model on questions with choices, or on pairs of texts."""

import logging
from pathlib import Path

from kzoo.cli.arguments import (
    add_command,
    add_running,
    json_or_text,
    leave_tensorflow,
    load_backend,
    name,
    need,
    positive,
    print_json,
    say_backend,
    seed,
    share,
    source,
    words,
)
from kzoo.errors import InputError

log = logging.getLogger("kzoo")

TASK = (
    'a file of JSON lines {"question": ..., "choices": [...], "answer": index}, or a source of '
    "pairs: a table (table:FILE:SOURCE:TARGET), synthetic:NAME, tfds:NAME or its JSON"
)
OF_CHOICES, OF_CLASSIFIER = ("acc", "acc_norm", "acc_bytes"), ("acc",)
OF_PAIRS = ("exact_match", "bits_per_byte")
_SHOWN = 1000  # examples that shots are drawn from, of those that are not evaluated


def add(commands):
    help = "measure a model on questions with choices, or on pairs of texts"
    evaluate = add_command(commands, "evaluate", help, _evaluate)
    evaluate.add_argument("model", type=name, metavar="PRESET_OR_DIR")
    evaluate.add_argument("--task", type=source, required=True, metavar="FILE|SOURCE", help=TASK)
    evaluate.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="a name or its JSON, once for each metric; default: "
        f"{', '.join(OF_CHOICES)} of choices, {', '.join(OF_PAIRS)} of pairs, "
        f"{', '.join(OF_CLASSIFIER)} of a classifier",
    )
    evaluate.add_argument(
        "--shots", type=positive, metavar="N", help="answered examples before each question"
    )
    evaluate.add_argument("--seed", type=seed, default=0, metavar="N", help="of the shots' draw")
    evaluate.add_argument("--limit", type=positive, metavar="N", help="the first N examples only")
    evaluate.add_argument(
        "--valid",
        type=share,
        metavar="SHARE",
        help="of pairs, only those that `kzoo train --valid SHARE` holds out",
    )
    evaluate.add_argument(
        "--separated",
        action="store_true",
        help="show a causal LM questions as the sources of pairs, as it was trained on pairs",
    )
    evaluate.add_argument("--max-tokens", type=positive, metavar="N", help="of a written answer")
    evaluate.add_argument(
        "--until", type=words, action="append", default=[], metavar="TEXT", help="ends an answer"
    )
    evaluate.add_argument("--batch-size", type=positive, default=32, metavar="N")
    add_running(evaluate)


def _evaluate(options):
    from kzoo import evaluation, presets

    specs = [json_or_text(text, f"--metric {text!r}") for text in options.metric]
    metrics = list(map(evaluation.METRICS.get, specs))
    for metric in metrics:
        if metric.needs:
            need(metric.needs, f"the metric {metric.name}")
    _check_model(options.model, metrics)
    examples, rest = _examples(options)
    metrics = metrics or list(map(evaluation.METRICS.get, _usual(options.model, examples)))
    prompts = evaluation.Prompts(options.shots or 0, rest, seed=options.seed)
    prompts.context(examples, 0)  # whether there are as many shots
    for metric in metrics:
        metric.check(examples)
    leave_tensorflow([options.task])
    load_backend()
    model = presets.load(options.model)
    say_backend(options)
    log.info("%d examples of %s", len(examples), options.task)
    asked = evaluation.Evaluation(
        model,
        examples,
        prompts=prompts,
        batch_size=options.batch_size,
        separated=True if options.separated else None,
        max_tokens=options.max_tokens,
        until=tuple(options.until),
    )
    found = evaluation.evaluate(asked, metrics)
    if options.json:
        about = {"model": options.model, "task": options.task, "examples": len(examples)}
        print_json({**about, "num_fewshot": prompts.num_fewshot, **found})
    else:
        _print(found)


def _usual(model, examples):
    """The metrics that are measured where none are named."""
    from kzoo import objectives, presets

    if presets.kind(model) == "saved":
        if objectives.get(presets.config(model)["objective"]).labels is not None:
            return OF_CLASSIFIER
    return OF_CHOICES if len(examples[0].choices) > 1 else OF_PAIRS


def _print(found):
    for metric, value in found.items():
        if metric.endswith("_stderr"):
            continue
        error = found.get(f"{metric}_stderr")
        print(f"{metric:<16} {value:.4g}" + (f" ± {error:.2g}" if error is not None else ""))


def _check_model(model, metrics):
    """Refuse, before Keras loads, names that are no model and presets that predict hidden tokens,
    of which only probes measure anything."""
    from kzoo import objectives, presets
    from kzoo.evaluation.reading import check_next_token

    if Path(model).is_dir() or model.startswith(("hf://", "kaggle://")):
        return
    config = presets.config(model)
    if not metrics or any(metric.next_token for metric in metrics):
        check_next_token(objectives.get(config["objective"]), config["prediction_site"])


def _examples(options):
    """The examples that are evaluated, and those that shots are drawn from, or None: the same."""
    from kzoo import evaluation
    from kzoo.data import sources
    from kzoo.evaluation.examples import holds_choices

    if not isinstance(options.task, dict) and holds_choices(options.task):
        if options.valid:
            raise InputError(
                "--valid splits pairs; questions with choices are all evaluated. "
                f"Received: --valid {options.valid} --task {options.task!r}"
            )
        found, rest = evaluation.read(options.task), None
    else:
        found, rest = _pairs(options, sources.read(options.task))
    if options.limit and options.limit < len(found):
        log.info("the first %d of %d examples", options.limit, len(found))
        rest = found if rest is None else rest
        found = found[: options.limit]
    return found, rest


def _pairs(options, corpus):
    """The pairs of a source that are evaluated, and a sample of the others, or None: official
    parts, the test part first, else those that --valid holds out, else all."""
    from kzoo import evaluation
    from kzoo.data import splits

    held = corpus.official.get("test") or corpus.official.get("valid")
    if not corpus.examples or corpus.examples[0][0] is None:
        raise InputError(
            "a task is questions with choices, or pairs of texts, one of them the right "
            f"answer to the other. Received: text alone, --task {options.task!r}"
        )
    if held is not None:
        if options.valid:
            raise InputError(
                "--valid splits pairs that have no official parts. "
                f"Received: --valid {options.valid} --task {options.task!r}"
            )
        log.info("%s has official parts: %s is evaluated", options.task, held.name)
        found, others = held.examples, corpus.examples
    elif options.valid:
        parts, _ = splits.examples(corpus, options.valid)
        found, others = parts["valid"], parts["train"]
    else:
        return evaluation.examples(list(corpus.examples)), None
    return evaluation.examples(list(found)), evaluation.examples(splits.sample(others, _SHOWN))
