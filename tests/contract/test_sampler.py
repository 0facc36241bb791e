"""The Sampler protocol, against the fake and vLLM; then what only a real engine can show: whose logprobs these are."""

from __future__ import annotations

import asyncio
import copy
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from framework.engines.cpu.heads import SIZES
from framework.engines.vllm_engine import VllmConfig, VllmSampler
from framework.engines.weights import flatten
from framework.errors import RunFailed, UserError
from framework.protocols import Sampler
from framework.types import Prompt, PublishedWeights, Response, ResponseGroup, SamplingParams
from tests.fakes import FakeSampler

MAX_MODEL_LEN = 320
VERSION_AT_START = 3
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
SPECIAL = (*TAGS, "<|im_end|>", "<｜User｜>")


class TinyPolicy:
    """A DeepSeek-V3 model in float32, on disk and in memory; `perturb` makes another policy of it."""

    def __init__(self, directory: Path) -> None:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, PreTrainedTokenizerFast

        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocab = {token: index for index, token in enumerate(["<pad>", "<bos>", "<eos>", *alphabet, *SPECIAL])}
        tokenizer = Tokenizer(models.BPE(vocab, []))
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
        torch.manual_seed(0)
        config = DeepseekV3Config(
            vocab_size=320, hidden_size=64, intermediate_size=128, moe_intermediate_size=32, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=4, n_shared_experts=1, n_routed_experts=8, kv_lora_rank=32,
            q_lora_rank=32, qk_rope_head_dim=16, qk_nope_head_dim=16, v_head_dim=16, n_group=2, topk_group=1,
            num_experts_per_tok=2, first_k_dense_replace=1, routed_scaling_factor=1.5, norm_topk_prob=True,
            max_position_embeddings=MAX_MODEL_LEN, bos_token_id=1, eos_token_id=2, pad_token_id=0,
            tie_word_embeddings=False, initializer_range=0.1, topk_method="noaux_tc", scoring_func="sigmoid",
            moe_layer_freq=1,
        )  # fmt: skip
        self.directory = directory
        self.model = DeepseekV3ForCausalLM(config).float().eval()
        self.perturb(0)
        self.model.save_pretrained(directory)
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            bos_token="<bos>",
            eos_token="<eos>",
            additional_special_tokens=[*SPECIAL],
        ).save_pretrained(directory)

    def perturb(self, seed: int) -> None:
        """Move every parameter and every router's correction bias."""
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
            for name, buffer in self.model.named_buffers():
                if name.endswith("e_score_correction_bias"):
                    buffer.add_(0.3 * torch.randn_like(buffer))

    def named_tensors(self) -> list[tuple[str, torch.Tensor]]:
        """Under the names of a checkpoint: one tensor an expert."""
        from transformers.core_model_loading import revert_weight_conversion

        return list(revert_weight_conversion(self.model, self.model.state_dict()).items())

    @torch.no_grad()
    def logprobs(self, prompt: Prompt, response: Response) -> np.ndarray:
        """transformers' own, [R]."""
        ids = [*prompt.token_ids, *response.token_ids.tolist()]
        logits_TV = self.model(torch.tensor([ids])).logits[0, len(prompt.token_ids) - 1 : -1].float()
        logprobs_RV = logits_TV.log_softmax(-1)
        return logprobs_RV.gather(1, torch.tensor(ids[len(prompt.token_ids) :])[:, None])[:, 0].numpy()


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> TinyPolicy:
    return TinyPolicy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def vllm_sampler(policy: TinyPolicy) -> Iterator[VllmSampler]:
    config = VllmConfig(
        dtype="float32", max_model_len=MAX_MODEL_LEN, max_num_seqs=32, kv_cache_gib=0.1, mla=False, warm_up=False,
        cores=(min(os.sched_getaffinity(0)),),
    )  # fmt: skip
    sampler = VllmSampler(config)
    asyncio.run(_start_without_weights(sampler, policy))
    yield sampler
    asyncio.run(sampler.stop())


async def _start_without_weights(sampler: VllmSampler, policy: TinyPolicy) -> None:
    """As a rollout worker does that learners give its first weights."""
    await sampler.start(policy.directory, weights_follow=True)
    await sampler.update_weights([flatten(policy.named_tensors(), VERSION_AT_START)])


@pytest.fixture(params=["fake", pytest.param("vllm", marks=pytest.mark.slow)])
def sampler(request: pytest.FixtureRequest) -> Any:
    return FakeSampler(MAX_MODEL_LEN) if request.param == "fake" else request.getfixturevalue("vllm_sampler")


def prompt_of(*token_ids: int) -> Prompt:
    return Prompt(" ".join(map(str, token_ids)), "", "", "", token_ids=token_ids)


PROMPT = prompt_of(1, 40, 41, 42, 43)


class Versions:
    """Publishes ever newer versions of the same weights."""

    def __init__(self, sampler: Any, policy: TinyPolicy) -> None:
        self.version, self.policy = sampler.version, policy

    def publish(self) -> list[PublishedWeights]:
        """As two learner ranks would: each its own half of the tensors."""
        self.version += 1
        tensors = self.policy.named_tensors()
        return [flatten(half, self.version) for half in (tensors[::2], tensors[1::2])]


@pytest.fixture
def versions(sampler: Any, policy: TinyPolicy) -> Versions:
    return Versions(sampler, policy)


async def test_a_group_has_g_responses_with_a_logprob_and_a_version_a_token(sampler: Any) -> None:
    group = await sampler.generate(PROMPT, SamplingParams(max_tokens=24, n=5))
    assert group.prompt == PROMPT
    assert len(group.responses) == 5
    for response in group.responses:
        length = len(response.token_ids)
        assert 0 < length <= 24
        assert response.logprobs.shape == response.weight_versions.shape == (length,)
        assert (response.token_ids.dtype, response.logprobs.dtype) == (np.int32, np.float32)
        assert (response.logprobs <= 0).all()
        assert (response.weight_versions == sampler.version).all()
        assert response.finish_reason == ("length" if length == 24 and response.token_ids[-1] not in (0, 2) else "stop")
        assert isinstance(response.text, str)


async def test_a_seed_gives_the_same_responses_again(sampler: Any) -> None:
    params = SamplingParams(max_tokens=12, n=3, seed=7)
    first, second = [await sampler.generate(PROMPT, params) for _ in range(2)]
    assert ids_of(first) == ids_of(second)
    assert len(set(ids_of(first))) == 3


async def test_groups_sampled_at_once_keep_to_their_prompts(sampler: Sampler) -> None:
    prompts = [prompt_of(1, 50 + i) for i in range(20)]
    groups = await asyncio.gather(*(sampler.generate(p, SamplingParams(max_tokens=8, n=2)) for p in prompts))
    assert [group.prompt for group in groups] == prompts
    assert all(len(group.responses) == 2 for group in groups)


@pytest.mark.parametrize("length", [0, MAX_MODEL_LEN - 19])
async def test_a_prompt_without_room_for_its_response_is_the_users_error(sampler: Sampler, length: int) -> None:
    with pytest.raises(UserError, match=f"{length} tokens.* 1 to {MAX_MODEL_LEN - 20} tokens"):
        await sampler.generate(prompt_of(*[5] * length), SamplingParams(max_tokens=20, n=1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        (prompt_of(1, 320), SamplingParams(max_tokens=4, n=1), r"prompt 1 320: token: got 320; must be 0 to 319"),
        (prompt_of(1, -1), SamplingParams(max_tokens=4, n=1), r"token: got -1; must be 0 to 319"),
        (PROMPT, SamplingParams(top_p=7.0, max_tokens=4, n=1), r"vLLM takes no such request: .*top_p"),
        (PROMPT, SamplingParams(max_tokens=4, n=0), r"vLLM takes no such request"),
    ],
)
async def test_a_request_that_can_never_succeed_is_the_users_error(
    vllm_sampler: VllmSampler, prompt: Prompt, params: SamplingParams, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        await vllm_sampler.generate(prompt, params)
    assert vllm_sampler.healthy
    await vllm_sampler.generate(PROMPT, SamplingParams(max_tokens=2, n=1))


async def test_an_update_returns_its_version_and_marks_the_tokens_after_it(sampler: Any, versions: Versions) -> None:
    published = versions.publish()
    assert await sampler.update_weights(published) == versions.version == sampler.version
    group = await sampler.generate(PROMPT, SamplingParams(max_tokens=4, n=2))
    assert {v for r in group.responses for v in r.weight_versions.tolist()} == {versions.version}


async def test_responses_go_on_across_updates(sampler: Sampler, versions: Versions) -> None:
    generating = asyncio.create_task(sampler.generate(PROMPT, SamplingParams(max_tokens=200, n=16)))
    for _ in range(4):
        await sampler.update_weights(versions.publish())
        await asyncio.sleep(0)
    seen = [r.weight_versions for r in (await generating).responses]
    assert all((np.diff(v) >= 0).all() for v in seen)
    assert max(len(set(v.tolist())) for v in seen) > 1


async def test_shares_of_different_versions_are_refused_and_nothing_changes(sampler: Any, versions: Versions) -> None:
    before, mixed = sampler.version, [versions.publish()[0], versions.publish()[1]]
    with pytest.raises(ValueError, match="one version"):
        await sampler.update_weights(mixed)
    assert sampler.version == before
    await sampler.generate(PROMPT, SamplingParams(max_tokens=2, n=1))


@pytest.mark.slow
async def test_logprobs_are_those_of_the_weights_published_last(vllm_sampler: VllmSampler, policy: TinyPolicy) -> None:
    greedy, sampled = SamplingParams(0.0, max_tokens=24, n=1), SamplingParams(max_tokens=48, n=4)
    assert_samples_from(policy, await vllm_sampler.generate(PROMPT, sampled))
    before = ids_of(await vllm_sampler.generate(PROMPT, greedy))
    versions = Versions(vllm_sampler, policy)
    for seed in (1, 2):  # the second finds the model as an update left it
        policy.perturb(seed)
        await vllm_sampler.update_weights(versions.publish())
        assert_samples_from(policy, await vllm_sampler.generate(PROMPT, sampled))  # a cached prefix would show here
        after = ids_of(await vllm_sampler.generate(PROMPT, greedy))
        assert after != before
        before = after


@pytest.mark.slow
async def test_tokens_of_one_response_are_each_from_the_policy_they_name(
    vllm_sampler: VllmSampler, policy: TinyPolicy
) -> None:
    old = vllm_sampler.version
    old_policy = copy.deepcopy(policy)
    generating = asyncio.create_task(vllm_sampler.generate(PROMPT, SamplingParams(max_tokens=250, n=16)))
    while vllm_sampler.stats().in_flight == 0:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.1)
    policy.perturb(3)
    await vllm_sampler.update_weights(Versions(vllm_sampler, policy).publish())
    group = await generating
    mixed = 0
    for response in group.responses:
        before, after = (p.logprobs(PROMPT, response) for p in (old_policy, policy))
        expected = np.where(response.weight_versions == old, before, after)
        np.testing.assert_allclose(response.logprobs, expected, atol=1e-4)
        mixed += len(set(response.weight_versions.tolist())) == 2
    assert mixed > 0


@pytest.mark.slow
async def test_a_cancelled_group_is_not_sampled_to_its_end(vllm_sampler: VllmSampler) -> None:
    generating = asyncio.create_task(vllm_sampler.generate(PROMPT, SamplingParams(max_tokens=300, n=16)))
    while vllm_sampler.stats().in_flight == 0:
        await asyncio.sleep(0.001)
    generating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await generating
    while vllm_sampler.stats().in_flight:
        await asyncio.sleep(0.001)
    assert (await vllm_sampler.generate(PROMPT, SamplingParams(max_tokens=2, n=1))).prompt == PROMPT


@pytest.mark.slow
async def test_streamed_text_is_that_of_the_response(vllm_sampler: VllmSampler) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=10, n=1)
    pieces = [piece async for piece in vllm_sampler.stream(PROMPT.token_ids, params)]
    whole = (await vllm_sampler.generate(PROMPT, params)).responses[0].text
    assert "".join(pieces).rstrip("\ufffd") == whole.rstrip("\ufffd")  # a cut-off character at the end is not streamed
    assert len(pieces) > 1


@pytest.mark.slow
async def test_the_short_way_of_the_scheduler_samples_what_vllms_own_does(vllm_sampler: VllmSampler) -> None:
    from framework.engines.cpu.decode_scheduler import DecodeScheduler

    scheduler = await asyncio.wrap_future(vllm_sampler._running().call(lambda e: e.engine_core.engine_core.scheduler))
    assert isinstance(scheduler, DecodeScheduler)
    short = 0

    def counted(full: list[Any]) -> Any:
        nonlocal short
        short += 1
        return type(scheduler)._decode_all(scheduler, full)

    async def sample() -> list[ResponseGroup]:
        """More than run at once, of many lengths, some across blocks of 32 tokens; one is given up."""
        asked = [
            vllm_sampler.generate(
                prompt_of(*range(1, 2 + i)), SamplingParams(max_tokens=[1, 5, 200][i % 3], n=3, seed=i)
            )
            for i in range(18)
        ]
        given_up = asyncio.ensure_future(vllm_sampler.generate(PROMPT, SamplingParams(max_tokens=40, n=2, seed=99)))
        groups = asyncio.gather(*asked)
        await asyncio.sleep(0.05)
        given_up.cancel()
        return list(await groups)

    with mock.patch.object(scheduler, "_decode_all", counted):
        ours = await sample()
        assert short > 30
        with mock.patch.object(scheduler, "_plain", False):
            theirs = await sample()
    for a, b in zip(ours, theirs, strict=True):
        for left, right in zip(a.responses, b.responses, strict=True):
            assert (left.token_ids.tolist(), left.finish_reason) == (right.token_ids.tolist(), right.finish_reason)
            np.testing.assert_allclose(left.logprobs, right.logprobs, atol=1e-5)
            np.testing.assert_array_equal(left.weight_versions, right.weight_versions)
    assert {r.finish_reason for group in ours for r in group.responses} == {"stop", "length"}
    assert scheduler.kv_cache_manager.block_pool.get_num_free_blocks() > 0
    assert not scheduler.running
    assert not scheduler.requests


@pytest.mark.slow
async def test_tags_that_are_special_tokens_stay_in_the_text_and_control_tokens_go(vllm_sampler: VllmSampler) -> None:
    group = await vllm_sampler.generate(PROMPT, SamplingParams(max_tokens=200, n=8, seed=1))
    first = 3 + 256  # the tokenizer's ids: three control tokens, the bytes, then SPECIAL
    sampled: set[int] = set()
    for response in group.responses:
        ids = response.token_ids.tolist()
        sampled |= set(ids)
        for place, tag in enumerate(TAGS):
            assert response.text.count(tag) == ids.count(first + place)
        for control in ("<pad>", "<bos>", "<eos>", "<|im_end|>", "<｜User｜>"):
            assert control not in response.text
    assert {first, first + 1} & sampled  # else nothing was shown
    assert {0, 1, 2, first + 4, first + 5} & sampled


@pytest.mark.slow
async def test_more_seeded_prompts_than_a_step_takes_are_sampled_alike(vllm_sampler: VllmSampler) -> None:
    length = MAX_MODEL_LEN - 4
    prompts = [
        Prompt(f"long {n}", "", "math", "", token_ids=tuple(4 + (n * 7 + place) % 200 for place in range(length)))
        for n in range(9000 // length)  # vLLM's budget of a step is 8,192 tokens at most, on a CPU
    ]

    async def sample() -> list[Sequence[tuple[int, ...]]]:
        params = [SamplingParams(max_tokens=4, n=2, seed=n) for n in range(len(prompts))]
        return [ids_of(group) for group in await asyncio.gather(*map(vllm_sampler.generate, prompts, params))]

    assert await sample() == await sample()


@pytest.mark.slow
async def test_after_a_failed_update_the_sampler_never_answers(vllm_sampler: VllmSampler, policy: TinyPolicy) -> None:
    without_a_bias = [
        (n, t) for n, t in policy.named_tensors() if n != "model.layers.2.mlp.gate.e_score_correction_bias"
    ]
    waiting = asyncio.create_task(vllm_sampler.generate(PROMPT, SamplingParams(max_tokens=300, n=16)))
    await asyncio.sleep(0)
    with pytest.raises(RunFailed, match=r"lack 1 of .*layers\.2\.mlp\.gate\.e_score_correction_bias"):
        await vllm_sampler.update_weights([flatten(without_a_bias, vllm_sampler.version + 1)])
    assert not vllm_sampler.healthy
    for answer in (waiting, vllm_sampler.generate(PROMPT, SamplingParams(max_tokens=2, n=1))):
        with pytest.raises(RunFailed, match="engine failed"):
            await answer


def assert_samples_from(policy: TinyPolicy, group: ResponseGroup) -> None:
    for response in group.responses:
        np.testing.assert_allclose(response.logprobs, policy.logprobs(group.prompt, response), atol=1e-4)


def ids_of(group: ResponseGroup) -> Sequence[tuple[int, ...]]:
    return [tuple(response.token_ids.tolist()) for response in group.responses]


@pytest.mark.parametrize("size", [16, 32, 40, 48, 112, 144, 160, 512, 576])
def test_the_sizes_of_heads_that_the_cpu_kernels_take(size: int) -> None:
    from vllm import _custom_ops
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    if not current_platform.is_cpu():
        pytest.skip("vLLM's CPU build alone")
    lengths, starts = torch.tensor([4], dtype=torch.int32), torch.tensor([0, 4], dtype=torch.int32)
    isa = _get_attn_isa(torch.float32, 32, size)
    told = (1, 2, 1, size, lengths, torch.float32, starts, True, -1, isa, True)
    if size in SIZES:
        _custom_ops.cpu_attn_get_scheduler_metadata(*told)
    else:
        with pytest.raises(RuntimeError, match="Unsupported CPU attention"):
            _custom_ops.cpu_attn_get_scheduler_metadata(*told)
