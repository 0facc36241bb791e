"""Bad settings and command lines, row by row. See tests/unit/bad_input.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.bad_input import GOOD, TOY, Case, check_case, own_prompts, prompt_files, r1_zero, run, write

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
    Case("a bracket that is not quoted", run("run=(a"), ("override: got 'run=(a'", "in quotes, twice: 'run=\"(a\"'")),
    Case("an equals sign that is not quoted", run("run=a=b"), ("'run=a=b'", "in quotes, twice: 'run=\"a=b\"'")),
    Case("a tilde that is not quoted", run("run=~x"), ("'run=~x'", "in quotes, twice: 'run=\"~x\"'")),
    Case("a home that no shell fills in", r1_zero("base=~/model"), ("write base=$HOME/model",)),
    Case("a key with a hole in it", run("stage..lr=1"), ("override: got 'stage..lr=1'", "reads key=value")),
    Case("a key that ends in a dot", run("stage.train.=1"), ("got 'stage.train.=1'", "reads key=value")),
    Case("no key", run("=5"), ("override: got '=5'", "reads key=value")),
    Case("an integer of 5,000 digits", run(f"seed={'9' * 5000}"), ("seed: got 'an integer of 5000 digits'", "64 bits")),
    Case("digits of another script", run("seed=１"), ("override: got 'seed=１'", "in quotes")),
    Case("Hydra's own settings", run("hydra.run.dir=x"), ("override: got 'hydra.run.dir=x'", "no effect here")),
    Case("an option outside its group", run("model=../model/v3_tiny"), ("model: got '../model/v3_tiny'", "v3_tiny,")),
    Case("an interpolation of itself", run("seed=${seed}"), ("seed: got None", "Recursive")),
    Case("truth for a count", r1_zero("stage.grpo.steps=true"), ("stage.grpo.steps: got True; must be an integer",)),
    Case("a list for a count", r1_zero("stage.grpo.steps=[1,2]"), ("stage.grpo.steps: got [1, 2]; must be an int",)),
    Case("a mapping for a count", r1_zero("stage.grpo.steps={a:1}"), ("stage.grpo.steps: got {'a': 1}",)),
    Case("nothing for a count", r1_zero("stage.grpo.steps=null"), ("stage.grpo.steps: got None; must be an int",)),
    Case("an infinite count", r1_zero("stage.grpo.steps=1e400"), ("stage.grpo.steps: got inf; must be an integer",)),
    Case("more than 64 bits", r1_zero("stage.grpo.steps=99999999999999999999"), ("'an integer of 67 bits'",)),
    Case("nan for a rate", r1_zero("algorithm.kl_coef=nan"), ("algorithm.kl_coef: got nan; must be a finite number",)),
    Case("nan for a time", r1_zero("reward.time_limit_s=nan"), ("reward.time_limit_s: got nan", "finite")),
    Case(
        "an endless time", r1_zero("reward.time_limit_s=1e30"), ("reward.time_limit_s: got 1e+30", "at most 31536000")
    ),
    Case("a seed below 0", run("seed=-1"), ("seed: got -1; must be 0 to 4294967295",)),
    Case("no group of stages", r1_zero("stage=[]"), ("stage=[]", "configuration: got")),
    Case("a stage taken away", r1_zero("~stage.grpo"), ("stage.grpo: got None", "must be given")),
    Case("all stages taken away", r1_zero("~stage"), ("stage.grpo: got None", "must be given")),
    Case("no learner", r1_zero("engine.learner=null"), ("engine.learner: got None; must be given",)),
    Case("no sampler", r1_zero("engine.rollout=null"), ("engine.rollout: got None; must be given",)),
    Case("no rewards", own_prompts("~reward"), ("reward: got None; must be given",), prompt_files(GOOD)),
    Case("a module for a job", run("job._target_=jobs.r1_zero"), ("job._target_: got 'jobs.r1_zero'", "a function")),
    Case("a misspelt plug-in", run("plugins=[tests.unit,tsts]"), ("plugins: got 'tsts'", "must be a module in")),
    Case("a number for a plug-in", run("plugins=[1]"), ("plugins: got '1'", "must be a module in")),
    Case("no list of plug-ins", run("plugins=tests"), ("plugins: got 'tests'; must be a list",)),
    Case(
        "64 workers on two cores",
        r1_zero("cluster.rollout_workers=64"),
        ("cluster.rollout_workers: got 64", "cluster.cpus=2 can carry 8 at most"),
    ),
    Case(
        "64 workers that book nothing",
        r1_zero("cluster.rollout_workers=64", "cluster.rollout_cpus=0"),
        ("cluster.rollout_workers: got 64", "cluster.cpus=2 can carry 8 at most"),
    ),
    Case("64 ranks of pretraining", r1_zero("stage.pretrain.workers=64"), ("stage.pretrain.workers: got 64", "most 8")),
    Case(
        "a machine that says it has 4,000 cores",
        run("run=other", "cluster.cpus=4000", "cluster.rollout_workers=64"),
        ("cluster.cpus: got 4000", "this machine has"),
    ),
    Case("no address", run("cluster.ray_address=head"), ("cluster.ray_address: got 'head'; must be host:port",)),
    Case(
        "more memory than there is",
        run("cluster.object_store_gib=1e12"),
        ("cluster.object_store_gib: got 1000000000000",),
    ),
    Case(
        "a template that is no chat template",
        r1_zero("template.name={tmp}/a.jinja"),
        ("template.name: got '{tmp}/a.jinja'", "it never reads `messages`"),
        write("a.jinja", "hello {{ bos_token }}"),
    ),
    Case(
        "a template that is no jinja",
        r1_zero("template.name={tmp}/a.jinja"),
        ("template.name: got '{tmp}/a.jinja'", "is not jinja: line 2"),
        write("a.jinja", "{{ messages }}\n{% for %}"),
    ),
    Case(
        "a variable that the template does not read",
        r1_zero("template.name=r1", "template.variables={colour: red}"),
        ("template.variables.colour: got 'red'", "reads no such name"),
    ),
    Case("the kernel's files", run("runs_dir=/proc/self"), ('/proc/self/toy: got "the kernel\'s own files"',)),
    Case(
        "a link in a circle",
        run("runs_dir={tmp}/round"),
        ("{tmp}/round: got 'a link that leads nowhere or in a circle'",),
        lambda tmp: (tmp / "round").symlink_to(tmp / "round"),
    ),
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
    Case(
        "edge from a directory that is no checkpoint",
        run("job._target_=tests.unit.toy_graph.build_on_base", "stage.train.base={tmp}/nope"),
        ("{tmp}/nope", "a Checkpoint needs config.json"),
    ),
    Case(
        "tokenizer larger than the model's vocabulary",
        r1_zero("stage.tokenizer.vocab_size=513"),
        ("stage.tokenizer.vocab_size: got 513", "at most model.vocab_size=512"),
    ),
    Case(
        "minibatches that do not divide the steps",
        r1_zero("stage.grpo.steps=10"),
        ("stage.grpo.minibatches_per_rollout: got 4", "must divide steps=10: 1, 2, 5, 10"),
    ),
    Case(
        "reference resets between two batches",
        r1_zero("algorithm.reference_reset_steps=6"),
        ("algorithm.reference_reset_steps: got 6", "0 (never)", "minibatches_per_rollout=4: 4, 8"),
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
        ("model.num_nextn_predict_layers: got 1", "unknown key"),
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
        r1_zero("data=chats", "data.train=README.md"),
        ("data: got 'chats'", "options: bilingual, domains, reasoning_gym"),
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
    Case(
        "rewards of which none weighs",
        r1_zero("reward.components.accuracy.weight=0", "reward.components.format.weight=0"),
        ("weight of reward.components: got 0", "one of accuracy, format must weigh"),
    ),
    Case("unknown reward", r1_zero("reward=ruel"), ("reward: got 'ruel'", "did you mean 'rule'?")),
    Case(
        "accuracy that is no reward of the run",
        r1_zero("stage.evaluate.right_by=[acuracy]"),
        ("stage.evaluate.right_by: got 'acuracy'", "accuracy, format"),
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
    Case(
        "temperature that vLLM would raise in silence",
        r1_zero("stage.grpo.temperature=0.001"),
        ("stage.grpo.temperature: got 0.001", "0.01 to 2"),
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
    Case("only one of two data files", r1_zero("data.train_prompts_file=x"), ("data.train_prompts_file", "goes with")),
    Case("base of a job that makes its own", r1_zero("base={tmp}"), ("base: got '{tmp}'", "must be left out")),
    Case("run name that no file may have", run(f"run={'a' * 300}"), ("run: got 'aaa", "at most 100")),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    check_case(case, tmp_path, capfd)
