"""Entropy-Guided Attention, and what the paper compares it with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from echoplan.errors import EchoPlanError

ATTENTIONS = ("ega", "ega_query", "ega_column", "self", "topk", "mask")

_GUIDED = ("ega", "ega_query", "ega_column")  # by the entropy

Attend: TypeAlias = Callable[[Tensor], Tensor]  # values (B, M, e) -> A v, (B, N, e)
Weigh: TypeAlias = Callable[[Tensor], Tensor]  # entropies -> weights of their rows

_WHOLE_MAP = 2**24  # scores: a frame of 4096 tokens
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

    def forward(
        self, tokens: Tensor, *, local: Tensor | None = None, with_entropy: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """``(B, N, C)`` -> the attended tokens of the same shape, and H / ln N, ``(B, N)``, float32, 0 to 1.

        Args:
            tokens: queries, keys and values are made from these.
            local: features of the same shape that the output map fuses with the attended ones: their sum goes in.
            with_entropy: whether the entropy is wanted, else None comes in its place. Attention that is not guided by
                it then does not make it.
        """
        q, k, v = (self._split(each) for each in self.query_key_value(tokens).chunk(3, dim=2))
        entropy: Tensor | None
        if self.kind in _GUIDED:
            mixed, entropy = self._guided(q, k, v)
        else:
            mixed, entropy = self._compared(q, k, v, tokens), row_entropy(q, k) if with_entropy else None
        mixed = mixed.unflatten(0, (-1, self.heads)).transpose(1, 2).flatten(2).to(v.dtype)
        mixed = self.out(mixed if local is None else mixed + local)
        if not with_entropy or entropy is None:
            return mixed, None
        return mixed, (entropy / _most_entropy(k)).unflatten(0, (-1, self.heads)).mean(dim=1)

    def _guided(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Equations 2 to 4, and the entropy in nats.

        Without gradients a map of no more than `_WHOLE_MAP` scores is made once and kept until it was read; else it is
        made in blocks, again for every reading.
        """
        least = _LEAST_CERTAINTY if self.kind == "ega" else _LEAST_QUERY_CERTAINTY
        weigh = partial(_certainty, most=_most_entropy(k), least=least, power=self.power)
        if torch.jit.is_tracing():  # no graph writes in place, or is made in blocks
            return self._by_whole_map(q, k, v, weigh)
        for_sums = weigh if self.kind == "ega_column" else None
        together = 0 if torch.is_grad_enabled() else _WHOLE_MAP // (q.shape[1] * k.shape[1])
        if not together:
            entropy, sums = _MapStatistics.apply(q, k, for_sums)
            return self._weighted(partial(attention, q, k), v, weigh(entropy), sums), entropy
        parts = []
        memory = v.new_empty(min(together, len(q)), q.shape[1], k.shape[1])
        for piece in zip(q.split(together), k.split(together), v.split(together), strict=True):
            kept = memory[: len(piece[0])]
            entropy, sums, total = _map_statistics(*piece[:2], for_sums, kept)
            attend = partial(_attend_by_map, kept, total)
            parts.append((self._weighted(attend, piece[2], weigh(entropy), sums), entropy))
        mixed, entropies = zip(*parts, strict=True)
        return torch.cat(mixed), torch.cat(entropies)

    def _by_whole_map(self, q: Tensor, k: Tensor, v: Tensor, weigh: Weigh) -> tuple[Tensor, Tensor]:
        """`_guided` as it reads in the equations."""
        logarithm = _scores(q, k).log_softmax(dim=2)
        shares = logarithm.exp()
        entropy = -(shares * logarithm).sum(dim=2)
        certainty = weigh(entropy)
        sums = (certainty.unsqueeze(1) @ shares).transpose(1, 2)
        return self._weighted(lambda values: shares @ values, v, certainty, sums), entropy

    def _weighted(self, attend: Attend, v: Tensor, certainty: Tensor, sums: Tensor) -> Tensor:
        """Equations 3 and 4 with `attend`, which makes A v of values v."""
        certainty = certainty.unsqueeze(2)
        if self.kind == "ega":
            return weighted_attention(attend, v, certainty)
        if self.kind == "ega_query":
            return attend(v) * (certainty / (certainty + _QUERY_EPSILON))
        return attend(v / (sums + _QUERY_EPSILON)) * certainty

    def _compared(self, q: Tensor, k: Tensor, v: Tensor, tokens: Tensor) -> Tensor:
        """What the paper compares with."""
        if self.kind == "topk":
            keys = int(k.shape[1])  # which is no number while a graph is traced
            return top_attention(q, k, v, keep=max(1, round(self.top_share * keys)))
        if self.keep is None:
            return attention(q, k, v)
        chance = _promote(self.keep(tokens)).sigmoid()
        kept = chance + ((chance >= 0.5).to(chance.dtype) - chance).detach()
        return weighted_attention(partial(attention, q, k), v, kept.repeat_interleave(self.heads, dim=0))

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
    return _MapStatistics.apply(q, k, None)[0]


def _map_statistics(q: Tensor, k: Tensor, weigh: Weigh | None, kept: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """What there is to know of A = softmax(s), s = q k^T / sqrt(d), from one pass over it in blocks of rows.

    Args:
        q, k: see `row_entropy`.
        weigh: makes weights w of the rows' entropies; None: there are no sums.
        kept: ``(B, N, M)``, takes exp(s_ij - max_j s_ij); None: nothing is kept.

    Returns:
        the rows' entropies ``(B, N)``, the columns' sums c_j = sum_i w_i A_ij ``(B, M, 1)``, and
        z_i = ln sum_j exp s_ij ``(B, N)`` or, with `kept`, the sums of its rows.
    """
    queries, keys = _promote(q) * q.shape[-1] ** -0.5, _promote(k).transpose(1, 2)
    entropy, normaliser = queries.new_empty(q.shape[:2]), queries.new_empty(q.shape[:2])
    sums = queries.new_zeros(len(k), 1, k.shape[1])
    for batch, rows, scores, spare in _with_memory(queries, k.shape[1]):
        # With `out`, autocast lets products be.
        torch.bmm(queries[batch, rows], keys[batch], out=scores)
        greatest = scores.amax(dim=2, keepdim=True)
        if kept is not None and kept.dtype == scores.dtype:
            spare = kept[batch, rows]
        torch.exp(scores.sub_(greatest), out=spare)
        if kept is not None and kept.dtype != scores.dtype:
            kept[batch, rows] = spare
        total = spare.sum(dim=2)
        logarithm = total.log()
        found = entropy[batch, rows] = logarithm - scores.mul_(spare).sum(dim=2) / total
        if weigh is not None:
            sums[batch].baddbmm_((weigh(found) / total).unsqueeze(1), spare)
        normaliser[batch, rows] = logarithm + greatest.squeeze(2) if kept is None else total
    return entropy, sums.transpose(1, 2), normaliser


class _MapStatistics(torch.autograd.Function):
    """`_map_statistics`' entropies H and sums c = sum_i w_i A_ij, with w_i = w(H_i).

    With g the gradients, and u_i = sum_j A_ij g_cj: H_i has the gradient h_i = g_Hi + u_i w'(H_i) in all, and s_ij has
    A_ij (w_i (g_cj - u_i) - h_i (ln A_ij + H_i)).
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, weigh: Weigh | None) -> tuple[Tensor, Tensor]:
        entropy, sums, normaliser = _map_statistics(q, k, weigh, None)
        ctx.save_for_backward(q, k, entropy, normaliser)
        ctx.weigh = weigh
        return entropy, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_entropy: Tensor, to_sums: Tensor) -> tuple[Tensor, Tensor, None]:
        q, k, entropy, normaliser = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        queries, keys = _promote(q) * scale, _promote(k)
        to_q, to_k = torch.empty_like(queries), keys.new_zeros(len(k), k.shape[2], k.shape[1])
        weight, steepness = (None, None) if ctx.weigh is None else _value_and_slope(ctx.weigh, entropy)
        for batch, rows, scores, spare in _with_memory(queries, k.shape[1]):
            torch.bmm(queries[batch, rows], keys[batch].transpose(1, 2), out=scores)
            logarithm = scores.sub_(normaliser[batch, rows].unsqueeze(2))
            torch.exp(logarithm, out=spare)
            down = to_entropy[batch, rows].unsqueeze(2)
            slope = logarithm.add_(entropy[batch, rows].unsqueeze(2))
            if weight is None or steepness is None:
                slope.mul_(-down)
            else:
                own, mean = weight[batch, rows].unsqueeze(2), spare @ to_sums[batch]
                slope.mul_(-(down + mean * steepness[batch, rows].unsqueeze(2))).sub_(own * mean)
                slope.baddbmm_(own, to_sums[batch].transpose(1, 2))
            slope.mul_(spare)
            torch.bmm(slope, keys[batch], out=to_q[batch, rows])
            to_k[batch].baddbmm_(queries[batch, rows].transpose(1, 2), slope)
        return to_q.mul_(scale).to(q.dtype), to_k.transpose(1, 2).to(k.dtype), None


def _value_and_slope(function: Weigh, values: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        values = values.detach().requires_grad_()
        result = function(values)
        (slope,) = torch.autograd.grad(result.sum(), values)
    return result.detach(), slope


def _certainty(entropy: Tensor, *, most: float, least: float, power: float) -> Tensor:
    """Equation 2."""
    return (1 - entropy / most).clamp_min(least) ** power


def _most_entropy(k: Tensor) -> float:
    return math.log(max(2, k.shape[1]))


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v by a fused kernel: ``(B, N, d)``, ``(B, M, d)``, ``(B, M, e)`` -> ``(B, N, e)``.

    Where e differs from d all are filled up with zeros to one width.
    """
    if torch.jit.is_tracing():
        return _scores(q, k).softmax(dim=2) @ v
    width, values = q.shape[-1], v.shape[-1]
    if values != width:
        most = -(-max(width, values) // _CHANNEL_MULTIPLE) * _CHANNEL_MULTIPLE
        q, k, v = (F.pad(each, (0, most - each.shape[-1])) for each in (q, k, v))
    q, k, v = (each.unsqueeze(1) for each in (q, k, v.to(q.dtype)))
    return F.scaled_dot_product_attention(q, k, v, scale=width**-0.5).squeeze(1)[..., :values]


def _attend_by_map(kept: Tensor, total: Tensor, v: Tensor) -> Tensor:
    """`attention` by a map that `_map_statistics` kept, and the sums of its rows."""
    return (kept @ v.to(kept.dtype)) / total.unsqueeze(2)


def weighted_attention(attend: Attend, v: Tensor, weight: Tensor) -> Tensor:
    """Equations 3 and 4 with a weight a key: sum_j w_j A_ij v_j / (sum_j w_j A_ij + eps).

    Both sums are ordinary attention, over the values w_j v_j and w_j: one more channel, and no map. It is what a
    softmax of s_ij + ln w_j gives, and stays defined where w_j is zero.

    Args:
        attend: makes A v of values v, as `attention` does with its queries and keys.
        v: ``(B, M, d)``.
        weight: w, ``(B, M, 1)``, not negative.

    Returns:
        ``(B, N, d)``.
    """
    # The result does not depend on the weights' scale; with one as the largest, 16-bit values lose the least.
    weight = weight / weight.detach().amax(dim=1, keepdim=True).clamp_min(_LEAST_CERTAINTY)
    sums = attend(torch.cat([v * weight, weight], dim=-1).to(v.dtype))
    return sums[..., :-1] / (_promote(sums[..., -1:]) + _EPSILON)


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
