"""TRL's own losses on preferences, of a bigram model in float64, checked in as trl_losses.json. The peer makes them:

python -c "from jobs.bench._peer import peer_python; print(peer_python())"  # the interpreter that has TRL
INTERPRETER tests/goldens/trl_losses.py > tests/goldens/trl_losses.json
"""

from __future__ import annotations

import json
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
import trl
from torch import nn
from trl import DPOTrainer, KTOTrainer
from trl.experimental.orpo import ORPOTrainer

VOCAB, PAD, BETA = 11, 0, 0.3
# prompt, better answer, worse answer
PAIRS = [
    ([3, 4], [5, 6, 1], [7, 1]), ([2], [8, 1], [9, 9, 4, 1]), ([6, 2, 6], [10, 3, 5, 1], [2, 1]), ([8], [1], [4, 1]),
]  # fmt: skip
LABELLED = [([3, 4], [5, 6, 1], 1), ([2], [9, 9, 4, 1], 0), ([6, 2, 6], [10, 3, 5, 1], 1), ([8], [4, 1], 1)]


def table(seed: int) -> torch.Tensor:
    """Logits of each token behind each other one, [V, V]."""
    return torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Bigram(nn.Module):
    """As TRL calls a model: logits, or with labels each target's logprob."""

    is_gradient_checkpointing = False

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(table(seed))

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None, **_: Any) -> Any:
        """Logits_BTV; log_probs_BT are zeros where labels are -100."""
        logits_BTV = self.weight[input_ids]
        found = {"logits": logits_BTV}
        if labels is not None:
            targets_BT = labels[:, 1:]
            all_BTV = logits_BTV[:, :-1].log_softmax(-1)
            chosen_BT = all_BTV.gather(-1, targets_BT.clamp_min(0)[..., None])[..., 0]
            none_BT = torch.zeros_like(chosen_BT)
            found |= {"log_probs": torch.where(targets_BT < 0, 0.0, chosen_BT), "entropy": none_BT}
            found |= {"mean_logits": none_BT, "is_top1": none_BT.bool()}
        return SimpleNamespace(**found)


def padded(rows: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    """Prompts and answers as a padded batch."""
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    pad = [[0] * (width - len(prompt) - len(answer)) for prompt, answer in rows]
    ids = [prompt + answer + more for (prompt, answer), more in zip(rows, pad, strict=True)]
    seen = [[1] * (len(prompt) + len(answer)) + more for (prompt, answer), more in zip(rows, pad, strict=True)]
    said = [[0] * len(prompt) + [1] * len(answer) + more for (prompt, answer), more in zip(rows, pad, strict=True)]
    names = ("input_ids", "attention_mask", "completion_mask")
    return dict(zip(names, map(torch.tensor, (ids, seen, said)), strict=True))


def trainer(**more: Any) -> Any:
    """What the losses ask of a trainer."""
    same = SimpleNamespace(device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x)
    metrics = defaultdict[str, Any](lambda: defaultdict(list))
    common = {"accelerator": same, "aux_loss_enabled": False, "beta": BETA, "_metrics": metrics}
    common |= {"ref_model": Bigram(1), "precompute_ref_logps": False, "_total_train_tokens": 0, "_tp_size": 1}
    common["args"] = SimpleNamespace(gradient_checkpointing=False, gradient_checkpointing_kwargs=None)
    return SimpleNamespace(**common | more)


def dpo(model: Bigram, kind: str) -> torch.Tensor:
    """DPOTrainer's."""
    rows = [(prompt, better) for prompt, better, _ in PAIRS] + [(prompt, worse) for prompt, _, worse in PAIRS]
    fake = trainer(
        model=model, ld_alpha=None, f_divergence_type="reverse_kl", loss_types=[kind], loss_weights=[1.0],
        use_weighting=False, label_smoothing=0.0,
    )  # fmt: skip
    loss: torch.Tensor = DPOTrainer._compute_loss(fake, model, padded(rows), False)
    return loss


def kto(model: Bigram) -> torch.Tensor:
    """KTOTrainer's; each prompt is asked with the answer before it too, the first with the last."""
    answers = [answer for _, answer, _ in LABELLED]
    own = padded([(prompt, answer) for prompt, answer, _ in LABELLED])
    others = padded([(prompt, answers[place - 1]) for place, (prompt, *_) in enumerate(LABELLED)])
    batch = {**own, **{f"KL_{name}": values for name, values in others.items()}}
    batch["label"] = torch.tensor([bool(label) for *_, label in LABELLED])
    fake = trainer(model=model, calculate_KL=True, loss_type="kto", desirable_weight=1.3, undesirable_weight=0.7)
    fake._compute_kl_logps = lambda *given: KTOTrainer._compute_kl_logps(fake, *given)
    loss: torch.Tensor = KTOTrainer._compute_loss(fake, model, batch, False)
    return loss


def orpo(model: Bigram) -> torch.Tensor:
    """ORPOTrainer's, its casts to float32 widened to float64."""
    batch: dict[str, torch.Tensor] = {}
    for side in (1, 2):
        rows = padded([(pair[0], pair[side]) for pair in PAIRS])
        name = "chosen" if side == 1 else "rejected"
        batch[f"{name}_input_ids"], batch[f"{name}_attention_mask"] = rows["input_ids"], rows["attention_mask"]
        batch[f"{name}_labels"] = rows["input_ids"].masked_fill(rows["completion_mask"] == 0, -100)
    fake = trainer(model=model, is_encoder_decoder=False, padding_value=PAD)
    for name in ("concatenated_forward", "odds_ratio_loss"):
        setattr(fake, name, lambda *given, name=name: getattr(ORPOTrainer, name)(fake, *given))
    fake.concatenated_inputs, fake.get_batch_logps = ORPOTrainer.concatenated_inputs, ORPOTrainer.get_batch_logps
    narrow, torch.Tensor.float = torch.Tensor.float, torch.Tensor.double  # type: ignore[method-assign, assignment]
    try:
        loss: torch.Tensor = ORPOTrainer.get_batch_loss_metrics(fake, model, batch)[0]
    finally:
        torch.Tensor.float = narrow  # type: ignore[method-assign]
    return loss


def main() -> None:
    """Print every loss and its gradient in the model's logits."""
    made: dict[str, Any] = {}
    losses = {"dpo": lambda m: dpo(m, "sigmoid"), "ipo": lambda m: dpo(m, "ipo"), "kto": kto, "orpo": orpo}
    for name, loss_of in losses.items():
        model = Bigram(0)
        loss = loss_of(model)
        loss.backward()
        assert model.weight.grad is not None
        made[name] = {"loss": loss.item(), "gradient": model.weight.grad.flatten().tolist()}
    tables = {name: table(seed).flatten().tolist() for seed, name in enumerate(("policy", "reference"))}
    data = {**tables, "vocab": VOCAB, "beta": BETA, "pairs": PAIRS, "labelled": LABELLED}
    print(json.dumps({"trl": trl.__version__, **data, "losses": made}))


if __name__ == "__main__":
    main()
