"""Warm-up and collection, with a scripted clock."""

from latency.sampling import Plan, collect, time_once, warm_up

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


def test_samples_are_bounded_in_count():
    clock = Scripted(1.0)
    assert collect(clock.step, Plan(samples=50, seconds=60), clock) == [1.0] * 50


def test_samples_are_bounded_in_time_but_never_fewer_than_the_least():
    assert len(collect((c := Scripted(10.0)).step, Plan(samples=500, seconds=0.5, least=30), c)) == 50
    assert len(collect((c := Scripted(100.0)).step, Plan(samples=500, seconds=0.5, least=30), c)) == 30


def test_a_hopeless_file_is_left_after_ten_samples():
    clock = Scripted(9.0)
    assert len(collect(clock.step, Plan(hopeless_ms=4.0), clock)) == 10


def test_one_fast_sample_is_hope():
    clock = Scripted(*[9.0] * 5, 3.0, 9.0)
    assert len(collect(clock.step, Plan(samples=40, hopeless_ms=4.0), clock)) == 40
