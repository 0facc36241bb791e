"""Text stages: documents and tokens a second, memory a worker; beside datatrove's pipeline where that is installed."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from framework.actors.ray_session import ray_session
from framework.data.cleaning import CleanConfig
from framework.data.shards import read_meta
from framework.data.text.token_steps import TokenizeConfig
from framework.data.tokenizer_training import TokenizerConfig
from framework.graph.cluster import ClusterConfig
from framework.graph.nodes import Runtime
from framework.graph.runner import NullTracker
from framework.stages.clean import Clean, CleanInputs
from framework.stages.collect import NoInputs
from framework.stages.documents import CollectDocuments, DocumentsConfig
from framework.stages.tokenizer import Tokenize, TokenizeInputs, TokenizerInputs, TrainTokenizer
from jobs.bench._common import report

WORDS, FILES = 30_000, 8
SHARD_MB = 2
TICK_S = 0.01  # a process's times are told in these
EXACT, NEAR = 0.1, 0.1  # shares of documents that are copies
PEER = """
import resource, sys, time
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import *
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
source, work, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
config = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
run = lambda name, tasks, *steps: LocalPipelineExecutor(
    pipeline=list(steps), tasks=tasks, workers=min(workers, tasks), logging_dir=f"{work}/logs/{name}").run()
begin = time.time()
run("signature", 8, JsonlReader(source), MinhashDedupSignature(output_folder=f"{work}/signatures", config=config))
run("buckets", 14, MinhashDedupBuckets(f"{work}/signatures", f"{work}/buckets", config=config))
run("cluster", 1, MinhashDedupCluster(f"{work}/buckets", f"{work}/remove", config=config))
run("filter", 8, JsonlReader(source), MinhashDedupFilter(f"{work}/remove"), JsonlWriter(f"{work}/kept"))
used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print("seconds", time.time() - begin, sum(times.ru_utime + times.ru_stime for times in used))
"""


def main(argv: list[str]) -> int:
    """Print and store the rates."""
    os.environ["RAYON_NUM_THREADS"] = "1"  # of `tokenizers`: a worker is a core
    parser = argparse.ArgumentParser("framework bench text", description=__doc__)
    parser.add_argument("--documents", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--words", type=int, default=200, help="of a document")
    parser.add_argument("--peer", help="where `pip install --target` has put datatrove, spacy, orjson, xxhash<4")
    options = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    for documents in options.documents:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "corpus"
            size = _write_corpus(source, documents, options.words)
            for workers in options.workers:
                where = Path(folder) / f"run{workers}"
                with ProcessPoolExecutor(1, get_context("spawn")) as fresh:  # memory is not what came before it
                    rows += fresh.submit(_ours, source, where, documents, size, workers).result()
                if options.peer:
                    rows.append(_peer(source, Path(folder) / f"peer{workers}", documents, workers, options.peer))
    notes = {"words a document": options.words, "exact copies": EXACT, "near copies": NEAR, "files": FILES}
    notes |= {"MiB a shard": SHARD_MB}
    report("text", rows, notes)
    return 0


def _write_corpus(directory: Path, documents: int, length: int) -> int:
    """Documents of words as rare as words are (Zipf), some of them copies; returns their bytes."""
    rng, kept = random.Random(0), list[str]()
    directory.mkdir()
    words = ["".join(rng.choices("etaoinshrdlucmfwyp", k=rng.randint(2, 9))) for _ in range(WORDS)]
    totals = list(itertools.accumulate(1 / rank for rank in range(1, WORDS + 1)))
    for file in range(FILES):
        with (directory / f"{file}.jsonl").open("w") as handle:
            for _ in range(documents // FILES):
                draw = rng.random()
                if kept and draw < EXACT + NEAR:
                    text = rng.choice(kept)
                    text = text if draw < EXACT else f"{text} again"
                else:
                    text = " ".join(rng.choices(words, cum_weights=totals, k=length))
                    if len(kept) < 5000:
                        kept.append(text)
                handle.write(json.dumps({"text": text}) + "\n")
    return sum(file.stat().st_size for file in directory.iterdir())


def _ours(source: Path, directory: Path, documents: int, size: int, workers: int) -> list[dict[str, Any]]:
    cluster = ClusterConfig(cpus=workers)

    def runtime(name: str) -> Runtime:
        return Runtime(name, directory / name, directory / f"{name}-out", 0, cluster, NullTracker(), lambda: False)

    with contextlib.ExitStack() as stack:
        if workers > 1:
            stack.enter_context(ray_session(cluster))
        config = DocumentsConfig(str(source), shard_mb=SHARD_MB)
        with _measured() as read:
            text = CollectDocuments(config).run(NoInputs(), runtime("documents")).text
        with _measured() as clean:
            cleaned = Clean(CleanConfig()).run(CleanInputs(text), runtime("clean")).text
        train = TrainTokenizer(TokenizerConfig(vocab_size=8000, train_documents=2000), 512, 8000)
        tokenizer = train.run(TokenizerInputs(cleaned), runtime("tokenizer")).tokenizer
        with _measured() as encode:
            inputs = TokenizeInputs(cleaned, tokenizer)
            shards = Tokenize(TokenizeConfig(fim_rate=0.1)).run(inputs, runtime("tokenize")).shards
    tokens, rows = read_meta(shards.path).tokens("train"), list[dict[str, Any]]()
    for name, found in (("read", read), ("clean", clean), ("tokenize", encode)):
        row = {"stage": name, "documents": documents, "workers": workers, "documents/s": documents / found["seconds"]}
        row |= {"documents/core-s": documents / found["core_seconds"], "MB/core-s": size / found["core_seconds"] / 1e6}
        row |= {"MiB a worker": found["bytes"] / 2**20}
        rows.append(row | ({"tokens/core-s": tokens / found["core_seconds"]} if name == "tokenize" else {}))
    return rows


@contextlib.contextmanager
def _measured() -> Iterator[dict[str, float]]:
    """Seconds of a block, also of processors, and the most memory of its own that any of its workers had meanwhile."""
    import psutil

    found, ended = {"seconds": 0.0, "bytes": 0.0, "core_seconds": 0.0}, threading.Event()
    this = psutil.Process()
    spent = dict[int, float]()  # by process: workers come and go

    def look(process: psutil.Process) -> None:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            spent[process.pid] = times.user + times.system
            found["bytes"] = max(found["bytes"], process.memory_full_info().uss)

    def watch() -> None:
        while not ended.wait(0.2):
            for process in _workers(this):
                look(process)

    for process in _workers(this):
        look(process)
    before, found["bytes"] = dict(spent), 0.0
    watcher, begin = threading.Thread(target=watch), time.perf_counter()
    watcher.start()
    try:
        yield found
    finally:
        found["seconds"] = time.perf_counter() - begin
        ended.set()
        watcher.join()
        for process in _workers(this):
            look(process)
        found["core_seconds"] = max(TICK_S, sum(seconds - before.get(pid, 0.0) for pid, seconds in spent.items()))


def _workers(this: Any) -> list[Any]:
    """Ray's workers; without any, this process and the one beside it do the work."""
    import psutil

    found: dict[str, list[Any]] = {"ray::": [], "framework.data.text.beside": [this]}
    for child in this.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            for name, processes in found.items():
                if name in " ".join(child.cmdline()[:4]):
                    processes.append(child)
    return next(filter(None, found.values()))


def _peer(source: Path, work: Path, documents: int, workers: int, folder: str) -> dict[str, Any]:
    """Near duplicates alone, which is all that its own pipeline has in common with ours."""
    environment = {**os.environ, "PYTHONPATH": folder}
    command = [sys.executable, "-c", PEER, str(source), str(work), str(workers)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    seconds, core_seconds = map(float, done.stdout.split()[-2:])
    row = {"stage": "datatrove: minhash", "documents": documents, "workers": workers}
    row["documents/s"] = documents / seconds
    # of several workers the seconds belong to a fork server that nobody waits for
    return row | ({"documents/core-s": documents / core_seconds} if workers == 1 else {})
