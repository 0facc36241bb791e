"""The sampler: vLLM as the rollout workers drive it, token in, token out, with new weights while it samples."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import numpy as np

from framework.artifacts import Checkpoint
from framework.bounds import Bound, NonNegativeInt, PositiveFloat, PositiveInt, Seed, bounded
from framework.data.tokenizer_files import load_tokenizer, servable_tokenizer
from framework.engines.cpu.tuning import mend_drafts, sampler_arguments
from framework.engines.device import on_gpu
from framework.engines.engine_loop import EngineLoop
from framework.engines.response_text import TextStream, decode, hidden_token_ids
from framework.engines.update_progress import UpdateWatch, arrive
from framework.engines.weights import TRANSPORT, check_safetensors, common_version, register_transport
from framework.errors import RunFailed, UserError
from framework.models import public_layout
from framework.types import FinishReason, Int32, Prompt, PublishedWeights, Response, ResponseGroup, SamplingParams

if TYPE_CHECKING:
    import vllm
    from vllm import LLMEngine
    from vllm.outputs import CompletionOutput


@dataclass(frozen=True)
@bounded
class VllmConfig:
    """How a rollout worker runs vLLM."""

    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    max_model_len: PositiveInt = 1024  # prompt and response, tokens
    # sampled at once; on a CPU 256 is nearly three times as fast as 64 with a tiny model
    max_num_seqs: PositiveInt = 256
    kv_cache_gib: PositiveFloat | None = 1.0  # None: what gpu_memory_utilization leaves
    # of the GPU's (or machine's) memory; only where kv_cache_gib is None
    gpu_memory_utilization: Annotated[float, Bound(above=0, most=1)] = 0.9
    tensor_parallel_size: PositiveInt = 1
    # pins the engine's threads, one a core; None: OMP_NUM_THREADS threads
    cores: tuple[NonNegativeInt, ...] | None = None
    mla: bool = True  # False: plain attention for MLA models; on a CPU it takes any latent size
    enforce_eager: bool = True  # False: compile (and CUDA graphs): slower to start, faster on GPUs
    warm_up: bool = True  # sample once at start: the first batch costs seconds
    speculative_tokens: NonNegativeInt = 0  # drafted a step by the model's own MTP modules (V3 section 5.4.3); 0: none
    seed: Seed = 0


@dataclass(frozen=True)
class SamplerStats:
    """Totals since start."""

    version: int
    groups: int
    tokens: int  # of responses
    in_flight: int  # groups being sampled
    updates: int
    update_seconds: float


class VllmSampler:
    """Implements protocols.Sampler on vLLM's engine, in this process.

    A request that is under way when weights change goes on under the new ones: its keys and values are computed again,
    so each token's logprob is exactly that of the policy version which `weight_versions` names.
    """

    def __init__(self, config: VllmConfig, executor: Literal["mp", "ray"] | None = None, sleeps: bool = False) -> None:
        """`executor`: how vLLM starts the workers of a tensor-parallel engine; None: as it chooses.

        `sleeps`: the engine can give its GPUs back (not on a CPU).
        """
        self.config, self._executor, self._sleeps = config, executor, sleeps
        self._asleep = False
        self.version = -1  # of the weights being served; -1: not started
        self._loop: EngineLoop | None = None
        self._groups = self._tokens = self._updates = 0
        self._update_seconds = 0.0

    async def start(self, checkpoint: Path, version: int = 0, weights_follow: bool = False) -> None:
        """Load `checkpoint`, a Hugging Face directory, as policy `version`.

        `weights_follow`: `update_weights` comes before any prompt, so the engine starts with random ones, unread.
        Raises UserError that names the file or tensor if it is damaged, incomplete or does not match its config.
        """
        Checkpoint(checkpoint).check()
        check_safetensors(checkpoint)
        model = public_layout.read_config(checkpoint)
        public_layout.model_tensors(checkpoint, model)
        if self.config.speculative_tokens and not getattr(model, "num_nextn_predict_layers", 0):
            allowed = f"must be 0: {checkpoint} has no MTP modules to draft with"
            raise UserError("engine.rollout.speculative_tokens", self.config.speculative_tokens, allowed)
        self._vocabulary = int(model.vocab_size)
        self._tokenizer = await asyncio.to_thread(load_tokenizer, checkpoint)
        _set_environment(self.config)
        more: dict[str, Any] = {"load_format": "dummy"} if weights_follow else {}
        more |= {"enable_sleep_mode": True} if self._sleeps else {}
        self._loop = EngineLoop(lambda: _build_engine(self.config, checkpoint, version, self._executor, more))
        await asyncio.wrap_future(self._loop.start())
        self._hidden = hidden_token_ids(self._tokenizer)
        self.version = version
        if self.config.warm_up:
            await self._warm_up()

    async def generate(self, prompt: Prompt, params: SamplingParams) -> ResponseGroup:
        """Sample G responses to `prompt.token_ids`; none if `sleep` comes before they are finished.

        Raises UserError for a request that can never succeed: tokens that the model has not, or too many for the
        context. Raises RunFailed if the engine has failed; it then fails every later call too.
        """
        from vllm.exceptions import VLLMClientError

        self._check_request(prompt, params)
        engine = self._running()
        try:
            submission = engine.submit(list(prompt.token_ids), _vllm_params(params))
            output = await asyncio.wrap_future(submission.result)
            if output is None:
                return ResponseGroup(prompt, ())
        except (ValueError, VLLMClientError) as error:  # of this request alone: an engine that failed raises RunFailed
            shown = f"{len(prompt.token_ids)} tokens, {params}"
            raise UserError(f"prompt {prompt.id}", shown, f"vLLM takes no such request: {error}") from error
        except asyncio.CancelledError:
            self._running().abort(submission.id)
            raise
        ended = [completion.finish_reason == "stop" for completion in output.outputs]
        texts = decode(self._tokenizer, self._hidden, [list(c.token_ids) for c in output.outputs], ended)
        responses = tuple(_response(c, text) for c, text in zip(output.outputs, texts, strict=True))
        self._groups += 1
        self._tokens += sum(len(response.token_ids) for response in responses)
        return ResponseGroup(prompt, responses)

    async def stream(self, token_ids: Sequence[int], params: SamplingParams) -> AsyncIterator[str]:
        """Yield one response's text piece by piece, as it is sampled."""
        from vllm.sampling_params import RequestOutputKind

        prompt, pieces = Prompt("", "", "", "", token_ids=tuple(token_ids)), asyncio.Queue[str]()
        self._check_request(prompt, params)
        loop, streamed = asyncio.get_running_loop(), _vllm_params(params)
        streamed.n, streamed.logprobs, streamed.output_kind = 1, None, RequestOutputKind.DELTA
        texts = TextStream(self._tokenizer, self._hidden)

        def pass_on(output: vllm.RequestOutput) -> None:
            new = output.outputs[0]
            piece = texts.text(list(new.token_ids), new.finish_reason == "stop")
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        submission = self._running().submit(list(token_ids), streamed, pass_on)
        finished: asyncio.Future[Any] = asyncio.wrap_future(submission.result)
        while not finished.done() or not pieces.empty():
            piece = asyncio.ensure_future(pieces.get())
            await asyncio.wait({piece, finished}, return_when=asyncio.FIRST_COMPLETED)
            if piece.done():
                yield piece.result()
            else:
                piece.cancel()
        await finished

    async def sleep(self) -> None:
        """Give the GPUs' memory back, weights and cache, until `update_weights`. Groups under way are given up.

        Raises RunFailed if it cannot: somebody else is about to use that memory.
        """
        loop = self._running()

        def rest(engine: LLMEngine) -> None:
            loop.give_up(engine)
            engine.sleep(level=2)  # weights are dropped: they come anew

        await asyncio.wrap_future(loop.call(rest, fatal=True))
        self._asleep = True

    async def update_weights(self, published: Sequence[PublishedWeights]) -> int:
        """Load every learner rank's share between two steps, drop all keys and values, return the version now served.

        An engine that sleeps wakes: its weights before they are loaded, its cache when they are.
        Raises RunFailed if any part of it fails, and the sampler never answers again: its weights are in doubt.
        """
        version, began = common_version(published), time.perf_counter()
        asleep = self._asleep
        loaded = self._running().call(lambda engine: _load_weights(engine, published, version, asleep), fatal=True)
        try:
            await asyncio.wrap_future(loaded)
        except Exception as error:
            raise RunFailed(f"loading weights of version {version}: {type(error).__name__}: {error}") from error
        self.version, self._asleep = version, False
        self._updates += 1
        self._update_seconds += time.perf_counter() - began
        return version

    @property
    def healthy(self) -> bool:
        """Whether the engine runs and its weights are known."""
        return self._loop is not None and self._loop.error is None

    @property
    def turns(self) -> int:
        """What the engine has done since it was built, in steps and commands; -1 before: building counts nothing."""
        return self._loop.turns if self._loop is not None and self.version >= 0 else -1

    def stats(self) -> SamplerStats:
        """Return totals since start."""
        in_flight = self._loop.in_flight if self._loop else 0
        return SamplerStats(self.version, self._groups, self._tokens, in_flight, self._updates, self._update_seconds)

    async def drafts(self) -> tuple[int, int]:
        """Return how many tokens MTP modules have drafted since start, warm-up included, and how many were accepted."""
        return await asyncio.wrap_future(self._running().call(_drafts))

    async def stop(self) -> None:
        """Shut the engine down; groups under way fail."""
        if self._loop is not None:
            await asyncio.to_thread(self._loop.stop)

    def _running(self) -> EngineLoop:
        if self._loop is None:
            raise RuntimeError("start() first")
        return self._loop

    def _check_request(self, prompt: Prompt, params: SamplingParams) -> None:
        """Raise UserError for a request that can never succeed: no worker is to die of it."""
        room = self.config.max_model_len - params.max_tokens
        if not 0 < len(prompt.token_ids) <= room:
            allowed = (
                f"must be 1 to {room} tokens: engine.rollout.max_model_len={self.config.max_model_len} "
                f"less max_tokens={params.max_tokens}"
            )
            raise UserError(f"prompt {prompt.id}", f"{len(prompt.token_ids)} tokens", allowed)
        strange = next((token for token in prompt.token_ids if not 0 <= token < self._vocabulary), None)
        if strange is not None:
            allowed = f"must be 0 to {self._vocabulary - 1}: the model's vocab_size is {self._vocabulary}"
            raise UserError(f"prompt {prompt.id}: token", strange, allowed)

    async def _warm_up(self) -> None:
        """Sample batches of every width that a draining batch passes through; kernels are set up per width."""
        tokens = min(8, self.config.max_model_len - 1)
        prompt = Prompt("warm-up", "", "", "", token_ids=(0,))
        for width in (1, self.config.max_num_seqs):
            await self.generate(prompt, SamplingParams(max_tokens=tokens, n=width))
        self._groups = self._tokens = 0


def _set_environment(config: VllmConfig) -> None:
    """Set what vLLM reads from the environment; some of it at import."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_MLA_DISABLE"] = "0" if config.mla else "1"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    if config.tensor_parallel_size > 1 and not on_gpu():  # else it wants a NUMA node for each worker, and raises
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if config.cores is not None:
        os.environ["OMP_NUM_THREADS"] = str(len(config.cores))


def _build_engine(
    config: VllmConfig,
    checkpoint: Path,
    version: int,
    executor: Literal["mp", "ray"] | None,
    more: Mapping[str, Any],
) -> LLMEngine:
    """Build the engine on the calling thread, which it will run on; `more`: further arguments of vLLM's."""
    import torch

    if config.cores is not None:
        os.sched_setaffinity(0, config.cores)  # of this thread, and of the OpenMP threads that it starts
        torch.set_num_threads(len(config.cores))
    from vllm import EngineArgs, LLMEngine
    from vllm.config import WeightTransferConfig
    from vllm.platforms import current_platform

    drafts = {"method": "mtp", "num_speculative_tokens": config.speculative_tokens}
    register_transport()
    args = EngineArgs(
        model=str(checkpoint),
        tokenizer=str(servable_tokenizer(checkpoint)),
        dtype=cast(Any, config.dtype),
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        kv_cache_memory_bytes=None if config.kv_cache_gib is None else int(config.kv_cache_gib * 2**30),
        gpu_memory_utilization=config.gpu_memory_utilization,
        tensor_parallel_size=config.tensor_parallel_size,
        distributed_executor_backend=executor,
        enforce_eager=config.enforce_eager,
        seed=config.seed,
        async_scheduling=False,  # no step may be under way when weights change
        logprobs_mode="processed_logprobs",  # of the distribution sampled from, temperature applied
        generation_config="vllm",  # the checkpoint's own temperature and top-k must not leak into the sampling
        weight_transfer_config=WeightTransferConfig(backend=TRANSPORT),
        speculative_config=drafts if config.speculative_tokens else None,
        disable_log_stats=not config.speculative_tokens,  # drafts are counted there
        use_tqdm_on_load=False,
        **sampler_arguments(current_platform.is_cpu(), config.mla, config.dtype),
        **more,
    )
    engine = LLMEngine.from_engine_args(args)
    if config.speculative_tokens:
        mend_drafts(current_platform.is_cpu())
    engine.set_weight_version(str(version))
    return engine


def _load_weights(engine: LLMEngine, shares: Sequence[PublishedWeights], version: int, asleep: bool = False) -> None:
    """Replace the weights, drafting modules' too. Requests under way keep their tokens; keys and values are computed
    again.

    Raises TimeoutError that names the tensor-parallel rank which keeps the others waiting.
    """
    if asleep:
        engine.wake_up(["weights"])
    if not engine.reset_prefix_cache(reset_running_requests=True):
        raise RuntimeError("the prefix cache could not be reset")
    starts = ["start_weight_update"]
    if engine.vllm_config.speculative_config is not None:
        starts.append("start_draft_weight_update")
    with UpdateWatch(engine.vllm_config.parallel_config.tensor_parallel_size, shares) as watch:
        watch.ask(engine, arrive, {"board": watch.board})
        for start in starts:
            for method, kwargs in (
                (start, {}),
                ("update_weights", {"update_info": {"shares": tuple(shares), "board": watch.board}}),
                ("finish_weight_update", {}),
            ):
                watch.ask(engine, method, kwargs)
    if asleep:  # only now: cache and arriving weights need not fit at once
        engine.wake_up(["kv_cache"])
    engine.set_weight_version(str(version))


def _drafts(engine: LLMEngine) -> tuple[int, int]:
    """Tokens drafted and accepted since start."""
    found = {metric.name: getattr(metric, "value", 0) for metric in engine.get_metrics()}
    drafted, accepted = (found.get(f"vllm:spec_decode_num_{n}_tokens", 0) for n in ("draft", "accepted"))
    return int(drafted), int(accepted)


def _vllm_params(params: SamplingParams) -> vllm.SamplingParams:
    from vllm import SamplingParams as VllmSamplingParams
    from vllm.sampling_params import RequestOutputKind

    return VllmSamplingParams(
        n=params.n,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        max_tokens=params.max_tokens,
        seed=params.seed,
        logprobs=0,  # the sampled token's alone
        flat_logprobs=True,
        detokenize=False,  # text is decoded once, at the end
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _response(completion: CompletionOutput, text: str) -> Response:
    reason = completion.finish_reason
    if reason not in ("stop", "length", "abort"):
        raise RunFailed(f"vLLM ended a response with {reason!r}")
    return Response(
        token_ids=np.asarray(completion.token_ids, np.int32),
        logprobs=np.asarray(completion.logprobs.logprobs, np.float32),
        weight_versions=_versions(completion),
        finish_reason=cast(FinishReason, reason),
        text=text,
    )


def _versions(completion: CompletionOutput) -> Int32:
    """Spread vLLM's spans (version, first token, end) over the tokens; [R]."""
    spans = completion.weight_versions
    return np.repeat([int(s.version) for s in spans], [s.end - s.start for s in spans]).astype(np.int32)
