"""The peer's side of the GRPO benchmark: TRL's GRPOTrainer, run as a script by the peer's own interpreter.

Takes the settings as one JSON argument and prints, as the last line, a JSON list with one object a step.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class Clock(TrainerCallback):  # type: ignore[misc]
    """Seconds from the end of one step to the end of the next."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start of the first step."""
        self.ends.append(time.perf_counter())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """End of a step."""
        self.ends.append(time.perf_counter())


def distinct_characters(completions: list[str], **_: Any) -> list[float]:
    """The reward: as jobs.bench._variety.Variety."""
    return [float(len(set(text))) for text in completions]


def main(settings: dict[str, Any]) -> None:
    """Train `steps` steps and print what each took."""
    torch.set_num_threads(settings["threads"])
    tokenizer = AutoTokenizer.from_pretrained(settings["checkpoint"], padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(settings["checkpoint"], dtype=torch.float32)
    responses, rows = settings["prompts_per_step"] * settings["group_size"], settings["rows"]
    vllm = {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_max_model_length": settings["max_model_len"],
        "vllm_gpu_memory_utilization": 0.05,
    }
    clock = Clock()
    with tempfile.TemporaryDirectory() as directory:
        config = GRPOConfig(
            output_dir=directory,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=responses // rows,
            num_generations=settings["group_size"],
            max_completion_length=settings["max_tokens"],
            max_steps=settings["steps"],
            learning_rate=settings["lr"],
            lr_scheduler_type="constant",
            temperature=1.0,
            beta=0.0,
            use_cpu=True,
            bf16=settings["dtype"] == "bfloat16",
            gradient_checkpointing=False,
            save_strategy="no",
            logging_steps=1,
            report_to=[],
            disable_tqdm=True,
            **(vllm if settings["vllm"] else {}),
        )
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=distinct_characters,
            args=config,
            train_dataset=Dataset.from_list([{"prompt": text} for text in settings["prompts"]]),
            processing_class=tokenizer,
            callbacks=[clock],
        )
        trainer.train()
    logs = [entry for entry in trainer.state.log_history if "completions/mean_length" in entry]
    seconds = [end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False)]
    steps = [
        {"seconds": s, "length": log["completions/mean_length"], "truncated": log["completions/clipped_ratio"]}
        for s, log in zip(seconds, logs, strict=True)
    ]
    print(json.dumps(steps))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
