"""The window book: each delivery of a share is finished or released, never both."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mailer.delivery.preparing import Content, PreparedMail
from mailer.delivery.window_book import WindowBook
from mailer.message import Delivery, Lane, OnDoubt, Outcome, Status, Verdict
from mailer.policy import Move
from mailer.store import Result

LEASE = 1000.0


def delivery(number: int, on_doubt: OnDoubt = OnDoubt.RESEND) -> Delivery:
    return Delivery(
        id=number,
        mail_id=f"mail{number}",
        recipient="ada@example.com",
        domain="example.com",
        lane=Lane.NORMAL,
        attempts=1,
        doubts=0,
        queued_at=0.0,
        on_doubt=on_doubt,
        token="ours",
    )


def prepared(one: Delivery) -> PreparedMail:
    wire: Any = f"the bytes of {one.mail_id}"
    return PreparedMail(one, wire, Content(one.mail_id, room=1))


def sent(mail: PreparedMail) -> Result:
    return Result(mail.delivery, Outcome(Verdict.SENT, "250 ok"), Move(to=Status.SENT))


def make_ready(book: WindowBook, count: int) -> None:
    book.ready = [prepared(book.waiting.popleft()) for _ in range(count)]


def test_a_mail_goes_from_waiting_to_finished() -> None:
    """A delivery is waiting, ready, marked, in flight and finished, in this order."""
    book = WindowBook([delivery(1), delivery(2)])
    make_ready(book, 1)
    book.note_recorded({1}, LEASE)
    assert [mail.lease_until for mail in book.marked] == [LEASE]

    mail = book.take_marked()
    book.begin()
    book.finish(sent(mail))

    assert [result.delivery.id for result in book.results] == [1]
    assert book.to_release() == {2: None}


def test_a_mail_that_another_worker_has_is_not_sent() -> None:
    """A delivery that could not be marked is not sent, and is released."""
    book = WindowBook([delivery(1), delivery(2)])
    make_ready(book, 2)

    book.note_recorded({2}, LEASE)

    assert [mail.delivery.id for mail in book.marked] == [2]
    assert book.to_release() == {1: None, 2: None}


def test_a_window_that_could_not_be_marked_is_released() -> None:
    """If marking a window failed, all its deliveries are released."""
    book = WindowBook([delivery(1), delivery(2)])
    make_ready(book, 2)

    book.return_ready()
    book.note_recorded(set(), LEASE)

    assert [one.id for one in book.unbegun()] == [1, 2]
    assert book.to_release() == {1: None, 2: None}


def test_a_mail_that_was_begun_is_left_in_doubt() -> None:
    """Only the delivery that was begun is left in doubt; those behind it are released."""
    book = WindowBook([delivery(1), delivery(2)])
    make_ready(book, 2)
    book.note_recorded({1, 2}, LEASE)
    book.take_marked()
    book.take_marked()
    assert not book.leave_begun()

    book.begin()

    assert book.leave_begun()
    assert book.to_release() == {2: None}


def test_a_mail_that_must_not_go_out_twice_is_alone() -> None:
    """A delivery with `on_doubt="hold"` is never in flight together with another one."""
    hold = delivery(2, OnDoubt.HOLD)
    book = WindowBook([delivery(1), hold, delivery(3)])
    assert not book.must_finish_first

    for alone in (False, True):
        make_ready(book, 1)
        book.note_recorded({1, 2}, LEASE)
        mail = book.take_marked()
        assert book.must_finish_first
        assert (mail.delivery is hold) is alone
        book.finish(sent(mail))
        assert not book.must_finish_first


def test_postponed_and_expired_mail_leaves_the_row() -> None:
    """Postponed deliveries are released with their time, and expired ones without."""
    book = WindowBook([delivery(1), delivery(2), delivery(3)])

    book.postpone({1: 50.0, 3: 60.0})
    book.expire(book.waiting.popleft())

    assert list(book.waiting) == []
    assert book.to_release() == {1: 50.0, 2: None, 3: 60.0}
    assert book.claimable_again == 0


def test_picked_mail_is_put_back_in_its_order() -> None:
    """Deliveries that were picked are put back in order, without postponed ones."""
    book = WindowBook([delivery(number) for number in range(1, 5)])
    picked = [book.waiting.popleft() for _ in range(3)]

    book.postpone({2: 50.0})
    book.put_back(picked)

    assert [one.id for one in book.waiting] == [1, 3, 4]


@given(st.lists(st.sampled_from(["mark", "lose", "take", "finish", "expire", "postpone", "leave"])))
def test_every_delivery_is_finished_or_released(steps: list[str]) -> None:
    """After any steps, each delivery is finished, released or in doubt, exactly one of them."""
    book, left = WindowBook([delivery(number) for number in range(8)]), set[int]()
    recorded: set[int] = set()
    for step in steps:
        if step in ("mark", "lose") and book.waiting and not book.marked:
            make_ready(book, 1)
            ids = {mail.delivery.id for mail in book.ready} if step == "mark" else set()
            recorded |= {result.delivery.id for result in book.results}
            released = set(book.expired)
            book.note_recorded(ids, LEASE)
            left |= released
        elif step == "take" and book.marked:
            book.take_marked()
        elif step == "finish" and book.in_flight:
            book.begin()
            book.finish(sent(book.in_flight[0]))
        elif step == "expire" and book.marked:
            book.expire_marked()
        elif step == "postpone" and book.waiting:
            book.postpone({book.waiting[-1].id: 50.0})
        elif step == "leave" and book.in_flight:
            left.add(book.begin().delivery.id)
            book.leave_begun()
    finished = recorded | {result.delivery.id for result in book.results}
    released = set(book.to_release())

    assert finished | released | left == set(range(8))
    assert finished.isdisjoint(released)
    assert left.isdisjoint(finished | released)
