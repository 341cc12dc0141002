"""The schema of reports as their values have it; run to write it: `python -m tests.evaluation.report_schema`."""

import json
from typing import Any

from pydantic import TypeAdapter

from meddaemon.evaluation.report import SCHEMA, Report


def schema_text() -> str:
    """Return the JSON Schema of `Report`, in which nothing may be added and nothing left out."""
    schema = TypeAdapter(Report).json_schema(mode="serialization")
    for each in (schema, *schema["$defs"].values()):
        _close(each)
    told = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://meddaemon.invalid/evaluation/report-1.schema.json",
        **schema,
    }
    return json.dumps(told, indent=2, ensure_ascii=False) + "\n"


def _close(part: dict[str, Any]) -> None:
    if part.get("type") == "object" and "properties" in part:
        part["additionalProperties"] = False
        part["required"] = list(part["properties"])
        for each in part["properties"].values():
            each.pop("default", None)


if __name__ == "__main__":
    SCHEMA.write_text(schema_text(), encoding="utf-8")
