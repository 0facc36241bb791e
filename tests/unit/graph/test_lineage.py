"""`framework lineage`: from an artifact back to raw text, across runs, past what is damaged or gone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from framework import cli
from framework.artifacts import MANIFEST, Artifact, Checkpoint, PromptSet, TextSet, TokenizerDir, write_manifest
from framework.convert import to_plain
from framework.graph.code import code_version
from framework.graph.lineage import Origin, Step, describe, find_artifact, walk
from framework.graph.nodes import Graph, Node
from framework.graph.settings import beyond_defaults
from framework.graph.store import Store
from framework.stages.clean import Clean, CleanConfig
from framework.targets import TargetResolver
from tests.unit.toy_graph import Model, Texts, Train, Write

RESOLVE = TargetResolver()


def make(
    run_dir: Path, stage: str, output: str, type_: type[Artifact], content: str = "", **inputs: Artifact
) -> Artifact:
    """An artifact as a stage leaves it, of settings that say one thing beyond their defaults."""
    path = run_dir / "artifacts" / f"{stage}-{'0' * 12}" / output
    path.mkdir(parents=True)
    for name in type_.required:
        (path / name).write_text(content or f'{{"made by": "{stage}"}}\n')
    contents = {name: one.manifest().content_hash for name, one in inputs.items()}
    counts = {"train": 5.0, "dropped": 7.0, "dropped.near": 3.0, "dropped.exact": 4.0} if type_ is TextSet else {}
    plain = to_plain(Clean(CleanConfig(exact=False)))
    write_manifest(type_(path), f"a.module.{stage.title()}", plain, contents, "c0de", counts)
    return type_(path)


def chain(run_dir: Path) -> dict[str, Artifact]:
    """collect -> clean -> base -> policy, and a tokenizer beside the text that the base is made of."""
    text = make(run_dir, "collect", "text", TextSet)
    prompts = make(run_dir, "collect", "prompts", PromptSet)
    clean = make(run_dir, "clean", "text", TextSet, text=text, prompts=prompts)
    tokenizer = make(run_dir, "tokenizer", "tokenizer", TokenizerDir, text=clean)
    base = make(run_dir, "base", "base", Checkpoint, text=clean, tokenizer=tokenizer)
    policy = make(run_dir, "grpo", "policy", Checkpoint, base=base, prompts=prompts)
    return {"text": text, "clean": clean, "base": base, "policy": policy, "prompts": prompts}


def names(artifact: Path, runs_dir: Path = Path("nowhere")) -> list[str]:
    return [step.name if isinstance(step, Step) else step.where for step in walk(artifact, runs_dir)]


def told(artifact: Path) -> str:
    return "\n".join(describe(artifact, RESOLVE, artifact))


def test_each_stage_stands_once_after_all_that_used_it(tmp_path: Path) -> None:
    made = chain(tmp_path / "one")
    assert names(made["policy"].path) == ["grpo", "base", "tokenizer", "clean", "collect"]
    assert names(made["clean"].path) == ["clean", "collect"]
    collect = walk(made["policy"].path)[-1]
    assert isinstance(collect, Step)
    assert set(collect.outputs) == {"text", "prompts"}
    assert not collect.damage
    text = told(made["policy"].path)
    for line in (
        "grpo (a.module.Grpo)",
        f"  input     base: {made['base'].manifest().content_hash[:12]}, base",
        f"  output    policy: Checkpoint, content {made['policy'].manifest().content_hash[:12]}",
        "  kept      train 5",
        "  dropped   7: exact 4, near 3",
        "  code      c0de",
        "  settings  exact=false",
    ):
        assert line in text.splitlines(), text


def test_an_artifact_is_named_by_its_directory_its_stage_its_run_or_an_export(tmp_path: Path) -> None:
    made, runs = chain(tmp_path / "one"), tmp_path
    policy = made["policy"].path
    for name in (str(policy), str(policy.parent), str(policy / MANIFEST), str(tmp_path / "one"), "one"):
        assert find_artifact(name, runs_dir=runs).resolve() == policy.resolve()
    export = tmp_path / "one" / "state" / policy.parent.name / "exports" / "step_000003"
    export.mkdir(parents=True)
    (export / "config.json").write_text("{}")
    assert find_artifact("one", 3, runs_dir=runs) == find_artifact(str(export), runs_dir=runs) == export
    assert names(export)[0] == "grpo"
    copied = tmp_path / "copied"
    shutil.copytree(policy, copied)
    assert names(find_artifact(str(copied)), runs) == ["copied", "base", "tokenizer", "clean", "collect"]
    unfinished = tmp_path / "one" / "state" / "later-000000000000" / "exports" / "step_000003"
    shutil.copytree(export, unfinished)
    with pytest.raises(cli.UserError, match="is of stage later, which has not finished"):
        walk(unfinished)


def test_of_equal_contents_the_one_of_the_stage_that_made_the_rest_is_meant(tmp_path: Path) -> None:
    run = tmp_path / "one"
    text = make(run, "collect", "text", TextSet)
    for stage in ("first", "second"):
        make(run, stage, "tokenizer", TokenizerDir, "the same", text=text)
        make(run, stage, "text", TextSet, text=text)
    shelf = [Artifact(run / "artifacts" / f"second-{'0' * 12}" / name) for name in ("tokenizer", "text")]
    model = make(run, "train", "base", Checkpoint, tokenizer=shelf[0], text=shelf[1])
    assert names(model.path) == ["train", "second", "collect"]
    same = make(run, "again", "base", Checkpoint, base=model, content=(model.path / "config.json").read_text())
    assert same.manifest().content_hash == model.manifest().content_hash
    assert names(same.path) == ["again", "train", "second", "collect"]


def test_what_is_damaged_or_gone_is_said_and_the_walk_goes_on(tmp_path: Path) -> None:
    made = chain(tmp_path / "one")
    (made["base"].path / "config.json").write_text("{}")
    lost = made["text"].manifest().content_hash
    shutil.rmtree(made["text"].path.parent)
    steps = walk(made["policy"].path)
    base = next(step for step in steps if isinstance(step, Step) and step.name == "base")
    assert "the manifest says" in base.damage[0]
    gone = [step for step in steps if isinstance(step, Origin)]
    assert {step.content for step in gone} == {made["policy"].manifest().inputs["prompts"], lost}
    assert all(step.where.startswith("not found: deleted") for step in gone)
    for broken in ("{", "[]", '{"type": 1}', json.dumps({**vars(made["base"].manifest()), "inputs": []})):
        (made["base"].path / MANIFEST).write_text(broken)
        text = " ".join(told(find_artifact(str(tmp_path / "one"))).split())
        assert "cannot be read: " in text
        assert str(made["base"].path / MANIFEST) in text
        assert "grpo (a.module.Grpo)" in text


def test_what_was_taken_over_from_another_run_is_followed_into_that_run(tmp_path: Path) -> None:
    """As a run does: hard links to the other run's results, of which it may have only the last."""

    def committed(store: Store, node: Node, inputs: dict[str, str]) -> Node:
        building = store.begin(node, store.key(node, inputs, 0))
        (name, type_), *_ = node.output_types.items()
        (building / name).mkdir()
        for file in type_.required:
            (building / name / file).write_text('{"id": "0", "text": "2"}\n')
        store.commit(node, store.key(node, inputs, 0), node.outputs_type(type_(building / name)), inputs)
        return node

    graph = Graph()
    text = graph.add("write", Write(lines=6))
    model = graph.add("train", Train(), corpus=text.out("text"))
    first, second = Store(tmp_path / "first"), Store(tmp_path / "second")
    committed(first, text, {})
    written = first.outputs(text, first.key(text, {}, 0))
    assert isinstance(written, Texts)
    contents = {"corpus": written.text.manifest().content_hash}
    committed(first, model, contents)
    (tmp_path / "second").mkdir()
    assert second.adopt(model, second.key(model, contents, 0)) == tmp_path / "first"
    taken = second.outputs(model, second.key(model, contents, 0))
    assert isinstance(taken, Model)
    (train, write) = walk(taken.checkpoint.path)
    assert isinstance(train, Step)
    assert isinstance(write, Step)
    assert (train.run_dir, write.run_dir) == (tmp_path / "second", tmp_path / "first")
    assert write.made.code_version == code_version(Write(lines=6))
    text_told = told(taken.checkpoint.path)
    assert f"write (tests.unit.toy_graph.Write), in run {tmp_path / 'first'}" in text_told
    shutil.rmtree(tmp_path / "first")
    assert names(taken.checkpoint.path)[0] == "train"
    assert "not found: deleted" in told(taken.checkpoint.path)


def test_a_base_from_elsewhere_is_named_and_one_of_another_run_is_walked_into(tmp_path: Path) -> None:
    base = tmp_path / "given"
    base.mkdir()
    for name in Checkpoint.required:
        (base / name).write_text("{}")
    store = Store(tmp_path / "runs" / "mine")
    store.run_dir.mkdir(parents=True)
    policy = make(store.run_dir, "grpo", "policy", Checkpoint)
    manifest = json.loads((policy.path / MANIFEST).read_text())
    hashes = store.input_hashes({"base": Checkpoint(base)})
    (policy.path / MANIFEST).write_text(json.dumps(manifest | {"inputs": hashes}))
    assert names(policy.path) == ["grpo", f"from elsewhere: {base}"]
    other = chain(tmp_path / "far" / "other")
    inputs = {"base": other["base"].manifest().content_hash}
    (policy.path / MANIFEST).write_text(json.dumps(manifest | {"inputs": inputs}))
    assert names(policy.path)[1].startswith("not found")
    (store.run_dir / "config.json").write_text(json.dumps({"base": str(other["base"].path)}))
    assert names(policy.path) == ["grpo", "base", "tokenizer", "clean", "collect"]
    (store.run_dir / "config.json").write_text(json.dumps({"base": str(tmp_path / "far" / "other")}))
    assert names(policy.path) == ["grpo", "base", "tokenizer", "clean", "collect"]


def test_raw_files_are_named_with_what_they_held(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("raw")
    store = Store(tmp_path / "one")
    store.run_dir.mkdir()
    made = make(store.run_dir, "write", "text", TextSet)
    node = Graph().add("write", Write(source=tmp_path / "corpus.txt"))
    store.key(node, {}, 0)
    manifest = json.loads((made.path / MANIFEST).read_text())
    for named in (str(tmp_path / "corpus.txt"), "corpus.txt", "./corpus.txt", "corp*.txt", str(tmp_path)):
        config = {"config": {"documents": [named]}}
        (made.path / MANIFEST).write_text(json.dumps(manifest | {"config": config}))
        (step,) = walk(made.path)
        assert isinstance(step, Step)
        assert list(step.files) == [str(tmp_path / "corpus.txt")]
    assert f"  file      {tmp_path / 'corpus.txt'}: SHA-256 " in told(made.path)


def test_settings_are_those_beyond_the_defaults_of_their_classes() -> None:
    def beyond(value: object) -> dict[str, object]:
        return dict(beyond_defaults(json.loads(json.dumps(to_plain(value))), RESOLVE))

    assert beyond(Clean(CleanConfig())) == {}
    assert beyond(Clean(CleanConfig(exact=False, near_threshold=None))) == {"exact": False, "near_threshold": None}
    unknown = {"_target_": "my_stages.Mine", "config": {"_target_": "my_stages.MineConfig", "size": 3, "names": []}}
    assert dict(beyond_defaults(unknown, RESOLVE)) == {
        "_target_": "my_stages.MineConfig", "size": 3, "names": []}  # fmt: skip
    nested = {"_target_": "framework.stages.grpo.GrpoConfig", "steps": 3,
              "algorithm": {"_target_": "framework.objectives.grpo.Grpo", "clip_high": 10.0}}  # fmt: skip
    assert dict(beyond_defaults(nested, RESOLVE))["algorithm.clip_high"] == 10.0


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("oen", "artifact: got 'oen'; did you mean 'one'"),
        ("empty", "artifact: got 'empty'; has no manifest.json: no run made it"),
        ("runs/bare", "checkpoint: got 'runs/bare'; this run has no finished checkpoint yet"),
        ("x" * 5000, "cannot be read: File name too long"),
        ("~nobody-here/x", "cannot be read"),
        ("", "artifact: got ''"),
        ("damaged", "must be a manifest as the framework writes it"),
        ("runs/one/artifacts/collect-000000000000", "must be one of its outputs: prompts, text"),
    ],
)
def test_bad_input_is_one_line(
    name: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    chain(Path("runs/one"))
    Path("runs/bare/artifacts").mkdir(parents=True)
    for folder in ("empty", "damaged"):
        Path(folder).mkdir()
    (Path("damaged") / MANIFEST).write_bytes(b"\xff\xfe")
    assert cli.main(["lineage", name]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert len(err.splitlines()) == 1


def test_the_command_prints_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    chain(Path("runs/one"))
    assert cli.main(["lineage", "one"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("policy, the last stage first:")
    assert [line.split()[0] for line in lines if line.endswith(")")] == [
        "grpo",
        "base",
        "tokenizer",
        "clean",
        "collect",
    ]
    assert cli.main(["lineage", "one", "--step", "7"]) == 2
