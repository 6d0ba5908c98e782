"""Entropy-Guided Attention, and the adapter around it that follows each stage of the image encoder.

What the paper compares it with is here too. Memory grows with N and not with N x N.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from echoplan.errors import EchoPlanError

ATTENTIONS = ("ega", "ega_query", "ega_column", "self", "topk", "mask")

_EPSILON = 1e-12  # of equation 3
_LEAST_CERTAINTY = 1e-6  # float32 does not tell a smaller one from zero; perfectly even attention stays as it is
_CHANNEL_MULTIPLE = 8  # fused attention kernels for GPUs want such widths


class EntropyGuidedAttention(nn.Module):
    """Self-attention whose map A = softmax(q k^T / sqrt(d)) is weighted by how certain its rows are (equations 1 to 4).

    H_i is the entropy of row A_i and gamma_i = 1 - H_i / ln N its certainty. Equation 3 can be read in three ways.
    In the other kinds, too, the entropy is that of A. `attention` is one of:

    - "ega": certainty of the key, A'_ij = gamma_j A_ij / (sum_j gamma_j A_ij + eps). What is reliable is kept.
    - "ega_query": certainty of the query, A'_ij = gamma_i A_ij / (sum_j gamma_i A_ij + eps). It cancels but for eps, so
      this is self-attention unless a row is almost even.
    - "ega_column": the sum over rows as printed, A'_ij = gamma_i A_ij / (sum_m gamma_m A_mj + eps). It normalises
      columns: rows no longer sum to one.
    - "self": A' = A.
    - "topk": after Chen et al. 2023, a softmax over each row's largest scores alone; `top_share` of them. (Theirs is
      between channels and mixes several shares; here it is between tokens with one.)
    - "mask": after Cheng et al. 2025, a mask learnt from the tokens chooses the keys that may be attended to. A key
      stays when a linear map of its token, through a sigmoid, is at least a half; the gradient passes the threshold
      unchanged. At first all stay.

    With several heads each has its own map and certainty, and the entropy returned is their mean.

    Args:
        channels: C.
        attention: see above.
        heads: they divide C.
        top_share: share of the keys that "topk" keeps, in (0, 1].

    Raises:
        EchoPlanError: a setting it cannot take.
    """

    def __init__(self, channels: int, *, attention: str = "ega", heads: int = 1, top_share: float = 0.5) -> None:
        super().__init__()
        if attention not in ATTENTIONS:
            raise EchoPlanError(f"attention cannot be {attention!r}", remedy=f"choose one of {', '.join(ATTENTIONS)}")
        if heads < 1 or channels % heads:
            raise EchoPlanError(f"heads ({heads}) must divide the channels ({channels})")
        if not 0 < top_share <= 1:
            raise EchoPlanError(f"top_share must be above 0 and at most 1, not {top_share}")
        self.kind, self.heads, self.top_share = attention, heads, top_share
        self.query_key_value, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        for weight in (*self.query_key_value.weight.chunk(3), self.out.weight):
            nn.init.xavier_uniform_(weight)
        for linear in (self.query_key_value, self.out):
            nn.init.zeros_(linear.bias)
        self.keep = nn.Linear(channels, 1) if attention == "mask" else None
        if self.keep is not None:
            nn.init.zeros_(self.keep.weight)
            nn.init.ones_(self.keep.bias)

    def forward(self, tokens: Tensor, *, local: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``(B, N, C)`` -> the attended tokens of the same shape, and H / ln N, ``(B, N)``, float32, 0 to 1.

        Args:
            tokens: queries, keys and values are made from these.
            local: features of the same shape that the output map fuses with the attended ones: their sum goes in.
        """
        q, k, v = (self._split(each) for each in self.query_key_value(tokens).chunk(3, dim=2))
        entropy = row_entropy(q, k) / math.log(max(2, tokens.shape[1]))
        mixed = self._attend(q, k, v, entropy, tokens)
        mixed = mixed.unflatten(0, (-1, self.heads)).transpose(1, 2).flatten(2).to(v.dtype)
        return self.out(mixed if local is None else mixed + local), entropy.unflatten(0, (-1, self.heads)).mean(dim=1)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, entropy: Tensor, tokens: Tensor) -> Tensor:
        certainty = (1 - entropy).clamp_min(_LEAST_CERTAINTY).unsqueeze(-1)
        if self.kind == "ega":
            return weighted_attention(q, k, v, certainty)
        if self.kind == "ega_query":
            return attention(q, k, v) * (certainty / (certainty + _EPSILON))
        if self.kind == "ega_column":
            return attention(q, k, v / (column_sums(q, k, certainty) + _EPSILON)) * certainty
        if self.kind == "topk":
            return top_attention(q, k, v, keep=max(1, round(self.top_share * k.shape[1])))
        if self.keep is not None:
            chance = _promote(self.keep(tokens)).sigmoid()
            kept = chance + ((chance >= 0.5).to(chance.dtype) - chance).detach()
            return weighted_attention(q, k, v, kept.repeat_interleave(self.heads, dim=0))
        return attention(q, k, v)

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2).flatten(0, 1)


def row_entropy(q: Tensor, k: Tensor) -> Tensor:
    """Equation 1: the entropy, in nats, of every row of softmax(q k^T / sqrt(d)).

    The map is made in blocks of rows, in float32 at least, and made again for the backward pass.

    Args:
        q: ``(B, N, d)``.
        k: ``(B, M, d)``.

    Returns:
        ``(B, N)``, 0 to ln M; float32, or float64 for float64.
    """
    return _RowEntropy.apply(q, k)


class _RowEntropy(torch.autograd.Function):
    """With s the scores, z = ln sum_j exp s_ij and A_ij = exp(s_ij - z_i): H_i = z_i - sum_j A_ij s_ij.

    dH_i / ds_ij = -A_ij (ln A_ij + H_i).
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor) -> Tensor:
        queries, keys = _promote(q) * q.shape[-1] ** -0.5, _promote(k).transpose(1, 2).contiguous()
        entropy, normaliser = queries.new_empty(q.shape[:2]), queries.new_empty(q.shape[:2])
        for batch, rows, scores, spare in _with_memory(queries, k.shape[1]):
            # With `out`, autocast lets products be.
            torch.bmm(queries[batch, rows], keys[batch], out=scores)
            greatest = scores.amax(dim=2, keepdim=True)
            torch.exp(scores.sub_(greatest), out=spare)
            total = spare.sum(dim=2)
            logarithm = total.log()
            entropy[batch, rows] = logarithm - spare.mul_(scores).sum(dim=2) / total
            normaliser[batch, rows] = logarithm + greatest.squeeze(2)
        ctx.save_for_backward(q, k, entropy, normaliser)
        return entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        q, k, entropy, normaliser = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        queries, keys, weight = _promote(q) * scale, _promote(k), -gradient.unsqueeze(2)
        weighted = (queries * weight).transpose(1, 2)
        to_q, to_k = torch.empty_like(queries), keys.new_zeros(keys.shape[0], keys.shape[2], keys.shape[1])
        for batch, rows, scores, spare in _with_memory(queries, k.shape[1]):
            torch.bmm(queries[batch, rows], keys[batch].transpose(1, 2), out=scores)
            logarithm = scores.sub_(normaliser[batch, rows].unsqueeze(2))
            torch.exp(logarithm, out=spare)
            slope = logarithm.add_(entropy[batch, rows].unsqueeze(2)).mul_(spare)
            torch.bmm(slope, keys[batch], out=to_q[batch, rows])
            to_k[batch].baddbmm_(weighted[batch, :, rows], slope)
        to_q.mul_(weight * scale)
        return to_q.to(q.dtype), to_k.transpose(1, 2).to(k.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v by a fused kernel: ``(B, N, d)``, ``(B, M, d)``, ``(B, M, d)`` -> ``(B, N, d)``."""
    return _fused(q, k, v, q.shape[-1] ** -0.5)


def weighted_attention(q: Tensor, k: Tensor, v: Tensor, weight: Tensor) -> Tensor:
    """Equations 3 and 4 with a weight a key: sum_j w_j A_ij v_j / (sum_j w_j A_ij + eps), A = softmax(q k^T / sqrt(d)).

    Both sums are ordinary attention, over the values w_j v_j and w_j: one more channel, and no map. It is what a
    softmax of s_ij + ln w_j gives, and stays defined where w_j is zero.

    Args:
        q, k, v: ``(B, N, d)``, ``(B, M, d)``, ``(B, M, d)``.
        weight: w, ``(B, M, 1)``, not negative.

    Returns:
        ``(B, N, d)``.
    """
    width = q.shape[-1]
    spare = _CHANNEL_MULTIPLE - width % _CHANNEL_MULTIPLE  # 1 to 8: there is always room for w_j
    # The result does not depend on the weights' scale; with one as the largest, 16-bit values lose the least.
    weight = weight / weight.detach().amax(dim=1, keepdim=True).clamp_min(_LEAST_CERTAINTY)
    values = torch.cat([v * weight, weight], dim=-1).to(v.dtype)
    sums = _fused(F.pad(q, (0, spare)), F.pad(k, (0, spare)), F.pad(values, (0, spare - 1)), width**-0.5)
    return sums[..., :width] / (_promote(sums[..., width : width + 1]) + _EPSILON)


def column_sums(q: Tensor, k: Tensor, weight: Tensor) -> Tensor:
    """sum_i w_i A_ij, A = softmax(q k^T / sqrt(d)): ``(B, N, d)``, ``(B, M, d)``, ``(B, N, 1)`` -> ``(B, M, 1)``."""
    return torch.cat(
        [
            reduce(
                torch.add,
                (_recomputed(_column_block, q[batch, rows], k[batch], weight[batch, rows]) for rows in blocks),
            )
            for batch, blocks in _blocks(q, k.shape[1])
        ]
    )


def _column_block(q: Tensor, k: Tensor, weight: Tensor) -> Tensor:
    return _scores(q, k).softmax(dim=2).transpose(1, 2) @ weight


def top_attention(q: Tensor, k: Tensor, v: Tensor, *, keep: int) -> Tensor:
    """Attention over a row's `keep` largest scores, ties too: ``(B, N, d)``, twice ``(B, M, d)`` -> ``(B, N, d)``."""
    return torch.cat(
        [
            torch.cat([_recomputed(_top_block, q[batch, rows], k[batch], v[batch], keep) for rows in blocks], dim=1)
            for batch, blocks in _blocks(q, k.shape[1])
        ]
    )


def _top_block(q: Tensor, k: Tensor, v: Tensor, keep: int) -> Tensor:
    scores = _scores(q, k)
    least = scores.detach().topk(keep, dim=2, sorted=False).values.amin(dim=2, keepdim=True)
    return scores.masked_fill(scores < least, -math.inf).softmax(dim=2).to(v.dtype) @ v


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return F.scaled_dot_product_attention(q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1), scale=scale).squeeze(1)


def _recomputed(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """The function's result; what lies between is not kept but computed again in the backward pass."""
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return _promote(q @ k.transpose(1, 2)) * q.shape[-1] ** -0.5


def _promote(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _blocks(queries: Tensor, keys: int) -> Iterator[tuple[slice, list[slice]]]:
    """Pieces of the batch, each with the blocks of rows in which its maps are made; the first of each is the largest.

    A block has as many scores as a core's cache holds, or as keep a GPU busy.
    """
    batch, tokens = queries.shape[:2]
    limit = 2**19 if queries.device.type == "cpu" else 2**24
    rows = min(tokens, max(1, limit // keys))
    together = max(1, limit // (rows * keys))
    blocks = [slice(top, min(top + rows, tokens)) for top in range(0, tokens, rows)]
    return ((slice(first, min(first + together, batch)), blocks) for first in range(0, batch, together))


def _with_memory(queries: Tensor, keys: int) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """Every block's batch and rows, and two tensors of its shape whose memory it shares with the other blocks."""
    memory = None
    for batch, blocks in _blocks(queries, keys):
        for rows in blocks:
            shape = (batch.stop - batch.start, rows.stop - rows.start, keys)
            memory = queries.new_empty(2, math.prod(shape)) if memory is None else memory
            scores, spare = (part[: math.prod(shape)].view(shape) for part in memory)
            yield batch, rows, scores, spare


class GlobalLocalAdapter(nn.Module):
    """x + gate * fuse(local(x) + global(x)): texture by depth-wise convolutions, context by entropy-guided attention.

    The two branches are summed, and the 1 x 1 convolution that fuses them is the attention's output map as well. So an
    adapter has 4 C^2 weights and little besides: 3.2 M over the four stages of SAM2's tiny and small encoders. The
    gate, one number a channel, starts at zero: at first the encoder's features pass unchanged.

    Args:
        channels: C, the stage's width.
        attention, heads, top_share: see `EntropyGuidedAttention`.

    Raises:
        EchoPlanError: a setting it cannot take.
    """

    def __init__(self, channels: int, *, attention: str = "ega", heads: int = 1, top_share: float = 0.5) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.fine, self.wide = (
            nn.Conv2d(channels, channels, size, padding=size // 2, groups=channels) for size in (3, 5)
        )
        self.attention = EntropyGuidedAttention(channels, attention=attention, heads=heads, top_share=top_share)
        self.gate = nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, C, H, W)`` -> the adapted features of the same shape, and H / ln N, ``(B, H * W)``, float32, 0 to 1."""
        tokens = self.norm(features.flatten(2).transpose(1, 2))
        grid = tokens.transpose(1, 2).unflatten(2, features.shape[2:])
        # Each scale has its own GELU: without it the sum of the two convolutions would be one 5 x 5 convolution.
        local = F.gelu(self.fine(grid)) + F.gelu(self.wide(grid))
        fused, entropy = self.attention(tokens, local=local.flatten(2).transpose(1, 2))
        change = (self.gate * fused).transpose(1, 2).unflatten(2, features.shape[2:])
        return features + change.to(features.dtype), entropy
