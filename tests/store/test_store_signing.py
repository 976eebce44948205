"""What is signed loads; whatever was changed afterwards, in record, bytes, key or envelope, does not."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tokenmill.domain.errors import CorruptWeightsError
from tokenmill.domain.work import GateVerdict, Release
from tokenmill.floor.imports import Verifier
from tokenmill.store.artifacts import Artifacts
from tokenmill.store.signing import Signatures

VERDICT = GateVerdict(True, ("Passed: 100 items.",), "exact_match", 100, p_value=0.1 + 0.2)


@pytest.fixture
def made(tmp_path: Path) -> tuple[Signatures, Verifier, Release, Artifacts]:
    artifacts = Artifacts(tmp_path / "artifacts")
    tree = tmp_path / "tree"
    (tree / "adapter").mkdir(parents=True)
    (tree / "manifest.json").write_text("{}")
    (tree / "adapter" / "adapter.gguf").write_bytes(b"GGUF adapter")
    release = Release(
        *("rel-000007", "m", artifacts.put_bytes(b"GGUF weights"), artifacts.put_bytes(b"GGUF adapter")),
        artifacts.put_tree(tree),
        "run-000001",
        "desk",
        5,
        VERDICT,
    )
    signatures = Signatures(tmp_path / "keys", tmp_path / "artifacts" / "signatures")
    signatures.sign(release)
    return signatures, Verifier(artifacts, signatures), release, artifacts


def test_what_was_signed_loads_and_is_signed_once(made: Any) -> None:
    signatures, verifier, release, _ = made
    verifier.check(release)
    before = signatures.path(release.id).read_bytes()
    signatures.sign(release)
    assert signatures.path(release.id).read_bytes() == before
    assert (signatures.keys / "signing.pem").stat().st_mode & 0o777 == 0o600
    assert signatures.ensure_key() == signatures.verify(release)
    envelope = json.loads(before)
    statement = json.loads(base64.b64decode(envelope["payload"]))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert {s["name"] for s in statement["subject"]} == {"weights", "adapter", "release"}


@pytest.mark.parametrize("name", ["weights", "adapter", "digest"])
def test_one_changed_byte_does_not_load(made: Any, name: str) -> None:
    _, verifier, release, artifacts = made
    verifier.check(release)
    path = artifacts.path(getattr(release, name))
    file = path / "manifest.json" if path.is_dir() else path
    file.chmod(0o644)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptWeightsError, match=getattr(release, name)):
        verifier.check(release)


@pytest.mark.parametrize(
    "change",
    [
        lambda r, a: replace(r, weights=a.put_bytes(b"GGUF other")),
        lambda r, a: replace(r, verdict=None),
        lambda r, a: replace(r, adapter=""),
        lambda r, a: replace(r, line="other"),
    ],
)
def test_a_changed_record_does_not_load(made: Any, change: Callable[[Release, Artifacts], Release]) -> None:
    _, verifier, release, artifacts = made
    with pytest.raises(CorruptWeightsError, match="other contents"):
        verifier.check(change(release, artifacts))


def edit(signatures: Signatures, release: Release, change: Callable[[dict[str, Any]], None]) -> None:
    path = signatures.path(release.id)
    envelope = json.loads(path.read_text())
    change(envelope)
    path.write_text(json.dumps(envelope))


def repay(envelope: dict[str, Any]) -> None:
    """Another verdict in the same envelope, with the old signature."""
    statement = json.loads(base64.b64decode(envelope["payload"]))
    statement["predicate"]["release"]["verdict"]["n"] = 1
    envelope["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (repay, "no trusted key"),
        (lambda e: e.update(payloadType="text/plain"), "no trusted key"),
        (lambda e: e["signatures"].clear(), "no trusted key"),
        (lambda e: e.pop("payload"), "damaged"),
        (lambda e: e.update(signatures=7), "damaged"),
    ],
)
def test_a_changed_envelope_does_not_load(made: Any, change: Callable[[Any], None], why: str) -> None:
    signatures, verifier, release, _ = made
    edit(signatures, release, change)
    with pytest.raises(CorruptWeightsError, match=why):
        verifier.check(release)


def test_strangers_keys_and_missing_signatures_do_not_count(made: Any, tmp_path: Path) -> None:
    signatures, verifier, release, _ = made
    stranger = Signatures(tmp_path / "other", signatures.envelopes)
    signatures.path(release.id).unlink()
    with pytest.raises(CorruptWeightsError, match="not signed"):
        verifier.check(release)
    stranger.sign(release)
    with pytest.raises(CorruptWeightsError, match="no trusted key"):
        verifier.check(release)
    (public,) = (tmp_path / "other" / "trusted").glob("*.pem")
    (signatures.keys / "trusted" / "partner.pem").write_bytes(public.read_bytes())
    verifier.check(release)


def test_a_name_cannot_leave_the_folder_and_servers_elsewhere_have_nothing_to_sign(made: Any) -> None:
    signatures, _, release, _ = made
    odd = replace(release, id="import-../../x")
    assert signatures.path(odd.id).parent == signatures.envelopes
    signatures.sign(odd)
    signatures.verify(odd)
    signatures.sign(replace(release, id="remote-a", weights=""))
    assert not signatures.path("remote-a").exists()
