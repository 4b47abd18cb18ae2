"""From queries and keys to what linear attention multiplies."""

import dataclasses

from keras import ops

from kzoo.feature_maps import FeatureMap
from kzoo.ops.rotary import turn, turns


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

    def turns(self, position, dim, dtype="float32", bound=None):
        """What `__call__` takes: of tokens at `position` whose heads have `dim` entries."""
        if not self.rotary:
            return None
        size = dim if self.phi is None or self.phi.of_products else self.phi.size(dim)
        return turns(position, size, dtype, bound)

    def __call__(self, q, k, weights, turns, shown, key_turns=None):
        """The features of numerator and normaliser.

        Args:
            q, k: floats [batch, time, heads, dim].
            weights: those of a learned map, by name, or None.
            turns: of `turns`.
            shown: booleans [batch or 1, time], the keys that count, since φ(0) is not 0; None
                for all.
            key_turns: like `turns`, where the keys are not those of the queries.

        Returns:
            q, k, q_norm, k_norm: floats [batch, time, heads, features]; the last two None where
            they are the first two.
        """
        key_turns = turns if key_turns is None else key_turns
        before = self.rotary and self.phi is not None and self.phi.of_products
        if before:
            q, k = turn(q, turns), turn(k, key_turns)
        if self.phi is not None:
            q, k = self.phi.query(q, weights), self.phi.key(k, weights)
        if shown is not None:
            k = ops.where(shown[:, :, None, None], k, ops.zeros_like(k))
        if before or not self.rotary:
            return q, k, None, None
        return turn(q, turns), turn(k, key_turns), q, k


def features_of(phi, rotary, q, k, weights, segment):
    """`Features`, and q and k, of which a map of the whole sequence has made features already."""
    if not phi.whole_sequence:
        return Features(phi, rotary), q, k
    return Features(None, rotary), phi.query(q, weights), phi.key(k, weights, segment)
