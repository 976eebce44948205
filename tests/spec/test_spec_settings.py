"""The table of settings, the data directory, and the pages that are made from the code."""

from pathlib import Path

import pytest

from tokenmill.domain.errors import UsageError
from tokenmill.spec import reference, settings
from tokenmill.spec.paths import SOCKET_LIMIT, Paths
from tokenmill.spec.settings import SETTINGS, Settings, load_settings

DOCS = Path(__file__).parents[2] / "docs"


def test_table_and_dataclass_agree():
    assert [s.name for s in SETTINGS] == list(settings.setting_names())
    assert settings.documented_defaults() == Settings() == load_settings({"PATH": "/bin"})


def test_values_are_parsed():
    found = load_settings(
        {
            "TOKENMILL_PORT": "0",
            "TOKENMILL_DRAIN": "5s",
            "TOKENMILL_MAX_BODY": "2MiB",
            "TOKENMILL_JOB_ID": "j-1",
        }
    )
    assert (found.port, found.drain_us, found.max_body_bytes) == (0, 5_000_000, 2 * 2**20)


def test_every_bad_setting_is_named_at_once():
    with pytest.raises(UsageError) as raised:
        load_settings(
            {
                "TOKENMILL_PROT": "1",
                "TOKENMILL_PORT": "99999",
                "TOKENMILL_LOG_LEVEL": "inf",
                "TOKENMILL_STOP_GRACE": "soon",
                "TOKENMILL_CPU_IDLE_WATTS": "nan",
                "TOKENMILL_TEST_X": "ignored",
            }
        )
    assert str(raised.value).splitlines()[1:] == [
        "  TOKENMILL_CPU_IDLE_WATTS: 'nan' is not a number. Expected a number, for example 12.5.",
        (
            "  TOKENMILL_LOG_LEVEL: 'inf' is not allowed. Expected one of debug, info, warning, error."
            " Did you mean info?"
        ),
        "  TOKENMILL_PORT: '99999' is out of range. Expected between 0 and 65535.",
        "  TOKENMILL_PROT: there is no such setting. Did you mean TOKENMILL_PORT?",
        (
            "  TOKENMILL_STOP_GRACE: 'soon' is not a duration. Expected a duration, for example 30s, 5m, 2h."
            " `tokenmill doctor` shows the settings in use."
        ),
    ]


def test_one_body_fits_among_all():
    one = {"TOKENMILL_MAX_BODY": "512MiB"}
    with pytest.raises(UsageError, match="TOKENMILL_MAX_BODIES: one body may have 536870912 bytes, all toge"):
        load_settings(one)
    found = load_settings({**one, "TOKENMILL_MAX_BODIES": "2GiB"})
    assert found.max_bodies_bytes == 2 * 2**30


def test_data_directory_lies_beside_the_factory_file():
    paths = Paths.of(Settings(), Path("/srv/f/factory.yaml"))
    assert paths.root == Path("/srv/f/.tokenmill")
    assert paths.job_result("j-000002") == Path("/srv/f/.tokenmill/jobs/j-000002/result.json")
    assert paths.database_url(Settings()) == "sqlite:////srv/f/.tokenmill/tokenmill.db"
    assert Paths.of(Settings(data_dir="/d"), Path("/srv/f/factory.yaml")).root == Path("/d")


def test_long_socket_path_moves_to_the_temporary_directory():
    assert Paths(Path("/d")).control_socket == Path("/d/run/control.sock")
    moved = Paths(Path("/" + "x" * 120)).control_socket
    assert len(str(moved)) <= SOCKET_LIMIT
    assert moved != Paths(Path("/" + "y" * 120)).control_socket


@pytest.mark.parametrize("name", sorted(reference.pages()))
def test_generated_page_is_current(name):
    stored = (DOCS / name).read_text(encoding="utf-8")
    assert stored == reference.pages()[name], "run: python -m tokenmill.spec.reference docs"
