"""The next token, everywhere."""

from kzoo.objectives.base import Objective, register


@register
class CausalLM(Objective):
    """The next token everywhere but at the separator (GPT; Radford et al. 2018, eq. 1)."""

    name = "causal_lm"

    def scored(self, held_out: bool = False) -> str:
        return "all"

    def draws(self, paired: bool) -> bool:
        return False
