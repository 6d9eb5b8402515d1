"""Steps of few sequences of which one kernel runs all, from token ids to logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kernels.batch import AnyArray, LayerCache, Step
from kernels.devices.protocol import AnyMatrix, AnyProjection, Device
from kernels.weights.parameters import DenseModel, LayersSupport


class OneKernel:
    """The op `decode_layers` for a model, if it is for it."""

    def __init__(
        self, device: Device, model: DenseModel[AnyArray, AnyMatrix, AnyProjection], obstacle: str | None
    ) -> None:
        """``obstacle``: what the layers do that is not in ``model``; None: nothing."""
        self._ops = device.ops
        self._model = model
        support = LayersSupport(obstacle) if obstacle else self._ops.decode_layers_support(model)
        self.obstacle = support.obstacle
        """Why it is not, in words in which "it" is the kernel; None: it is."""
        self.contexts: Mapping[int, int] = support.contexts
        """Steps of so many sequences run in it up to this context length; others never."""
        self.draws = bool(support.words.size)
        """Whether it also draws, where a step is greedy (`kernels.batch.Step.greedy`)."""
        self._words = device.store.vector(support.words)

    def runs(self, step: Step[AnyArray]) -> bool:
        """Whether such a step runs in it."""
        num_tokens = step.token_ids.size
        has_one_each = step.sequence_lengths.size == num_tokens  # of sequences a token
        return num_tokens in self.contexts and has_one_each and not step.has_long_context

    def forward(self, step: Step[AnyArray], caches: Sequence[LayerCache[AnyArray]], logits: AnyArray) -> None:
        """Run a step; ``logits`` [R, vocab] float32."""
        self._ops.decode_layers(self._model, step, words=self._words, out_caches=caches, out=logits)
