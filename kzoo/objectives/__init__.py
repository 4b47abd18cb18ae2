"""What is predicted: NumPy from texts and pairs to examples, and from examples to model inputs.

An *objective* makes examples. An example is a source and a target, arrays of token ids; plain text
is a target without a source, unless the objective cuts a source from it. A *layout*
(`kzoo.objectives.layouts`) belongs to the stack and writes examples as the inputs, labels and
weights of a model, so that one objective trains every stack that can learn it, on the same tokens.

    "causal_lm"                       the next token, everywhere
    "prefix_lm"                       the next token of the target, given the source
    {"prefix_lm": {"score": "all"}}   the same, with the source's tokens scored too
    "masked_lm"                       the hidden tokens; {"masked_lm": {"rate": 0.3}}
    "span_corruption"                 spans of a text, given the rest of it
    "ul2"                             the same with few, many and long spans, and the text's end
    "unilm"                           hidden tokens, seen from both sides, one, or a source
    {"classification": {"labels": ["ham", "spam"]}}   which label a text has

An objective of one's own is one class:

    @kzoo.objectives.register
    class Backwards(kzoo.objectives.Objective):
        name = "backwards"

        def examples(self, sources, targets, room, rng, vocabulary):
            return sources, [target[::-1] for target in targets]
"""

from kzoo.objectives.base import Examples, Objective, get, names, register
from kzoo.objectives.causal_lm import CausalLM
from kzoo.objectives.checks import check, check_two_stacks, task_name
from kzoo.objectives.classification import Classification
from kzoo.objectives.masked_lm import MaskedLM
from kzoo.objectives.prefix_lm import PrefixLM
from kzoo.objectives.span_corruption import SpanCorruption
from kzoo.objectives.ul2 import UL2
from kzoo.objectives.unilm import UniLM

__all__ = [
    "CausalLM",
    "Classification",
    "Examples",
    "MaskedLM",
    "Objective",
    "PrefixLM",
    "SpanCorruption",
    "UL2",
    "UniLM",
    "check",
    "check_two_stacks",
    "get",
    "names",
    "register",
    "task_name",
]
