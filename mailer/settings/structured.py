"""The common parts of settings that are lists or objects: types, and JSON as a source."""

import json
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, StringConstraints
from pydantic_core import PydanticCustomError

NOT_JSON = "not_json"  #: The type of the error for a text that is not JSON.

#: The configuration of these models: unknown keys are errors, and no error quotes a value.
STRICT = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

Text = Annotated[str, StringConstraints(min_length=1)]


def parse_json(value: Any) -> Any:
    """Parse a text as JSON. Return any other value unchanged."""
    if not isinstance(value, str):
        return value
    try:
        # Not strict: an environment variable with a PEM may contain its line breaks unescaped.
        return json.loads(value, strict=False)
    except json.JSONDecodeError as error:
        place = {"line": error.lineno, "column": error.colno}
    except RecursionError:
        place = {"line": 1, "column": 1}
    # The message of the decoder may quote a secret.
    raise PydanticCustomError(NOT_JSON, "not JSON (line {line}, column {column})", place)


FromJson: BeforeValidator = BeforeValidator(parse_json)
