"""The report's part on text: what was kept of a corpus, what went and why, lengths, languages, clusters of copies."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping

from framework.artifacts import SHARDS, read_json
from framework.observe.collect import FoundArtifact, RunFiles

SAMPLES = "dropped_samples.jsonl"
SPLITS = ("train-", "validation-")
SHOWN, CHARACTERS = 20, 300  # samples, and characters of each
_BAR = "display:inline-block;height:.7em;background:var(--s0);width:{:.0f}px"
escape = html.escape


def text_section(run: RunFiles) -> str:
    """Return the section; empty for a run that has cleaned no text in shards."""
    return "".join(
        _of_set(found)
        for found in run.artifacts
        if found.manifest.stage.endswith(".Clean") and (found.path / SHARDS).is_file()
    )


def _of_set(found: FoundArtifact) -> str:
    listing = read_json(found.path / SHARDS)
    counts, shown = listing["counts"], listing["shown"]
    went = {name.removeprefix("dropped."): count for name, count in counts.items() if name.startswith("dropped.")}
    became = {"kept": counts.get("train", 0) + counts.get("validation", 0), **went}
    parts = [_bars("documents", became)]
    for title, pattern in (
        ("languages", r"language (\w+)"),
        ("characters of kept documents, below", r"kept of (2\^\d+) characters"),
        ("characters of dropped documents, below", r"dropped of (2\^\d+) characters"),
        ("documents in a cluster of near copies", r"near duplicates, cluster of (\d+)"),
    ):
        values = {match[1]: count for name, count in shown.items() if (match := re.fullmatch(pattern, name))}
        if values:
            parts.append(_bars(title, dict(sorted(values.items(), key=_place if "language" not in title else _most))))
    lines = (found.path / SAMPLES).read_text().splitlines() if (found.path / SAMPLES).is_file() else []
    shards = sum(any(name.startswith(SPLITS) for name in shard["files"]) for shard in listing["shards"])
    return f"<h2>text, {shards} shards</h2>{''.join(parts)}{_samples(map(json.loads, lines[:SHOWN]))}"


def _place(item: tuple[str, int]) -> int:
    return int(item[0].removeprefix("2^"))


def _most(item: tuple[str, int]) -> int:
    return -item[1]


def _bars(title: str, values: Mapping[str, int]) -> str:
    """A table with a bar for each value."""
    total, most = max(sum(values.values()), 1), max(values.values(), default=1) or 1
    rows = "".join(
        f'<tr><td class="left">{escape(name.replace("_", " "))}</td><td>{count:,}</td><td>{count / total:.1%}</td>'
        f'<td class="left"><span style="{_BAR.format(240 * count / most)}"></span></td></tr>'
        for name, count in values.items()
    )
    return f'<h3>{escape(title)}</h3><div class="scroll"><table><tbody>{rows}</tbody></table></div>'


def _samples(rows: Iterable[Mapping[str, str]]) -> str:
    cells = "".join(
        f"<tr><td>{escape(row['reason'].replace('_', ' '))}</td><td>{escape(row['of'][:40])}</td>"
        f'<td class="text"><pre>{escape(row["text"][:CHARACTERS])}</pre></td></tr>'
        for row in rows
    )
    if not cells:
        return ""
    return (
        '<h3>dropped documents, those of the smallest ids</h3><div class="scroll"><table><thead><tr><th>reason</th>'
        f"<th>of</th><th>begins</th></tr></thead><tbody>{cells}</tbody></table></div>"
    )
