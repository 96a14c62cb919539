"""All scenarios, in the order of the table."""

from tests.chaos.scenario import Scenario
from tests.chaos.scenarios import frozen, smtp, workers

SCENARIOS: list[Scenario] = [*workers.SCENARIOS, *smtp.SCENARIOS, *frozen.SCENARIOS]
