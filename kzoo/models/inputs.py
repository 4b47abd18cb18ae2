"""What `fit`, `evaluate` and `predict` take: text, tokens, and datasets and streams of either."""

import logging
from typing import Any

import keras
import numpy as np

from kzoo.errors import InputError
from kzoo.models import devices
from kzoo.models.reading import check_ids, is_running_text, is_tokens
from kzoo.models.streams import held_out_parts, is_stream, mapped, slices
from kzoo.sequence import check_documents, check_no_gaps
from kzoo.values import check_batch_size

log = logging.getLogger("kzoo")


class ReadsText:
    """A mixin of tasks: text becomes batches of tokens, and tokens are checked.

    keras-hub takes an error in its pipeline for a wish for tf.data, where values cannot be
    checked: so what is all there becomes tokens here, once."""

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        sample_weight: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As `keras.Model.fit`. Examples are taken in the order in which they come, strings and
        arrays too; `kzoo.data.load` gives a dataset that is shuffled anew in each epoch. Under
        `kzoo.distribute` the devices share each batch; every process is given the same ones.

        Args:
            x: strings; `{"prompts": strings, "responses": strings}`, or a list of such pairs;
                integers [batch, tokens], the ids of running text, which become examples as
                strings do, without an end; a dict of the model's inputs; or batches of any
                of these: a dataset of Grain or `tf.data`, a generator, a `keras.utils.PyDataset`,
                a torch `DataLoader`.
            y: the labels of a dict of inputs; with strings in x, the responses to them.
            batch_size: examples, 32 if None; not for batches.
            sample_weight: with text, float [texts], how much each counts; with a dict of inputs,
                float [batch, tokens], which tokens count.
            **kwargs: as in Keras. `validation_data` is any x, or a tuple (x, y, sample_weight).
        """
        self._check_predicts_next()
        devices.warn_of_idle_devices()
        x, y, sample_weight = self._labelled(x, y, sample_weight)
        self._check_devices(x, batch_size)
        if kwargs.get("validation_data") is not None:
            held_out = self._labelled(*held_out_parts(kwargs["validation_data"]))
            self._check_devices(held_out[0], batch_size)
            kwargs["validation_data"] = held_out if is_tokens(held_out[0]) else held_out[0]
        kwargs.setdefault("shuffle", False)  # Keras would warn that it cannot shuffle
        return super().fit(x, y, batch_size, sample_weight, **kwargs)

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        sample_weight: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As `keras.Model.evaluate`; arguments as in `fit`. Of strings and pairs the end token
        counts too, as it does in `score`."""
        if not kwargs.get("_use_cached_eval_dataset"):  # else `fit` has read it
            self._check_predicts_next()
            x, y, sample_weight = self._labelled(x, y, sample_weight)
            self._check_devices(x, batch_size)
        return super().evaluate(x, y, batch_size, sample_weight, **kwargs)

    def predict(self, x: Any = None, batch_size: int | None = None, **kwargs: Any) -> Any:
        """As `keras.Model.predict`: the logits of what `fit` would show the model of x."""
        x = self._read(x)[0]
        self._check_devices(x, batch_size)
        processes = self._distribution.num_processes if self._distribution else 1
        if processes > 1:
            raise InputError(
                "predict returns whole arrays, of which each of several processes holds a part; "
                f"use evaluate, or one process. Received: {processes} processes"
            )
        return super().predict(x, batch_size, **kwargs)

    def _check_predicts_next(self):
        if self.prediction_site == "mask" and self.objective.next_token:
            raise InputError(
                "these weights tell a token from a mask in its place, and a loss of next tokens "
                "would misjudge them: load them with prediction_site='next' to train them to that, "
                "or with objective='masked_lm'. Received: prediction_site='mask' with "
                f"objective={self.objective.get_config()!r}"
            )

    def _check_devices(self, x, batch_size):
        if batch_size is not None:
            check_batch_size(batch_size)
        devices.check_placed(self)
        self._distribution = keras.distribution.distribution()  # threads that read do not see it
        if is_tokens(x):
            devices.check_batches(len(x[next(iter(self.input))]), batch_size or 32)

    def _read(self, x, y=None, sample_weight=None):
        """What is all there as tokens, streams as streams of tokens, datasets as they are."""
        if is_stream(x):
            return mapped(x, self.preprocess_samples), y, sample_weight
        if isinstance(x, str | dict | list | tuple) or hasattr(x, "shape"):
            return self._tokens(x, y, sample_weight)
        return x, y, sample_weight

    def _labelled(self, x, y, sample_weight):
        """`_read`, of what has labels: without them Keras would stop within a step, which leaves
        a model on JAX without its weights."""
        x, y, sample_weight = self._read(x, y, sample_weight)
        if is_tokens(x) and y is None:
            self._check_labels(x, y, sample_weight)
        return x, y, sample_weight

    def _tokens(self, x, y, sample_weight):
        """A batch of text or of tokens, as (x, y, sample_weight) of tokens."""
        if is_running_text(x) and y is not None:  # with labels of its own: the model's input
            x = {"token_ids": x, "padding_mask": x * 0 + 1}
        if is_tokens(x):
            self._check_tokens(x)
            if y is not None:
                self._check_labels(x, y, sample_weight)
                if "label_bytes" not in x:
                    self._tell_of_bytes()
            return x, y, sample_weight
        return self._reader().call(x, y, sample_weight)

    def _tell_of_bytes(self):
        tokenizer = self.preprocessor and self.preprocessor.tokenizer
        if getattr(tokenizer, "spells", True) or self._told_of_bytes:
            return
        self._told_of_bytes = True
        log.warning(
            "these token batches do not say how many bytes of text their labels stand for "
            "('label_bytes', as preprocessor(texts) gives them): bits per byte count each token "
            "as it is spelt, without the spaces between words"
        )

    def _reader(self):
        if self.preprocessor is None:
            raise InputError(
                "this model has no tokenizer, and so takes token batches and datasets of them: "
                f"{', '.join(self.input)}. Received: text"
            )
        return self.preprocessor

    def preprocess_samples(self, x: Any, y: Any = None, sample_weight: Any = None) -> Any:
        parts = self._tokens(x, y, sample_weight)
        batch = keras.utils.pack_x_y_sample_weight(*parts)
        # Keras splits what is trained on and evaluated over devices, and leaves the rest whole.
        distribution = keras.distribution.distribution() or self._distribution
        whole = parts[1] is None or distribution is None
        return batch if whole else devices.own_examples(batch, distribution)

    def _check_tokens(self, x):
        missing = set(self.input) - set(x)
        if missing:
            raise InputError(
                f"this model takes {', '.join(self.input)}; {', '.join(sorted(missing))} is "
                f"missing. Received: {', '.join(x)}"
            )
        for name in self.input:
            if name.endswith("token_ids"):
                self._check_ids(x[name])
            if name.endswith("padding_mask"):
                check_documents(name, x[name])
                if self.backbone.positions == "relative":
                    check_no_gaps(name, x[name])

    def _check_ids(self, ids):
        longest, time = self.backbone.max_sequence_length, np.shape(ids)[-1]
        if self.backbone.positions == "learned" and time > longest:
            raise InputError(
                f"learned positions reach to {longest} tokens. Received: {time} tokens"
            )
        check_ids(ids, self.backbone.vocabulary_size)

    def _check_labels(self, x, y, sample_weight):
        """Labels of a batch that is all there: one for each token, and where they count an id."""
        name = [name for name in self.input if name.endswith("token_ids")][-1]
        shape = tuple(np.shape(x[name]))
        if y is None or tuple(np.shape(y)) != shape:
            received = "no y" if y is None else f"y of shape {list(np.shape(y))}"
            raise InputError(
                f"a model's inputs come with y, the id to predict at each of the {name}, "
                f"{list(shape)}. Received: {received}"
            )
        if isinstance(y, np.ndarray):
            weight = np.ones(shape) if sample_weight is None else np.asarray(sample_weight)
            if weight.ndim == 1:
                weight = weight[:, None]
            counted = y[np.broadcast_to(weight != 0, shape)]
            what = "labels (where sample_weight is not 0)"
            check_ids(counted, self.backbone.vocabulary_size, what)


class KerasLoops:
    """A mixin of tasks: streams go to Keras's own loops, since keras-hub's read none."""

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        sample_weight: Any = None,
        **kwargs: Any,
    ) -> Any:
        held_out = kwargs.get("validation_data")
        if not (is_stream(x) or is_stream(held_out)):
            return super().fit(x, y, batch_size, sample_weight, **kwargs)
        size = batch_size or 32
        if held_out is not None:
            parts = held_out if isinstance(held_out, tuple) else (held_out, None, None)
            kwargs["validation_data"] = self._stream(*parts, size)
        x = self._stream(x, y, sample_weight, size)
        return keras.Model.fit(self, x, **kwargs)

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        sample_weight: Any = None,
        **kwargs: Any,
    ) -> Any:
        if is_stream(x) and not kwargs.get("_use_cached_eval_dataset"):
            return keras.Model.evaluate(self, x, y, None, sample_weight=sample_weight, **kwargs)
        return super().evaluate(x, y, batch_size, sample_weight, **kwargs)

    def predict(self, x: Any = None, batch_size: int | None = None, **kwargs: Any) -> Any:
        if is_stream(x):
            return keras.Model.predict(self, x, **kwargs)
        return super().predict(x, batch_size, **kwargs)

    def _stream(self, x, y, sample_weight, batch_size):
        """What Keras reads without keras-hub's help."""
        if is_stream(x):
            if y is not None or sample_weight is not None:
                raise InputError(
                    "a stream yields its own y and sample_weight, (x, y, sample_weight). "
                    f"Received: {type(x).__name__}, and y or sample_weight beside it"
                )
            return x
        if is_tokens(x):
            return slices(x, y, sample_weight, batch_size, self.preprocess_samples)
        if type(x).__module__.startswith("tensorflow."):
            return x.map(self.preprocess_samples)
        return x.map(
            lambda batch: self.preprocess_samples(*keras.utils.unpack_x_y_sample_weight(batch))
        )
