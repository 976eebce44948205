"""The controller's own log: one JSON object per line, bounded, without secrets."""

from __future__ import annotations

import logging
import logging.handlers
import re
from pathlib import Path

import msgspec

SECRETS = (
    re.compile(r"\btm-[A-Za-z0-9_-]{20,}"),  # our API keys
    re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"),  # user:password of a URL
    re.compile(r"(?i)(?<=bearer )\S+"),
)
LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def without_secrets(text: str) -> str:
    """Replace what looks like a key, a password in a URL or a bearer token."""
    for pattern in SECRETS:
        text = pattern.sub("[secret]", text)
    return text


class JsonLines(logging.Formatter):
    """Formats a record as ``{"at": ..., "level": ..., "part": ..., "message": ...}``."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}",
            "level": record.levelname.lower(),
            "part": record.name.removeprefix("tokenmill."),
            "message": without_secrets(record.getMessage()),
        }
        if record.exc_info:
            line["error"] = without_secrets(self.formatException(record.exc_info))
        return msgspec.json.encode(line).decode()


def log_to(path: Path, level: str, limit_bytes: int) -> logging.Handler:
    """Send all logging of this process to ``path``; ``<path>.1`` keeps what came before the limit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=limit_bytes, backupCount=1)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(LEVELS[level])
    for noisy in ("httpx", "httpcore", "alembic", "uvicorn", "asyncio"):
        logging.getLogger(noisy).setLevel(max(LEVELS[level], logging.WARNING))
    return handler
