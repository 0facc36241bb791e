"""What travels between the hops of the GRPO loop: one frozen dataclass per hop, shapes beside the fields.

The examples follow one prompt through the loop: "2+2?", tokens [5 6], answered by "4" [7 1] and "no" [8 9 1] (1 ends).

Dimensions: B batch, G group, T tokens of one sequence or of one packed row, R response tokens, V vocabulary,
E experts, L MoE layers, S segments of a packed row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # only annotations need it, and reward processes start in a tenth of the time without it
    import torch

    from framework.stored import Sample

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]
FinishReason = Literal["stop", "length", "abort"]
Denominator = Literal["response", "token", "constant", "sequence"]  # of the policy's loss: GRPO, DAPO, Dr.GRPO, RLOO


@dataclass(frozen=True)
class Prompt:
    """One task to answer. `id` is stable across runs; `text` is the question without any template.

    Prompt("sum-1", "2+2?", "sum", "4", token_ids=(5, 6)).
    """

    id: str
    text: str
    task: str  # e.g. "chain_sum"; names the verifier's data set
    answer: str  # reference answer
    rewards: tuple[str, ...] = ()  # names of the reward components that score it; empty: all configured
    token_ids: tuple[int, ...] = ()  # the templated prompt; what the sampler sees
    entry: str = ""  # verifier's own record as JSON (reasoning-gym needs its metadata)
    # What stands before the question (a system message, examples, earlier turns), and the question last; empty: `text`.
    messages: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)  # further columns of its row, for rewards
    where: str = field(default="", compare=False)  # "file:line" that it was read from, for messages; not kept in files
    opened: str = ""  # what the end of `token_ids` says already on the model's behalf, e.g. "<think>\n"

    @property
    def conversation(self) -> tuple[Mapping[str, Any], ...]:
        """What is asked, as messages: its own, or the text as the user's only one."""
        return self.messages or ({"role": "user", "content": self.text},)


@dataclass(frozen=True)
class SamplingParams:
    """How rollouts are sampled (R1-Zero: temperature 1, no truncation of the distribution).

    SamplingParams(max_tokens=3, n=2): two responses of at most three tokens.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 64
    n: int = 8  # G
    seed: int | None = None
    top_k: int = 0  # 0: all tokens; of a model's own generation config, for chats


@dataclass(frozen=True)
class Outline:
    """What the loop needs to know of a response: of [7 1] 2 tokens, one by version 3, one by 4, "stop", -0.3 nats."""

    length: int
    versions: tuple[tuple[int, int], ...]  # (policy version, tokens that it sampled), oldest first
    finish_reason: FinishReason
    logprob: float  # sum of the sampler's; not finite where one of them is not


@dataclass(frozen=True)
class Response:
    """One sampled response, token in, token out; `text` is for verifiers and people.

    token_ids [7 1], logprobs [-0.1 -0.2], weight_versions [3 4] (new weights came between the two), "stop", "4".
    """

    token_ids: Int32  # [R], ends with the end-of-sequence token when finish_reason is "stop"
    logprobs: Float32  # [R], the sampler's, at its temperature
    weight_versions: Int32  # [R], policy version that sampled each token
    finish_reason: FinishReason
    text: str = ""

    @property
    def outline(self) -> Outline:
        """All that is known of it without its tokens."""
        found, counts = np.unique(self.weight_versions, return_counts=True)
        versions = tuple(zip(found.tolist(), counts.tolist(), strict=True))
        return Outline(len(self.token_ids), versions, self.finish_reason, _summed(self.logprobs))

    def load(self) -> Response:
        """It is here."""
        return self


@dataclass(frozen=True)
class ResponseGroup:
    """The G responses to one prompt: here [7 1] and [8 9 1]."""

    prompt: Prompt
    responses: tuple[Response, ...]  # G

    def load(self) -> ResponseGroup:
        """It is here."""
        return self


@dataclass(frozen=True)
class RewardScore:
    """Reward of one response. A failed verifier gives total 0 and says why in `error`.

    Of [7 1]: RewardScore(1.5, {"accuracy": 1.0, "format": 0.5}, extracted="4"); of [8 9 1]: RewardScore(0.0, …).
    """

    total: float
    components: Mapping[str, float] = field(default_factory=dict)
    error: str = ""
    extracted: str | None = None  # the answer that a reward found in the response, if one looks for it
    tokens: int = 0  # that other models read and wrote for it
    # where votes are counted: the first response of the group whose answer says the same; -1: it gives no answer
    vote: int | None = None


@dataclass(frozen=True)
class ScoredGroup:
    """A response group with its rewards: totals 1.5 and 0."""

    group: ResponseGroup
    scores: tuple[RewardScore, ...]  # G

    def load(self) -> ScoredGroup:
        """It is here."""
        return self


@dataclass(frozen=True)
class TrainSample:
    """One response as the learner trains on it.

    Rewards 1.5 and 0 have mean 0.75 and standard deviation 0.75: [7 1] has advantage 1, [8 9 1] -1, at each token.
    """

    prompt_id: str
    prompt_ids: Int32  # [P]
    response_ids: Int32  # [R]
    # 0 without signal in its group, or without a score of its own; of an algorithm with a critic the reward
    advantage: float
    sampler_logprobs: Float32  # [R]
    weight_versions: Int32  # [R]
    old_logprobs: Float32 | None = None  # [R], pi_old of the ratio; None: the sampler's
    token_advantages: Float32 | None = None  # [R], a critic's; None: `advantage` at each token

    @property
    def length(self) -> int:
        """R."""
        return len(self.response_ids)

    @property
    def logprob(self) -> float:
        """Of the whole response, the sampler's."""
        return _summed(self.sampler_logprobs)


@dataclass(frozen=True)
class ValueSample:
    """One response as a critic trains on it: [7 1], worth 0.8 and 1.1 before the batch, returns 1.5 and 1.5."""

    prompt_id: str
    prompt_ids: Int32  # [P]
    response_ids: Int32  # [R]
    returns: Float32  # [R], reward that was still to come before each token
    old_values: Float32  # [R], what the critic had expected


@dataclass(frozen=True)
class Minibatch:
    """What one optimizer step trains on: every response of its groups, those with advantage 0 included.

    Of the two responses: n_responses 2, n_tokens 5. Skipped ones leave `samples` shorter, the two numbers as they are.
    The KL term is defined on all of them (R1 eq. 1), and so are the metrics. Responses that were skipped because their
    loss is 0 (`algorithm.skip_idle`) are not in `samples`, but still count in both denominators.
    """

    samples: tuple[Sample, ...]
    n_responses: int  # that the step stands for: the denominator of a mean over responses
    n_tokens: int  # of these responses: the denominator of a mean over tokens
    pretraining: tuple[Int32, ...] = ()  # rows of text that are learned beside them, [T] each

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Minibatch:
        """Return the minibatch of these responses, none skipped."""
        return cls(tuple(samples), len(samples), sum(sample.length for sample in samples))


@dataclass(frozen=True)
class MicroBatch:
    """Sequences in one row, no pads between them. Position t predicts token t+1, so targets are shifted already.

    Documents [5 6 7] and [8 9], all learned: tokens 5 6 7 8 9, positions 0 1 2 0 1, lengths 3 2, targets 6 7 0 9 0,
    mask 1 1 0 1 0. A document's last token predicts nothing; a response's last token has no position at all.
    """

    token_ids_T: torch.Tensor  # int64
    position_ids_T: torch.Tensor  # int64, restart at 0 in each segment
    segment_lengths_S: torch.Tensor  # int64, sum = T
    targets_T: torch.Tensor  # int64
    mask_T: torch.Tensor  # float32, 1 where targets_T is learned
    sample_index_S: tuple[int, ...]  # which sequence of the batch each segment is; empty: a placeholder


@dataclass(frozen=True)
class PolicyMicroBatch(MicroBatch):
    """Responses with what the policy losses need of each of their tokens; zeros where the mask is 0.

    Prompt [5 6] and response [7 8] of advantage 0.5: tokens 5 6 7, targets 6 7 8, mask 0 1 1, advantages 0 0.5 0.5,
    weights 0 0.5 0.5 for GRPO's mean over a response, 0 1 1 for DAPO's over tokens.
    """

    advantages_T: torch.Tensor  # float32
    old_logprobs_T: torch.Tensor  # float32
    sampler_logprobs_T: torch.Tensor  # float32
    ref_logprobs_T: torch.Tensor  # float32
    weights_T: torch.Tensor  # float32, 1/|o_i| (GRPO, GSPO), 1 (the others); not divided by the denominator


@dataclass(frozen=True)
class LossOutput:
    """One micro-batch's loss as a sum, to be divided by what the whole batch is divided by.

    Two tokens with losses 0.3 and 0.5: loss 0.8, count 2; a metric's mean is its sum over the batch / that of counts.
    """

    loss: torch.Tensor  # scalar, differentiable
    metrics: Mapping[str, float] = field(default_factory=dict)  # sums
    count: float = 0.0  # of what they are sums over: trained tokens, pairs
    outputs: Mapping[str, torch.Tensor] = field(default_factory=dict)  # looked at for numbers that are not finite


@dataclass(frozen=True)
class StepResult:
    """One optimizer step as rank 0 reports it; metrics are means over the whole minibatch.

    StepResult(12, {"loss": -0.02, "tokens": 5.0}, [[4 6]]): one MoE layer sent 4 tokens to one expert, 6 to the other.
    """

    step: int  # optimizer steps taken so far
    metrics: Mapping[str, float]
    expert_load_LE: npt.NDArray[np.float64] | None = None  # tokens routed to each expert


@dataclass(frozen=True)
class WeightTensor:
    """Where one tensor lies in a published flat buffer.

    ("lm_head.weight", "bfloat16", (10, 4), 64) fills bytes 64 to 143.
    """

    name: str  # Hugging Face name, experts split
    dtype: str  # torch name, e.g. "bfloat16"
    shape: tuple[int, ...]
    offset: int  # bytes


@dataclass(frozen=True)
class MemoryFile:
    """Bytes in the memory of a process: others of its machine map them, others elsewhere ask for them at `address`.

    MemoryFile("learner rank 0", "c0ffee", 4711, 9, "f00d", 144): descriptor 9 of process 4711, on machine c0ffee.
    """

    owner: str  # for people
    machine: str
    process: int
    descriptor: int
    name: str  # no other file's, ever
    size: int  # bytes
    address: str = ""  # host:port; empty: nobody answers there


@dataclass(frozen=True)
class PublishedWeights:
    """One learner rank's share of policy `version`: a flat byte buffer and its table of contents.

    Rank 0 of two holds experts 0 and 1 and all that is no expert, rank 1 experts 2 and 3.
    """

    version: int
    tensors: tuple[WeightTensor, ...]
    buffer: npt.NDArray[np.uint8] | MemoryFile  # [bytes]; between processes a reference, never the bytes

    @property
    def size(self) -> int:
        """Bytes."""
        return int(self.buffer.size)


@dataclass(frozen=True)
class SampleRow:
    """One sampled response as people read it in a table: "2+2?", "4", reward 1.5, advantage 1, 2 tokens."""

    prompt: str
    response: str
    reward: float  # total
    components: Mapping[str, float] = field(default_factory=dict)
    advantage: float = 0.0
    length: int = 0  # response tokens
    finish_reason: str = ""
    version: int = 0  # policy version that sampled its last token


@dataclass(frozen=True)
class Measured:
    """A number measured of prompts: 0.8 ± 0.1 over two whose responses have 0.9 and 0.7 on average."""

    mean: float  # over prompts of the mean over a prompt's responses
    error: float | None  # one standard error of it over prompts; None: fewer than two
    n_prompts: int


@dataclass(frozen=True)
class EvalTask:
    """How one checkpoint does on one task, from k sampled responses to each of n prompts (R1 paper, section 3.1).

    Two prompts, k = 4, 4 and 1 of them right: pass@1 (4/4 + 1/4) / 2 = 62.5%, pass@4 100%.
    None: nothing could be told, as no response had that verdict.
    """

    task: str  # "all" for the mean over every prompt
    n_prompts: int
    k: int  # responses per prompt
    pass_at_1: float | None  # mean over prompts of the share of right responses
    pass_at_1_se: float | None  # standard error of that mean over prompts; None: fewer than two
    cons_at_k: float | None  # share of prompts whose majority answer is right
    pass_at_k: float | None  # share of prompts with at least one right response
    format_rate: float | None  # share of responses in the demanded format
    mean_response_tokens: float
    truncated_share: float  # responses that ran into the length limit
    failed_samples: int = 0  # responses that a verifier could not score: in no denominator
    n_judged: int = -1  # prompts with a verdict, which the shares of right ones are over; -1: not recorded
    pass_at: Mapping[str, float] = field(default_factory=dict)  # k' = 1, 4, 16, … up to k -> unbiased pass@k'
    # 95% intervals, bootstrapped over prompts; None: fewer than two prompts
    pass_at_1_interval: tuple[float, float] | None = None
    cons_at_k_interval: tuple[float, float] | None = None
    scores: Mapping[str, Measured] = field(default_factory=dict)  # reward component -> its value; of those asked


@dataclass(frozen=True)
class EvalResult:
    """One checkpoint's evaluation; `asdict` of it is an EvalReport's report.json.

    Of the two prompts: right_share {"sum-1": 1.0, "sum-2": 0.25}.
    """

    label: str  # the checkpoint, e.g. "base" or "r1_zero"
    overall: EvalTask
    tasks: tuple[EvalTask, ...]
    sampling: Mapping[str, float] = field(default_factory=dict)  # temperature, top_p, max_tokens, seed
    right_share: Mapping[str, float] = field(default_factory=dict)  # prompt id -> right of its judged responses
    groups: tuple[EvalTask, ...] = ()  # by columns of the prompts, e.g. "level 5", "subject Algebra"
    rating: Measured | None = None  # on Codeforces, of problems of contests; over contests, not prompts
    domains: tuple[EvalTask, ...] = ()  # math, programs, options, logic, general; empty: all prompts are of one
    # n -> reward component -> its mean if the best of n responses were given; empty: not asked for
    best_of: Mapping[str, Mapping[str, Measured]] = field(default_factory=dict)


@dataclass(frozen=True)
class Assessed:
    """How a pretrained transformer does; `asdict` of it is an AssessmentReport's assessment.json.

    held_out {"loss": 1.2, "accuracy": 0.71}: as its own objective measures the validation text. tuned and fresh: the
    accuracy of a classifier made of it, and of one of its sizes that was never pretrained, a seed each.
    """

    label: str  # its stage
    model: str  # its sizes' name
    learns: str
    parameters: int
    held_out: Mapping[str, float]
    tuned: tuple[float, ...]
    fresh: tuple[float, ...]
    written: Mapping[str, str] = field(default_factory=dict)  # prompt, e.g. a control code -> how it goes on


def _summed(logprobs_R: Float32) -> float:
    with np.errstate(invalid="ignore"):
        return float(logprobs_R.sum(dtype=np.float64))
