"""All scenarios, in the order of the table."""

from tests.chaos.scenario import Scenario
from tests.chaos.scenarios import restore, retention, workers

SCENARIOS: list[Scenario] = [*workers.SCENARIOS, *restore.SCENARIOS, *retention.SCENARIOS]
