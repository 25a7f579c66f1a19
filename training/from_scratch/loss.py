"""The loss of a classifier: softmax cross entropy."""

from __future__ import annotations

import numpy as np

from training.from_scratch.layer import Floats, Labels


def softmax(logits: Floats) -> Floats:
    """exp(logits) divided by their sum, row by row of [n, classes]; safe for logits of any size."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: Floats = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


class SoftmaxCrossEntropy:
    """The mean over the batch of -log softmax(logits)[label]. The same as torch.nn.CrossEntropyLoss."""

    def forward(self, logits: Floats, labels: Labels) -> float:
        """`logits` [n, classes], `labels` int64 [n] from 0 to classes - 1."""
        self._probabilities = softmax(logits)
        self._labels = labels
        shifted = logits - logits.max(axis=1, keepdims=True)
        # From the logits again: the probability of an unlikely class may have become 0.
        likelihood = shifted[np.arange(len(labels)), labels] - np.log(np.exp(shifted).sum(axis=1))
        return float(-likelihood.mean())

    def backward(self) -> Floats:
        """The gradient with respect to the logits, [n, classes]: (softmax(logits) - one hot) / n."""
        gradient = self._probabilities.copy()
        gradient[np.arange(len(self._labels)), self._labels] -= 1
        return gradient / len(self._labels)
