"""The background thread: order of work, errors, and its end."""

from __future__ import annotations

import threading

import pytest

from napari_sparseseg.errors import SessionClosedError
from napari_sparseseg.session.engine import Engine


@pytest.fixture
def engine_of():
    made = []

    def make(*workers, on_error=lambda error: None):
        engine = Engine(workers, on_error)
        made.append(engine)
        return engine

    yield make
    assert all(engine.close() for engine in made)


def test_call_returns_the_result_from_another_thread(engine_of):
    engine = engine_of()
    assert engine.call(threading.current_thread).name == "sparseseg-engine"


def test_call_raises_what_the_function_raised(engine_of):
    with pytest.raises(ZeroDivisionError):
        engine_of().call(lambda: 1 // 0)


def test_urgent_worker_is_asked_before_each_piece_of_the_other(engine_of):
    done, order = threading.Event(), []
    urgent, patient = iter([True, False, True, False, False, False]), iter(range(3))

    def first():
        did = next(urgent, False)
        if did:
            order.append("urgent")
        return did

    def second():
        piece = next(patient, None)
        if piece is None:
            done.set()
            return False
        order.append(piece)
        return True

    engine_of(first, second).wake()
    assert done.wait(5)
    assert order == ["urgent", 0, "urgent", 1, 2]


def test_error_of_a_worker_is_reported_and_the_thread_lives_on(engine_of):
    reported, armed = [], [True]

    def worker():
        if armed:
            raise RuntimeError("out of memory")
        return False

    def on_error(error):
        armed.clear()
        reported.append(str(error))

    engine = engine_of(worker, on_error=on_error)
    engine.wake()
    assert engine.call(lambda: 7) == 7
    assert reported == ["out of memory"]


def test_sleeps_without_work(engine_of):
    asked = []
    engine = engine_of(lambda: bool(asked.append(1)))
    engine.call(lambda: None)
    before = len(asked)
    threading.Event().wait(0.2)
    assert len(asked) <= before + 1


def test_close_fails_waiting_calls_and_ends_the_thread():
    started, go = threading.Event(), threading.Event()
    engine = Engine((), lambda error: None)

    def block():
        started.set()
        go.wait(5)

    running = engine.submit(block)
    started.wait(5)
    waiting = engine.submit(lambda: 1)
    closer = threading.Thread(target=engine.close)
    closer.start()
    go.set()
    closer.join(5)
    assert running.result(5) is None
    with pytest.raises(SessionClosedError, match="closed"):
        waiting.result(5)
    assert not engine.running
    with pytest.raises(SessionClosedError, match="closed"):
        engine.submit(lambda: 1).result(1)


def test_held_engine_serves_calls_and_begins_no_work_until_let_go(engine_of):
    asked = threading.Event()

    def worker():
        asked.set()
        return False

    engine = engine_of(worker)
    engine.hold(True)
    engine.wake()
    assert [engine.call(lambda i=i: i) for i in range(3)] == [0, 1, 2]
    assert not asked.is_set()
    engine.hold(False)
    assert asked.wait(5)
