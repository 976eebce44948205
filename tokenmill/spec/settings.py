"""The one table of settings: what a person may set in the environment.

A setting is ``TOKENMILL_`` and its name in capitals, without the unit. An unknown one, or a value that cannot
be read, is refused with all its fellows at once. ``spec.reference`` makes ``docs/settings.md`` from it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from tokenmill.domain import units
from tokenmill.domain.errors import Problem, UsageError

PREFIX = "TOKENMILL_"
GATEWAYS_MOST = 16

# Set by us for our own child processes and by the test suite: not settings.
OURS = ("TOKENMILL_PROCESS", "TOKENMILL_SHARED_DATA", "TOKENMILL_REQUIRE_ALL")
_ORIGIN = re.compile(
    r"[a-z][a-z0-9+.-]*://[a-z0-9._-]+(:\d{1,5})?|[a-z][a-z0-9+.-]*://\[[0-9a-f:]+\](:\d{1,5})?"
)
OUR_PREFIXES = ("TOKENMILL_JOB_", "TOKENMILL_TEST_")


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings, parsed. Sizes are bytes and durations microseconds."""

    data_dir: str = ""
    database_url: str = ""
    host: str = "127.0.0.1"
    port: int = 8400
    gateways: int = 0
    tls_cert: str = ""
    tls_key: str = ""
    insecure_bind: str = "no"
    allowed_origins: str = ""
    log_level: str = "info"
    url: str = ""
    api_key: str = ""
    max_body_bytes: int = 64 * 2**20
    max_bodies_bytes: int = 256 * 2**20
    max_connections: int = 4096
    queue_events: int = 10_000
    header_timeout_us: int = 10_000_000
    drain_us: int = 30_000_000
    stop_grace_us: int = 10_000_000
    start_timeout_us: int = 120_000_000
    leader_ttl_us: int = 10_000_000
    snapshot_every: int = 2_000
    spool_rotate_bytes: int = 64 * 2**20
    log_rotate_bytes: int = 64 * 2**20
    floor: str = ""
    node_grace_us: int = 10_000_000
    trust_network: str = "no"
    openlineage: str = ""
    cpu_active_watts_per_core: float = 10.0
    cpu_idle_watts: float = 5.0


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table. ``default`` is shown as a person would write it."""

    name: str
    type: str  # a key of PARSERS
    default: str
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    secret: bool = False

    @property
    def env(self) -> str:
        """The unit that we keep is not part of the name that a person writes: 30s, not 30000000."""
        return PREFIX + self.name.removesuffix("_us").removesuffix("_bytes").upper()


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not value == value or value in (float("inf"), float("-inf")):
        raise UsageError(f"{text!r} is not a number", expected="a number, for example 12.5")
    return value


def _integer(text: str) -> int:
    if not text.strip().lstrip("+-").isdecimal():
        raise UsageError(f"{text!r} is not a whole number", expected="a whole number, for example 8400")
    return int(text)


def parse_origins(text: str) -> tuple[str, ...]:
    """Web origins as browsers write them, or ``*``. Raises ``UsageError`` for what none would ever send."""
    found = tuple(part.strip().lower() for part in text.split(",") if part.strip())
    for origin in found:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise UsageError(
                f"{origin!r} is not an origin",
                expected="https://HOST or http://HOST:PORT, without a path, or *",
            )
    return found


PARSERS: Mapping[str, Callable[[str], Any]] = {
    "text": str,
    "path": str,
    "URL": str,
    "integer": _integer,
    "number": _number,
    "size": units.parse_size,
    "duration": units.parse_duration,
    "origins": lambda text: ",".join(parse_origins(text)),
}

SETTINGS: tuple[Setting, ...] = (
    Setting(
        "data_dir",
        "path",
        "",
        "Where the factory keeps its state. Empty is `.tokenmill` beside the factory file.",
    ),
    Setting(
        "database_url",
        "URL",
        "",
        "SQLAlchemy URL of the store, for example `postgresql+psycopg://user@host/db`. "
        "Empty is SQLite in the data directory.",
        secret=True,
    ),
    Setting("host", "text", "127.0.0.1", "Address that the gateway listens on."),
    Setting(
        "port",
        "integer",
        "8400",
        "Port of the gateway, the API and the console; 0 picks a free one.",
        0,
        65535,
    ),
    Setting(
        "gateways",
        "integer",
        "0",
        "Gateway processes that share the port; 0 is as the last time, at first one.",
        0,
        GATEWAYS_MOST,
    ),
    Setting("tls_cert", "path", "", "Certificate chain (PEM) that the gateway's port speaks TLS with."),
    Setting("tls_key", "path", "", "Key (PEM) of that certificate."),
    Setting(
        "insecure_bind",
        "text",
        "no",
        "`yes`: a host that other machines can reach may do without TLS, since something before it has it.",
        choices=("no", "yes"),
    ),
    Setting(
        "allowed_origins",
        "origins",
        "",
        "Origins whose pages may call the API from a browser, separated by commas, such as "
        "`https://app.example.org,http://localhost:3000`; `*` is any. Empty is none.",
    ),
    Setting(
        "log_level",
        "text",
        "info",
        "Least severe record that is logged.",
        choices=("debug", "info", "warning", "error"),
    ),
    Setting("url", "URL", "", "Factory that the client verbs talk to. Empty is the one of this directory."),
    Setting("api_key", "text", "", "Key that the client verbs send.", secret=True),
    Setting("max_body_bytes", "size", "64MiB", "Largest request body that the gateway takes.", 1024, 2**31),
    Setting(
        "max_bodies_bytes",
        "size",
        "256MiB",
        "Bodies of open requests that one gateway process holds, all clients together.",
        1024,
        2**40,
    ),
    Setting("max_connections", "integer", "4096", "Clients of one gateway process at once.", 1, 1_000_000),
    Setting(
        "queue_events", "integer", "10000", "Most events that wait for the control core.", 10, 10_000_000
    ),
    Setting("header_timeout_us", "duration", "10s", "Longest wait for a request's headers.", 1000),
    Setting(
        "drain_us",
        "duration",
        "30s",
        "How long open requests may go on when their replica or gateway stops.",
        0,
    ),
    Setting("stop_grace_us", "duration", "10s", "From asking a process to stop until it is killed.", 0),
    Setting(
        "start_timeout_us", "duration", "2m", "Longest time from an engine's start until it is ready.", 1000
    ),
    Setting(
        "leader_ttl_us",
        "duration",
        "10s",
        "A controller that is silent for so long loses its lease.",
        1_000_000,
    ),
    Setting("snapshot_every", "integer", "2000", "Events between two snapshots of the state.", 1, 10_000_000),
    Setting(
        "spool_rotate_bytes", "size", "64MiB", "Size at which a gateway starts its next spool file.", 4096
    ),
    Setting("log_rotate_bytes", "size", "64MiB", "Size at which a process's log file is rotated.", 65536),
    Setting(
        "floor",
        "text",
        "",
        "Where engines and jobs run: `local`, `ray` (a cluster that is started here), or the address of a "
        "Ray cluster (`auto`, `HOST:PORT`). Empty is as the last time, at first `local`.",
    ),
    Setting(
        "node_grace_us",
        "duration",
        "10s",
        "How long a Ray node may be away before its work is ended and started elsewhere.",
        100_000,
    ),
    Setting(
        "trust_network",
        "text",
        "no",
        "Whether engines of other machines may listen on the network between the nodes, without encryption.",
        choices=("no", "yes"),
    ),
    Setting(
        "openlineage",
        "text",
        "",
        "Where OpenLineage events about runs go: `file:PATH`, or an http or https address; empty is nowhere.",
    ),
    Setting(
        "cpu_active_watts_per_core",
        "number",
        "10",
        "Power of one busy core, where the machine has no energy counter (an assumption; usage says so).",
        0,
        1000,
    ),
    Setting(
        "cpu_idle_watts", "number", "5", "Power of the idle machine, under the same condition.", 0, 100_000
    ),
)


def load_settings(environ: Mapping[str, str]) -> Settings:
    """Parse the environment. Raises ``UsageError`` that lists every unknown name and unreadable value."""
    table = {setting.env: setting for setting in SETTINGS}
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in OURS or name.startswith(OUR_PREFIXES):
            continue
        setting = table.get(name)
        if setting is None:
            near = difflib.get_close_matches(name, table, 1, 0.6)
            fix = f"Did you mean {near[0]}?" if near else "Unset it; docs/settings.md lists them all."
            problems.append(Problem("there is no such setting.", field=name, fix=fix))
            continue
        try:
            values[setting.name] = parse_setting(setting, environ[name])
        except UsageError as error:
            found = error.problem
            problems.append(Problem(found.message + ".", "", name, found.expected, found.fix))
    if not problems and (problem := _bodies(Settings(**values))):
        problems.append(problem)
    if problems:
        raise UsageError(
            "the environment cannot be used:\n" + "\n".join(f"  {problem}" for problem in problems),
            fix="`tokenmill doctor` shows the settings in use.",
        )
    return Settings(**values)


def _bodies(settings: Settings) -> Problem | None:
    """One body must fit among all, or every request of that size would be told to come again."""
    one, together = settings.max_body_bytes, settings.max_bodies_bytes
    if one <= together:
        return None
    return Problem(
        f"one body may have {one} bytes, all together {together}.",
        field="TOKENMILL_MAX_BODIES",
        expected="at least TOKENMILL_MAX_BODY",
        fix="Set both; four times the largest body is what the defaults are.",
    )


def public_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Our settings of ``environ`` that other machines may see: all but secrets."""
    shown = {setting.env for setting in SETTINGS if not setting.secret}
    return {name: value for name, value in environ.items() if name in shown}


def parse_setting(setting: Setting, text: str) -> Any:
    """One value, checked against its bounds. Raises ``UsageError``; never shows a secret's text."""
    if setting.choices and text not in setting.choices:
        near = difflib.get_close_matches(text, setting.choices, 1, 0.5)
        raise UsageError(
            f"{text!r} is not allowed",
            expected=f"one of {', '.join(setting.choices)}",
            fix=f"Did you mean {near[0]}?" if near else "",
        )
    value = PARSERS[setting.type](text)
    low, high = setting.low, setting.high
    if (low is not None and value < low) or (high is not None and value > high):
        bounds = f"at least {low:g}" if high is None else f"between {low or 0:g} and {high:g}"
        unit = {"size": " bytes", "duration": " microseconds"}.get(setting.type, "")
        raise UsageError(f"{text!r} is out of range", expected=bounds + unit)
    return value


def documented_defaults() -> Settings:
    """The defaults as the table states them; a test holds them to those of ``Settings``."""
    values: dict[str, Any] = {s.name: parse_setting(s, s.default) if s.default else "" for s in SETTINGS}
    return Settings(**values)


def setting_names() -> tuple[str, ...]:
    return tuple(f.name for f in fields(Settings))
