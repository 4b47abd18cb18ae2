"""The 384 token ids that every family shares: 256 bytes and 128 reserved ids.

Every objective finds its special tokens here, so that no objective changes the
shape of an embedding.
"""

NUM_BYTES = 256
PAD, BOS, EOS, MASK, SEP = range(256, 261)
NUM_SENTINELS = 100
SENTINELS = range(284, 284 + NUM_SENTINELS)
VOCABULARY_SIZE = 384
