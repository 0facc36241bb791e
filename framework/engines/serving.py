"""Talking to a checkpoint: a conversation at the terminal, or vLLM's OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import io
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from framework.artifacts import Checkpoint, read_json
from framework.bounds import Bound, NonNegativeInt, PositiveInt, bounded
from framework.data.chat_template import ChatTemplate
from framework.data.control import ControlTokens
from framework.data.tokenizer_files import load_tokenizer, servable_tokenizer
from framework.engines.cpu.heads import check_cpu_heads
from framework.engines.plain_chat import PLAIN, plain_chat
from framework.engines.vllm_engine import VllmConfig, VllmSampler
from framework.engines.weights import SERVED_TEXT, check_safetensors
from framework.errors import UserError
from framework.models.table import ENCODERS
from framework.types import SamplingParams

CHAT_CONFIG = VllmConfig(dtype="bfloat16", max_model_len=4096, max_num_seqs=8, mla=False, warm_up=False)
DTYPES = ("bfloat16", "float16", "float32")
READS = ("ForMaskedLM", "ForPreTraining", "ForSequenceClassification", "ForTokenClassification")  # endings of classes
FORGET = "/new"  # a line that begins a new conversation


@dataclass(frozen=True)
@bounded
class TalkOptions:
    """How a checkpoint is talked to; None: as its own generation_config.json and config.json say."""

    temperature: Annotated[float, Bound(least=0, most=2, note="0: greedy")] | None = None
    top_p: Annotated[float, Bound(above=0, most=1)] | None = None
    max_tokens: PositiveInt | None = None  # of an answer; else max_new_tokens, or half the context
    system: str = ""
    dtype: Literal["bfloat16", "float16", "float32"] | None = None  # else as trained
    tensor_parallel: PositiveInt = 1
    max_model_len: PositiveInt | None = None  # else the model's context, in a chat at most 4,096 or twice max_tokens
    seed: NonNegativeInt | None = None


def chat(
    checkpoint: Path,
    options: TalkOptions | None = None,
    name: str = "",
    starting: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:
    """Answer each line of standard input until its end, in one conversation; a line `/new` begins another.

    Where the conversation outgrows the context its oldest turns go. A checkpoint without a chat template gets each line
    as it is. Raises UserError for a missing or damaged checkpoint, or options that it cannot have.
    """
    check_checkpoint(checkpoint)
    kind, options = check_talks(checkpoint), options or TalkOptions()
    if options.system and not load_tokenizer(checkpoint).chat_template:
        raise UserError(
            "--system", options.system, "must be left out: without a chat template there is no place for it"
        )
    if kind not in PLAIN:
        _check_heads(checkpoint)
    params, config = chat_params(checkpoint, options), chat_engine(checkpoint, options)
    if params.max_tokens >= config.max_model_len:
        raise UserError("--max-tokens", params.max_tokens, f"must be below the context of {config.max_model_len}")
    for stream in (sys.stdin, sys.stdout):  # bytes of another encoding end no conversation
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if kind in PLAIN:
        interactive = sys.stdin.isatty()
        read = iter(lambda: _read_line(interactive), "")
        near_greedy = options.temperature is None and "temperature" not in _json(checkpoint / "generation_config.json")
        params = replace(params, temperature=0.0) if near_greedy else params
        return plain_chat(checkpoint, params, (line.strip() for line in read if line.strip()), print)
    asyncio.run(_chat(checkpoint, options, params, config, name, starting))


def serve(checkpoint: Path, host: str, port: int, options: TalkOptions, name: str, further: Sequence[str] = ()) -> None:
    """Replace this process with vLLM's server of the OpenAI API; `further` are options of vLLM's own.

    Raises UserError for a bad checkpoint, or a port that cannot be had.
    """
    check_checkpoint(checkpoint)
    if (kind := check_talks(checkpoint)) in PLAIN:
        raise UserError(
            str(checkpoint), f"model_type={kind}", "vLLM, which serves, has no such model: framework chat has"
        )
    check_port(host, port)
    _check_heads(checkpoint)
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint)]
    command += ["--tokenizer", str(servable_tokenizer(checkpoint)), "--served-model-name", name]
    command += ["--host", host, "--port", str(port), "--dtype", dtype_of(checkpoint, options)]
    command += ["--tensor-parallel-size", str(options.tensor_parallel), "--disable-uvicorn-access-log"]
    if load_tokenizer(checkpoint).chat_template:  # families without one are rendered by code of vLLM's own
        command += ["--tokenizer-mode", SERVED_TEXT]
    if options.max_model_len:
        command += ["--max-model-len", str(options.max_model_len)]
    from vllm.platforms import current_platform  # the build of vLLM that is installed decides, as in vllm_engine

    if current_platform.is_cpu():
        # The CPU's rotary kernel is wrong for DeepSeek, plain attention takes any latent size.
        os.environ["VLLM_MLA_DISABLE"] = "1"
        command += ["--enforce-eager", "--kv-cache-memory-bytes", str(2**30)]
        command += ["--compilation-config", '{"custom_ops": ["-rotary_embedding"]}']
    print(f"{name} at http://{host}:{port}/v1 once vLLM has started, a minute or less", file=sys.stderr, flush=True)
    os.execv(sys.executable, [*command, *further])


def _check_heads(checkpoint: Path) -> None:
    """Raise UserError for a model that the installed build of vLLM, if it is the CPU's, cannot sample from."""
    from vllm.platforms import current_platform

    from framework.models.public_layout import read_config

    if current_platform.is_cpu():
        check_cpu_heads(read_config(checkpoint), f"{checkpoint / 'config.json'}: head_dim")


def check_port(host: str, port: int) -> None:
    """Raise UserError for a port that is none, or that another program listens on, or a host that is not ours."""
    if not 0 < port < 65536:
        raise UserError("--port", port, "must be 1 to 65535")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror as error:
        raise UserError("--host", host, f"must be an address of this machine ({error.strerror})") from None
    except OSError as error:
        raise UserError("--port", port, f"must be a free port of {host}: {error.strerror}") from None


def chat_params(checkpoint: Path, options: TalkOptions) -> SamplingParams:
    """How answers are sampled: as the options say, else the model's own generation_config.json."""
    own = _json(checkpoint / "generation_config.json")
    context = chat_engine(checkpoint, options).max_model_len
    given = (options.temperature, own.get("temperature"), 1.0)
    temperature = float(next(value for value in given if value is not None))
    top_p = float(next(value for value in (options.top_p, own.get("top_p"), 1.0) if value is not None))
    longest = options.max_tokens or min(int(own.get("max_new_tokens") or context // 2), context // 2)
    top_k = 0 if options.temperature == 0 else max(int(own.get("top_k") or 0), 0)
    return SamplingParams(temperature, top_p, longest, 1, options.seed, top_k)


def chat_engine(checkpoint: Path, options: TalkOptions) -> VllmConfig:
    """The engine of a chat, in the dtype that the model was trained in."""
    context, wanted = _context_length(checkpoint), max(CHAT_CONFIG.max_model_len, 2 * (options.max_tokens or 0))
    if options.max_model_len and options.max_model_len > context:
        raise UserError("--max-model-len", options.max_model_len, f"must be at most {context}, the model's context")
    return replace(
        CHAT_CONFIG,
        dtype=dtype_of(checkpoint, options),
        max_model_len=options.max_model_len or min(context, wanted),
        tensor_parallel_size=options.tensor_parallel,
    )


def dtype_of(checkpoint: Path, options: TalkOptions) -> Any:
    """The dtype asked for, else the one that config.json says the model was trained in."""
    config = read_json(checkpoint / "config.json")
    own = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    return options.dtype or (own if own in DTYPES else "bfloat16")


@dataclass
class Conversation:
    """What was said so far, as long as it fits into the context with an answer."""

    tokenizer: Any
    system: str
    room: int  # tokens of a prompt at most
    messages: list[Mapping[str, str]] = field(default_factory=list)
    forgotten: int = 0  # turns that did not fit any more, since the last answer

    def ask(self, line: str) -> list[int]:
        """Return the prompt with this line; raises UserError if the line alone is too long."""
        self.forgotten = 0
        if self.tokenizer.chat_template is None:
            return [*self.tokenizer("")["input_ids"], *ControlTokens(self.tokenizer).encode_plain([line])[0]]
        template = ChatTemplate(self.tokenizer)
        self.messages.append({"role": "user", "content": line})
        while True:
            told: list[Mapping[str, str]] = [{"role": "system", "content": self.system}] if self.system else []
            ids = list(template.prompt([*told, *self.messages]).token_ids)
            if len(ids) <= self.room or len(self.messages) == 1:
                break
            del self.messages[:2]  # a question and its answer
            self.forgotten += 1
        if len(ids) > self.room:
            self.messages.clear()
            raise UserError("this line", f"{len(ids)} tokens", f"must be at most {self.room}: see --max-tokens")
        return ids

    def answered(self, text: str) -> None:
        """Remember the answer."""
        if self.tokenizer.chat_template is not None:
            self.messages.append({"role": "assistant", "content": text})


def check_checkpoint(checkpoint: Path) -> None:
    """Raise UserError, before any engine starts, unless `checkpoint` is a whole Hugging Face checkpoint."""
    if not checkpoint.is_dir():
        raise UserError(str(checkpoint), "no such directory", "must be a checkpoint directory")
    Checkpoint(checkpoint).check()
    check_safetensors(checkpoint)


def check_talks(checkpoint: Path) -> str:
    """Return the kind of model; raises UserError for one that continues no text: an encoder, or a scalar head."""
    config = read_json(checkpoint / "config.json")
    kind, built = str(config.get("model_type", "")), str((config.get("architectures") or [""])[0])
    if built.endswith(READS) or kind in ENCODERS:
        allowed = "must continue text: an encoder fills in hidden tokens, a reward model or classifier gives scores"
        raise UserError(str(checkpoint), built or f"model_type={kind}", allowed)
    return kind


async def _chat(
    checkpoint: Path,
    options: TalkOptions,
    params: SamplingParams,
    config: VllmConfig,
    name: str,
    starting: Callable[[], AbstractContextManager[None]],
) -> None:
    sampler, interactive = VllmSampler(config), sys.stdin.isatty()
    with starting():
        await sampler.start(checkpoint)
    talk = Conversation(load_tokenizer(checkpoint), options.system, config.max_model_len - params.max_tokens)
    if interactive:
        how = (
            f"temperature {params.temperature:g}, top-p {params.top_p:g}, at most {params.max_tokens} tokens an answer"
        )
        print(f"{name or checkpoint}: {config.dtype}, {how}; {FORGET} forgets what was said, Ctrl-D ends")
    try:
        while line := await asyncio.to_thread(_read_line, interactive):
            if line.strip() == FORGET:
                talk.messages.clear()
            elif line.strip():
                await _answer(sampler, talk, line.strip(), params)
    finally:
        await sampler.stop()


async def _answer(sampler: VllmSampler, talk: Conversation, line: str, params: SamplingParams) -> None:
    pieces: list[str] = []
    try:
        ids = talk.ask(line)
        if talk.forgotten:
            print(f"(the oldest {talk.forgotten} turns no longer fit and are forgotten)", file=sys.stderr)
        async for piece in sampler.stream(ids, params):
            pieces.append(piece)
            print(piece, end="", flush=True)
        talk.answered("".join(pieces))
    except UserError as error:  # a line too long for the context: say so and go on
        print(error, file=sys.stderr, end="")
    print(flush=True)


def _read_line(interactive: bool) -> str:
    if interactive:
        print("> ", end="", flush=True)
    return sys.stdin.readline()


def _context_length(checkpoint: Path) -> int:
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(checkpoint).max_position_embeddings)


def _json(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}
