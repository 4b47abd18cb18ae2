"""The optimizer of the command line and the studies."""

import keras

# 1-D variables: biases and the scales of norms.
_NOT_DECAYED = ("bias", "beta", "gamma", "scale")


def adamw(learning_rate, steps):
    """AdamW with a linear warmup over a tenth of the steps and a cosine decay to a tenth.

    Weight decay 0.01 (none on biases and norms), β₂ 0.98, gradients clipped to a norm of 1.
    Source: Loshchilov & Hutter 2019, arXiv:1711.05101.

    Args:
        learning_rate: the peak.
        steps: of the whole training.

    Returns:
        A `keras.optimizers.AdamW`.
    """
    warmup = max(1, steps // 10)
    schedule = keras.optimizers.schedules.CosineDecay(
        learning_rate / warmup,
        max(1, steps - warmup),
        alpha=0.1,
        warmup_target=learning_rate,
        warmup_steps=warmup,
    )
    optimizer = keras.optimizers.AdamW(
        schedule, weight_decay=0.01, beta_2=0.98, global_clipnorm=1.0
    )
    optimizer.exclude_from_weight_decay(var_names=list(_NOT_DECAYED))
    return optimizer
