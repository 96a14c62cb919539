"""The faults of the inbox server, and when they apply."""

import pytest

from mailer.smtpd import faults
from mailer.smtpd.faults import BY_ADDRESS, CLOSE_AFTER_250, Fault, Faults


def test_a_fault_is_used_up_after_its_times() -> None:
    """A fault applies as often as `times` says."""
    pending = Faults([Fault("rcpt", "450 later", times=2)])

    assert [bool(pending.take("rcpt")) for _ in range(3)] == [True, True, False]


def test_without_times_it_happens_for_ever() -> None:
    """A fault with `times=None` applies until it is cleared."""
    pending = Faults([Fault("mail", "450 later", times=None)])
    assert all(pending.take("mail") for _ in range(10))

    pending.clear()

    assert pending.take("mail") is None


def test_it_waits_for_its_stage_and_its_recipient() -> None:
    """A fault applies to its stage and its recipient only."""
    fault = Fault("rcpt", "550 no", recipient="bob@example.com")
    pending = Faults([fault])

    assert pending.take("mail", ["bob@example.com"]) is None
    assert pending.take("rcpt", ["ada@example.com"]) is None
    assert pending.take("rcpt", ["bob@example.com"]) == fault


def test_the_oldest_comes_first() -> None:
    """Faults of one stage apply in the order in which they were added."""
    pending = Faults()
    pending.add(Fault("dot", "451 first"), Fault("dot", "452 second"))

    taken = [pending.take("dot"), pending.take("dot")]

    assert [fault.action for fault in taken if fault] == ["451 first", "452 second"]


def test_what_follows_acceptance_belongs_to_the_dot() -> None:
    """A fault after acceptance is allowed at the stage `dot` only."""
    with pytest.raises(ValueError, match='is for the stage "dot"'):
        Fault("rcpt", CLOSE_AFTER_250)


def test_each_address_of_the_convention_asks_for_one_fault() -> None:
    """The module's docstring lists each address of `BY_ADDRESS`."""
    described = faults.__doc__ or ""

    for fault in BY_ADDRESS:
        assert fault.recipient
        assert fault.recipient in described
