"""All scenarios, in the order of the table."""

from tests.chaos.scenario import Scenario
from tests.chaos.scenarios import (
    clocks,
    forged,
    frozen,
    intake,
    postgresql,
    redis,
    restore,
    retention,
    servers,
    smtp,
    sqlite,
    stops,
    workers,
)

SCENARIOS: list[Scenario] = [
    *workers.SCENARIOS,
    *stops.SCENARIOS,
    *redis.SCENARIOS,
    *postgresql.SCENARIOS,
    *sqlite.SCENARIOS,
    *smtp.SCENARIOS,
    *servers.SCENARIOS,
    *frozen.SCENARIOS,
    *clocks.SCENARIOS,
    *intake.SCENARIOS,
    *forged.SCENARIOS,
    *restore.SCENARIOS,
    *retention.SCENARIOS,
]
