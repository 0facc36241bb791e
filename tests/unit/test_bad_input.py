"""Bad input, row by row: exit code 2, one clear line on stderr, nothing created or overwritten.

Add a row to CASES: what is wrong, the command line, and what the line must say. `{tmp}` is a fresh directory with a
finished run in {tmp}/runs/toy; `prepare` may put more into it before the command runs.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from framework.cli import main
from framework.convert import to_plain
from framework.graph.store import Store

TOY_CONF = Path(__file__).parent / "conf"
TOY = ("job=toy", "~stage", "~data", "~engine", "~algorithm", "~reward", "~tracking", "runs_dir={tmp}/runs")


def nothing(tmp: Path) -> None:
    """The directory serves as it is."""


def write(name: str, text: str) -> Callable[[Path], None]:
    """Return a `prepare` that puts a file there."""

    def prepare(tmp: Path) -> None:
        (tmp / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp / name).write_text(text)

    return prepare


def damaged_checkpoint(tmp: Path) -> None:
    """A finished checkpoint that lost bytes afterwards."""
    from framework.artifacts import Checkpoint, write_manifest

    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        write(f"checkpoint/{name}", "{}      ")(tmp)
    write_manifest(Checkpoint(tmp / "checkpoint"), "stage", {}, {}, "")
    (tmp / "checkpoint" / "model.safetensors").write_text("{}")


def safetensors() -> bytes:
    """A safetensors file of one tensor of two zeros."""
    header = json.dumps({"weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(8)


def checkpoint(name: str = "checkpoint", **files: str | bytes) -> Callable[[Path], None]:
    """Return a `prepare` that puts a small whole checkpoint without a manifest there, some files replaced."""
    whole: dict[str, str | bytes] = {
        "config": json.dumps({"vocab_size": 3}),
        "tokenizer": json.dumps({"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 2, "content": "<s>"}]}),
        "weights": safetensors(),
    }
    names = {"config": "config.json", "tokenizer": "tokenizer.json", "weights": "model.safetensors"}
    names["index"] = "model.safetensors.index.json"

    def prepare(tmp: Path) -> None:
        (tmp / name).mkdir()
        for key, content in (whole | files).items():
            (tmp / name / names[key]).write_bytes(content.encode() if isinstance(content, str) else content)

    return prepare


def prompt_files(train: str | None, heldout: str | None = None) -> Callable[[Path], None]:
    """Return a `prepare` that puts train.jsonl and heldout.jsonl there; None for the first: no such file."""

    def prepare(tmp: Path) -> None:
        if train is not None:
            write("train.jsonl", train)(tmp)
        write("heldout.jsonl", heldout or prompt_line("held out", "What is 3 + 4?"))(tmp)

    return prepare


def prompt_line(key: str, text: str, **more: object) -> str:
    """One line of a prompt file."""
    return json.dumps({"id": key, "prompt": text, "answer": "7", "task": "chain_sum", **more}) + "\n"


def full_disk(name: str) -> Callable[[Path], None]:
    """Return a `prepare` after which writing file `name` meets a full disk: the kernel's own ENOSPC."""

    def prepare(tmp: Path) -> None:
        (tmp / name).symlink_to("/dev/full")

    return prepare


@dataclass(frozen=True)
class Case:
    """One way to be wrong."""

    name: str
    command: tuple[str, ...]
    says: tuple[str, ...]  # each must be in the one line
    prepare: Callable[[Path], None] = nothing


def run(*overrides: str) -> tuple[str, ...]:
    """`framework run` of the toy job."""
    return ("run", *TOY, *overrides, "--config-dir", str(TOY_CONF))


def r1_zero(*overrides: str) -> tuple[str, ...]:
    """`framework run` of the shipped job."""
    return ("run", "job=r1_zero", "runs_dir={tmp}/runs", *overrides)


def own_prompts(*overrides: str) -> tuple[str, ...]:
    """`framework run` of the shipped job on the user's prompts."""
    files = ("data.train_prompts_file={tmp}/train.jsonl", "data.heldout_prompts_file={tmp}/heldout.jsonl")
    return r1_zero(*files, *overrides)


def sft(*overrides: str) -> tuple[str, ...]:
    """`framework run` of fine-tuning on the user's conversations."""
    files = ("data.chats_file={tmp}/chats.jsonl", "base={tmp}/base")
    return ("run", "job=sft", "runs_dir={tmp}/runs", *files, *overrides)


def sft_files(*lines: str, model_type: str = "deepseek_v3") -> Callable[[Path], None]:
    """A file of conversations, and what is looked at of a base checkpoint before a run."""

    def prepare(tmp: Path) -> None:
        (tmp / "base").mkdir()
        config = {"model_type": model_type, "hidden_size": 128, "num_hidden_layers": 3}
        (tmp / "base" / "config.json").write_text(json.dumps(config))
        (tmp / "base" / "tokenizer.json").write_text("{}")
        (tmp / "chats.jsonl").write_text("\n".join(lines))

    return prepare


CHAT = json.dumps({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]})
GOOD = prompt_line("one", "What is 1 + 2?")
CASES = (
    Case("unknown key", run("stage.train.lrr=1"), ("stage.train.lrr", "did you mean 'lr'?")),
    Case("unknown nested key", run("model.hiden_size=1"), ("model.hiden_size", "did you mean 'hidden_size'?")),
    Case("unknown top-level key", run("sed=1"), ("sed: got 1", "did you mean 'seed'?")),
    Case("added unknown key", run("+sedd=1"), ("sedd: got 1", "did you mean 'seed'?")),
    Case("unknown stage of the job", run("stage.trian.lr=1"), ("stage.trian", "did you mean 'train'?")),
    Case("wrong type", run("stage.train.lr=fast"), ("stage.train.lr", "'fast'", "must be a number")),
    Case("fraction for a whole number", run("model.num_hidden_layers=1.5"), ("model.num_hidden_layers", "1.5")),
    Case("not one of the choices", run("model.dtype=float16"), ("model.dtype", "'float32', 'bfloat16'")),
    Case("numbers that do not divide", run("model.n_group=3"), ("model.n_group: got 3", "1, 2, 4, 8")),
    Case("a stage's own check", run("stage.write.lines=4"), ("stage.write.lines: got 4", "multiple of 3")),
    Case("unknown job", run("job=r1zero"), ("job: got 'r1zero'", "options:")),
    Case("unknown model", run("model=v3_tin"), ("model: got 'v3_tin'", "did you mean 'v3_tiny'?", "v3_671b")),
    Case("unknown stage", run("stage@stage.train=toy_trian"), ("toy_trian", "did you mean 'toy_train'?")),
    Case("unknown cluster", run("cluster=labtop"), ("cluster: got 'labtop'", "did you mean 'laptop'?")),
    Case("group set to a mapping", run("model={a:1}"), ("model: got {'a': 1}", "v3_tiny")),
    Case("override without a value", run("seed"), ("override: got 'seed'", "key=value")),
    Case("override that does not parse", run("seed={"), ("override: got 'seed={'", "in quotes, twice: 'seed=\"{\"'")),
    Case("sweep", run("seed=1,2"), ("seed=1,2", "one value")),
    Case("interpolation of nothing", run("seed=${sed}"), ("seed", "'sed' not found")),
    Case("mandatory value", run("model.vocab_size=???"), ("model.vocab_size", "must be given")),
    Case("run name with a slash", run("run=../x"), ("run: got '../x'", "must be a directory name")),
    Case("foreign target", run("job._target_=os.system"), ("job._target_", "'os.system'", "plugins")),
    Case("no such build function", run("job._target_=tests.unit.toy_graph.biuld"), ("did you mean 'build'?",)),
    Case(
        "edge of the wrong type",
        run("job._target_=tests.unit.toy_graph.build_miswired"),
        ("train.base wants Checkpoint, got TextSet from write.text",),
    ),
    Case("no GPU-less cluster of nothing", run("cluster.num_nodes=0"), ("cluster.num_nodes: got 0", "at least 1")),
    Case(
        "cluster that does not answer",
        run("run=other", "cluster.ray_address=127.0.0.1:1"),
        ("cluster.ray_address: got '127.0.0.1:1'", "must be the address of a Ray cluster that runs"),
    ),
    Case(
        "cluster that does not answer, for a run that exists",
        run("cluster.ray_address=127.0.0.1:1"),
        ("cluster.ray_address: got '127.0.0.1:1'",),
    ),
    Case("no config directory", ("plan", *TOY, "--config-dir", "{tmp}/nope"), ("--config-dir", "nope")),
    Case(
        "run directory of another configuration",
        run("stage.train.lr=0.5"),
        ("stage.train.lr: got 0.5", "stage.train.lr=0.001", "run=NAME"),
    ),
    Case(
        "run directory that is none",
        run("run=mine"),
        ("runs/mine", "not a run", "run=NAME"),
        write("runs/mine/notes.txt", "mine"),
    ),
    Case("a file where runs should go", run("runs_dir={tmp}/file"), ("{tmp}/file", "in its way"), write("file", "")),
    Case("unknown command", ("trian",), ("command: got 'trian'", "commands: plan, run")),
    Case("unknown option", ("plan", "--gpus", "8"), ("--gpus",)),
    Case("unknown benchmark", ("bench", "rolout"), ("benchmark: got 'rolout'", "benchmarks:")),
    Case("report of no run", ("report", "{tmp}/nope"), ("nope",)),
    Case("chat without a checkpoint", ("chat", "{tmp}/nope"), ("checkpoint: got", "must be a checkpoint directory")),
    Case("chat with an empty directory", ("chat", "{tmp}"), ("config.json", "a Checkpoint needs config.json")),
    Case("chat with a run that has no checkpoint", ("chat", "{tmp}/runs/toy"), ("no finished checkpoint yet",)),
    Case("damaged checkpoint", ("serve", "{tmp}/checkpoint"), ("model.safetensors", "damaged"), damaged_checkpoint),
    Case(
        "run with a damaged manifest",
        ("chat", "{tmp}/runs/toy"),
        ("runs/toy/artifacts/train-1/checkpoint/manifest.json", "must be a manifest as the framework writes it"),
        write("runs/toy/artifacts/train-1/checkpoint/manifest.json", '{"type": "Checkp'),
    ),
    Case(
        "checkpoint with cut-off weights",
        ("chat", "{tmp}/checkpoint"),
        ("model.safetensors: got", "cut off"),
        checkpoint(weights=safetensors()[:-1]),
    ),
    Case(
        "checkpoint with unreadable weights",
        ("serve", "{tmp}/checkpoint"),
        ("model.safetensors", "an unreadable header"),
        checkpoint(weights="<html>404</html>"),
    ),
    Case(
        "checkpoint that lacks a shard",
        ("chat", "{tmp}/checkpoint"),
        ("model-2.safetensors", "no such file"),
        checkpoint(index=json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}})),
    ),
    Case(
        "checkpoint without weights",
        ("chat", "{tmp}/checkpoint"),
        ("no *.safetensors file",),
        lambda tmp: (checkpoint()(tmp), (tmp / "checkpoint" / "model.safetensors").unlink())[-1],
    ),
    Case(
        "checkpoint with a damaged config",
        ("serve", "{tmp}/checkpoint"),
        ("config.json", "must be JSON"),
        checkpoint(config='{"vocab_size": 3'),
    ),
    Case(
        "checkpoint with another model's tokenizer",
        ("chat", "{tmp}/checkpoint"),
        ("tokenizer.json: got '3 tokens'", "does not match the model, whose vocab_size is 2"),
        checkpoint(config=json.dumps({"vocab_size": 2})),
    ),
    Case(
        "edge from a directory that is no checkpoint",
        run("job._target_=tests.unit.toy_graph.build_on_base", "stage.train.base={tmp}/nope"),
        ("{tmp}/nope", "a Checkpoint needs config.json"),
    ),
    Case(
        "edge from a damaged checkpoint",
        run("job._target_=tests.unit.toy_graph.build_on_base", "stage.train.base={tmp}/checkpoint"),
        ("{tmp}/checkpoint/model.safetensors", "damaged"),
        damaged_checkpoint,
    ),
    Case(
        "edge from a checkpoint with another model's tokenizer",
        run("job._target_=tests.unit.toy_graph.build_on_base", "stage.train.base={tmp}/checkpoint"),
        ("tokenizer.json", "does not match the model"),
        checkpoint(config=json.dumps({"vocab_size": 2})),
    ),
    Case("report of a directory that is no run", ("report", "{tmp}"), ("{tmp}",)),
    Case(
        "tokenizer larger than the model's vocabulary",
        r1_zero("stage.tokenizer.vocab_size=513"),
        ("stage.tokenizer.vocab_size: got 513", "at most model.vocab_size=512"),
    ),
    Case(
        "minibatches that do not divide the steps",
        r1_zero("stage.grpo.steps=10"),
        ("stage.grpo.minibatches_per_rollout: got 4", "must divide stage.grpo.steps=10: 1, 2, 5, 10"),
    ),
    Case(
        "reference resets between two batches",
        r1_zero("algorithm.reference_reset_steps=6"),
        ("algorithm.reference_reset_steps: got 6", "0 (never)", "stage.grpo.minibatches_per_rollout=4: 4, 8"),
    ),
    Case(
        "learner's expert parallelism that does not divide its ranks",
        r1_zero("engine.learner.ep_size=2"),
        ("engine.learner.ep_size: got 2", "must divide the 1 learner ranks"),
    ),
    Case(
        "pretraining's expert parallelism that does not divide the experts",
        r1_zero("stage.pretrain.engine.ep_size=3", "stage.pretrain.workers=3"),
        ("stage.pretrain.engine.ep_size: got 3", "must divide the 8 routed experts: one of [1, 2, 4, 8]"),
    ),
    Case(
        "more workers at least than at most",
        r1_zero("stage.pretrain.min_workers=3"),
        ("stage.pretrain.min_workers: got 3", "must be 0 to 2"),
    ),
    Case(
        "MTP modules for a family without any",
        r1_zero("model=v2_tiny", "model.num_nextn_predict_layers=1"),
        ("model.num_nextn_predict_layers: got 1", "only deepseek_v3"),
    ),
    Case(
        "a batch that ramps down",
        r1_zero("stage.pretrain.ramp={start_rows: 16, tokens: 1000}"),
        ("ramp.start_rows: got 16", "at most rows_per_step=8"),
    ),
    Case(
        "drafts of a negative number",
        r1_zero("engine.rollout.speculative_tokens=-1"),
        ("engine.rollout.speculative_tokens: got -1", "at least 0"),
    ),
    Case(
        "phases of context extension without a stretched rotary embedding",
        r1_zero("stage.pretrain.extend=[{row_tokens: 512}]"),
        ("model.rope_factor: got 1", "must be above 1"),
    ),
    Case(
        "rows of context extension beyond the model's context",
        r1_zero("model.rope_factor=4", "stage.pretrain.extend=[{row_tokens: 1024}]"),
        ("stage.pretrain.extend.row_tokens: got 1024", "at most model.max_position_embeddings=512"),
    ),
    Case(
        "responses of no tokens from some step on",
        r1_zero("stage.grpo.max_tokens={values: [64, 0], until: [80]}"),
        ("stage.grpo.max_tokens", "must be at least 1"),
    ),
    Case(
        "data of another job",
        r1_zero("data=chats", "data.chats_file=README.md"),
        ("data: got 'ChatsConfig'", "must be reasoning_gym"),
    ),
    Case(
        "rows longer than the model's context",
        r1_zero("stage.pretrain.row_tokens=513"),
        ("stage.pretrain.row_tokens: got 513", "at most model.max_position_embeddings=512"),
    ),
    Case(
        "responses that fill the context",
        r1_zero("stage.evaluate.max_tokens=256"),
        ("stage.evaluate.max_tokens: got 256", "engine.rollout.max_model_len=256"),
    ),
    Case(
        "sampler's context beyond the model's",
        r1_zero("engine.rollout.max_model_len=1024"),
        ("engine.rollout.max_model_len: got 1024", "model.max_position_embeddings=512"),
    ),
    Case("unknown reward", r1_zero("reward=ruel"), ("reward: got 'ruel'", "did you mean 'rule'?")),
    Case(
        "accuracy that is no reward of the run",
        r1_zero("stage.evaluate.accuracy=acuracy"),
        ("stage.evaluate.accuracy: got 'acuracy'", "accuracy, format"),
    ),
    Case(
        "temperature that no sampler takes",
        r1_zero("stage.evaluate.temperature=-1"),
        ("stage.evaluate.temperature: got -1", "0 to 2 (0: greedy)"),
    ),
    Case(
        "many responses that are all alike",
        r1_zero("stage.evaluate.temperature=0"),
        ("stage.evaluate.k: got 16", "must be 1 at temperature 0"),
    ),
    Case("top-p above 1", r1_zero("stage.evaluate.top_p=7"), ("stage.evaluate.top_p: got 7", "at most 1")),
    Case("top-p of nothing", r1_zero("stage.evaluate.top_p=0"), ("stage.evaluate.top_p: got 0", "above 0")),
    Case(
        "negative number of prompts",
        r1_zero("stage.evaluate.max_prompts=-1"),
        ("stage.evaluate.max_prompts: got -1", "must be at least 0"),
    ),
    Case(
        "tokenizer of no documents",
        r1_zero("stage.tokenizer.train_documents=0"),
        ("stage.tokenizer.train_documents: got 0", "at least 1"),
    ),
    Case("share above 1", r1_zero("data.styles.template_share=2"), ("data.styles.template_share: got 2", "0 to 1")),
    Case("negative CPUs", r1_zero("cluster.rollout_cpus=-1"), ("cluster.rollout_cpus: got -1", "at least 0")),
    Case("GPUs that do nothing", r1_zero("cluster.gpu_tflops=0"), ("cluster.gpu_tflops: got 0", "above 0")),
    Case(
        "task without worked solutions",
        r1_zero("data.tasks.chain_summ={}"),
        ("data.tasks.chain_summ", "did you mean 'chain_sum'?", "worked solutions exist for basic_arithmetic"),
    ),
    Case(
        "unknown task",
        r1_zero("data.tasks.lego_chain={}", "data.documents_files=[{tmp}/corpus.jsonl]"),
        ("data.tasks.lego_chain", "must name a reasoning-gym data set"),
    ),
    Case(
        "prompt of a task without a verifier",
        own_prompts(),
        ("prompt one: task: got 'chain_summ'", "did you mean 'chain_sum'?", "one of math_tasks"),
        prompt_files(json.dumps({"id": "one", "prompt": "What is 1 + 2?", "answer": "3", "task": "chain_summ"})),
    ),
    Case("missing data file", own_prompts(), ("{tmp}/train.jsonl: got 'no such file'",), prompt_files(None)),
    Case("empty data file", own_prompts(), ("{tmp}/train.jsonl: got 'an empty file'",), prompt_files("")),
    Case(
        "corrupt data file",
        own_prompts(),
        ("{tmp}/train.jsonl:2", "is not JSON"),
        prompt_files(GOOD + '{"id": "two", "prom'),
    ),
    Case(
        "data file without answers",
        own_prompts(),
        ("{tmp}/train.jsonl:1: got 'columns id, prompt, anwser'", "did you mean 'anwser'?", "data.columns={answer:"),
        prompt_files(json.dumps({"id": "one", "prompt": "What is 1 + 2?", "anwser": "3"})),
    ),
    Case(
        "data file that names a prompt twice",
        own_prompts(),
        ("{tmp}/train.jsonl:2: id: got 'one'", "first used at {tmp}/train.jsonl:1"),
        prompt_files(GOOD + GOOD),
    ),
    Case("only one of two data files", r1_zero("data.train_prompts_file=x"), ("data.train_prompts_file", "goes with")),
    Case(
        "held-out prompt among the train prompts",
        own_prompts(),
        ("held-out prompt", "also in the train prompts"),
        prompt_files(GOOD, prompt_line("other", "What is 1 + 2?")),
    ),
    Case(
        "prompt longer than the context",
        own_prompts(),
        ("{tmp}/train.jsonl: prompt long: tokens", "must be at most 192", "256"),
        prompt_files(GOOD + prompt_line("long", "one and " * 200)),
    ),
    Case(
        "tokenized prompt longer than the context",
        own_prompts(),
        ("{tmp}/heldout.jsonl: prompt long: tokens: got 'at least 193'",),
        prompt_files(GOOD, prompt_line("long", "What?", token_ids=[5] * 193)),
    ),
    Case(
        "prompt that asks for a reward that the run lacks",
        own_prompts(),
        ("prompt one: rewards: got 'acuracy'", "did you mean 'accuracy'?"),
        prompt_files(prompt_line("one", "What is 1 + 2?", rewards=["acuracy"])),
    ),
    Case("no conversations", ("run", "job=sft", "base={tmp}/base"), ("data.chats_file: got None",), sft_files()),
    Case("no base", ("run", "job=sft", "data.chats_file={tmp}/chats.jsonl"), ("base: got None",), sft_files(CHAT)),
    Case("base of a job that makes its own", r1_zero("base={tmp}"), ("base: got '{tmp}'", "must be left out")),
    Case(
        "no such conversations", sft("data.chats_file={tmp}/chat.jsonl"), ("did you mean 'chats.jsonl'",), sft_files()
    ),
    Case("no such base", sft("base={tmp}/bases"), ("{tmp}/bases/config.json: got 'no such file'",), sft_files(CHAT)),
    Case(
        "base of another model",
        sft(),
        ("model: got 'v3_tiny'", "config.json says qwen2"),
        sft_files(model_type="qwen2"),
    ),
    Case(
        "bad conversation",
        sft(),
        ("{tmp}/chats.jsonl:2: messages", "a role and a content"),
        sft_files(CHAT, '{"messages": ["hi"]}'),
    ),
    Case(
        "all conversations set apart",
        sft("data.validation_chats=1"),
        ("data.validation_chats", "less than the 1"),
        sft_files(CHAT),
    ),
    Case(
        "warm-up as long as fine-tuning",
        sft("stage.sft.warmup_steps=1"),
        ("stage.sft.warmup_steps", "the 1 steps"),
        sft_files(CHAT),
    ),
    Case("full disk", run(), ("{tmp}/runs/toy", "the disk is full"), full_disk("runs/toy/config.json.tmp")),
    Case("report on a full disk", ("report", "{tmp}/runs/toy"), ("No space left",), full_disk("runs/toy/report.tmp")),
    Case("unwritable output folder", run("runs_dir=/sys/runs"), ("/sys/runs", "that can be made and written")),
    Case("run name that no file may have", run(f"run={'a' * 300}"), ("run: got 'aaa", "at most 100")),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    finished_run(tmp_path)
    case.prepare(tmp_path)
    before = snapshot(tmp_path)
    capfd.readouterr()
    code = main([item.replace("{tmp}", str(tmp_path)) for item in case.command])
    out, err = capfd.readouterr()
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("framework: ")
    for part in case.says:
        assert part.replace("{tmp}", str(tmp_path)) in err
    assert snapshot(tmp_path) == before


def test_names_of_the_cases_differ() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


def finished_run(tmp: Path) -> None:
    """Put the toy job's run directory there, as a run of the unchanged configuration leaves it."""
    from framework.config import compose

    config = compose([item.replace("{tmp}", str(tmp)) for item in TOY], TOY_CONF)
    Store(config.run_dir).open_run(to_plain(config))
    (config.run_dir / "artifacts").mkdir()


def snapshot(tmp: Path) -> dict[str, str]:
    """Every path under `tmp` with a hash of its content."""
    return {
        os.path.relpath(path, tmp): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "directory"
        for path in sorted(tmp.rglob("*"))
    }
