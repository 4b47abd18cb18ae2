"""From queries and keys to what linear attention multiplies."""

import dataclasses

from keras import ops

from kzoo.feature_maps import FeatureMap
from kzoo.ops.rotary import apply_rotary, sin_cos


@dataclasses.dataclass(frozen=True)
class Features:
    """A feature map with or without rotary positions; static and hashable.

    Attributes:
        phi: a `FeatureMap`; None where q and k are features already.
        rotary: whether positions rotate the numerator. Rotated features may be negative, so the
            denominator keeps them as they are (Su et al. 2021, arXiv:2104.09864, equation 19);
            under a map of q·k the positions rotate q and k before the map, as under softmax.
    """

    phi: FeatureMap | None
    rotary: bool

    def sin_cos(self, position, dim, dtype="float32", bound=None):
        """What `__call__` takes: of tokens at `position` whose heads have `dim` entries."""
        if not self.rotary:
            return None
        size = dim if self.phi is None or self.phi.of_products else self.phi.size(dim)
        return sin_cos(position, size, dtype, bound)

    def __call__(self, q, k, weights, sin_cos, shown, key_sin_cos=None):
        """The features of numerator and denominator.

        Args:
            q, k: floats [batch, time, heads, dim].
            weights: those of a learned map, by name, or None.
            sin_cos: what the method of that name returns.
            shown: booleans [batch or 1, time], the keys that count, since φ(0) is not 0; None
                for all.
            key_sin_cos: like `sin_cos`, where the keys are not those of the queries.

        Returns:
            q, k, q_norm, k_norm: floats [batch, time, heads, features]; the last two None where
            they are the first two.
        """
        key_sin_cos = sin_cos if key_sin_cos is None else key_sin_cos
        before = self.rotary and self.phi is not None and self.phi.of_products
        if before:
            q, k = apply_rotary(q, sin_cos), apply_rotary(k, key_sin_cos)
        if self.phi is not None:
            q, k = self.phi.query(q, weights), self.phi.key(k, weights)
        if shown is not None:
            k = ops.where(shown[:, :, None, None], k, ops.zeros_like(k))
        if before or not self.rotary:
            return q, k, None, None
        return apply_rotary(q, sin_cos), apply_rotary(k, key_sin_cos), q, k


def features_of(phi, rotary, q, k, weights, segment):
    """`Features`, and q and k, of which a map of the whole sequence has made features already."""
    if phi is None or not phi.whole_sequence:
        return Features(phi, rotary), q, k
    return Features(None, rotary), phi.query(q, weights), phi.key(k, weights, segment)
