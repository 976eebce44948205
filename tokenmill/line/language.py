"""Which language a text is in. The work is py3langid's; a text that does not tell counts as any language."""

from __future__ import annotations

from collections.abc import Callable

from tokenmill.domain.errors import DataError, MissingExtraError

MIN_CHARACTERS = 20
MIN_PROBABILITY = 0.9
UNKNOWN = "?"


def classifier(wanted: tuple[str, ...]) -> Callable[[str], str]:
    """A function from text to an ISO 639-1 code, or ``UNKNOWN`` for a text that is short or could be another.

    Raises ``DataError`` for a code that is not known and ``MissingExtraError`` without the library.
    """
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise MissingExtraError(
            "telling languages apart needs py3langid", fix="pip install 'tokenmill[curate]'"
        ) from error
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    known = [str(label) for label in identifier.labels]
    unknown = [code for code in wanted if code not in known]
    if unknown:
        raise DataError(
            f"there is no language {unknown[0]!r}",
            expected=f"ISO 639-1 codes out of {', '.join(sorted(known))}",
            fix="Correct languages of the curate station.",
        )

    def told(text: str) -> str:
        plain = text.strip()
        if len(plain) < MIN_CHARACTERS:
            return UNKNOWN
        code, probability = identifier.classify(plain)
        return str(code) if probability >= MIN_PROBABILITY else UNKNOWN

    return told
