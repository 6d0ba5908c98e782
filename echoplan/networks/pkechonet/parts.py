"""The parts of PKEcho-Net: kernels refined over the clip, and the affinities that take the place of a decoder."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial, reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echoplan.networks.pkechonet.settings import PKEchoNetSettings

_PHASES = 10  # the papers' clips have ten frames; other lengths interpolate between these
_TINY = 1e-6
_NEIGHBOURS = 9  # M x M with M = 3, the paper's choice


class Attention(nn.Module):
    """Equation 3, then a residual to the query and LayerNorm.

    LN(psi_4(softmax(psi_1(Q) psi_2(K)^T / sqrt(d)) psi_3(V)) + Q), where psi_1 to psi_4 are linear layers.
    """

    def __init__(self, channels: int, *, head_channels: int, dropout: float) -> None:
        super().__init__()
        self.heads = channels // head_channels
        self.query, self.key, self.value, self.out = (nn.Linear(channels, channels) for _ in range(4))
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(channels)

    def forward(self, query: Tensor, other: Tensor, *, position: Tensor | None = None) -> Tensor:
        """Tokens ``(..., L, d)`` attend over `other` ``(..., M, d)``; `position` ``(L, d)`` marks queries and keys."""
        marked, keys = (query, other) if position is None else (query + position, other + position)
        q, k, v = (self._split(x) for x in (self.query(marked), self.key(keys), self.value(other)))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(query.shape)
        return self.norm(self.dropout(self.out(mixed)) + query)

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.flatten(0, -3).unflatten(-1, (self.heads, -1)).transpose(1, 2)


class HybridUpdate(nn.Module):
    """Equation 2: grouped features attend to kernels and kernels to them, each with its residual; then the sum."""

    def __init__(self, attention: Callable[[], Attention]) -> None:
        super().__init__()
        self.to_kernel, self.to_feature = attention(), attention()

    def forward(self, grouped: Tensor, kernels: Tensor) -> Tensor:
        return self.to_kernel(grouped, kernels) + self.to_feature(kernels, grouped)


class GatedUpdate(nn.Module):
    """What the paper's ablation (table 4) has in place of equation 2: K-Net's gates (Zhang et al. 2021)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.feature_in, self.kernel_in, self.feature_out, self.kernel_out = (
            nn.Linear(channels, channels) for _ in range(4)
        )
        self.feature_gate, self.kernel_gate = (
            nn.Sequential(nn.Linear(channels, channels), nn.LayerNorm(channels), nn.Sigmoid()) for _ in range(2)
        )
        self.feature_norm, self.kernel_norm = (nn.LayerNorm(channels) for _ in range(2))

    def forward(self, grouped: Tensor, kernels: Tensor) -> Tensor:
        both = self.feature_in(grouped) * self.kernel_in(kernels)
        return self.feature_gate(both) * self.feature_norm(self.feature_out(grouped)) + self.kernel_gate(
            both
        ) * self.kernel_norm(self.kernel_out(kernels))


class KernelRefinement(nn.Module):
    """One iteration of the refinement (equations 1 to 4)."""

    def __init__(self, settings: PKEchoNetSettings) -> None:
        super().__init__()
        channels, inner, dropout = settings.channels, settings.ffn_ratio * settings.channels, settings.dropout
        attention = partial(Attention, channels, head_channels=settings.head_channels, dropout=dropout)
        self.update = HybridUpdate(attention) if settings.kernel_update == "hybrid" else GatedUpdate(channels)
        self.grouping, self.position = settings.grouping, settings.position
        self.temporal = attention() if settings.temporal_attention else None
        self.cross_video = attention() if settings.cross_video == "train" else None
        self.feed_forward = nn.Sequential(
            nn.Linear(channels, inner),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(inner, channels),
            nn.Dropout(dropout),
        )
        self.norm = nn.LayerNorm(channels)

    def forward(self, kernels: Tensor, features: Tensor, logits: Tensor, position: Tensor | None) -> Tensor:
        """Kernels ``(B, T, K, d)`` -> refined kernels of the same shape.

        Args:
            kernels: the last iteration's.
            features: the reduced features ``(B, T, d, h, w)``.
            logits: the last iteration's masks ``(B, T, K, h, w)``.
            position: each frame's phase, ``(T, d)``; None adds none.
        """
        kernels = self.update(group_features(logits, features, mean=self.grouping == "mean"), kernels)
        if self.temporal is not None:
            frames = kernels.transpose(1, 2)
            if self.position == "kernels" and position is not None:
                frames, position = frames + position, None
            kernels = self.temporal(frames, frames, position=position).transpose(1, 2)
        if self.cross_video is not None:
            # At inference each video attends to itself alone, so that its result does not hang on its batch mates.
            videos = kernels.permute(1, 2, 0, 3) if self.training else kernels.unsqueeze(-2)
            mixed = self.cross_video(videos, videos)
            kernels = mixed.permute(2, 0, 1, 3) if self.training else mixed.squeeze(-2)
        return self.norm(self.feed_forward(kernels) + kernels)


class KernelSegmentation(nn.Module):
    """The predictor and the iterations: reduced features of the last layer -> coarse mask logits of each stage.

    Args:
        settings: see `PKEchoNetSettings`.
        in_channels: channels of the last layer.
        classes: masks a frame, c in the paper.
    """

    def __init__(self, settings: PKEchoNetSettings, in_channels: int, *, classes: int) -> None:
        super().__init__()
        channels = settings.channels
        self.reduce = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        )
        # The 1 x 1 convolution of the predictor.
        self.kernels = nn.Parameter(torch.empty(classes, channels))
        nn.init.kaiming_normal_(self.kernels, nonlinearity="relu")
        self.bias = nn.Parameter(torch.zeros(settings.stages + 1, classes)) if settings.kernel_bias else None
        self.position = nn.Parameter(torch.empty(_PHASES, channels))
        self.positions_once = settings.position == "kernels"
        if self.positions_once:
            nn.init.normal_(self.position)
        else:
            nn.init.trunc_normal_(self.position, std=0.02)
        self.refinements = nn.ModuleList(KernelRefinement(settings) for _ in range(settings.stages))

    def forward(self, reduced: Tensor) -> list[Tensor]:
        """What `reduce` made of a window's frames, ``(B, T, d, h, w)`` -> S + 1 mask logits ``(B, T, K, h, w)``.

        They are the predictor's, then each refinement's.
        """
        batch, frames = reduced.shape[:2]
        kernels = self.kernels.expand(batch, frames, -1, -1)
        position: Tensor | None = interpolate_phases(self.position, frames)
        biases = [None] * (len(self.refinements) + 1) if self.bias is None else list(self.bias)
        masks = [apply_kernels(kernels, reduced, biases[0])]
        for refinement, bias in zip(self.refinements, biases[1:], strict=True):
            kernels = refinement(kernels, reduced, masks[-1], position)
            masks.append(apply_kernels(kernels, reduced, bias))
            position = None if self.positions_once else position
        return masks


def apply_kernels(kernels: Tensor, features: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve each frame with its own kernels: ``(B, T, K, d)``, ``(B, T, d, h, w)`` -> ``(B, T, K, h, w)``.

    `bias`, ``(K,)``, is the same for all frames.
    """
    masks = (kernels @ features.flatten(3)).reshape(*kernels.shape[:3], *features.shape[3:])
    return masks if bias is None else masks + bias.view(-1, 1, 1)


def group_features(logits: Tensor, features: Tensor, *, mean: bool = True) -> Tensor:
    """Equation 1: the sum of the features under each mask; or that divided by the mask's sum.

    The scale of a sum changes with the resolution.

    Args:
        logits: masks ``(B, T, K, h, w)``; their probabilities (sigmoid for K = 1, else softmax) are the weights.
        features: ``(B, T, d, h, w)``.
        mean: whether to divide.

    Returns:
        ``(B, T, K, d)``.
    """
    masks = (logits.sigmoid() if logits.shape[2] == 1 else logits.softmax(dim=2)).flatten(3)
    weights = masks / masks.sum(dim=-1, keepdim=True).clamp_min(_TINY) if mean else masks
    return weights @ features.flatten(3).transpose(-1, -2)


def interpolate_phases(embedding: Tensor, frames: int) -> Tensor:
    """The embedding ``(P, d)`` at `frames` equidistant phases of the clip, both ends kept: ``(frames, d)``."""
    if frames == embedding.shape[0]:
        return embedding
    return F.interpolate(embedding.T[None], size=frames, mode="linear", align_corners=True)[0].T


class AffinityEstimator(nn.Module):
    """How much each of the 3 x 3 coarse neighbours stands for each fine pixel (paper, figure 3).

    Args:
        channels: channels of the coarse feature map.
        factor: how many times finer the next grid is.
    """

    def __init__(self, channels: int, *, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.affinity = nn.Conv2d(channels, _NEIGHBOURS * factor**2, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Features ``(N, C, h, w)`` -> ``(N, 9, factor ** 2, h, w)``, which sum to one over the neighbours."""
        scores = self.affinity(F.relu(self.norm(self.depthwise(features)))).unflatten(1, (_NEIGHBOURS, self.factor**2))
        height, width = features.shape[-2:]
        inside = F.unfold(torch.ones(1, 1, height, width, device=scores.device), 3, padding=1)
        outside = inside.view(_NEIGHBOURS, 1, height, width) == 0
        return scores.masked_fill(outside, float("-inf")).softmax(dim=1)


def upsample_by_affinity(coarse: Tensor, affinity: Tensor) -> Tensor:
    """Each fine pixel is the affinity-weighted mean of its 3 x 3 coarse neighbours (equation 5).

    Args:
        coarse: ``(N, K, h, w)``.
        affinity: ``(N, 9, r * r, h, w)`` from `AffinityEstimator`.

    Returns:
        ``(N, K, r * h, r * w)``.
    """
    neighbours = F.unfold(coarse, 3, padding=1).view(*coarse.shape[:2], _NEIGHBOURS, 1, *coarse.shape[2:])
    # A sum term by term: one product over all nine would need nine times the memory of the result.
    fine = reduce(torch.add, (neighbours[:, :, i] * affinity[:, None, i] for i in range(_NEIGHBOURS)))
    return F.pixel_shuffle(fine.flatten(1, 2), math.isqrt(affinity.shape[2]))
