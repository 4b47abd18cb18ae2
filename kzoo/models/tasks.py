"""The tasks: what is predicted from a backbone's hidden states."""

import contextlib
import math

import keras
import keras_hub
import numpy as np
from keras import ops

from kzoo import objectives
from kzoo.config import (
    BACKBONE_FIELDS,
    CONFIG_VERSION,
    DEFAULTS,
    HEAD_FIELDS,
    check_head,
    check_objective,
    tokenizer_kind,
)
from kzoo.errors import InputError, unknown
from kzoo.layers import Head, derive_seed
from kzoo.layers.initializers import stddevs
from kzoo.models import devices
from kzoo.models.bases import PipelineModel
from kzoo.models.encoder_decoder import EncoderDecoderBackbone
from kzoo.models.executions import Executes
from kzoo.models.generation import Generates, GeneratesFromEncoder
from kzoo.models.preprocessing import (
    CausalLMPreprocessor,
    MaskedLMPreprocessor,
    Seq2SeqLMPreprocessor,
    is_tokens,
)
from kzoo.models.scoring import BitsPerByte, token_loss
from kzoo.models.single_stack import SingleStackBackbone
from kzoo.models.weights import PathWeights, by_path, read_weights, write_weights
from kzoo.ops.cross_entropy import cross_entropy

LEARNING_RATE = 3e-4


class _Task(Executes, PathWeights):
    """What all tasks share: logits at every position, one loss, and `score`.

    Args:
        backbone: a backbone of the task's `backbone_cls`.
        preprocessor: of strings and pairs; None where only token batches come.
        objective: an objective spec that suits the task and the backbone's mask.
        head: the `kzoo.layers.Head` of another task over the same backbone; by default its own.
        head_dtype: the dtype policy of the head's dense layer, where it is not the backbone's
            (after `quantize`).
        **kwargs: `output_transform` and `output_scale`, as in `kzoo.layers.Head`; `prediction`,
            "next" or, for `generate` alone, "mask" (see `Generates.telling`); and `loss_rows`:
            0, or the number of tokens whose logits exist at once in `fit`, `evaluate` and
            `score`; the loss is the same. For vocabularies whose logits fill the memory; on a
            CPU 512 is faster than 0 too. The model itself and `predict` give all logits.

    Raises:
        InputError: if the objective is another task's, or the mask would show its answer.
    """

    def __init__(
        self, backbone, preprocessor=None, objective=None, head=None, head_dtype=None, **kwargs
    ):
        for field in BACKBONE_FIELDS:
            if field in kwargs:  # Keras would drop it without a word
                raise InputError(
                    f"{field} is the backbone's; kzoo.presets.load(directory, {field}=...) "
                    f"overrides it. Received: {field}={kwargs[field]!r}"
                )
        fields = {field: kwargs.pop(field, DEFAULTS[field]) for field in HEAD_FIELDS}
        check_head(fields)
        if fields["prediction"] == "mask" and backbone.stack_name != "single":
            raise InputError(
                "a decoder tells the next token: prediction is 'next'. Received: prediction='mask'"
            )
        self.backbone = backbone
        self.preprocessor = preprocessor
        self.objective = objectives.get(objective or self.default_objective)
        if self.objective.task != type(self).__name__:
            valid = [
                name
                for name in ("causal_lm", "continuation", "seq2seq", "masked_lm")
                if objectives.get(name).task == type(self).__name__
            ]
            raise unknown(f"objective of {type(self).__name__}", self.objective.name, valid)
        check_objective(backbone.mask, self.objective)
        self._gives_hidden = False
        self._distribution = None
        head = head or Head(
            backbone.token_embedding,
            fields["output_transform"],
            backbone.activation,
            backbone.normalization,
            backbone.norm_epsilon,
            stddevs(backbone.initialization, backbone.num_layers),
            fields["output_scale"],
            seed=derive_seed(backbone.seed, "head"),
            dense_dtype=head_dtype,
            name="head",
            dtype=backbone.dtype_policy,
        )
        self.head = head
        for field, value in fields.items():
            setattr(self, field, value)
        logits = head(self._decoded(backbone(backbone.input)))
        super().__init__(inputs=backbone.input, outputs=logits, **kwargs)
        if keras.backend.backend() == "torch":
            # keras-hub hides them from torch, and DistributedDataParallel would find no parameters.
            self.add_module("torch_parameters", self.torch_params)

    def enable_lora(self, rank):
        """Train matrices of rank `rank` beside the query and value projections, and no other
        weights of the backbone (Hu et al. 2021, arXiv:2106.09685). Compile the model after it."""
        self.backbone.enable_lora(rank)

    def twin(self):
        """A task of its own, compiled by default, over the same layers and weights."""
        head = {field: getattr(self, field) for field in HEAD_FIELDS}
        return type(self)(self.backbone, self.preprocessor, self.objective, head=self.head, **head)

    @staticmethod
    def _decoded(hidden):
        """Of what the backbone returns, the hidden states that logits are made of."""
        return hidden

    @property
    def config(self):
        """The complete config: what `kzoo.presets.config` gives, for this model."""
        fields = self.backbone.get_config()
        cls = self.preprocessor and type(self.preprocessor.tokenizer).__name__
        return {
            **{field: fields[field] for field in BACKBONE_FIELDS},
            "stack": self.backbone.stack_name,
            "objective": self.objective.get_config(),
            "tokenizer": tokenizer_kind(cls, self.backbone.vocabulary_size),
            **{field: getattr(self, field) for field in HEAD_FIELDS},
            "config_version": CONFIG_VERSION,
        }

    def compile(self, optimizer="auto", loss="auto", *, weighted_metrics="auto", **kwargs):
        """As `keras.Model.compile`; by default AdamW(3e-4), the loss over scored tokens, and
        `bits_per_byte`. With `loss_rows` no other loss or metric finds logits to work on.

        An optimizer's `gradient_accumulation_steps=k` takes the mean of k batches' gradients:
        each batch counts alike, so that a token counts more in one that scores fewer tokens.
        Where all score the same number, it is the gradient of one batch of all their rows."""
        if optimizer == "auto":
            optimizer = keras.optimizers.AdamW(LEARNING_RATE)
        if loss == "auto":
            loss = token_loss()
        if weighted_metrics == "auto":
            weighted_metrics = [BitsPerByte(token_bytes=self._token_bytes)]
        if self.loss_rows:
            self._check_needs_no_logits(loss, weighted_metrics, kwargs)
        super().compile(optimizer=optimizer, loss=loss, weighted_metrics=weighted_metrics, **kwargs)

    def compile_from_config(self, config):
        """As `compile` was called, so that a `.keras` file brings its optimizer's state back."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def _token_bytes(self):
        """Bytes of text of each row of the embedding; None where ids are bytes."""
        sizes = self.preprocessor and self.preprocessor.tokenizer.token_bytes
        if sizes is None:
            return None
        return np.pad(sizes, (0, self.backbone.vocabulary_size - len(sizes)))

    def _check_needs_no_logits(self, loss, weighted_metrics, others):
        needing = [metric for metric in weighted_metrics or () if type(metric) is not BitsPerByte]
        needing += [others[name] for name in ("metrics", "loss_weights") if others.get(name)]
        own = token_loss()
        if type(loss) is not type(own) or loss.get_config() != own.get_config():
            needing.append(loss)
        if needing:
            raise InputError(
                "with loss_rows no logits are kept, so the loss is 'auto' and the only weighted "
                f"metric is BitsPerByte; others need loss_rows=0. Received: {needing}"
            )

    # With `loss_rows`, a step of training or evaluation asks for hidden states instead of
    # logits; whatever else calls the model gets logits.
    def call(self, inputs, training=None, mask=None):
        if self._gives_hidden:
            return self._decoded(self.backbone(inputs, training=training))
        return super().call(inputs, training=training, mask=mask)

    def train_step(self, *args):
        with self._giving_hidden():
            return super().train_step(*args)

    def test_step(self, *args):
        with self._giving_hidden():
            return super().test_step(*args)

    @contextlib.contextmanager
    def _giving_hidden(self):
        self._gives_hidden = self.loss_rows > 0
        try:
            yield
        finally:
            self._gives_hidden = False

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if not self._gives_hidden:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        weight = ops.ones_like(y) if sample_weight is None else sample_weight
        weight = ops.cast(weight, "float32")
        nats, _ = self._cross_entropy(y_pred, y, weight)
        if self._compile_metrics is not None:
            if not self._compile_metrics.built:
                self._compile_metrics.build(y, y_pred)
            for metric in self._compile_metrics.metrics:
                metric.add(ops.stop_gradient(nats), y, weight)
        return ops.divide_no_nan(nats, ops.sum(weight)) + sum(map(ops.sum, self.losses))

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        if self._gives_hidden:  # `compute_loss` has counted the batch
            return self.get_metrics_result()
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def _cross_entropy(self, hidden, y, weight):
        hidden, kernel = self.head.operands(hidden)
        return cross_entropy(hidden, kernel, y, weight, rows=self.loss_rows)

    # keras-hub takes an error in its pipeline for a wish for tf.data, where values cannot be
    # checked: so strings and pairs become tokens here, once, and tokens are checked.
    def fit(self, x=None, y=None, batch_size=None, sample_weight=None, **kwargs):
        """As `keras.Model.fit`. Rows are taken in the order in which they come, strings and
        arrays too; `kzoo.data.load` gives a dataset that is shuffled anew in each epoch. Under
        `kzoo.distribute` the devices share each batch; every process is given the same ones."""
        self._check_predicts_next()
        devices.tell_of_idle_devices()
        x, y, sample_weight = self._read(x, y, sample_weight)
        self._check_devices(x, batch_size)
        held_out = kwargs.get("validation_data")
        if isinstance(held_out, dict | list | tuple):
            parts = keras.utils.unpack_x_y_sample_weight(held_out)
            kwargs["validation_data"] = self._read(*parts)
            self._check_devices(kwargs["validation_data"][0], batch_size)
        kwargs.setdefault("shuffle", False)  # Keras would warn that it cannot shuffle
        return super().fit(x, y, batch_size, sample_weight, **kwargs)

    def evaluate(self, x=None, y=None, batch_size=None, sample_weight=None, **kwargs):
        self._check_predicts_next()
        x, y, sample_weight = self._read(x, y, sample_weight)
        self._check_devices(x, batch_size)
        return super().evaluate(x, y, batch_size, sample_weight, **kwargs)

    def predict(self, x=None, batch_size=None, **kwargs):
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
        if self.prediction == "mask" and self.objective.next_token:
            raise InputError(
                "these weights tell a token from a mask in its place, and a loss of next tokens "
                "would misjudge them: load them with prediction='next' to train them to that, or "
                "with objective='masked_lm'. Received: prediction='mask' with "
                f"objective={self.objective.get_config()!r}"
            )

    def _check_devices(self, x, batch_size):
        devices.check_placed(self)
        self._distribution = keras.distribution.distribution()  # threads that read do not see it
        if is_tokens(x):
            devices.check_batches(len(x[next(iter(self.input))]), batch_size or 32)

    def _read(self, x, y=None, sample_weight=None):
        if not isinstance(x, dict | list | tuple):
            return x, y, sample_weight  # a dataset
        if is_tokens(x):
            self._check_tokens(x)
            return x, y, sample_weight
        return self._reader().encode(*self._reader().read(x))

    def _reader(self):
        if self.preprocessor is None:
            raise InputError(
                "this model has no tokenizer, and so takes token batches and datasets of them: "
                f"{', '.join(self.input)}. Received: text"
            )
        return self.preprocessor

    def preprocess_samples(self, x, y=None, sample_weight=None):
        if is_tokens(x):
            self._check_tokens(x)
            batch = keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
        else:
            batch = super().preprocess_samples(x, y, sample_weight)
        # Keras splits what is trained on and evaluated over devices, and leaves the rest whole.
        distribution = keras.distribution.distribution() or self._distribution
        whole = y is None or distribution is None
        return batch if whole else devices.own_rows(batch, distribution)

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

    def _check_ids(self, ids):
        longest, time = self.backbone.max_sequence_length, np.shape(ids)[-1]
        if self.backbone.positions == "learned" and time > longest:
            raise InputError(
                f"learned positions reach to {longest} tokens. Received: {time} tokens"
            )
        if isinstance(ids, np.ndarray) and ids.size:
            low, high = int(ids.min()), int(ids.max())
            size = self.backbone.vocabulary_size
            if low < 0 or high >= size:
                raise InputError(
                    f"token ids are in [0, {size}). Received: ids from {low} to {high}"
                )

    def score(self, x, batch_size=32):
        """How well the model predicts each text.

        A causal LM scores every token from BOS to EOS, a continuation the target given the
        source (without a source: given an empty one). A masked LM scores each token with that
        token alone hidden (pseudo-log-likelihood, Salazar et al. 2020, arXiv:1910.14659).
        Texts longer than the model's sequences are scored in consecutive windows.

        Args:
            x: a list of strings, or `{"prompts": [...], "responses": [...]}`.
            batch_size: rows that the model sees at once.

        Returns:
            `{"nats": float64 [texts], "bits_per_byte": float64 [texts]}`, the latter per
            byte of text (of response, under a continuation).

        Raises:
            InputError: for an empty text, or a pair that does not fit in a sequence.

        Example:
            >>> model.score(["Call me Ishmael."])["bits_per_byte"]
        """
        self._check_predicts_next()
        sources, targets = self._reader().read(x)
        if not all(len(target) for target in targets):
            raise InputError("a text to score has at least one token. Received: an empty text")
        owners, rows = [], []
        for i, target in enumerate(targets):
            for row in self._rows(None if sources is None else sources[i], target):
                owners.append(i)
                rows.append(row)
        nats = np.zeros(len(targets))
        np.add.at(nats, owners, self._row_nats(rows, batch_size))
        source_bytes, sizes = self.preprocessor.byte_counts(x)
        if sources is not None and not self.objective.has_source:
            sizes = sizes + source_bytes
        return {"nats": nats, "bits_per_byte": nats / (math.log(2) * sizes)}

    def _rows(self, source, target):
        """The rows (x, y, sample_weight), arrays [rows, time], that score one text."""
        length, objective = self.preprocessor.sequence_length, self.objective
        if source is None and objective.has_source:
            source = target[:0]
        vocabulary = self.preprocessor.tokenizer.vocabulary
        room = length - objective.row_length(source, target[:0], vocabulary=vocabulary)
        if len(target) > room and source is not None and len(source):
            raise InputError(
                f"a pair to score fits in {length} tokens. Received: one that needs "
                f"{objective.row_length(source, target, vocabulary=vocabulary)}"
            )
        for start in range(0, len(target), room):
            part = target[start : start + room]
            complete = start + room >= len(target)
            sources = None if source is None else [source]
            yield from self._score_rows(sources, part, complete)

    def _score_rows(self, sources, target, complete):
        encode = self.preprocessor.encode
        x, y, weight = encode(sources, [target], complete=complete, held_out=True)
        yield {name: array[0] for name, array in x.items()}, y[0], weight[0]

    def _row_nats(self, rows, batch_size):
        """Σ w·nll of each row, float64."""
        nats = []
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            filled = batch + [batch[-1]] * (batch_size - len(batch))  # one shape, one program
            x = {name: np.stack([row[0][name] for row in filled]) for name in filled[0][0]}
            y, weight = (np.stack([row[i] for row in filled]) for i in (1, 2))
            nats.append(self._token_nats(x, y, weight).sum(-1)[: len(batch)])
        return np.concatenate(nats)

    def _token_nats(self, x, y, weight):
        """w·nll of each token, float64 [batch, time]."""
        if self.loss_rows:
            self._check_tokens(x)
            hidden = self._decoded(self.backbone.predict_on_batch(x))
            _, nats = self._cross_entropy(hidden, y, weight)
            return ops.convert_to_numpy(nats).astype("float64")
        logits = np.asarray(self.predict_on_batch(x)).astype("float64")
        logits -= logits.max(-1, keepdims=True)
        chosen = np.take_along_axis(logits, y[..., None], -1)[..., 0]
        return weight * (np.log(np.exp(logits).sum(-1)) - chosen)

    # keras-hub keeps what is not the backbone's in a file of its own; by path there, too.
    def save_task_weights(self, filepath):
        write_weights(str(filepath), self._own_weights())

    def load_task_weights(self, filepath):
        read_weights(str(filepath), self._own_weights())

    def _own_weights(self):
        of_backbone = by_path(self.backbone)
        return {path: v for path, v in by_path(self).items() if path not in of_backbone}

    def get_config(self):
        head = {field: getattr(self, field) for field in HEAD_FIELDS}
        if self.output_transform and self.head.dense.quantization_mode is not None:
            head["head_dtype"] = keras.dtype_policies.serialize(self.head.dense.dtype_policy)
        return {**super().get_config(), "objective": self.objective.get_config(), **head}


@keras.saving.register_keras_serializable(package="kzoo")
class CausalLM(Generates, _Task, keras_hub.models.CausalLM, PipelineModel):
    __doc__ = f"""Predicts the next token: GPT, UniLM.

    {_Task.__doc__}"""

    backbone_cls = SingleStackBackbone
    preprocessor_cls = CausalLMPreprocessor
    default_objective = "causal_lm"

    @property
    def rereads(self):
        """Whether a source that grows changes the states of the tokens before."""
        return self.backbone.mask.needs_source


@keras.saving.register_keras_serializable(package="kzoo")
class Seq2SeqLM(GeneratesFromEncoder, _Task, keras_hub.models.Seq2SeqLM, PipelineModel):
    __doc__ = f"""Predicts the target's next token from the source that an encoder has read: T5.

    {_Task.__doc__}"""

    backbone_cls = EncoderDecoderBackbone
    preprocessor_cls = Seq2SeqLMPreprocessor
    default_objective = "seq2seq"
    rereads = True

    @staticmethod
    def _decoded(hidden):
        return hidden["decoder_sequence_output"]

    def _check_tokens(self, x):
        super()._check_tokens(x)
        for name in ("encoder_padding_mask", "decoder_padding_mask"):
            if isinstance(x[name], np.ndarray) and x[name].size and x[name].max() > 1:
                raise InputError(
                    "an encoder and a decoder take one document per row: their padding masks are "
                    f"0 or 1. Received: {int(x[name].max())} in {name}"
                )


@keras.saving.register_keras_serializable(package="kzoo")
class MaskedLM(_Task, keras_hub.models.MaskedLM, PipelineModel):
    __doc__ = f"""Predicts hidden tokens: BERT and its mixed-direction variants.

    {_Task.__doc__}"""

    backbone_cls = SingleStackBackbone
    preprocessor_cls = MaskedLMPreprocessor
    default_objective = "masked_lm"

    def generate(self, *args, **kwargs):
        raise InputError(
            "a masked LM predicts hidden tokens and generates no text; a CausalLM does (families "
            "gpt and unilm). Received: MaskedLM"
        )

    stream = conversation = generate

    def _score_rows(self, sources, target, complete):
        x, y, _ = self.preprocessor.encode(sources, [target], complete=complete)
        x = {name: array[0] for name, array in x.items()}
        vocabulary = self.preprocessor.tokenizer.vocabulary
        for position in np.flatnonzero(vocabulary.is_text(y[0])):
            hidden = y[0].copy()
            hidden[position] = vocabulary.mask
            weight = np.zeros(len(hidden), "float32")
            weight[position] = 1
            yield {**x, "token_ids": hidden}, y[0], weight
