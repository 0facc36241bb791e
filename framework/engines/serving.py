"""Talking to a checkpoint: a prompt at the terminal, or vLLM's OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from framework.artifacts import Checkpoint
from framework.data.chat_template import ChatTemplate
from framework.data.control import ControlTokens
from framework.data.tokenizer_files import load_tokenizer, servable_tokenizer
from framework.engines.vllm_engine import VllmConfig, VllmSampler
from framework.engines.weights import check_safetensors
from framework.errors import UserError
from framework.types import SamplingParams

CHAT_CONFIG = VllmConfig(dtype="bfloat16", max_model_len=4096, max_num_seqs=8, mla=False, warm_up=False)


def chat(checkpoint: Path, params: SamplingParams | None = None, config: VllmConfig | None = None) -> None:
    """Answer each line of standard input until its end; each line is a conversation of its own.

    A checkpoint without a chat template gets the line as it is. Raises UserError for a missing or damaged checkpoint.
    """
    check_checkpoint(checkpoint)
    context = _context_length(checkpoint)
    if config is None:
        config = replace(CHAT_CONFIG, max_model_len=min(context, CHAT_CONFIG.max_model_len))
    params = params or SamplingParams(max_tokens=config.max_model_len // 2, n=1)
    asyncio.run(_chat(checkpoint, params, config))


def serve(checkpoint: Path, host: str, port: int) -> None:
    """Replace this process with vLLM's server of the OpenAI API; raises UserError for a bad checkpoint or port."""
    check_checkpoint(checkpoint)
    if not 0 < port < 65536:
        raise UserError("--port", port, "must be 1 to 65535")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint)]
    command += ["--tokenizer", str(servable_tokenizer(checkpoint)), "--served-model-name", checkpoint.resolve().name]
    command += ["--host", host, "--port", str(port)]
    from vllm.platforms import current_platform  # the build of vLLM that is installed decides, as in vllm_engine

    if current_platform.is_cpu():
        # The CPU's rotary kernel is wrong for DeepSeek, plain attention takes any latent size.
        os.environ["VLLM_MLA_DISABLE"] = "1"
        command += ["--enforce-eager", "--kv-cache-memory-bytes", str(2**30)]
        command += ["--compilation-config", '{"custom_ops": ["-rotary_embedding"]}']
    os.execv(sys.executable, command)


def check_checkpoint(checkpoint: Path) -> None:
    """Raise UserError, before any engine starts, unless `checkpoint` is a whole Hugging Face checkpoint."""
    if not checkpoint.is_dir():
        raise UserError(str(checkpoint), "no such directory", "must be a checkpoint directory")
    Checkpoint(checkpoint).check()
    check_safetensors(checkpoint)


async def _chat(checkpoint: Path, params: SamplingParams, config: VllmConfig) -> None:
    sampler = VllmSampler(config)
    await sampler.start(checkpoint)
    tokenizer, interactive = load_tokenizer(checkpoint), sys.stdin.isatty()
    try:
        while line := await asyncio.to_thread(_read_line, interactive):
            if not line.strip():
                continue
            try:
                async for piece in sampler.stream(_encode(tokenizer, line.strip()), params):
                    print(piece, end="", flush=True)
            except UserError as error:  # a line too long for the context: say so and go on
                print(error, file=sys.stderr, end="")
            print(flush=True)
    finally:
        await sampler.stop()


def _read_line(interactive: bool) -> str:
    if interactive:
        print("> ", end="", flush=True)
    return sys.stdin.readline()


def _encode(tokenizer: Any, line: str) -> list[int]:
    if tokenizer.chat_template is None:
        return [*tokenizer("")["input_ids"], *ControlTokens(tokenizer).encode_plain([line])[0]]
    return list(ChatTemplate(tokenizer).prompt([{"role": "user", "content": line}]).token_ids)


def _context_length(checkpoint: Path) -> int:
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(checkpoint).max_position_embeddings)
