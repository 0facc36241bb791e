"""Documents on which the process that works on them dies: each is left out and counted, and the run goes on."""

from __future__ import annotations

import json
import logging
import os
import signal
import struct
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from framework.artifacts import TextSet, read_listing
from framework.data.cleaning import CleanConfig
from framework.data.shards import read_meta
from framework.data.text import beside as beside_module
from framework.data.text.beside import Beside, Died, OneByOne
from framework.data.text.shard_files import Document, document_id, read_text, write_text
from framework.data.text.token_steps import TokenizeConfig
from framework.data.tokenizer_training import TokenizerConfig
from framework.errors import Stopped, UserError
from framework.stages.clean import Clean, CleanInputs
from framework.stages.collect import NoInputs
from framework.stages.documents import CollectDocuments, DocumentsConfig
from framework.stages.tokenizer import Tokenize, TokenizeInputs, TokenizerInputs, TrainTokenizer
from tests.beside import patch_beside
from tests.unit.data.text.test_web import page, record
from tests.unit.stages.test_collect import runtime

DEADLY = """
    import os, signal
    from framework.data.text import {module}

    def deadly({arguments}, ordinary={module}.{name}):
        if b"poison" in str({first}).encode():
            os.kill(os.getpid(), signal.SIGSEGV)
        return ordinary({arguments})

    {module}.{name} = deadly
"""


def text_set(directory: Path, poisoned: int, size: int = 200) -> TextSet:
    texts = [f"document {place} of many" for place in range(size)]
    texts[7 : 7 + poisoned] = [f"poison {place}" for place in range(poisoned)]
    documents = [Document(document_id("", text), text) for text in texts]
    write_text(directory / "text", {"train": documents, "validation": documents[:1]})
    return TextSet(directory / "text")


def die(how: int) -> None:
    os.kill(os.getpid(), how)


def test_a_call_returns_raises_or_says_how_its_process_ended() -> None:
    with Beside() as beside:
        assert beside.call(sorted, [2, 1]) == [1, 2]
        with pytest.raises(ZeroDivisionError):
            beside.call(divmod, 1, 0)
        with pytest.raises(Died, match="killed by SIGKILL"):
            beside.call(die, signal.SIGKILL)
        assert beside.call(os.getppid) == os.getpid()  # another one, and no more of this process than that


def test_a_call_that_is_given_up_does_not_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(connection: Connection) -> bytes:
        raise KeyboardInterrupt

    begin = time.monotonic()
    with Beside() as beside:
        beside.call(abs, 1)
        monkeypatch.setattr(Connection, "recv_bytes", interrupted)
        with pytest.raises(KeyboardInterrupt):
            beside.call(time.sleep, 600)
    assert time.monotonic() - begin < 300


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def stop_amid_the_answer() -> None:
    os.write(int(sys.argv[1]), struct.pack("!i", 100) + b"its beginning")
    stop()


def test_a_process_that_hangs_without_dying_is_taken_for_dead() -> None:
    with Beside(silent_s=3.0) as beside:
        assert beside.call(time.sleep, 5) is None  # one that works says so
        for hangs in (stop, stop_amid_the_answer):
            with pytest.raises(Died, match="no sign of life for 3 s"):
                beside.call(hangs)
        assert beside.call(abs, -1) == 1
        assert beside._process is not None
        os.kill(beside._process.pid, signal.SIGSTOP)
        with pytest.raises(Died, match="no sign of life for 3 s"):
            beside.call(len, b"x" * (1 << 24))  # more than a socket takes
        assert beside.call(abs, -1) == 1


def test_who_waits_for_a_call_may_give_it_up() -> None:
    def stopped() -> None:
        raise Stopped("asked to")

    begin = time.monotonic()
    with Beside(while_waiting=stopped) as beside, pytest.raises(Stopped):
        beside.call(time.sleep, 600)
    assert time.monotonic() - begin < 300


def test_a_document_that_takes_all_memory_is_an_error_of_its_own() -> None:
    with OneByOne() as beside, pytest.raises(MemoryError):
        beside.of("here", bytearray, 1 << 40)


def test_documents_that_kill_the_judge_are_counted_and_many_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = DEADLY.format(module="judge", name="scrub", arguments="text", first="text")
    patch_beside(tmp_path / "patch", monkeypatch, code)
    config = CleanConfig(exact=False, near_threshold=None, scrub=True)
    inputs = CleanInputs(text_set(tmp_path, poisoned=2))
    text = Clean(config).run(inputs, runtime(tmp_path)).text
    counts = {"train": 198, "validation": 1, "dropped": 2, "dropped.failed": 2}
    assert read_listing(text.path)[1] == counts
    samples = [json.loads(line) for line in (text.path / "dropped_samples.jsonl").open()]
    assert {(row["of"], row["text"]) for row in samples} == {("killed by SIGSEGV", f"poison {n}") for n in range(2)}
    assert not list((tmp_path / "work" / "judged").glob("begun-*"))
    monkeypatch.setattr(beside_module, "_MANY", 3)
    with pytest.raises(UserError, match=r"10: got '3 of 10 documents end the process .*SIGSEGV.*must be at most 10%"):
        Clean(config).run(CleanInputs(text_set(tmp_path / "many", poisoned=3)), runtime(tmp_path / "many"))


def test_documents_that_kill_the_tokenizer_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    text = text_set(tmp_path, poisoned=1)
    run = runtime(tmp_path)
    tokenizer = TrainTokenizer(TokenizerConfig(vocab_size=300), 64, 300).run(TokenizerInputs(text), run).tokenizer
    whole = Tokenize().run(TokenizeInputs(text, tokenizer), runtime(tmp_path / "whole")).shards
    code = DEADLY.format(module="token_steps", name="cut_for_fim", arguments="text, rate, key", first="text")
    patch_beside(tmp_path / "patch", monkeypatch, code)
    config = TokenizeConfig(fim_rate=1e-9)
    with caplog.at_level(logging.WARNING):
        shards = Tokenize(config).run(TokenizeInputs(text, tokenizer), runtime(tmp_path / "cut")).shards
    assert read_listing(shards.path)[1]["dropped.failed"] == 1
    assert "1 of 201 documents can't be encoded and were left out; the first" in caplog.text
    assert "train-00000.jsonl:8: got 'Died: killed by SIGSEGV'" in caplog.text
    lost = read_meta(whole.path).tokens("train") - read_meta(shards.path).tokens("train")
    assert 3 <= lost <= len("poison 0") + 2
    patch_beside(
        tmp_path / "patch",
        monkeypatch,
        code.replace("os.kill(os.getpid(), signal.SIGSEGV)", "raise BaseException('panic')"),
    )
    shards = Tokenize(config).run(TokenizeInputs(text, tokenizer), runtime(tmp_path / "panic")).shards
    assert read_listing(shards.path)[1]["dropped.failed"] == 1


def test_a_page_that_kills_its_reader_is_counted_and_a_row_of_a_table_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bodies = [page(f"The harbour number {place} is old.") for place in range(120)]
    bodies[40] = page("poison")
    records = (record(number, body.encode()) for number, body in enumerate(bodies))
    (tmp_path / "crawl.warc").write_bytes(b"".join(records))
    code = DEADLY.format(module="warc", name="_text", arguments="content, charset", first="content")
    patch_beside(tmp_path / "patch", monkeypatch, code)
    with caplog.at_level(logging.WARNING):
        config = DocumentsConfig(str(tmp_path / "crawl.warc"), validation_documents=1)
        text = CollectDocuments(config).run(NoInputs(), runtime(tmp_path)).text
    assert read_listing(text.path)[1] == {"train": 118, "validation": 1, "dropped": 1, "dropped.not_a_document": 1}
    assert "crawl.warc: row 41: got 'a page that ends the process which unpacks it'" in caplog.text
    numbers = {document.text.split("number ")[1].split()[0] for document in read_text(text.path, "train")}
    assert {"39", "41"} <= numbers | {next(read_text(text.path, "validation")).text.split("number ")[1].split()[0]}
    (tmp_path / "rows.csv").write_text("text\n" + "".join(f"row {place}\n" for place in range(9)) + "poison\n")
    code = DEADLY.format(module="pieces", name="text_in", arguments="row, columns, key", first="row")
    patch_beside(tmp_path / "patch", monkeypatch, code)
    with pytest.raises(UserError, match=r"rows\.csv: row 10: got 'killed by SIGSEGV'; must be a row that does not"):
        CollectDocuments(DocumentsConfig(str(tmp_path / "rows.csv"))).run(NoInputs(), runtime(tmp_path / "table"))
