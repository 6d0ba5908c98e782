"""A plan in words, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from echoplan.plans import Configuration, Decision, Plan


def describe_plan(plan: Plan) -> str:
    """The plan, one line a decision: name, value, and the rule behind it."""
    lines = [f"Plan {plan.plans_name} of {plan.dataset}", "", "hardware", *_decision_lines(plan.hardware)]
    for title, group in (("configuration", plan.configurations), ("trainer", plan.trainers)):
        for configuration in group.values():
            lines += ["", f"{title} {configuration.name}{_parent(configuration)}"]
            lines += _decision_lines(configuration.decisions)
            for dataset, decisions in configuration.datasets.items():
                lines += [f"  of {dataset}:", *(f"  {line}" for line in _decision_lines(decisions))]
    return "\n".join(lines)


def _parent(configuration: Configuration) -> str:
    return f" (else as configuration {configuration.inherits_from})" if configuration.inherits_from else ""


def _decision_lines(decisions: Mapping[str, Decision]) -> list[str]:
    return [f"  {name}: {_value(decision.value)}, because: {decision.rule}" for name, decision in decisions.items()]


def _value(value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_value(item)}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        numbers = bool(value) and all(isinstance(item, (int, float)) for item in value)
        return (" x " if numbers else ", ").join(map(_value, value)) or "none"
    return str(value)
