"""The state chart is the same in the code, the schema and the documentation."""

import re
from inspect import getmembers, isfunction

from mailer import schema
from mailer.message import FINAL, TRANSITIONS, Status
from mailer.store import Store
from tests.chart import PAGE, drawn


def check(name: str) -> str:
    """Return the condition of a CHECK of the table of deliveries."""
    [found] = [one for one in schema.delivery.constraints if one.name == f"mailer_delivery_{name}"]
    return str(found.sqltext)  # type: ignore[attr-defined]  # only a CHECK has such a name


def states_in(text: str) -> set[str]:
    return set(re.findall(r"'(\w+)'", text))


def test_the_page_draws_the_transitions() -> None:
    """The chart in the documentation draws exactly the transitions of the code."""
    assert drawn().keys() == TRANSITIONS


def test_each_arrow_is_named_by_methods_of_the_store() -> None:
    """Each arrow of the chart names existing methods of the store."""
    for verbs in drawn().values():
        assert verbs
        assert all(callable(getattr(Store, verb)) for verb in verbs)


def test_each_method_that_moves_is_at_an_arrow() -> None:
    """Each method of the store whose docstring shows an arrow is in the chart."""
    moving = {
        name
        for name, method in getmembers(Store, isfunction)
        if re.search(r"\w -> \w", (method.__doc__ or "").partition("\n")[0])
    }

    assert moving | {"settle_if_resting"} == set.union(*drawn().values())


def test_the_table_of_the_page_has_every_state() -> None:
    """The table in the documentation has each state."""
    rows = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.MULTILINE)

    assert sorted(rows) == sorted(Status)


def test_the_schema_knows_the_states() -> None:
    """The CHECKs of the schema list the same states as the code."""
    assert states_in(check("status_is_known")) == set(Status)
    assert states_in(check("finished_if_and_only_if_final")) == FINAL
    assert states_in(check("held_by_somebody")) == {Status.CLAIMED, Status.TRANSMITTING}
    assert states_in(check("queued_is_due_some_day")) == {Status.QUEUED}


def test_what_is_final_is_left_by_people_only() -> None:
    """Only a person's decision moves a delivery out of a final state."""
    for (source, _target), verbs in drawn().items():
        if source.is_final:
            assert verbs == {"settle_if_resting"}


def test_every_state_can_be_reached() -> None:
    """Each state can be reached from `queued`."""
    reached = {Status.QUEUED}
    while more := {target for source, target in TRANSITIONS if source in reached} - reached:
        reached |= more

    assert reached == set(Status)
