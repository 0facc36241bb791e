from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.errors import DamagedState, UserError
from framework.roles.ledger import Ledger
from framework.types import Prompt, ResponseGroup, ScoredGroup


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"p{i}", f"text {i}", "task", "1") for i in range(count)]


def scored(ledger: Ledger, ticket: int) -> ScoredGroup:
    return ScoredGroup(ResponseGroup(ledger.prompt(ticket), ()), ())


def drive(ledger: Ledger, script: list[int], refill_every: int = 0) -> None:
    """Act by the numbers of a script: issue, finish (any order), lose, train."""
    issued: list[int] = []
    for number in script:
        action = number % 4
        if action == 0 and ledger.to_issue(ledger.batches_trained):
            issued.append(ledger.issue(ledger.batches_trained))
        elif action == 1 and issued:
            ticket = issued.pop(number % len(issued))
            ledger.finish(ticket, scored(ledger, ticket), bool(refill_every) and ticket % refill_every == 0)
        elif action == 2 and issued:
            ledger.give_back([issued.pop(number % len(issued))])
        elif action == 3 and ledger.batch_ready():
            ledger.train(ledger.batch())


@given(st.lists(st.integers(0, 999), max_size=300), st.integers(0, 2), st.sampled_from([0, 3]))
def test_no_prompt_is_lost_or_trained_twice_whatever_happens(script: list[int], staleness: int, refill: int) -> None:
    ledger = Ledger(prompts(7), batch_size=2, max_staleness=staleness, seed=1)
    drive(ledger, script, refill)
    tickets = [entry.ticket for entry in ledger.consumed]
    assert len(tickets) == len(set(tickets))
    if not refill:  # tickets are used up in order, two a batch, whatever finished first
        assert tickets == list(range(2 * ledger.batches_trained))
    for epoch in {entry.epoch for entry in ledger.consumed}:
        ids = [entry.prompt_id for entry in ledger.consumed if entry.epoch == epoch]
        assert len(ids) == len(set(ids))


@given(st.lists(st.integers(0, 999), max_size=200))
def test_a_reload_forgets_what_was_live_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, script: list[int]
) -> None:
    file = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    ledger = Ledger(prompts(5), 2, 1, seed=3)
    drive(ledger, script, refill_every=4)
    ledger.save(file)
    again = Ledger(prompts(5), 2, 1, seed=3)
    again.load(file)
    assert again.consumed == ledger.consumed
    assert again.batches_trained == ledger.batches_trained
    done = {entry.ticket for entry in ledger.consumed}
    expected = [ticket for ticket in range(len(done) + 6) if ticket not in done]
    assert [again.issue(0) for _ in range(6)] == expected[:6]


def test_staleness_bounds_what_may_be_issued() -> None:
    ledger = Ledger(prompts(100), batch_size=4, max_staleness=1, seed=0)
    assert ledger.to_issue(version=0) == 8  # this batch and one ahead
    tickets = [ledger.issue(0) for _ in range(8)]
    assert ledger.to_issue(0) == 0
    for ticket in tickets[:4]:
        ledger.finish(ticket, scored(ledger, ticket), refill=False)
    ledger.train(ledger.batch())
    assert ledger.to_issue(0) == 0  # trained, but version 1 is not acknowledged yet
    assert ledger.to_issue(1) == 4


def test_groups_without_signal_are_reported_with_the_batch_that_replaces_them() -> None:
    ledger = Ledger(prompts(100), batch_size=2, max_staleness=1, seed=0)
    for ticket in [ledger.issue(0) for _ in range(4)] + [ledger.issue(0)]:
        ledger.finish(ticket, scored(ledger, ticket), refill=ticket in (1, 3))  # 0 and 2 make a batch
    assert (len(ledger.scored()), ledger.refilled) == (5, 2)
    assert [item.ticket for item in ledger.discarded(ledger.batch())] == [1]
    ledger.train(ledger.batch())
    ledger.finish(ledger.issue(0), scored(ledger, 5), refill=False)
    assert [item.ticket for item in ledger.discarded(ledger.batch())] == [3]
    ledger.train(ledger.batch())
    assert [e.ticket for e in ledger.consumed if e.outcome == "no_signal"] == [1, 3]


def test_every_epoch_has_every_prompt_once_in_its_own_order() -> None:
    ledger = Ledger(prompts(10), 2, 0, seed=5)
    first, second = ([ledger.prompt(t).id for t in range(start, start + 10)] for start in (0, 10))
    assert sorted(first) == sorted(second) == sorted(f"p{i}" for i in range(10))
    assert first != second


def test_a_foreign_or_damaged_journal_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "ledger.jsonl"
    Ledger(prompts(5), 2, 0, seed=3).save(file)
    with pytest.raises(UserError, match="5 prompts, seed 3"):
        Ledger(prompts(6), 2, 0, seed=3).load(file)
    file.write_text("{")
    with pytest.raises(UserError, match="ledger"):
        Ledger(prompts(5), 2, 0, seed=3).load(file)


def trained_ledger(batches: int = 3) -> Ledger:
    ledger = Ledger(prompts(5), 2, 0, seed=3)
    for version in range(batches):
        for _ in range(2):
            ticket = ledger.issue(version)
            ledger.finish(ticket, scored(ledger, ticket), refill=False)
        ledger.train(ledger.batch())
    return ledger


def without_digest(lines: list[str]) -> list[str]:
    """As a version that had no digests left it."""
    header = json.loads(lines[0])
    del header["digest"], header["entries"]
    return [json.dumps(header), *lines[1:]]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda lines: lines[:-1], "batch 2 has 1 trained entries, of 2"),
        (lambda lines: [*lines, lines[3]], "ticket 2 is there 2 times"),
        (lambda lines: [*lines[:3], lines[4], *lines[4:]], "ticket 3 is there 2 times"),
        (
            lambda lines: [*lines[:1], lines[1].replace('"prompt_id": "', '"prompt_id": "x'), *lines[2:]],
            "names prompt x",
        ),
        (lambda lines: [lines[0].replace('"batches_trained": 3', '"batches_trained": 4'), *lines[1:]], "batch 3 has 0"),
        (lambda lines: [lines[0].replace('"batches_trained": 3', '"batches_trained": 2'), *lines[1:]], "batch 2 has 2"),
    ],
)
def test_a_ledger_that_would_train_a_prompt_twice_is_refused(
    tmp_path: Path, damage: Callable[[list[str]], list[str]], said: str
) -> None:
    file = tmp_path / "ledger.jsonl"
    trained_ledger().save(file)
    whole = file.read_text().splitlines()
    file.write_text("\n".join(damage(whole)) + "\n")
    with pytest.raises(DamagedState, match="digest"):
        Ledger(prompts(5), 2, 0, seed=3).load(file)
    file.write_text("\n".join(damage(without_digest(whole))) + "\n")
    with pytest.raises(DamagedState, match=said):
        Ledger(prompts(5), 2, 0, seed=3).load(file)
    file.write_text("\n".join(without_digest(whole)) + "\n")
    again = Ledger(prompts(5), 2, 0, seed=3)
    again.load(file)
    assert again.consumed == trained_ledger().consumed


def test_any_flipped_byte_of_a_ledger_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "ledger.jsonl"
    trained_ledger().save(file)
    whole = file.read_bytes()
    for place in range(len(whole) - 1):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match=r"ledger\.jsonl"):
            Ledger(prompts(5), 2, 0, seed=3).load(file)


@pytest.mark.parametrize("seed", range(20))
def test_the_batch_is_the_first_live_tickets_whatever_happens_to_them(seed: int) -> None:
    """Against the definition, over random issues, deaths, refills, trainings and resumes."""
    rng = random.Random(seed)
    ledger = Ledger(prompts(7), batch_size=3, max_staleness=4, seed=0)
    issued: set[int] = set()
    for _ in range(400):
        if issued and rng.random() < 0.6:
            ticket = rng.choice(sorted(issued))
            issued.remove(ticket)
            if rng.random() < 0.2:
                ledger.give_back([ticket])
            else:
                ledger.finish(ticket, scored(ledger, ticket), refill=rng.random() < 0.2)
        elif ledger.to_issue(ledger.batches_trained):
            issued.add(ledger.issue(ledger.batches_trained))
        live = sorted([*ledger._issued, *ledger._finished, *ledger._returned])[:3]
        whole = len(live) == 3 and all(ticket in ledger._finished for ticket in live)
        assert ledger.batch_ready() == whole
        if whole and rng.random() < 0.5:
            batch = ledger.batch()
            assert [item.ticket for item in batch] == live
            ledger.train(batch)
    assert ledger.batches_trained > 10


def test_asking_for_a_batch_costs_the_same_however_many_tickets_are_live() -> None:
    def steps(live: int) -> int:
        ledger = Ledger(prompts(7), batch_size=live, max_staleness=0, seed=0)
        tickets = [ledger.issue(0) for _ in range(live)]
        for ticket in tickets[1:]:
            ledger.finish(ticket, scored(ledger, ticket), refill=False)
        calls = 0

        def count(*_: object) -> None:
            nonlocal calls
            calls += 1

        sys.setprofile(count)
        try:
            for _ in range(10):
                assert not ledger.batch_ready()
        finally:
            sys.setprofile(None)
        return calls

    assert steps(2000) == steps(20)


def late_ledger(count: int, more: int, late_from: int) -> Ledger:
    late = [Prompt(f"late{i}", f"late text {i}", "task", "1") for i in range(more)]
    return Ledger(prompts(count), 2, 1, seed=3, late=late, late_from=late_from)


def test_late_prompts_come_beside_the_others_from_their_ticket_on() -> None:
    ledger = late_ledger(4, 2, late_from=6)  # in the middle of the second epoch
    visited = [ledger.prompt(ticket).id for ticket in range(6 + 12)]
    assert sorted(visited[:4]) == [f"p{i}" for i in range(4)]
    assert not any(name.startswith("late") for name in visited[:6])
    everything = sorted([*(f"p{i}" for i in range(4)), "late0", "late1"])
    assert sorted(visited[6:12]) == sorted(visited[12:]) == everything
    assert visited[6:12] != visited[12:]
    assert [ledger.prompt(ticket).id for ticket in range(18)] == visited
    assert late_ledger(4, 2, late_from=0).prompt(0).id in everything


@given(st.lists(st.integers(0, 999), max_size=300), st.integers(0, 9))
def test_no_epoch_has_a_prompt_twice_with_late_ones_either(script: list[int], late_from: int) -> None:
    ledger = late_ledger(3, 4, late_from)
    drive(ledger, script)
    visits = [(entry.epoch, entry.prompt_id) for entry in ledger.consumed]
    assert len(visits) == len(set(visits))


def test_a_ledger_with_late_prompts_goes_on_after_a_reload(tmp_path: Path) -> None:
    ledger = late_ledger(3, 2, late_from=4)
    drive(ledger, [0, 0, 1, 1, 3] * 4)
    assert ledger.batches_trained >= 3
    ledger.save(tmp_path / "ledger.jsonl")
    again = late_ledger(3, 2, late_from=4)
    again.load(tmp_path / "ledger.jsonl")
    assert again.consumed == ledger.consumed
    with pytest.raises(DamagedState):  # other prompts stand behind the tickets
        late_ledger(3, 2, late_from=2).load(tmp_path / "ledger.jsonl")


def test_groups_come_out_as_they_were_scored_and_entries_name_their_epoch() -> None:
    ledger = Ledger(prompts(3), batch_size=2, max_staleness=1, seed=0)
    groups = {ticket: scored(ledger, ticket) for ticket in (ledger.issue(0) for _ in range(4))}
    for ticket, group in groups.items():
        ledger.finish(ticket, group, refill=ticket == 1)
    assert [item.scored for item in ledger.batch()] == [groups[0], groups[2]]
    assert [item.scored for item in ledger.discarded(ledger.batch())] == [groups[1]]
    assert ledger.scored() == [groups[0], groups[2], groups[3], groups[1]]
    ledger.train(ledger.batch())
    ledger.finish(ledger.issue(1), scored(ledger, 4), refill=False)
    ledger.train(ledger.batch())
    assert [(e.ticket, e.epoch, e.batch) for e in ledger.consumed] == [
        *((0, 0, 0), (2, 0, 0), (1, 0, 0), (3, 1, 1), (4, 1, 1)),
    ]


def test_what_is_refused_of_a_journal_names_the_file_and_what_is_allowed(tmp_path: Path) -> None:
    file = tmp_path / "ledger.jsonl"

    def said(ledger: Ledger) -> str:
        with pytest.raises(UserError) as error:
            ledger.load(file)
        return str(error.value)

    trained_ledger().save(file)
    assert said(Ledger(prompts(6), 2, 0, seed=4)) == f"{file}: got '5 prompts, seed 3'; this run has 6, seed 4"
    whole = file.read_text()
    file.write_text(whole.replace('"batch": 2', '"batch": 1'))
    assert re.fullmatch(
        rf"{file}: got 'digest \w{{12}}'; was saved with \w{{12}}: damaged since",
        said(Ledger(prompts(5), 2, 0, seed=3)),
    )
    file.write_text("\n".join(without_digest(whole.splitlines())[:-1]))
    assert said(Ledger(prompts(5), 2, 0, seed=3)) == (
        f"{file}: got 'batch 2 has 1 trained entries, of 2'; must hold every ticket of 3 batches once"
    )
    file.write_text("[]")
    assert said(Ledger(prompts(5), 2, 0, seed=3)).endswith(
        "indices must be integers or slices, not str'; must be a ledger as the run saved it"
    )


def test_an_untrained_journal_begins_at_the_first_ticket(tmp_path: Path) -> None:
    for before in (0, 2):
        trained_ledger(before).save(tmp_path / "ledger.jsonl")
        ledger = Ledger(prompts(5), 2, 0, seed=3)
        ledger.load(tmp_path / "ledger.jsonl")
        assert ledger.issue(before) == 2 * before
