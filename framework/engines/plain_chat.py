"""Talking to a model that vLLM has no code for: CTRL, by transformers' own `generate` with its penalised repetition.

A line is continued as it stands. Control codes, such as `<|logic|>`, are tokens; one that the model never learned would
be read as plain letters, and so is refused.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from framework.data.tokenizer_files import load_tokenizer
from framework.errors import UserError, did_you_mean
from framework.types import SamplingParams

PLAIN = ("ctrl",)  # model types
THETA = 1.2  # CTRL (1909.05858) section 4.1: what stands there already is divided by it
_CODE = re.compile(r"<\|[^|>]*\|>")


def plain_chat(checkpoint: Path, params: SamplingParams, lines: Iterable[str], say: Callable[[str], Any]) -> None:
    """Continue each line, which stands for itself: nothing that was said before is seen.

    A line that the model cannot take is told of on standard error.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = load_tokenizer(checkpoint)
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    if params.seed is not None:
        import torch

        torch.manual_seed(params.seed)
    for line in lines:
        try:
            say(_continued(model, tokenizer, line, params))
        except UserError as error:
            print(str(error).strip(), file=sys.stderr)


def _continued(model: Any, tokenizer: Any, line: str, params: SamplingParams) -> str:
    import torch

    named = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token)
    check_codes(line, set(tokenizer.all_special_tokens) - set(named))
    ids = tokenizer(line, add_special_tokens=False, return_tensors="pt")["input_ids"]
    room = int(model.config.max_position_embeddings) - ids.shape[1]
    if room < 1:
        raise UserError("this line", f"{ids.shape[1]} tokens", f"must be below the context of {room + ids.shape[1]}")
    drawn = {"do_sample": True, "temperature": params.temperature, "top_p": params.top_p}
    whole = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=min(params.max_tokens, room),
        repetition_penalty=THETA,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **(drawn if params.temperature else {"do_sample": False}),
    )
    return str(tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True))


def check_codes(line: str, known: Iterable[str]) -> None:
    """Raise UserError for what is written as a control code and is none of the model's."""
    codes = sorted(code for code in known if _CODE.fullmatch(code))
    for code in _CODE.findall(line):
        if code not in codes:
            raise UserError("control code", code, f"{did_you_mean(code, codes)}the model has {', '.join(codes)}")
