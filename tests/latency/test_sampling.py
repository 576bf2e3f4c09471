"""Warm-up and collection, with a scripted clock."""

from statistics import median

from latency.sampling import BLOCK, RESUMED, Plan, slow_down, take_turns, tick_ns, time_once, warm_up

MS = 1_000_000


class Scripted:
    """A clock that an inference moves on by the next of the scripted durations (ms); the last one repeats."""

    def __init__(self, *durations):
        self.now, self.durations, self.calls = 0, list(durations), 0

    def step(self):
        self.calls += 1
        self.now += int(MS * (self.durations.pop(0) if len(self.durations) > 1 else self.durations[0]))

    def __call__(self):
        return self.now


def test_one_call_in_milliseconds():
    clock = Scripted(2.5)
    assert time_once(clock.step, clock) == 2.5


def test_warm_up_goes_on_until_two_blocks_are_alike():
    clock = Scripted(*[5.0] * 10, *[3.0] * 10, *[2.0] * 10, 2.0)
    assert warm_up(clock.step, Plan(warmup_seconds=60), clock) == 40


def test_warm_up_ends_with_its_time():
    falling = [10 - 0.05 * i for i in range(150)]
    clock = Scripted(*falling)
    assert warm_up(clock.step, Plan(warmup_seconds=0.15), clock) == 20


def one(clock, **plan):
    (samples,) = take_turns([clock.step], Plan(**plan), clock)
    return samples


def test_samples_are_bounded_in_count():
    assert one(Scripted(1.0), samples=60, seconds=60) == [1.0] * 60


def test_samples_are_bounded_in_time_but_never_fewer_than_the_least():
    assert len(one(Scripted(10.0), samples=500, seconds=0.7, least=30)) == 60
    assert len(one(Scripted(100.0), samples=500, seconds=0.5, least=30)) == 40


def test_a_hopeless_file_is_left_after_one_block():
    assert len(one(Scripted(9.0), hopeless_ms=4.0)) == BLOCK


def test_one_fast_sample_is_hope():
    assert len(one(Scripted(*[9.0] * 5, 3.0, 9.0), samples=40, hopeless_ms=4.0)) == 40


def test_turns_go_forth_and_back_in_blocks_with_a_few_calls_not_timed():
    clock, order = Scripted(1.0), []

    def named(name):
        def step():
            order.append(name)
            clock.step()

        return step

    samples = take_turns([named("a"), named("b")], Plan(samples=20), clock)
    block = RESUMED + BLOCK
    assert "".join(order) == "a" * block + "b" * 2 * block + "a" * block
    assert [len(s) for s in samples] == [20, 20]


def test_a_drift_of_the_host_falls_on_both_alike():
    """A clock that runs ever faster: B after A would look 10 % slower; forth and back it does not."""
    now, calls = 0, 0

    def step():
        nonlocal now, calls
        calls += 1
        now += int(MS * (1 + 0.01 * calls))

    a, b = take_turns([step, step], Plan(samples=20, seconds=60), lambda: now)
    assert abs(median(a) / median(b) - 1) < 0.01
    assert median(b[:10]) / median(a[:10]) > 1.05


def test_a_slowdown_is_real_work_of_a_known_share():
    def work():
        for _ in range(100_000):
            pass

    def seen():
        plain, slowed = take_turns([work, slow_down(work, 0.5)], Plan(samples=60, seconds=5))
        return min(slowed) / min(plain)  # the least of each: whatever else runs here only adds

    assert any(1.25 < seen() < 1.75 for _ in range(5)), "one undisturbed attempt of five"


def test_the_clock_s_smallest_step():
    ticks = iter(range(0, 10_000_000, 250))
    assert tick_ns(lambda: next(ticks)) == 250
    calls = iter(range(10_000))
    assert tick_ns(lambda: next(calls) // 3 * 1000) == 1000, "several readings of one value are no step"
