"""All scenarios, in the order of the table."""

from tests.chaos.scenario import Scenario
from tests.chaos.scenarios import clocks, postgresql, sqlite, workers

SCENARIOS: list[Scenario] = [*workers.SCENARIOS, *postgresql.SCENARIOS, *sqlite.SCENARIOS, *clocks.SCENARIOS]
