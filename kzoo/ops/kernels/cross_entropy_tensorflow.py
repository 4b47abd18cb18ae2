"""Cross-entropy in chunks on TensorFlow: loops over any number of chunks. The backward pass
computes the logits again."""

from kzoo.ops.kernels.cross_entropy_terms import terms, terms_and_slopes


def cross_entropy(hidden, kernel, labels, weights, tokens_at_once):
    """See `kzoo.ops.cross_entropy.cross_entropy`; all floats are float32."""
    import tensorflow as tf

    batch, time = tf.unstack(tf.shape(labels))
    steps = tf.maximum(1, tokens_at_once // batch)
    count = -(-time // steps)

    def swap(x):
        return tf.transpose(x, [1, 0, *range(2, x.ndim)])

    def cut(x):
        """[batch, time, ...] as [chunks, batch · steps, ...], padded with zeros at the end."""
        rest = x.shape[2:]
        x = tf.pad(x, [[0, 0], [0, count * steps - time], *[[0, 0]] * len(rest)])
        x = tf.reshape(x, [batch, count, steps, *rest])
        return tf.reshape(swap(x), [count, batch * steps, *rest])

    def join(x, rest=()):
        x = swap(tf.reshape(x, [count, batch, steps, *rest]))
        return tf.reshape(x, [batch, count * steps, *rest])[:, :time]

    chunks = cut(labels), cut(weights)

    @tf.custom_gradient
    def run(hidden, kernel):
        # One at a time: a loop in a graph would compute several chunks at once.
        nats = tf.map_fn(
            lambda chunk: terms(chunk[0], kernel, *chunk[1:]),
            (cut(hidden), *chunks),
            fn_output_signature="float32",
            parallel_iterations=1,
        )
        nats = join(nats)

        def gradient(cotangent, _):
            pieces = cut(hidden)  # here too, where derivatives of the gradient are recorded

            def step(i, gathered, summed):
                _, slopes = terms_and_slopes(pieces[i], kernel, *(x[i] for x in chunks))
                summed += tf.matmul(slopes, pieces[i], transpose_a=True)
                return i + 1, gathered.write(i, tf.matmul(slopes, kernel)), summed

            start = (0, tf.TensorArray("float32", count), tf.zeros_like(kernel))
            _, gathered, summed = tf.while_loop(
                lambda i, *_: i < count,
                step,
                start,
                parallel_iterations=1,
                maximum_iterations=count,
            )
            return cotangent * join(gathered.stack(), hidden.shape[2:]), cotangent * summed

        return (tf.reduce_sum(nats), nats), gradient

    return run(hidden, kernel)
