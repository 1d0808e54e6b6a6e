"""The cost model is arithmetic: what must hold for any machine, and the lines a user reads."""

from dataclasses import replace

import pytest

from distbp.training import forecast
from distbp.training.forecast import Machine, Ranks, Work, advice, best_ranks, calibrated, linked, step_seconds, told

SMALL, LARGE = Work((64, 32, 10), 64, 8, "gradient_descent"), Work((2048, 2048, 2048, 2048), 4096, 64)
MIDDLE = Work((784, 512, 256, 10), 256, 8)
WORKS = [SMALL, MIDDLE, LARGE, Work((256, 128, 10), 2048, 8, "momentum"), Work((30, 7), 60, 12, "adamw", 8)]
WHO = [
    Ranks(1, 1, 2), Ranks(2, 2, 2), Ranks(4, 4, 2), Ranks(1, 1, 2, 2), Ranks(2, 1, 2), Ranks(3, 1, 1),
    Ranks(8, 2, 4, 2), Ranks(8, 4, 4, overlap=False), Ranks(6, 1, 0.5),
]  # fmt: skip
# constants that make the times easy to name: the pinned lines do not move when scaling.py fits new defaults
PLAIN = Machine(
    multiply_add=2e-11, few_rows=28, element=3e-10, number=1e-10, memory=1e-10, call=1e-6, step=3e-5, thread=4e-5,
    barrier=2e-6, crowding=0.05, oversubscribed=1e-4, latency=2e-5, byte=1e-9, hiding=0.5,
)  # fmt: skip


@pytest.mark.parametrize("work", WORKS, ids=str)
@pytest.mark.parametrize("who", WHO, ids=str)
def test_parts_are_not_negative_and_the_total_is_at_least_each(work, who):
    found = step_seconds(Machine(), work, who)
    assert min(found[:6]) >= 0
    assert found.total >= max(found[:6])
    assert found.hidden <= found.messages
    assert found.total == pytest.approx(sum(found[:5]) - found.hidden)
    for part in ("gradient", "descent", "messages"):
        assert getattr(found, part) == pytest.approx(sum(getattr(layer, part) for layer in found.layers))
    assert len(found.layers) == len(work.widths) - 1


@pytest.mark.parametrize("work", WORKS, ids=str)
def test_one_rank_sends_nothing_and_waits_for_nobody(work):
    found = step_seconds(Machine(), work, Ranks(1, 1, 4))
    assert (found.messages, found.waiting, found.hidden) == (0, 0, 0)


@pytest.mark.parametrize("work", WORKS, ids=str)
def test_ranks_of_one_host_send_nothing(work):
    assert step_seconds(Machine(), work, Ranks(4, 4, 4)).messages == 0


@pytest.mark.parametrize("work", WORKS, ids=str)
@pytest.mark.parametrize("who", [who for who in WHO if who.n > who.per_host], ids=str)
def test_a_faster_link_is_never_slower(work, who):
    rates = [step_seconds(linked(Machine(), mbit, 0), work, who).total for mbit in (10, 100, 1000, 25000, 0)]
    delays = [step_seconds(linked(Machine(), 1000, us), work, who).total for us in (1000, 100, 10, 0)]
    assert rates == sorted(rates, reverse=True)
    assert delays == sorted(delays, reverse=True)
    assert rates[0] > rates[-1]


@pytest.mark.parametrize("work", WORKS, ids=str)
def test_overlap_hides_messages_but_adds_none(work):
    machine = replace(linked(Machine(), 1000, 50), thread=0.0)
    apart, together = (step_seconds(machine, work, Ranks(4, 1, 2, overlap=overlap)) for overlap in (False, True))
    assert apart.hidden == 0
    assert together.messages == apart.messages
    assert together.total <= apart.total


def test_overlap_hides_less_where_no_core_is_left_for_it():
    machine = replace(linked(Machine(), 1000, 0), hiding=0.5)
    spare, none = (step_seconds(machine, MIDDLE, Ranks(2, 1, cores)).hidden for cores in (2, 1))
    assert 0 < none == pytest.approx(spare / 2)


def test_short_messages_are_not_given_to_a_thread():
    who = Ranks(2, 1, 1)
    apart, together = (step_seconds(PLAIN, SMALL, who._replace(overlap=overlap)) for overlap in (False, True))
    assert together == apart
    long = SMALL._replace(batch=256)  # 256 (64 + 32 + 32 + 10) numbers
    apart, together = (step_seconds(PLAIN, long, who._replace(overlap=overlap)) for overlap in (False, True))
    assert together.hidden > 0
    assert together.waiting == pytest.approx(apart.waiting + 2 * PLAIN.thread)


def test_a_large_network_gains_nearly_as_many_times_as_there_are_cores():
    one = step_seconds(PLAIN, LARGE, Ranks(1, 1, 16)).total
    for n in (2, 4, 8, 16):
        assert 0.85 * n < one / step_seconds(PLAIN, LARGE, Ranks(n, n, 16)).total <= n


def test_more_ranks_than_cores_are_slower_than_as_many():
    for work in WORKS:
        assert step_seconds(PLAIN, work, Ranks(4, 4, 2)).total > step_seconds(PLAIN, work, Ranks(2, 2, 2)).total


def test_shards_that_ranks_cannot_share_equally_cost_as_much_as_the_busiest_rank():
    six, eight = (step_seconds(PLAIN, MIDDLE, Ranks(n, n, 8)).forward_backward for n in (6, 8))
    assert six > 1.5 * eight  # 2 shards on some of 6 ranks, 1 on each of 8


def test_float64_takes_longer_and_adam_longer_than_gradient_descent():
    one = Ranks(1, 1, 1)
    assert step_seconds(PLAIN, MIDDLE._replace(itemsize=8), one).total > 1.5 * step_seconds(PLAIN, MIDDLE, one).total
    descents = [
        step_seconds(PLAIN, MIDDLE._replace(rule=rule), one).descent
        for rule in ("gradient_descent", "momentum", "nesterov", "adam", "adamw")
    ]
    assert descents == sorted(descents)


def test_a_layers_messages_follow_the_choice_of_the_tiles(monkeypatch):
    who, work = Ranks(2, 1, 1), Work((1000, 1000), 100, 2)
    machine = replace(PLAIN, latency=0.0, byte=1e-9)
    chosen = []
    for by_product in (True, False):
        monkeypatch.setattr(forecast, "by_product", lambda n_in, n_out, batch, it=by_product: it)
        chosen.append(step_seconds(machine, work, who).layers[0].messages)
    assert chosen[0] == pytest.approx(100 * 2000 * 4 / 2 * 1e-9)  # half of both factors
    assert chosen[1] == pytest.approx(2 * 1000 * 1000 * 4 / 2 * 1e-9)  # half of the other's node, then of the sum
    monkeypatch.undo()
    assert step_seconds(machine, work, who).layers[0].messages == chosen[0]
    long = work._replace(batch=4000)
    assert step_seconds(machine, long, who).layers[0].messages == chosen[1]


def test_long_messages_go_in_a_ring():
    machine, hosts = replace(PLAIN, byte=0.0, latency=1e-3, barrier=0.0), 4
    short, long = Work((100, 100), 64, 8), Work((4096, 4096), 64, 8)  # 25 KiB, and 1 MiB
    assert step_seconds(machine, short, Ranks(hosts, 1, 1)).messages == pytest.approx(2 * 2e-3)
    assert step_seconds(machine, long, Ranks(hosts, 1, 1)).messages == pytest.approx(2 * 3e-3)


def test_fewer_ranks_are_found_for_a_small_network_on_many_hosts():
    slow = linked(PLAIN, 1000, 50)
    assert best_ranks(slow, SMALL, Ranks(8, 1, 8), Ranks(1, 1, 8))[0].n == 1
    assert best_ranks(slow, SMALL, Ranks(8, 4, 8), Ranks(1, 1, 8))[0].n < 8
    best, seconds = best_ranks(PLAIN, LARGE, Ranks(16, 16, 16), Ranks(1, 1, 16))
    assert best == Ranks(16, 16, 16)
    assert seconds == step_seconds(PLAIN, LARGE, best)


def test_one_rank_is_told_nothing():
    assert advice(PLAIN, SMALL, Ranks(1, 1, 8), Ranks(1, 1, 8)) == []


def test_the_line_where_ranks_bring_something():
    assert advice(PLAIN, MIDDLE, Ranks(2, 2, 2), Ranks(1, 1, 2)) == [
        "expected: 2 ranks 1.8 times as fast as one (about 5.0 ms a step)"
    ]


def test_the_line_beside_one_rank_of_several_threads():
    assert advice(PLAIN, MIDDLE, Ranks(2, 2, 2), Ranks(1, 1, 2, threads=2)) == [
        "expected: 2 ranks 1.0 times as fast as one with 2 threads (about 5.0 ms a step)"
    ]


def test_the_line_where_the_network_is_too_small():
    who = Ranks(4, 4, 4)
    assert advice(replace(PLAIN, barrier=5e-5), SMALL, who, Ranks(1, 1, 4)) == [
        "expected: 4 ranks slower than 1 (0.26 ms a step, one rank 0.07 ms): this network is too small for them. "
        "Start fewer."
    ]


def test_the_line_where_ranks_share_cores():
    assert advice(PLAIN, MIDDLE, Ranks(8, 8, 2), Ranks(1, 1, 2)) == [
        "expected: 8 ranks slower than 2 (7.5 ms a step, 2 ranks 5.0 ms): those of a host share 2 cores. Start fewer."
    ]


def test_the_line_where_the_link_is_too_slow():
    assert advice(linked(PLAIN, 100, 50), MIDDLE, Ranks(8, 4, 4), Ranks(1, 1, 4)) == [
        "expected: 8 ranks slower than 4 (89 ms a step, 4 ranks 3.0 ms): the link between their hosts is too slow for "
        "them. Start fewer."
    ]


def test_times_are_told_with_two_digits_or_more():
    seconds = (2.13e-4, 9.4e-5, 0.00234, 0.00996, 0.0234, 1.234)
    assert [told(s) for s in seconds] == ["0.21 ms", "0.09 ms", "2.3 ms", "10 ms", "23 ms", "1,234 ms"]


def test_a_calibrated_machine_takes_as_long_for_the_product_as_it_was_told():
    rows, n_in, n_out = forecast.PRODUCT
    twice = 2 * n_in * n_out * (rows + PLAIN.few_rows) * PLAIN.multiply_add
    slow = calibrated(PLAIN, twice)
    assert slow.multiply_add == pytest.approx(2 * PLAIN.multiply_add)
    assert (slow.latency, slow.byte, slow.few_rows) == (PLAIN.latency, PLAIN.byte, PLAIN.few_rows)
    assert step_seconds(slow, MIDDLE, Ranks(1, 1, 1)).total == pytest.approx(
        2 * step_seconds(PLAIN, MIDDLE, Ranks(1, 1, 1)).total
    )
    assert calibrated(PLAIN, twice, latency=1e-4, byte=2e-9).latency == 1e-4
    assert calibrated(PLAIN, twice, byte=2e-9).byte == 2e-9


def test_a_link_adds_to_what_the_machine_takes_itself():
    there = linked(PLAIN, 1000, 50)
    assert there.byte == pytest.approx(PLAIN.byte + 8e-9)
    assert there.latency == pytest.approx(PLAIN.latency + 5e-5)
    assert linked(PLAIN, 0, 0) == PLAIN
