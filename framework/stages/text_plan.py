"""What the text stages of a pretraining come to: documents, tokens, hours on the cluster's cores, disk."""

from __future__ import annotations

from framework.data.cleaning import CleanConfig
from framework.data.text.duplicates import EXACT, MinHash
from framework.graph.cluster import ClusterConfig

TOKENS_A_DOCUMENT = 1000  # of the web: FineWeb has 15T tokens in 22B documents before its global look for copies
BYTES_A_TOKEN = 4.3  # of UTF-8, in English with a vocabulary of 128K
# Measured on one core of a Xeon (jobs/bench/LOG.md, "Text"): bytes a second of each part, tokens a second of the last.
READ, COPY, EXACT_COPIES, NEAR_COPIES, LANGUAGE, GOPHER = 28e6, 58e6, 70e6, 7.1e6, 12e6, 2.7e6
TOKENS = 0.63e6


def text_notes(tokens: int, clean: CleanConfig, cluster: ClusterConfig, reading: str) -> dict[str, str]:
    """Return node -> a line on what it takes to make `tokens` of text, for those that take a core an hour.

    `reading` is the node that reads the corpus. Nothing is dropped in this reckoning.
    """
    documents, size = tokens // TOKENS_A_DOCUMENT, tokens * BYTES_A_TOKEN
    scratch, per_byte = size, 1 / COPY
    if clean.exact:
        scratch += documents * EXACT.itemsize
        per_byte += 1 / EXACT_COPIES
    if clean.near_threshold is not None:
        minhash = MinHash(clean.permutations, clean.shingle_words, clean.near_threshold)
        scratch += documents * minhash.bands[0] * minhash.dtype.itemsize
        per_byte += 1 / NEAR_COPIES
    per_byte += (1 / LANGUAGE if clean.languages else 0) + (1 / GOPHER if clean.gopher else 0)
    costs = {
        reading: (size / READ, size, size),
        "clean": (size * per_byte, size, scratch),
        "tokenize": (tokens / TOKENS, 4.0 * tokens, 0.0),
    }
    return {
        kind: f"{tokens / 1e9:,.3f} B tokens in about {documents:,} documents: {_hours(seconds, cluster)}, "
        f"{_bytes((size + result) * cluster.cpus / seconds)} a second of disk; "
        f"{_bytes(result)} of result, {_bytes(work)} of work beside it"
        for kind, (seconds, result, work) in costs.items()
        if seconds >= 3600
    }


def _hours(seconds: float, cluster: ClusterConfig) -> str:
    hours = seconds / 3600 / cluster.cpus
    told = f"{hours:,.1f} h" if hours >= 1 else f"{hours * 3600:,.0f} s"
    return f"{seconds / 3600:,.1f} core hours, {told} on {cluster.cpus} cores"


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000:
            return f"{size:,.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} PB"
