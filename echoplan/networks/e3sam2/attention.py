"""Entropy-Guided Attention, and what the paper compares it with. Memory grows with N and not with N x N."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from echoplan.errors import EchoPlanError

ATTENTIONS = ("ega", "ega_query", "ega_column", "self", "topk", "mask")

_EPSILON = 1e-12
_LEAST_CERTAINTY = 1e-6  # of a key: float32 does not tell a smaller one from zero
_QUERY_EPSILON, _LEAST_QUERY_CERTAINTY = 1e-8, 1e-3  # of equation 3, and of gamma, as the authors have them
_CHANNEL_MULTIPLE = 8  # fused attention kernels for GPUs want such widths


class EntropyGuidedAttention(nn.Module):
    """Self-attention whose map A = softmax(q k^T / sqrt(d)) is weighted by how certain its rows are (equations 1 to 4).

    H_i is the entropy of row A_i and gamma_i = (1 - H_i / ln N)^p its certainty. Equation 3 can be read in three ways.
    In the other kinds, too, the entropy is that of A. `attention` is one of:

    - "ega_column": as it is printed, A'_ij = gamma_i A_ij / (sum_m gamma_m A_mj + eps). A query that is sure of itself
      takes more; what a key gives, to all queries together, is one.
    - "ega_query": as the authors programmed it, A'_ij = gamma_i A_ij / (sum_j gamma_i A_ij + eps). The certainty
      cancels but for eps: this is self-attention, but where a row is so even that gamma comes near eps (with p = 4, at
      a certainty of 0.01).
    - "ega": certainty of the key, A'_ij = gamma_j A_ij / (sum_j gamma_j A_ij + eps).
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
        certainty_power: p; the authors' is 4.
        projected: whether there is an output map.

    Raises:
        EchoPlanError: a setting it cannot take.
    """

    def __init__(
        self,
        channels: int,
        *,
        attention: str = "ega_column",
        heads: int = 1,
        top_share: float = 0.5,
        certainty_power: float = 1.0,
        projected: bool = True,
    ) -> None:
        super().__init__()
        if attention not in ATTENTIONS:
            raise EchoPlanError(f"attention cannot be {attention!r}", remedy=f"choose one of {', '.join(ATTENTIONS)}")
        if heads < 1 or channels % heads:
            raise EchoPlanError(f"heads ({heads}) must divide the channels ({channels})")
        if not 0 < top_share <= 1:
            raise EchoPlanError(f"top_share must be above 0 and at most 1, not {top_share}")
        self.kind, self.heads, self.top_share, self.power = attention, heads, top_share, certainty_power
        self.query_key_value = nn.Linear(channels, 3 * channels)
        self.out: nn.Module = nn.Linear(channels, channels) if projected else nn.Identity()
        for linear in (self.query_key_value, self.out):
            if isinstance(linear, nn.Linear):
                for weight in linear.weight.split(channels):
                    nn.init.xavier_uniform_(weight)
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
        least = _LEAST_CERTAINTY if self.kind == "ega" else _LEAST_QUERY_CERTAINTY
        certainty = ((1 - entropy).clamp_min(least) ** self.power).unsqueeze(-1)
        if self.kind == "ega":
            return weighted_attention(q, k, v, certainty)
        if self.kind == "ega_query":
            return attention(q, k, v) * (certainty / (certainty + _QUERY_EPSILON))
        if self.kind == "ega_column":
            return attention(q, k, v / (column_sums(q, k, certainty) + _QUERY_EPSILON)) * certainty
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
    """sum_i w_i A_ij, A = softmax(q k^T / sqrt(d)): ``(B, N, d)``, ``(B, M, d)``, ``(B, N, 1)`` -> ``(B, M, 1)``.

    As in `row_entropy` the map is made in blocks of rows, and made again for the backward pass.
    """
    return _ColumnSums.apply(q, k, weight)


class _ColumnSums(torch.autograd.Function):
    """With g the gradient of the sums c, dw_i = sum_j A_ij g_j, and ds_ij = w_i A_ij (g_j - dw_i)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, weight: Tensor) -> Tensor:
        queries, keys, weights = _promote(q) * q.shape[-1] ** -0.5, _promote(k).transpose(1, 2), _promote(weight)
        sums, normaliser = queries.new_zeros(k.shape[0], k.shape[1], 1), queries.new_empty(q.shape[:2])
        for batch, rows, scores, spare in _with_memory(queries, k.shape[1]):
            torch.bmm(queries[batch, rows], keys[batch], out=scores)
            normaliser[batch, rows] = scores.logsumexp(dim=2)
            torch.exp(scores.sub_(normaliser[batch, rows].unsqueeze(2)), out=spare)
            sums[batch].baddbmm_(spare.transpose(1, 2), weights[batch, rows])
        ctx.save_for_backward(q, k, weight, normaliser)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, weight, normaliser = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        queries, keys, weights, slopes = _promote(q) * scale, _promote(k), _promote(weight), _promote(gradient)
        weighted = (queries * weights).transpose(1, 2)
        to_q, to_weight = torch.empty_like(queries), torch.empty_like(weights)
        to_k = keys.new_zeros(keys.shape[0], keys.shape[2], keys.shape[1])
        for batch, rows, scores, spare in _with_memory(queries, k.shape[1]):
            torch.bmm(queries[batch, rows], keys[batch].transpose(1, 2), out=scores)
            torch.exp(scores.sub_(normaliser[batch, rows].unsqueeze(2)), out=spare)
            own = to_weight[batch, rows] = torch.bmm(spare, slopes[batch])
            slope = spare.mul_(slopes[batch].transpose(1, 2) - own)
            torch.bmm(slope, keys[batch], out=to_q[batch, rows])
            to_k[batch].baddbmm_(weighted[batch, :, rows], slope)
        to_q.mul_(weights * scale)
        return to_q.to(q.dtype), to_k.transpose(1, 2).to(k.dtype), to_weight.to(weight.dtype)


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
