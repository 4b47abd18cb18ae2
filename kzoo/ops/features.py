"""From queries and keys to what linear attention multiplies."""

import dataclasses

from keras import ops

from kzoo.ops.feature_maps import FeatureMap
from kzoo.ops.rotary import rotate


@dataclasses.dataclass(frozen=True)
class Features:
    """A feature map with or without rotary positions; static and hashable.

    Attributes:
        phi: a `FeatureMap`; None where q and k are features already.
        rotary: whether positions turn the numerator. Turned features may be negative, so the
            normaliser keeps them as they are (Su et al. 2021, arXiv:2104.09864, equation 19);
            under a map of q·k the positions turn q and k before the map, as under softmax.
    """

    phi: FeatureMap | None
    rotary: bool

    def __call__(self, q, k, weights, position, shown, key_position=None):
        """The features of numerator and normaliser.

        Args:
            q, k: floats [batch, time, heads, dim].
            weights: those of a learned map, by name, or None.
            position: integers [batch or 1, time].
            shown: booleans [batch or 1, time], the keys that count, since φ(0) is not 0; None
                for all.
            key_position: like `position`, where the keys are not at the places of the queries.

        Returns:
            q, k, q_norm, k_norm: floats [batch, time, heads, features]; the last two None where
            they are the first two.
        """
        key_position = position if key_position is None else key_position
        before = self.rotary and self.phi is not None and self.phi.of_products
        if before:
            q, k = rotate(q, position), rotate(k, key_position)
        if self.phi is not None:
            q, k = self.phi.query(q, weights), self.phi.key(k, weights)
        if shown is not None:
            k = ops.where(shown[:, :, None, None], k, ops.zeros_like(k))
        if before or not self.rotary:
            return q, k, None, None
        return rotate(q, position), rotate(k, key_position), q, k


def features_of(phi, rotary, q, k, weights, segment):
    """`Features`, and q and k, of which a map of the whole sequence has made features already."""
    if not phi.whole_sequence:
        return Features(phi, rotary), q, k
    return Features(None, rotary), phi.query(q, weights), phi.key(k, weights, segment)
