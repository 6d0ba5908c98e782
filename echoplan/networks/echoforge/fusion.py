"""Temporal semantic fusion (TSF): a memory of semantic tokens is fused into each frame, and queries draw its masks."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from echoplan.networks.echoforge.anchors import pool_anchors
from echoplan.networks.echoforge.parts import Attention, FeedForward, PixelDecoder, image_position, reduced
from echoplan.networks.echoforge.settings import EchoForgeSettings

ROLES = 2  # the structure and the background


def semantic_tokens(features: Tensor, foreground: Tensor) -> Tensor:
    """Equation 3: t_i = sum_uv m_i(u, v) F_r(u, v) / sum_uv m_i(u, v), for the structure and for the background.

    Args:
        features: F_r ``(N, C, h, w)``.
        foreground: the structure's share of each pixel ``(N, 1, H, W)``, in [0, 1]; H and W are multiples of h and w,
            and the mask is reduced to the features' grid by area.

    Returns:
        ``(N, 2, C)``.
    """
    mask = reduced(foreground.float(), features.shape[-2:])
    return pool_anchors(torch.cat([mask, 1 - mask], dim=1), features)


@dataclass
class Memory:
    """The semantic tokens of some frames that were seen: the first one and the latest ones, never more than `size`.

    Attributes:
        size: frames, 1 or more; 1 keeps the latest alone.
        frames: the tokens of each, ``(B, 2, C)``.
    """

    size: int
    frames: list[Tensor] = field(default_factory=list)

    def add(self, tokens: Tensor) -> None:
        """Remember a frame; when full, the oldest but the first one goes."""
        if len(self.frames) == self.size:
            self.frames.pop(min(1, self.size - 1))
        self.frames.append(tokens)

    def keep(self, clips: int) -> None:
        """Go on with the first B of the clips alone."""
        self.frames = [tokens[:clips] for tokens in self.frames]


class InContextLayer(nn.Module):
    """Equation 4, <P_sem, F_t'> = fusion(T_sem, F_t): one Transformer block in both directions.

    Self-attention on the tokens, tokens over the image, FFN; the image over the tokens, FFN.
    """

    def __init__(self, channels: int, *, heads: int, hidden: int) -> None:
        super().__init__()
        self.among_tokens = Attention(channels, heads=heads)
        self.to_image = Attention(channels, heads=heads)
        self.token_ffn = FeedForward(channels, hidden=hidden)
        self.to_tokens = Attention(channels, heads=heads)
        self.image_ffn = FeedForward(channels, hidden=hidden)

    def forward(self, tokens: Tensor, image: Tensor, *, position: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens ``(B, L, C)``, image ``(B, P, C)`` and its positions ``(P, C)`` -> both, fused."""
        tokens = self.among_tokens(tokens, tokens)
        tokens = self.token_ffn(self.to_image(tokens, image, position=position))
        image = self.image_ffn(self.to_tokens(image, tokens, query_position=position))
        return tokens, image


class QueryLayer(nn.Module):
    """Q' = self(Q), P^ = self(P_sem), Q^ = masked cross-attention of Q' over F_t', then FFN on each."""

    def __init__(self, channels: int, *, heads: int, hidden: int, shared: bool) -> None:
        super().__init__()
        self.among_queries = Attention(channels, heads=heads)
        self.among_prototypes = self.among_queries if shared else Attention(channels, heads=heads)
        self.to_image = Attention(channels, heads=heads)
        self.query_ffn = FeedForward(channels, hidden=hidden)
        self.prototype_ffn = FeedForward(channels, hidden=hidden)

    def forward(
        self, queries: Tensor, prototypes: Tensor, image: Tensor, *, position: Tensor, allowed: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Queries ``(B, Q, C)``, prototypes ``(B, 2, C)``, image ``(B, P, C)``; `allowed` ``(B, Q, P)``: own masks."""
        queries = self.among_queries(queries, queries)
        queries = self.query_ffn(self.to_image(queries, image, position=position, allowed=allowed))
        return queries, self.prototype_ffn(self.among_prototypes(prototypes, prototypes))


class TemporalFusion(nn.Module):
    """The whole of TSF: tokens of the memory and a frame's features -> the frame's masks.

    Each role has its learned queries and one prototype. A query and its role's prototype make a kernel, whose product
    with the pixel features is the query's score. A mask is the logit of a softmax over all queries' scores: those of
    the structure together against those of the background.

    Args:
        settings: see `EchoForgeSettings`.
    """

    def __init__(self, settings: EchoForgeSettings) -> None:
        super().__init__()
        channels, sizes = settings.channels, {"heads": settings.heads, "hidden": settings.feed_forward}
        self.mask_head, shared = settings.mask_head, settings.shared_self_attention
        self.role = nn.Parameter(torch.randn(ROLES, channels) * 0.02)
        self.queries = nn.Parameter(
            torch.randn(ROLES * settings.queries, channels)
        )  # the structure's, the background's
        self.fusion = nn.ModuleList(InContextLayer(channels, **sizes) for _ in range(settings.fusion_layers))
        self.decoding = nn.ModuleList(
            QueryLayer(channels, **sizes, shared=shared) for _ in range(settings.query_layers)
        )
        self.pixels = PixelDecoder(channels)
        self.token_norm = nn.LayerNorm(channels)
        # Each role has its own: with shared weights the gradients of two queries that have become alike cancel.
        self.kernels = nn.ModuleList(_kernel_head(channels) for _ in range(ROLES))

    def forward(self, reference: Tensor, features: Tensor, fine: Tensor) -> tuple[list[Tensor], Tensor]:
        """Segment one frame of each clip.

        Args:
            reference: the memory's tokens ``(B, M, 2, C)``.
            features: F_t ``(B, C, h, w)``.
            fine: the pyramid's finer features ``(B, C, 2 h, 2 w)``.

        Returns:
            the logits ``(B, 1, 2 h, 2 w)`` before the first layer of the queries and after each, the last being the
            answer; and the pixel features ``(B, C, 2 h, 2 w)``.
        """
        height, width = features.shape[-2:]
        position = image_position(height, width, features.shape[1], device=features.device)
        tokens = self.token_norm(reference + self.role).flatten(1, 2)
        image = features.flatten(2).transpose(1, 2)
        for layer in self.fusion:
            tokens, image = layer(tokens, image, position=position)
        prototypes = tokens.unflatten(1, reference.shape[1:3]).mean(dim=1)
        pixels = self.pixels(image.transpose(1, 2).unflatten(2, (height, width)), fine)
        queries = self.queries.expand(len(image), -1, -1)
        masks = [self._mask(queries, prototypes, pixels)]
        for layer in self.decoding:
            allowed = own_region(masks[-1], (height, width)).repeat_interleave(queries.shape[1] // ROLES, dim=1)
            queries, prototypes = layer(queries, prototypes, image, position=position, allowed=allowed)
            masks.append(self._mask(queries, prototypes, pixels))
        return masks, pixels

    def _mask(self, queries: Tensor, prototypes: Tensor, pixels: Tensor) -> Tensor:
        roles, prototypes = queries.unflatten(1, (ROLES, -1)), prototypes.unsqueeze(2)
        if self.mask_head == "product":
            # Over C channels a softmax is 1 / C in the mean: times C, so that the heads get numbers near one.
            made = queries.shape[2] * roles.softmax(dim=-1) * prototypes.sigmoid()
        else:
            made = roles + prototypes
        structure, background = (head(tokens) for head, tokens in zip(self.kernels, made.unbind(1), strict=True))
        flat = pixels.flatten(2)
        if structure.shape[1] == 1:  # linear in the kernels: one product in place of two
            mask = (structure - background) / pixels.shape[1] ** 0.5 @ flat
        else:
            scores = (kernel / pixels.shape[1] ** 0.5 @ flat for kernel in (structure, background))
            ours, others = (score.float().logsumexp(dim=1, keepdim=True) for score in scores)
            mask = ours - others
        return mask.unflatten(2, pixels.shape[-2:])


def _kernel_head(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels), nn.ReLU(),
        nn.Linear(channels, channels, bias=False),  # a bias would be the same in both roles' difference
    )  # fmt: skip


@torch.no_grad()
def own_region(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Where each role's query may look: where its own mask reaches one half, or everywhere if that is nowhere.

    Args:
        logits: ``(B, 1, H, W)``.
        size: the grid of the attention.

    Returns:
        ``(B, 2, h * w)``, bool: the structure's, the background's.
    """
    inside = reduced(logits.float().sigmoid(), size).flatten(2) >= 0.5
    allowed = torch.cat([inside, ~inside], dim=1)
    return allowed | ~allowed.any(dim=2, keepdim=True)
