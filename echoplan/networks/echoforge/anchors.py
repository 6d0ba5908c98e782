"""Anchor recalibration (ARC): learnable anchors that draw the features of undecided patches to their own."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from echoplan.networks.echoforge.parts import Attention, FeedForward
from echoplan.networks.echoforge.settings import EchoForgeSettings

PATCH = 2  # pixels of X along each side of a patch
_UNDECIDED = 0.2  # width of the interval [0.4, 0.6] of foreground probabilities
_TEMPERATURE = 0.1  # of the similarities' softmax at the start
_TINY = 1e-6


class AnchorMaps(nn.Module):
    """The anchors' weight maps M_i (equation 1): M_i = exp f_i(X) / sum_j exp f_j(X), f a 1 x 1 convolution.

    The first half of the anchors (one of three) stands for the foreground, the rest for the background, which in an
    echocardiogram has more faces. A single anchor is the foreground's; its map is then a sigmoid, the other side of the
    softmax being a constant score of zero.

    Args:
        channels: C of X.
        anchors: how many, 1 or more.
    """

    def __init__(self, channels: int, *, anchors: int) -> None:
        super().__init__()
        self.scores = nn.Conv2d(channels, anchors, 1)

    @property
    def foreground(self) -> int:
        """How many of the anchors, the first ones, stand for the foreground."""
        return max(1, self.scores.out_channels // 2)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """X ``(N, C, h, w)`` -> M ``(N, A, h, w)``, and the foreground's logits ``(N, 1, h, w)``.

        Those are ln(sum of the foreground's M / sum of the background's M).
        """
        scores = self.scores(features).float()
        if scores.shape[1] == 1:
            return scores.sigmoid(), scores
        first, second = scores[:, : self.foreground], scores[:, self.foreground :]
        return scores.softmax(dim=1), first.logsumexp(1, keepdim=True) - second.logsumexp(1, keepdim=True)


def pool_anchors(maps: Tensor, features: Tensor) -> Tensor:
    """Equation 2 (and equation 3, which is the same with other masks): the features' mean under each map.

    a_i = sum_xy M_i(x, y) X(x, y) / sum_xy M_i(x, y)

    Args:
        maps: ``(N, A, h, w)``, not negative. A map that is zero everywhere gives a zero vector.
        features: ``(N, C, h, w)``.

    Returns:
        ``(N, A, C)``.
    """
    weights = maps.float().flatten(2)
    weights = weights / weights.sum(dim=2, keepdim=True).clamp_min(_TINY)
    return weights @ features.float().flatten(2).transpose(1, 2)


def nearest_pixels(anchors: Tensor, pixels: Tensor, *, neighbours: int) -> Tensor:
    """The K pixel features nearest to each anchor, by Euclidean distance in feature space, the nearest first.

    Args:
        anchors: ``(N, A, C)``.
        pixels: ``(N, P, C)``.
        neighbours: K; all P pixels where there are fewer.

    Returns:
        ``(N, A, K, C)``.
    """
    # Distances only choose: no gradient, and exact differences, since near pixels differ little.
    with torch.no_grad():
        distances = torch.cdist(anchors.float(), pixels.float(), compute_mode="donot_use_mm_for_euclid_dist")
        chosen = distances.topk(min(neighbours, pixels.shape[1]), dim=2, largest=False).indices
    index = chosen.flatten(1).unsqueeze(2).expand(-1, -1, pixels.shape[2])
    return pixels.gather(1, index).unflatten(1, chosen.shape[1:])


class FeatureFusion(nn.Module):
    """From initial anchors and their neighbours to updated anchors.

    N_i' = attention(N_i over the anchors), a_i' = FFN(attention(a_i over N_i')), each with its residual, and
    a_i <- a_i + W_out a_i'.
    The neighbours look at all anchors, for over their own alone the softmax would be one.
    """

    def __init__(self, channels: int, *, heads: int, hidden: int) -> None:
        super().__init__()
        self.to_neighbours = Attention(channels, heads=heads)
        self.to_anchor = Attention(channels, heads=heads)
        self.feed_forward = FeedForward(channels, hidden=hidden)
        self.out = nn.Linear(channels, channels)

    def forward(self, anchors: Tensor, neighbours: Tensor) -> Tensor:
        """``(N, A, C)`` and ``(N, A, K, C)`` -> ``(N, A, C)``."""
        batch, count, near = neighbours.shape[:3]
        fused = self.to_neighbours(neighbours.flatten(1, 2), anchors).unflatten(1, (count, near))
        own = anchors.flatten(0, 1).unsqueeze(1)
        updated = self.feed_forward(self.to_anchor(own, fused.flatten(0, 1)))
        return anchors + self.out(updated).view(batch, count, -1)


class Recalibration(nn.Module):
    """The whole of ARC after equations 1 and 2: KNN, feature fusion, and patches drawn to their anchors.

    Args:
        settings: see `EchoForgeSettings`.
    """

    def __init__(self, settings: EchoForgeSettings) -> None:
        super().__init__()
        self.neighbours, self.weight = settings.neighbours, settings.recalibration_weight
        self.fusion = FeatureFusion(settings.channels, heads=settings.heads, hidden=settings.feed_forward)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(_TEMPERATURE)))

    def forward(self, features: Tensor, maps: Tensor, *, foreground: int) -> Tensor:
        """X ``(N, C, h, w)`` and M ``(N, A, h, w)`` -> F ``(N, C, h, w)``."""
        anchors = pool_anchors(maps, features)
        near = nearest_pixels(anchors, features.flatten(2).transpose(1, 2), neighbours=self.neighbours)
        anchors = self.fusion(anchors, near)
        temperature = self.log_temperature.exp()
        return recalibrate(features, anchors, temperature=temperature, foreground=foreground, weight=self.weight)


def recalibrate(
    features: Tensor,
    anchors: Tensor,
    *,
    temperature: Tensor | float,
    foreground: int,
    weight: str = "continuous",
) -> Tensor:
    """Draw undecided patches towards the nearest anchor of the side, foreground or background, that they lean to.

    P_k <- P_k + w_k (a - P_k), where w depends on u = |s_FG - s_BG| / 0.2 and is 0 from u = 1 on, that is for s outside
    (0.4, 0.6). "continuous": w = 4 u (1 - u), 0 where s = 0.5, so that there is no step anywhere. "falling": w = 1 - u,
    the whole way where s = 0.5, so that a patch jumps from one anchor to the other there.

    s comes from a softmax over the cosine similarities / temperature of a patch's mean with the anchors; several
    anchors of one side add up. With a single anchor s = sigmoid(similarity / temperature), and a patch that is rather
    background has no anchor to go to: it stays.

    Args:
        features: X ``(N, C, h, w)``, h and w even.
        anchors: ``(N, A, C)``.
        temperature: of the softmax, positive.
        foreground: how many of the anchors, the first ones, stand for the foreground.
        weight: "continuous" or "falling".
    """
    batch, channels, height, width = features.shape
    patches = features.float().unflatten(3, (width // PATCH, PATCH)).unflatten(2, (height // PATCH, PATCH))
    mean = patches.mean(dim=(3, 5)).flatten(2).transpose(1, 2)  # (N, P, C)
    anchors = anchors.float()
    scores = F.cosine_similarity(mean.unsqueeze(2), anchors.unsqueeze(1), dim=3) / temperature  # (N, P, A)
    if anchors.shape[1] == 1:
        difference = 2 * scores[..., 0].sigmoid() - 1
        may_move = difference >= 0
    else:
        shares = scores.softmax(dim=2)
        difference = shares[..., :foreground].sum(dim=2) - shares[..., foreground:].sum(dim=2)
        may_move = torch.ones_like(difference, dtype=torch.bool)
    left = (1 - difference.abs() / _UNDECIDED).clamp_min(0)
    share = torch.where(may_move, 4 * (1 - left) * left if weight == "continuous" else left, 0.0)
    is_foreground = torch.arange(anchors.shape[1], device=anchors.device) < foreground
    of_winning_side = is_foreground == (difference >= 0).unsqueeze(2)
    winner = scores.masked_fill(~of_winning_side, -torch.inf).argmax(dim=2, keepdim=True).expand(-1, -1, channels)
    goal = anchors.gather(1, winner)  # (N, P, C)

    def on_grid(values: Tensor) -> Tensor:
        """``(N, P, X)`` -> ``(N, X, h / 2, 1, w / 2, 1)``"""
        return values.transpose(1, 2).reshape(batch, -1, height // PATCH, 1, width // PATCH, 1)

    moved = patches + on_grid(share.unsqueeze(2)) * (on_grid(goal) - patches)
    return moved.reshape(batch, channels, height, width).to(features.dtype)
