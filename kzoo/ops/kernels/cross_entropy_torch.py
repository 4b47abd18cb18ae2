"""Cross-entropy in chunks on torch: a loop that sums the gradients as it goes."""

import torch

from kzoo.ops.kernels.cross_entropy_terms import terms, terms_and_slopes


def cross_entropy(hidden, kernel, labels, weights, tokens_at_once):
    """See `kzoo.ops.cross_entropy.cross_entropy`; all floats are float32."""
    learns = torch.is_grad_enabled() and (hidden.requires_grad or kernel.requires_grad)
    return _CrossEntropy.apply(hidden, kernel, labels, weights, tokens_at_once, learns)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, kernel, labels, weights, tokens_at_once, learns):
        nats = torch.empty_like(weights)
        gradients = torch.empty_like(hidden), torch.zeros_like(kernel)
        steps = max(1, tokens_at_once // len(labels))
        for start in range(0, labels.shape[1], steps):
            here = slice(None), slice(start, start + steps)
            y, w = labels[here], weights[here]
            chunk = hidden[here].flatten(0, 1), kernel, y.flatten(), w.flatten()
            if learns:
                out, slopes = terms_and_slopes(*chunk)
                gradients[0][here] = (slopes @ kernel).unflatten(0, y.shape)
                gradients[1].addmm_(slopes.T, chunk[0])
            else:
                out = terms(*chunk)
            nats[here] = out.unflatten(0, y.shape)
        if learns:
            ctx.save_for_backward(hidden, kernel, labels, weights, *gradients)
        ctx.mark_non_differentiable(nats)
        return nats.sum(), nats

    @staticmethod
    def backward(ctx, cotangent, _):
        hidden, kernel, labels, weights, *gradients = ctx.saved_tensors
        if (
            torch.is_grad_enabled()
        ):  # a second derivative, for which the saved gradients would be constants
            gradients = _gradients(hidden, kernel, labels, weights)
        return *(cotangent * x for x in gradients), None, None, None, None


def _gradients(hidden, kernel, labels, weights):
    tokens = hidden.flatten(0, 1)
    _, slopes = terms_and_slopes(tokens, kernel, labels.flatten(), weights.flatten())
    return (slopes @ kernel).unflatten(0, labels.shape), slopes.T @ tokens
