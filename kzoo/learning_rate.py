"""The learning rate that `fit`, `train` and `compare` take by default."""

from kzoo.errors import InputError
from kzoo.values import is_count

_AT_WIDTH_1 = 0.4
_MOST = 0.01
_TIMES_SMALLER = 10  # the rate of pretrained weights


def learning_rate(width: int) -> float:
    """The default peak rate of AdamW for a model of that width, trained from random weights.

    0.4 / width, at most 0.01: nano (64) 0.0063, tiny (128) 0.0031, small (512) 0.00078, base (768)
    0.00052, large (1024) 0.00039, 1b (2048) 0.0002. It is a function of the width alone, so that
    arms of one size share a rate whatever their family and mechanism.

    The best rate of Adam falls as 1 / width where all else is scaled well (Yang & Hu et al. 2022,
    arXiv:2203.03466, table 8). The factor is that of GPT-3 (Brown et al. 2020, arXiv:2005.14165,
    table 2.1: 6e-4 at width 768, 3e-4 at 1024, 2.5e-4 at 1536, 2e-4 at 2048, which it meets within
    a third), and fits runs of 300 steps at width 64 (`examples/LOG.md`). It is a place to
    start from: a verdict tunes the rate of each arm. Pretrained weights want a tenth or less.

    Args:
        width: `hidden_dim` of a config.

    Returns:
        A float.

    Raises:
        InputError: for what is no width.

    Example:
        >>> learning_rate(128)
        0.0031
    """
    if not is_count(width):
        raise InputError(f"a width is a positive integer, such as 64. Received: {width!r}")
    return float(f"{min(_AT_WIDTH_1 / width, _MOST):.1e}")


def finetuning_rate(width: int, lora: bool = False) -> float:
    """The default peak rate of AdamW for pretrained weights of a model of that width.

    A tenth of `learning_rate`: at width 768 5.2e-5, where GPT took 6.25e-5 (Radford et al. 2018,
    section 4.1), and BERT the best of 5e-5, 3e-5 and 2e-5 (Devlin et al. 2019, arXiv:1810.04805,
    appendix A.3); T5 took a tenth of its first rate (Raffel et al. 2020, arXiv:1910.10683, section
    3.1). LoRA's matrices are new and take the rate of new weights: at width 768 5.2e-4, where Hu et
    al. 2021 (arXiv:2106.09685, appendix D) took 4e-4 and 5e-4.

    Args:
        width: `hidden_dim` of a config.
        lora: whether only LoRA's matrices train, and a new head.

    Returns:
        A float.

    Raises:
        InputError: for what is no width.

    Example:
        >>> finetuning_rate(768), finetuning_rate(768, lora=True)
        (5.2e-05, 0.00052)
    """
    rate = learning_rate(width)
    return rate if lora else float(f"{rate / _TIMES_SMALLER:.1e}")
