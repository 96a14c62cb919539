"""All scenarios, in the order of the table."""

from tests.chaos.scenario import Scenario
from tests.chaos.scenarios import forged, redis, stops, workers

SCENARIOS: list[Scenario] = [*workers.SCENARIOS, *redis.SCENARIOS, *stops.SCENARIOS, *forged.SCENARIOS]
