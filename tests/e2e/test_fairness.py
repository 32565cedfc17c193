"""Who is answered first when several clients ask: the one for whom least was computed, with the answer it would get."""

import pytest

from qwenvl_edge import QwenVLEngine, QwenVLError
from qwenvl_edge.decoding.ledger import Ledger
from qwenvl_edge.decoding.rows import Job
from qwenvl_edge.decoding.scheduler import Scheduler
from support.patience import PATIENCE_S

CHUNK = 32
LONG, SHORT = "a long question " * 8, "a short one"


@pytest.fixture(scope="module")
def engine(random_bundle):
    return QwenVLEngine(random_bundle, threads=1, prefill_chunk=CHUNK)


@pytest.fixture
def scheduler(engine):
    engine.forget()
    return Scheduler(engine._answerer, rows=4)


def asked(engine, words, client, tokens=4):
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    request = engine._requests.chat(words, (), None, None, options)
    return Job(engine._answerer.work(request, request.control()), client=client)


def run(scheduler):
    """Drive a scheduler to its end; return the jobs in the order in which they were answered."""
    order = []
    waiting = list(scheduler.waiting) + ([scheduler._starting[0]] if scheduler._starting else [])
    for job in waiting:
        job.reply.add_done_callback(lambda _, job=job: order.append(job))
    while scheduler.waiting or scheduler.running:
        scheduler.prefill()
        scheduler.step()
    return order


def test_seconds_count_half_after_a_while_and_are_forgotten():
    now = [0.0]
    ledger = Ledger(lambda: now[0])
    ledger.charge("a", 8.0)
    ledger.share(["a", "b"], 2.0)
    assert (ledger.spent("a"), ledger.spent("b"), ledger.spent("c")) == (9.0, 1.0, 0.0)
    assert ledger.others("a") and ledger.others("c")
    now[0] = 10.0
    assert (ledger.spent("a"), ledger.spent("b")) == (4.5, 0.5)
    now[0] = 1000.0
    assert not ledger.others("c")
    for number in range(1000):
        ledger.charge(str(number), 0.01)
        now[0] += 1
    assert len(ledger._spent) < 200


def test_who_made_the_engine_compute_less_goes_first(engine, scheduler):
    jobs = [asked(engine, f"{SHORT} {number}", client) for number, client in enumerate(("much", "much", "little"))]
    for job in jobs:
        scheduler.put(job)
    scheduler._ledger.charge("much", 10)
    assert run(scheduler) == [jobs[2], jobs[0], jobs[1]]


def test_requests_of_one_client_keep_their_order(engine, scheduler):
    jobs = [asked(engine, f"{SHORT} {number}", "one") for number in range(6)]
    for job in jobs:
        scheduler.put(job)
    assert run(scheduler) == jobs


def test_a_long_prompt_is_interrupted_and_goes_on_where_it_was(engine, scheduler):
    alone = {words: engine.chat(words, max_new_tokens=4, min_new_tokens=4, do_sample=False) for words in (LONG, SHORT)}
    engine.forget()
    long, short = asked(engine, LONG, "much"), asked(engine, SHORT, "little")
    scheduler.put(long)
    assert scheduler.prefill() and engine._answerer.decoder.computed == CHUNK
    scheduler._ledger.charge("much", 10)
    scheduler.put(short)
    assert run(scheduler) == [short, long]
    for job, words in ((short, SHORT), (long, LONG)):
        reply, expected = job.reply.result(0), alone[words]
        assert reply.raw_text == expected.raw_text
        assert reply.stats.prompt_tokens == expected.stats.prompt_tokens
    told = long.reply.result(0).stats
    assert (told.reused_tokens, told.prefill_tokens) == (0, told.prompt_tokens)


def test_a_prompt_waits_for_a_short_answer_of_one_who_had_less(engine, scheduler):
    short = asked(engine, SHORT, "little", tokens=12)
    scheduler.put(short)
    scheduler._ledger.charge("much", 10)
    while scheduler._batch is None:
        scheduler.prefill()
    scheduler.put(asked(engine, LONG, "much"))
    scheduler._owed_s = 1e6  # as after a picture that took long
    for _ in range(3):
        assert not scheduler.prefill()
        scheduler.step()
    assert scheduler.running == 2 and short.work.run.new_tokens > 3
    scheduler._owed_s = 1e-9  # paid by the next token
    assert not scheduler.prefill()
    scheduler.step()
    assert scheduler.prefill() and scheduler._owed_s > 0
    assert run(scheduler) and short.reply.result(0).stats.new_tokens == 12


def test_a_prompt_does_not_wait_where_nobody_had_less(engine, scheduler):
    first = asked(engine, SHORT, "one", tokens=12)
    scheduler.put(first)
    while scheduler._batch is None:
        scheduler.prefill()
    for client in ("one", "other"):  # its own, and one for whom as little was computed
        scheduler.put(asked(engine, f"{LONG} {client}", client))
        scheduler._owed_s = 1e6
        assert scheduler.prefill()
    run(scheduler)


def test_nobody_is_interrupted_by_an_equal(engine, scheduler):
    long, short = asked(engine, LONG, "one"), asked(engine, SHORT, "other")
    scheduler.put(long)
    scheduler.prefill()
    scheduler.put(short)
    scheduler.prefill()
    assert scheduler._starting[0] is long
    run(scheduler)


def test_rows_are_left_to_others_where_there_are_others(engine, scheduler):
    for number in range(4):
        scheduler.put(asked(engine, f"{SHORT} {number}", "much", tokens=30))
    scheduler._ledger.charge("other", 1)
    for _ in range(8):
        scheduler.prefill()
        scheduler.step()
    assert scheduler.running == 3 and len(scheduler.waiting) == 1
    late = asked(engine, SHORT, "other")
    scheduler.put(late)
    assert run(scheduler)[0] is late


def test_one_client_alone_has_all_rows(engine, scheduler):
    for number in range(4):
        scheduler.put(asked(engine, f"{SHORT} {number}", "one", tokens=30))
    for _ in range(8):
        scheduler.prefill()
        scheduler.step()
    assert scheduler.running == 4
    run(scheduler)


def test_a_batcher_checks_the_name_of_a_client(engine):
    with engine.batcher(rows=2) as batcher:
        assert batcher.submit(SHORT, client="a", max_new_tokens=1).result(PATIENCE_S).stats.new_tokens == 1
        with pytest.raises(QwenVLError, match="client"):
            batcher.submit(SHORT, client=None)
