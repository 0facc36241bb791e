"""A vLLM scheduler with a short way for the steps that RL consists of: every running request decodes one token.

vLLM's scheduler asks of every request, at every step, what only some can need: a block, an encoder, a grammar, drafts,
a connector. With a small model, or many requests, that Python costs as much as the model. Here a step in which nothing
of the kind can happen is scheduled and accounted for in one pass each; any other step is vLLM's own.
Passed to vLLM as `scheduler_cls`.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import CachedRequestData, SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.core.sched.utils import check_stop, remove_all
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput
from vllm.v1.request import Request


class DecodeScheduler(Scheduler):  # type: ignore[misc]  # vLLM is not type-checked
    """Equal to vLLM's scheduler, token by token; only faster while all requests decode."""

    running: list[Request]
    finished_req_ids: set[str]
    reset_preempted_req_ids: set[str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        groups = self.kv_cache_config.kv_cache_groups
        self._plain = (  # else the short way is never taken
            len(groups) == 1
            and isinstance(groups[0].kv_cache_spec, FullAttentionSpec)
            and groups[0].kv_cache_spec.sliding_window is None
            and not self.use_v2_model_runner
            and not self.use_pp
            and not self.log_stats
            and not self.lora_config
            and not self.num_spec_tokens
            and not self.is_encoder_decoder
            and not self.needs_kv_cache_zeroing
            and not self.enable_kv_cache_events
            and not self.return_sampling_mask
            and self.finished_req_ids_dict is None
            and self.connector is None
            and self.ec_connector is None
            and self.aux_output_connector is None
        )
        self._decoding: list[Request] | None = None  # of the step under way, if it is such a one

    def add_request(self, request: Request) -> None:
        """As vLLM's; one request that the short way does not know closes it for good."""
        self._plain = self._plain and not (
            request.use_structured_output or request.has_encoder_inputs or request.pooling_params or request.resumable
        )
        super().add_request(request)

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """Schedule one token of each running request, or whatever vLLM's scheduler would."""
        self._decoding = None
        if not self._plain or self.waiting or self.kv_holding_waiting or self._pause_state != PauseState.UNPAUSED:
            return super().schedule(throttle_prefills)
        running, before = self.running, self.prev_step_scheduled_req_ids
        if not 0 < len(running) <= self.max_num_scheduled_tokens:
            return super().schedule(throttle_prefills)
        full = []  # requests whose last block is full
        for request in running:
            computed = request.num_computed_tokens
            if computed + 1 != len(request._all_token_ids) or request.request_id not in before:
                return super().schedule(throttle_prefills)
            if computed % self.block_size == 0:
                full.append(request)
        if len(full) > self.kv_cache_manager.block_pool.get_num_free_blocks():
            return super().schedule(throttle_prefills)
        self._decoding = list(running)
        return self._decode_all(full)

    def _decode_all(self, full: list[Request]) -> SchedulerOutput:
        self.current_step += 1
        manager = self.kv_cache_manager
        manager.new_step_starts()
        blocks = {r.request_id: manager.allocate_slots(r, 1).get_block_ids(allow_none=True) for r in full}
        manager.take_new_block_ids()
        ids = [request.request_id for request in self.running]
        cached = CachedRequestData(
            req_ids=ids,
            resumed_req_ids=set(),
            new_token_ids=[],
            all_token_ids={},
            new_block_ids=[blocks.get(request_id) for request_id in ids],
            num_computed_tokens=[request.num_computed_tokens for request in self.running],
            num_output_tokens=[len(request._output_token_ids) for request in self.running],
        )
        for request in self.running:
            request.num_computed_tokens += 1
            request.num_in_flight_tokens += 1
        output = SchedulerOutput(
            scheduled_new_reqs=[],
            scheduled_cached_reqs=cached,
            num_scheduled_tokens=dict.fromkeys(ids, 1),
            total_num_scheduled_tokens=len(ids),
            scheduled_spec_decode_tokens={},
            scheduled_encoder_inputs={},
            preempted_req_ids=self.reset_preempted_req_ids,
            finished_req_ids=self.finished_req_ids,
            free_encoder_mm_hashes=[],
        )
        self.prev_step_scheduled_req_ids = set(ids)
        self.finished_req_ids, self.reset_preempted_req_ids = set(), set()
        return output

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """Append each request's token, and take the finished ones out."""
        decoding, self._decoding = self._decoding, None
        if decoding is None or model_runner_output.num_nans_in_logits:
            outputs: dict[int, EngineCoreOutputs] = super().update_from_output(scheduler_output, model_runner_output)
            return outputs
        return {0: EngineCoreOutputs(outputs=self._take_tokens(decoding, model_runner_output))}

    def _take_tokens(self, decoding: list[Request], found: ModelRunnerOutput) -> list[EngineCoreOutput]:
        at, sampled, logprobs = found.req_id_to_index, found.sampled_token_ids, found.logprobs
        outputs: list[EngineCoreOutput] = []
        stopped: set[Request] = set()
        for request in decoding:
            request.num_in_flight_tokens -= 1
            if request.is_finished():  # aborted meanwhile
                continue
            index = at[request.request_id]
            tokens = sampled[index]
            request._output_token_ids.append(tokens[0])
            request._all_token_ids.append(tokens[0])
            if len(request._all_token_ids) % self.hash_block_size == 0:
                request.update_block_hashes()
            output = EngineCoreOutput(request.request_id, tokens)
            if logprobs is not None and request.sampling_params.num_logprobs is not None:
                output.new_logprobs = LogprobsLists(
                    logprobs.logprob_token_ids[index : index + 1],
                    logprobs.logprobs[index : index + 1],
                    logprobs.sampled_token_ranks[index : index + 1],
                )
            if check_stop(request, self.max_model_len):
                output.finish_reason, output.stop_reason = request.get_finished_reason(), request.stop_reason
                self._free_request(request)
                stopped.add(request)
            outputs.append(output)
        if stopped:
            self.running = remove_all(self.running, stopped)
        return outputs
