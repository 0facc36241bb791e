"""Small tokenizers of every public kind, and chat templates as public models carry them (written anew, shortened)."""

# ruff: noqa: E501 - templates are as long as they are

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from framework.data.templates import R1_CHAT_TEMPLATE, R1_ZERO_CHAT_TEMPLATE, V3_CHAT_TEMPLATE
from framework.data.tokenizer_files import load_tokenizer
from framework.data.tokenizer_training import TokenizerConfig, train_tokenizer

TEXTS = [
    "Hello  world\n\n  x = 12345 + 67; 中文 汉字、日本 don't <b>é🙂</b>\tf(x)\r\n",
    "What does the end mean? user\nassistant\nsystem\n\nBe brief.\n\n<think>\nhard\n</think>\n\n42",
    "A conversation between User and Assistant. Question: one and two is three? Assistant: <answer> 3 </answer>",
]
CHATML = (
    "{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
QWEN3 = (
    "{%- if tools -%}{{- '<|im_start|>system\\n# Tools\\n' -}}{%- for t in tools -%}{{- t | tojson + '\\n' -}}{%- endfor -%}"
    "{{- '<|im_end|>\\n' -}}{%- endif -%}"
    "{%- set ns = namespace(last=0) -%}"
    "{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}"
    "{%- for m in messages -%}"
    "{%- if m.role == 'assistant' -%}{%- set r = m.reasoning_content or '' -%}{%- set c = m.content -%}"
    "{%- if '</think>' in c -%}{%- set r = c.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}"
    "{%- set c = c.split('</think>')[-1].lstrip('\\n') -%}{%- endif -%}"
    "{{- '<|im_start|>assistant\\n' -}}"
    "{%- if loop.index0 > ns.last and (loop.last or r) -%}{{- '<think>\\n' + r + '\\n</think>\\n\\n' -}}{%- endif -%}"
    "{{- c -}}{%- for call in m.tool_calls or [] -%}{{- '<tool_call>\\n' + call.function | tojson + '\\n</tool_call>' -}}"
    "{%- endfor -%}{{- '<|im_end|>\\n' -}}"
    "{%- elif m.role == 'tool' -%}{{- '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' -}}"
    "{%- else -%}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}"
    "{%- if enable_thinking is defined and enable_thinking is false -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}"
    "{%- endif -%}"
)
LLAMA3 = (
    "{{- bos_token -}}{%- for m in messages -%}"
    "{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}"
)
MISTRAL = (
    "{{- bos_token -}}{%- for m in messages -%}"
    "{%- if m.role == 'user' -%}{{- '[INST] ' + m.content + ' [/INST]' -}}"
    "{%- elif m.role == 'assistant' -%}{{- ' ' + m.content + eos_token -}}"
    "{%- else -%}{{- raise_exception('Only user and assistant roles') -}}{%- endif -%}{%- endfor -%}"
)
# R1 as it is published: whatever is kept, answers lose their reasoning.
R1_PUBLISHED = R1_CHAT_TEMPLATE.replace("keep_last_reasoning is defined and keep_last_reasoning", "false")
# name -> (control tokens, of them marked special, template, eos)
KINDS: dict[str, tuple[list[str], bool, str, str]] = {
    "chatml": (["<|im_start|>", "<|im_end|>", "<|endoftext|>"], True, CHATML, "<|im_end|>"),
    "qwen3": (["<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>"], True, QWEN3, "<|im_end|>"),
    "llama3": (["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], True, LLAMA3, "<|eot_id|>"),
    "deepseek": (["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"], False, R1_PUBLISHED, "<｜end▁of▁sentence｜>"),
    "mistral": (["<unk>", "<s>", "</s>", "[INST]", "[/INST]"], True, MISTRAL, "</s>"),
}  # fmt: skip
NAMES = ("v3", "r1", "r1_zero", *KINDS)


def build(name: str, directory: Path) -> Any:
    """Train the tokenizer of one kind on TEXTS, save it to `directory` and load it."""
    directory.mkdir(parents=True, exist_ok=True)
    named = {"v3": V3_CHAT_TEMPLATE, "r1": R1_CHAT_TEMPLATE, "r1_zero": R1_ZERO_CHAT_TEMPLATE}
    if name in named:
        train_tokenizer(TEXTS * 3, TokenizerConfig(vocab_size=420), directory, 512, named[name])
        return load_tokenizer(directory)
    _train(name, directory)
    return load_tokenizer(directory)


def _train(name: str, directory: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    control, special, template, eos = KINDS[name]
    if name == "mistral":  # sentencepiece's: a blank is put before the first word, bytes fall back
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=[*control[:3], *alphabet], show_progress=False)
    else:
        tokenizer = Tokenizer(models.BPE(ignore_merges=name == "llama3"))
        tokenizer.normalizer = normalizers.NFC() if name in ("chatml", "qwen3") else None
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    if name == "mistral":  # bytes are no added tokens
        data = json.loads(tokenizer.to_str())
        data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] in control]
        tokenizer = Tokenizer.from_str(json.dumps(data))
    plain_tags = [token for token in control if token.startswith(("<think", "</think", "<tool", "</tool"))]
    tokenizer.add_tokens([AddedToken(t, special=special and t not in plain_tags, normalized=False) for t in control])
    bos = next((token for token in control if token in ("<s>", "<|begin_of_text|>", "<｜begin▁of▁sentence｜>")), None)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, bos_token=bos)
    fast.chat_template = template
    fast.save_pretrained(directory)
