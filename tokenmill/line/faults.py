"""What is wrong with one row alone: empty, too short, too long, or not the kind of answer that is wanted."""

from __future__ import annotations

from tokenmill.domain.stations import CurateParams
from tokenmill.line.answers import AnswerError, parse_object
from tokenmill.line.rows import Row, estimated_tokens


def fault_of(row: Row, params: CurateParams) -> tuple[str, str]:
    """Kind and detail of what is wrong with ``row`` alone; two empty texts when nothing is."""
    prompt, completion = row.prompt, row.completion
    if not prompt.strip() or not completion.strip():
        return ("empty completion" if prompt.strip() else "empty prompt"), ""
    if len(prompt) < params.min_prompt_characters:
        return "prompt too short", f"{len(prompt)} characters"
    if len(prompt) > params.max_prompt_characters:
        return "prompt too long", f"{len(prompt):,} characters"
    if len(completion) > params.max_completion_characters:
        return "completion too long", f"{len(completion):,} characters"
    if (tokens := estimated_tokens(row)) > params.max_tokens:
        return "too many tokens", f"about {tokens:,}"
    return _answer_fault(completion, params)


def _answer_fault(completion: str, params: CurateParams) -> tuple[str, str]:
    if params.answer == "json":
        try:
            answer = parse_object(completion)
        except AnswerError as error:
            return "completion is not a JSON object", str(error)
        if params.fields and set(answer) != set(params.fields):
            return "completion has other fields", ", ".join(sorted(answer)) or "none"
    if params.labels and completion.strip() not in params.labels:
        return "label not allowed", completion.strip()[:80]
    return "", ""
