"""What may be written under a station in a line, checked and built from plain values.

``spec`` validates factory files with this and ``line`` reads its parameters through it; what each kind has
is in ``domain.station_params``. It does not open files or look whether a path exists.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import Any, get_args, get_origin, get_type_hints

from tokenmill.domain.bounds import parse_bound
from tokenmill.domain.errors import DataError, Problem
from tokenmill.domain.station_params import (
    FREE_KINDS,
    METRICS,
    STATION_KINDS,
    CommandParams,
    CurateParams,
    EvaluateParams,
    GateParams,
    IntakeParams,
    PackParams,
    PythonParams,
    SplitParams,
    StationParams,
    TuneParams,
)

__all__ = [
    "FREE_KINDS",
    "METRICS",
    "STATION_KINDS",
    "CommandParams",
    "CurateParams",
    "EvaluateParams",
    "GateParams",
    "IntakeParams",
    "PackParams",
    "PythonParams",
    "SplitParams",
    "StationParams",
    "TuneParams",
    "station_params",
    "station_problems",
]


def station_problems(kind: str, params: Mapping[str, Any]) -> tuple[Problem, ...]:
    """Everything that is wrong with ``params`` of a station of ``kind``, in written order."""
    params_type = STATION_KINDS.get(kind)
    if params_type is None:
        return (
            Problem(f"no station kind {kind!r}", field="kind", expected=f"one of {', '.join(STATION_KINDS)}"),
        )
    return tuple(_problems(params_type, params, ""))


def station_params(kind: str, params: Mapping[str, Any]) -> StationParams:
    """Read ``params`` as those of a station of ``kind``. Raises ``DataError`` naming the first bad field."""
    problems = station_problems(kind, params)
    if problems:
        first = problems[0]
        named = f"{kind}.{first.field}: " if first.field else f"{kind}: "
        raise DataError(f"{named}{first.message}", expected=first.expected, fix=first.fix, where=first.where)
    built: StationParams = _build(STATION_KINDS[kind], params)
    return built


def _problems(params_type: type, params: Mapping[str, Any], prefix: str) -> list[Problem]:
    hints = get_type_hints(params_type)
    fields = {f.name: f for f in dataclasses.fields(params_type)}
    found: list[Problem] = []
    for name, value in params.items():
        spec = fields.get(name)
        if spec is None:
            found.append(
                Problem("unknown parameter", field=f"{prefix}{name}", expected=f"one of {', '.join(fields)}")
            )
        elif dataclasses.is_dataclass(hints[name]):
            if isinstance(value, Mapping):
                found += _problems(hints[name], value, f"{prefix}{name}.")
            else:
                found.append(Problem("is not a mapping", field=f"{prefix}{name}", expected="named values"))
        else:
            found += _value_problems(hints[name], spec, value, f"{prefix}{name}")
    for name, spec in fields.items():
        if spec.default is dataclasses.MISSING and name not in params:
            found.append(Problem("is missing", field=f"{prefix}{name}", expected=spec.metadata["doc"]))
    return found or _whole_problems(params_type, params, prefix)


def _value_problems(hint: Any, spec: dataclasses.Field[Any], value: Any, where: str) -> list[Problem]:
    expected = _expected(hint, spec)
    if get_origin(hint) is tuple:
        item = get_args(hint)[0]
        if not isinstance(value, list | tuple) or not all(isinstance(v, item) for v in value):
            return [Problem(f"{value!r} does not fit", field=where, expected=expected)]
        return []
    accepted: tuple[type, ...] = (int, float) if hint is float else (hint,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        return [Problem(f"{value!r} does not fit", field=where, expected=expected)]
    if isinstance(value, int | float) and not isinstance(value, bool):
        least, most = spec.metadata["least"], spec.metadata["most"]
        low = least is not None and value < least
        if low or (most is not None and value > most) or not math.isfinite(value):
            return [Problem(f"{value!r} is out of range", field=where, expected=expected)]
    choices = spec.metadata["choices"]
    if choices and value not in choices:
        return [Problem(f"{value!r} is not a choice", field=where, expected=expected)]
    return []


def _expected(hint: Any, spec: dataclasses.Field[Any]) -> str:
    if spec.metadata["choices"]:
        return "one of " + ", ".join(spec.metadata["choices"])
    if get_origin(hint) is tuple:
        return "a list of texts"
    name = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}[hint]
    least, most = spec.metadata["least"], spec.metadata["most"]
    bounds = [f"at least {least:g}"] if least is not None else []
    bounds += [f"at most {most:g}"] if most is not None else []
    return " ".join([name, *bounds[:1], *(["and"] if len(bounds) == 2 else []), *bounds[1:]])


def _whole_problems(params_type: type, params: Mapping[str, Any], prefix: str) -> list[Problem]:
    """What is wrong with values that are each right alone."""
    if params_type is IntakeParams:
        if bool(params.get("prompt")) != bool(params.get("completion")):
            missing = "completion" if params.get("prompt") else "prompt"
            return [Problem("is missing", field=prefix + missing, expected="both templates, or neither")]
        if len(params.get("delimiter", ",")) != 1:
            return [Problem("is not one character", field=f"{prefix}delimiter", expected="one character")]
    if params_type is EvaluateParams:
        return _evaluate_problems(params, prefix)
    if params_type is GateParams:
        return [
            Problem(str(error), field=f"{prefix}bounds", expected="`NAME >= NUMBER` or `NAME <= 1.5 x base`")
            for text in params.get("bounds", ())
            for error in _bound_errors(text)
        ]
    if params_type is PythonParams:
        return _python_problems(params, prefix)
    if params_type is SplitParams:
        whole = _build(SplitParams, params)
        total = whole.train + whole.validation + whole.test
        if abs(total - 1) > 1e-6:
            return [
                Problem(
                    f"the parts sum to {total:g}", field=prefix.rstrip("."), expected="parts that sum to 1"
                )
            ]
    return []


def _bound_errors(text: str) -> list[ValueError]:
    try:
        parse_bound(text)
    except ValueError as error:
        return [error]
    return []


NEEDED_BY = {
    "regex": "pattern",
    "json_schema": "json_schema",
    "judge": "judge_model",
    "lm_eval": "lm_eval_tasks",
}


def _evaluate_problems(params: Mapping[str, Any], prefix: str) -> list[Problem]:
    metrics = [params.get("metric", "exact_match"), *params.get("also", ())]
    unknown = [name for name in metrics if name not in METRICS]
    if unknown:
        expected = "one of " + ", ".join(METRICS)
        return [Problem(f"{unknown[0]!r} is not a metric", field=f"{prefix}also", expected=expected)]
    missing = [(m, NEEDED_BY[m]) for m in metrics if m in NEEDED_BY and not params.get(NEEDED_BY[m])]
    if missing:
        metric, name = missing[0]
        return [Problem("is missing", field=prefix + name, expected=f"it, for the metric {metric}")]
    if params.get("pattern"):
        try:
            re.compile(params["pattern"])
        except re.error as error:
            return [Problem(f"no regular expression: {error}", field=f"{prefix}pattern", expected="one")]
    return []


def _python_problems(params: Mapping[str, Any], prefix: str) -> list[Problem]:
    module, _, name = str(params.get("entry", "")).partition(":")
    if not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        return [Problem("names no function", field=f"{prefix}entry", expected="module:function")]
    if params.get("settings"):
        try:
            good = isinstance(json.loads(params["settings"]), dict)
        except ValueError:
            good = False
        if not good:
            return [Problem("is no JSON object", field=f"{prefix}settings", expected="{...}")]
    return []


def _build(params_type: type, params: Mapping[str, Any]) -> Any:
    hints = get_type_hints(params_type)
    values: dict[str, Any] = {}
    for name, value in params.items():
        if dataclasses.is_dataclass(hints[name]) and isinstance(value, Mapping):
            values[name] = _build(hints[name], value)
        elif get_origin(hints[name]) is tuple:
            values[name] = tuple(value)
        elif hints[name] is float:
            values[name] = float(value)
        else:
            values[name] = value
    return params_type(**values)
