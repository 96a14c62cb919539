"""All scenarios, in the order of the table."""

from tests.chaos.scenario import Scenario
from tests.chaos.scenarios import postgresql, redis, restore, smtp, sqlite, workers

SCENARIOS: list[Scenario] = [
    *workers.SCENARIOS,
    *redis.SCENARIOS,
    *postgresql.SCENARIOS,
    *sqlite.SCENARIOS,
    *smtp.SCENARIOS,
    *restore.SCENARIOS,
]
