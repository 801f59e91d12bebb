"""CLIP_benchmark 1.6.2's own counting, written down again from `clip_benchmark/metrics` (MIT): torch, dense."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float32]


def recall_at_k(scores: Tensor, positive_pairs: Tensor, k: int) -> Tensor:
    """zeroshot_retrieval.recall_at_k."""
    topk_indices = torch.topk(scores, k, dim=1)[1]
    nb_positive = positive_pairs.sum(dim=1)
    onehot = torch.nn.functional.one_hot(topk_indices, num_classes=scores.shape[1])
    nb_true_positive = (onehot * positive_pairs.view(len(scores), 1, -1)).sum(dim=(1, 2))
    return nb_true_positive / nb_positive


def retrieval(images: Array, texts: Array, owner: NDArray[np.int64]) -> dict[str, float]:
    """The end of zeroshot_retrieval.evaluate."""
    scores = torch.from_numpy(texts) @ torch.from_numpy(images).t()
    positive_pairs = torch.zeros_like(scores, dtype=torch.bool)
    positive_pairs[torch.arange(len(scores)), torch.from_numpy(owner)] = True
    found = {}
    for way, table, positive in (("t2i", scores, positive_pairs), ("i2t", scores.T, positive_pairs.T)):
        for k in (1, 5, 10):
            found[f"{way}_r{k}"] = (recall_at_k(table, positive, k) > 0).float().mean().item()
    return found


def classification(images: Array, classes: Array, target: NDArray[np.int64]) -> dict[str, float | None]:
    """run_classification, accuracy and the end of zeroshot_classification.evaluate; balanced accuracy as in sklearn."""
    logits = (100.0 * torch.from_numpy(images) @ torch.from_numpy(classes).t()).float()
    topk = (1, 5) if len(classes) >= 5 else (1,)
    pred = logits.topk(max(topk), 1, True, True)[1].t()
    correct = pred.eq(torch.from_numpy(target).view(1, -1).expand_as(pred))
    shares = [float(correct[:k].reshape(-1).float().sum(0, keepdim=True).numpy()[0]) / len(target) for k in topk]
    argmax = logits.argmax(dim=1).numpy()
    recalls = [(argmax[target == c] == c).mean() for c in np.unique(target)]
    return {
        "top1": shares[0],
        "top5": shares[1] if len(shares) > 1 else None,
        "mean_per_class_recall": float(np.mean(recalls)),
    }


def zero_shot_weights(prompts: Array) -> Array:
    """zero_shot_classifier: (C, templates, D) text embeddings -> (C, D)."""
    found = torch.nn.functional.normalize(torch.from_numpy(prompts), dim=-1).mean(dim=1)
    return (found / found.norm(dim=-1, keepdim=True)).numpy()
