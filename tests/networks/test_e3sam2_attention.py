from __future__ import annotations

import math
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from echoplan.errors import EchoPlanError
from echoplan.networks.complexity import count_parameters
from echoplan.networks.e3sam2 import attention as attention_module
from echoplan.networks.e3sam2.adapters import BlockAdapter, GlobalLocalAdapter
from echoplan.networks.e3sam2.attention import (
    ATTENTIONS,
    EntropyGuidedAttention,
    attention,
    row_entropy,
    weighted_attention,
)

sys.path.insert(0, str(Path(__file__).parent))

from plain_attention import entropy_guided_attention_plain, peak_bytes

# Maps of 61 tokens fit one block several at a time, 300 tokens a few at a time, and 1031 take blocks of rows.
SIZES = [(3, 61), (7, 300), (2, 1031)]
TOLERANCE = {torch.float64: {"rtol": 1e-10, "atol": 1e-10}, torch.float32: {"rtol": 1e-5, "atol": 1e-5}}


def _module(kind: str, dtype: torch.dtype = torch.float64, **settings) -> EntropyGuidedAttention:
    torch.manual_seed(0)
    module = EntropyGuidedAttention(8, attention=kind, **settings).to(dtype)
    with torch.no_grad():
        module.query_key_value.weight[:16].mul_(1.5)  # queries and keys: rows of very different certainty
        if module.keep is not None:
            module.keep.weight.normal_()
            module.keep.bias.zero_()
    return module


def _plain(module: EntropyGuidedAttention, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    q, k, v = module.query_key_value(tokens).chunk(3, dim=2)
    mixed, entropy = entropy_guided_attention_plain(q, k, v, attention=module.kind, keep=_kept(module, tokens))
    return module.out(mixed), entropy


def _kept(module: EntropyGuidedAttention, tokens: torch.Tensor) -> torch.Tensor | int | None:
    if module.kind == "topk":
        return round(module.top_share * tokens.shape[1])
    if module.kind == "mask":
        logits = module.keep(tokens).squeeze(2)
        return (logits >= 0).to(logits.dtype) + logits.sigmoid() - logits.sigmoid().detach()
    return None


@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", ATTENTIONS)
def test_equals_the_plain_form_in_value_and_gradient(kind: str, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    module = _module(kind, dtype)
    tokens = torch.randn(*shape, 8, dtype=dtype).requires_grad_()
    outward, inward = torch.randn(*shape, 8, dtype=dtype), torch.randn(*shape, dtype=dtype)
    results = []
    for form in (module, lambda x: _plain(module, x)):
        output, entropy = form(tokens)
        # A mean over the tokens keeps the gradients of all sizes at the scale of one.
        loss = ((output * outward).sum() + (entropy * inward).sum()) / shape[1]
        wanted = torch.autograd.grad(loss, [tokens, *module.parameters()])
        results.append((output, entropy, *wanted))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, **TOLERANCE[dtype])


@pytest.mark.parametrize("kind", ["ega", "ega_query", "ega_column"])
def test_a_map_made_once_gives_what_blocks_of_it_give(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = _module(kind, heads=2)
    tokens = torch.randn(3, 300, 8, dtype=torch.float64)
    in_blocks = [each.detach() for each in module(tokens)]
    for at_once in (2**24, 2 * 300**2):  # all maps together, and two at a time
        monkeypatch.setattr("echoplan.networks.e3sam2.attention._WHOLE_MAP", at_once)
        with torch.no_grad():
            torch.testing.assert_close(list(module(tokens)), in_blocks)


def test_entropies_are_made_where_something_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, made, statistics = torch.randn(1, 20, 8), [], attention_module._map_statistics
    monkeypatch.setattr(attention_module, "_map_statistics", lambda *a: made.append(None) or statistics(*a))
    for kind in ATTENTIONS:
        module = EntropyGuidedAttention(8, attention=kind)
        mixed, entropy = module(tokens)
        assert entropy is not None and made
        made.clear()
        again, none = module(tokens, with_entropy=False)
        assert none is None and torch.equal(again, mixed)
        assert bool(made) is (kind not in ("self", "topk", "mask"))


def test_entropy_and_certainty_of_rows_made_by_hand() -> None:
    tokens = 16
    even = row_entropy(torch.zeros(1, tokens, 4), torch.randn(1, tokens, 4))
    torch.testing.assert_close(even, torch.full((1, tokens), math.log(tokens)))
    keys = torch.eye(tokens).unsqueeze(0)
    torch.testing.assert_close(row_entropy(400 * keys, keys), torch.zeros(1, tokens))
    # Two keys share the first row: 3 to 1.
    query = torch.zeros(1, 1, tokens)
    query[0, 0, :2] = 4 * torch.tensor([math.log(3) + 100, 100])
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert row_entropy(query, keys).item() == pytest.approx(expected, abs=1e-4)


def test_entropy_of_one_token_is_nothing() -> None:
    output, entropy = EntropyGuidedAttention(8)(torch.randn(2, 1, 8))
    assert output.isfinite().all()
    torch.testing.assert_close(entropy, torch.zeros(2, 1))


def test_even_attention_stays_as_it_is() -> None:
    module = _module("ega")
    with torch.no_grad():
        module.query_key_value.weight[:8].zero_()
    tokens = torch.randn(2, 30, 8, dtype=torch.float64)
    output, entropy = module(tokens)
    torch.testing.assert_close(entropy, torch.ones_like(entropy))
    values = module.query_key_value(tokens)[..., 16:]
    mean = module.out(values.mean(dim=1, keepdim=True))
    torch.testing.assert_close(output, mean.expand_as(output))


def test_keys_of_diffuse_rows_lose_weight() -> None:
    q = torch.zeros(1, 8, 8)
    q[0, :4, :4] = 30 * torch.eye(4)  # the first four look sharply at themselves, the rest everywhere
    k, v = torch.eye(8).unsqueeze(0), torch.eye(8).unsqueeze(0)
    certainty = 1 - row_entropy(q, k) / math.log(8)
    ordinary = weighted_attention(partial(attention, q, k), v, torch.ones(1, 8, 1))
    guided = weighted_attention(partial(attention, q, k), v, certainty.clamp_min(1e-6).unsqueeze(2))
    torch.testing.assert_close(ordinary[0, 7], torch.full((8,), 1 / 8))
    torch.testing.assert_close(guided[0, 7], torch.tensor([1 / 4] * 4 + [0.0] * 4), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(guided.sum(dim=2), torch.ones(1, 8))


def test_readings_of_equation_3_differ_as_they_should() -> None:
    tokens = torch.randn(1, 50, 8, dtype=torch.float64)
    outputs = {}
    for kind in ("ega", "ega_query", "ega_column", "self"):
        outputs[kind] = _module(kind)(tokens)[0]
    # The query's certainty cancels; the others change the result.
    torch.testing.assert_close(outputs["ega_query"], outputs["self"])
    for kind in ("ega", "ega_column"):
        assert (outputs[kind] - outputs["self"]).abs().max() > 0.01


def test_mask_learns_although_its_threshold_is_hard() -> None:
    module = EntropyGuidedAttention(8, attention="mask")
    tokens = torch.randn(2, 20, 8)
    plain, _ = entropy_guided_attention_plain(*module.query_key_value(tokens).chunk(3, dim=2), attention="self")
    output, _ = module(tokens)
    torch.testing.assert_close(output, module.out(plain))  # at first every key stays
    output.square().sum().backward()
    assert module.keep.weight.grad.abs().max() > 0
    with torch.no_grad():
        module.keep.bias.fill_(-1)
    torch.testing.assert_close(module(tokens)[0], module.out.bias.expand(2, 20, 8))  # no key at all


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_heads_have_maps_of_their_own(kind: str) -> None:
    module = _module(kind, heads=2)
    tokens = torch.randn(2, 40, 8, dtype=torch.float64)
    keep = _kept(module, tokens)
    q, k, v = (each.split(4, dim=2) for each in module.query_key_value(tokens).chunk(3, dim=2))
    parts = [entropy_guided_attention_plain(*qkv, attention=kind, keep=keep) for qkv in zip(q, k, v, strict=True)]
    output, entropy = module(tokens)
    torch.testing.assert_close(output, module.out(torch.cat([mixed for mixed, _ in parts], dim=2)))
    torch.testing.assert_close(entropy, torch.stack([each for _, each in parts]).mean(dim=0))


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_memory_grows_with_the_tokens_and_not_with_their_square(kind: str) -> None:
    module = _module(kind, torch.float32)

    def step(tokens: int) -> None:
        output, entropy = module(torch.ones(1, tokens, 8))
        (output.mean() + entropy.mean()).backward()

    step(64)  # makes the weights' gradients
    small, large = (peak_bytes(partial(step, tokens)) for tokens in (1536, 3072))
    assert large < 2 * small
    assert large < 3072 * 3072 * 4  # not one map


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_nothing_as_large_as_a_map_is_kept_for_the_backward_pass(kind: str) -> None:
    sizes = []

    def note(kept: torch.Tensor) -> torch.Tensor:
        sizes.append(kept.untyped_storage().nbytes())
        return kept

    with torch.autograd.graph.saved_tensors_hooks(note, lambda kept: kept):
        output, entropy = EntropyGuidedAttention(8, attention=kind)(torch.ones(2, 1031, 8))
    assert output.shape == (2, 1031, 8)
    assert entropy.shape == (2, 1031)
    assert 0 < max(sizes) <= 2 * 1031 * 3 * 8 * 4


@pytest.mark.parametrize("kind", ATTENTIONS)
def test_autocast_keeps_the_entropy_exact(kind: str) -> None:
    module = _module(kind, torch.float32)
    tokens = torch.randn(2, 100, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, entropy = module(tokens)
        q, k, _ = module.query_key_value(tokens).chunk(3, dim=2)
    assert output.dtype == torch.bfloat16
    assert entropy.dtype == torch.float32
    exact = row_entropy(q.double(), k.double()) / math.log(100)
    torch.testing.assert_close(entropy.double(), exact, rtol=0, atol=1e-6)
    (output.float().sum() + entropy.sum()).backward()
    assert all(weight.grad.isfinite().all() for weight in module.parameters())


def test_deterministic() -> None:
    module = _module("ega", torch.float32)
    tokens = torch.randn(2, 1031, 8)
    runs = []
    for _ in range(2):
        output, entropy = module(tokens)
        runs.append(torch.autograd.grad(output.sum() + entropy.sum(), [*module.parameters()]))
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


def test_settings_it_cannot_take() -> None:
    with pytest.raises(EchoPlanError, match="choose one of ega, ega_query, ega_column, self, topk, mask"):
        BlockAdapter(8, attention="sparse")
    with pytest.raises(EchoPlanError, match="heads"):
        EntropyGuidedAttention(8, heads=3)
    for share in (0, 1.5):
        with pytest.raises(EchoPlanError, match="top_share"):
            EntropyGuidedAttention(8, attention="topk", top_share=share)


def test_a_higher_power_quiets_queries_that_are_hardly_sure() -> None:
    """Of the reading whose certainty cancels, gamma^4 comes down to eps at a certainty of 0.01."""
    tokens = torch.randn(1, 50, 8, dtype=torch.float64)
    quiet, plain = (_module(kind, certainty_power=4.0, projected=False) for kind in ("ega_query", "self"))
    for scale, share in ((1.0, 0.999), (0.0, 1e-4)):
        with torch.no_grad():
            for module in (quiet, plain):
                module.query_key_value.weight[:8].mul_(scale)
        left = quiet(tokens)[0].norm(dim=2) / plain(tokens)[0].norm(dim=2)
        assert left.max().item() == pytest.approx(share, rel=2e-3)


def test_adapters_change_nothing_at_first() -> None:
    adapter = GlobalLocalAdapter(16)
    features = torch.randn(2, 16, 6, 5).requires_grad_()
    adapted, entropy = adapter(features)
    assert torch.equal(adapted, features)
    assert entropy.shape == (2, 30)
    adapted.square().sum().backward()
    assert adapter.gate.grad.abs().max() > 0  # and can learn from the first step on
    with torch.no_grad():
        adapter.gate.fill_(1)
    assert (adapter(features)[0] - features).abs().max() > 0.1


@pytest.mark.parametrize("kind", [BlockAdapter, GlobalLocalAdapter])
def test_adapters_work_frame_by_frame(kind: type) -> None:
    adapter = kind(8)
    if kind is GlobalLocalAdapter:
        torch.nn.init.ones_(adapter.gate)
    features = torch.randn(3, 8, 6, 6)
    together, entropy = adapter(features)
    apart = [adapter(features[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat([each for each, _ in apart]))
    torch.testing.assert_close(entropy, torch.cat([each for _, each in apart]))


def test_adapters_are_as_large_as_the_paper_has_them() -> None:
    with torch.device("meta"):
        adapters = [GlobalLocalAdapter(width) for width in (96, 192, 384, 768)]
    assert sum(count_parameters(adapter) for adapter in adapters) == pytest.approx(3.2e6, rel=0.01)
