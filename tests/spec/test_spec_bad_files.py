"""Every kind of mistake in a factory file, with the exact lines that a person is shown for it."""

from pathlib import Path

import pytest

from tokenmill.domain.errors import SpecError
from tokenmill.spec import source
from tokenmill.spec.factory_file import load


def cases():
    """``(name, text, lines)`` of bad_factories.txt."""
    text = Path(__file__).with_name("bad_factories.txt").read_text(encoding="utf-8")
    for part in text.split("\n## ")[1:]:
        name, _, rest = part.partition("\n")
        lines = rest.splitlines()
        bad = [line.removeprefix("!! ") for line in lines if line.startswith("!! ")]
        yield pytest.param("\n".join(x for x in lines if not x.startswith("!! ")) + "\n", bad, id=name)


def problems(files, *paths, environ=()):
    """What is wrong with a set of texts by name."""

    def read(path):
        if str(path) not in files:
            raise FileNotFoundError(2, "No such file or directory")
        return files[str(path)]

    with pytest.raises(SpecError) as raised:
        load([Path(p) for p in paths or files], dict(environ), read)
    return [str(problem) for problem in raised.value.problems]


@pytest.mark.parametrize(("text", "lines"), list(cases()))
def test_mistake_is_explained(text, lines):
    assert problems({"f.yaml": text}) == lines


def test_fifty_mistakes_give_fifty_problems():
    text = "kind: factory\nname: f\n" + "".join(
        f"---\nkind: tenant\nname: t{i}\nshare: zero\n" for i in range(50)
    )
    found = problems({"f.yaml": text})
    assert len(found) == 50
    assert [line.split(":")[1] for line in found] == [str(6 + 4 * i) for i in range(50)]


def test_problems_of_all_files_come_in_their_order():
    found = problems(
        {
            "a.yaml": "kind: factory\nname: F\n---\nkind: tenant\nname: [\n",
            "b.yaml": "kind: tenant\nname: t\nshare: 0\n",
            "c.yaml": "kind: deployment\nname: d\nmodel: m\n",
        }
    )
    assert [line.split(":")[0] for line in found] == ["a.yaml", "a.yaml", "b.yaml", "c.yaml"]


def test_files_that_extend_one_another_in_a_circle():
    files = {
        "a.yaml": "kind: factory\nname: a\nextends: sub/b.yaml\n",
        "sub/b.yaml": "kind: factory\nextends: ../a.yaml\n",
    }
    assert problems(files, "a.yaml") == [
        "sub/b.yaml:2:10: files extend one another in a circle: a.yaml -> b.yaml -> a.yaml. Remove one."
    ]


def test_missing_file_is_named():
    assert problems({}, "x.yaml") == [
        (
            "x.yaml:1:1: the file cannot be read: no such file or directory. Expected a factory file. "
            "`tokenmill init` writes a first one."
        )
    ]


def test_problem_in_an_extended_file_names_that_file():
    files = {
        "a.yaml": "kind: factory\nextends: b.yaml\n---\nkind: tenant\nname: t\nshare: 2\n",
        "b.yaml": "kind: factory\nname: b\n---\nkind: tenant\nname: t\npriority: high\n",
    }
    assert problems(files, "a.yaml") == [
        (
            "b.yaml:6:11: tenant t: priority: 'high' is not a whole number. "
            "Expected a whole number from -1000 to 1000."
        )
    ]


def test_control_character_deep_and_large_files_are_refused():
    head = "kind: factory\nname: f\n---\n"
    assert problems({"f": head + "a: b\0\n"}) == [
        "f:4:1: the character U+0000 is not allowed in YAML. Expected plain text."
    ]
    assert problems({"f": head + "a: " + "[" * 20_000 + "\n"}) == [
        "f:4:35: the document is nested too deep. Expected at most 32 levels."
    ]
    assert problems({"f": head + "#" * source.MAX_FILE_BYTES}) == [
        "f:1:1: the file is too large. Expected at most 1048576 bytes. Split it."
    ]
    assert problems({"f": head + "a: [" + "1," * 110_000 + "]\n"})[0].endswith(
        "Expected at most 50000 values."
    )


def test_real_files_of_the_wrong_kind_are_refused(tmp_path):
    (tmp_path / "f.yaml").write_bytes(b"kind: \xff\xfe\n")
    with pytest.raises(SpecError) as raised:
        load([tmp_path], {})
    assert "is not UTF-8 text (byte 6)" in str(raised.value)
    (tmp_path / "f.yaml").unlink()
    with pytest.raises(SpecError) as raised:
        load([tmp_path], {})
    assert "the directory holds no .yaml file" in str(raised.value)
