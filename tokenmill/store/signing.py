"""Signatures of releases: an in-toto statement in a DSSE envelope, Ed25519, made offline with our own key.

What is signed binds a release's record (model, line, run, verdict) to the bytes that it is made of, by
digest. Formats: DSSE v1 (github.com/secure-systems-lab/dsse, protocol and envelope) and in-toto Statement v1.
A key's id is the sha256 of its public key in DER. Keys lie beside the artifacts and not among them: whoever
can write weights shall not thereby be able to bless them. Says nothing about who may read a release.
"""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from tokenmill.domain.codec import from_plain, to_plain
from tokenmill.domain.errors import CorruptWeightsError, DataError, StoreError
from tokenmill.domain.work import Release

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "urn:tokenmill:release:1"
ENVELOPE_BYTES = 4 * 1024 * 1024


class Signatures:
    """The envelopes of one factory's releases, and the keys that it trusts.

    ``keys`` holds ``signing.pem`` (private, ours) and ``trusted/*.pem`` (public, ours and whom we trust).
    """

    def __init__(self, keys: Path, envelopes: Path) -> None:
        self.keys = keys
        self.envelopes = envelopes

    def path(self, release: str) -> Path:
        """Where a release's envelope lies."""
        return self.envelopes / f"{quote(release, safe='')}.dsse.json"

    def ensure_key(self) -> str:
        """Make our key if there is none yet, and return its id. Raises ``StoreError``."""
        try:
            self.keys.mkdir(parents=True, exist_ok=True, mode=0o700)
            (self.keys / "trusted").mkdir(exist_ok=True)
            path = self.keys / "signing.pem"
            if not path.exists():
                private = Ed25519PrivateKey.generate().private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.NoEncryption(),
                )
                _write_once(path, private, 0o600)
            public = self._private().public_key()
            name = key_id(public)
            _write_once(self.keys / "trusted" / f"{name[:16]}.pem", _public_pem(public), 0o644)
        except OSError as error:
            raise StoreError(
                f"the signing key cannot be kept: {error.strerror}",
                fix=f"Give this user write access to {self.keys}.",
            ) from error
        return name

    def sign(self, release: Release) -> None:
        """Write the release's envelope; one that verifies already is left as it is.

        Raises ``StoreError`` when it cannot be written.
        """
        if not release.weights:
            return  # a server elsewhere: there are no bytes of ours to sign for
        try:
            self.verify(release)
        except CorruptWeightsError:
            self.ensure_key()
            private = self._private()
            payload = msgspec.json.encode(statement_of(release), order="sorted")
            signature = private.sign(_pre_authentication(payload))
            envelope = {
                "payloadType": PAYLOAD_TYPE,
                "payload": base64.b64encode(payload).decode(),
                "signatures": [
                    {"keyid": key_id(private.public_key()), "sig": base64.b64encode(signature).decode()}
                ],
            }
            try:
                _replace(self.path(release.id), msgspec.json.encode(envelope))
            except OSError as error:
                raise StoreError(f"the signature of {release.id} cannot be written: {error}") from error

    def verify(self, release: Release) -> str:
        """Return the id of the trusted key that signed this very release.

        Raises ``CorruptWeightsError`` when there is no signature, no trusted key made it, or it is of
        something else than ``release`` says now.
        """
        where = self.path(release.id)
        try:
            raw = where.read_bytes()
        except OSError:
            raise _refused(release, "it is not signed", where) from None
        if len(raw) > ENVELOPE_BYTES:
            raise _refused(release, "its signature file is too large", where)
        try:
            envelope = msgspec.json.decode(raw, type=dict[str, Any])
            payload = base64.b64decode(str(envelope["payload"]), validate=True)
            found = [(str(s["keyid"]), base64.b64decode(str(s["sig"]))) for s in envelope["signatures"]]
        except (msgspec.DecodeError, msgspec.ValidationError, KeyError, TypeError, ValueError):
            raise _refused(release, "its signature file is damaged", where) from None
        signer = self._signer(payload, found) if envelope.get("payloadType") == PAYLOAD_TYPE else ""
        if not signer:
            raise _refused(release, "no trusted key signed it", where)
        try:
            statement = msgspec.json.decode(payload, type=dict[str, Any])
            signed = from_plain(statement["predicate"]["release"], Release)
        except (msgspec.DecodeError, msgspec.ValidationError, KeyError, TypeError, DataError):
            raise _refused(release, "its signature is of something else", where) from None
        # A record that went through JSON may differ in the types of its tuples; equal plain values are equal.
        if to_plain(signed) != to_plain(release) or statement.get("subject") != subjects(release):
            raise _refused(release, "its signature is of a release with other contents", where)
        return signer

    def _signer(self, payload: bytes, signatures: list[tuple[str, bytes]]) -> str:
        trusted = self._trusted()
        for name, signature in signatures:
            key = trusted.get(name)
            if key is None:
                continue
            try:
                key.verify(signature, _pre_authentication(payload))
            except InvalidSignature:
                continue
            return name
        return ""

    def _trusted(self) -> dict[str, Ed25519PublicKey]:
        found = {}
        for path in sorted((self.keys / "trusted").glob("*.pem")):
            try:
                key = serialization.load_pem_public_key(path.read_bytes())
            except (OSError, ValueError):
                continue  # not a key; what it signed stays untrusted
            if isinstance(key, Ed25519PublicKey):
                found[key_id(key)] = key
        return found

    def _private(self) -> Ed25519PrivateKey:
        path = self.keys / "signing.pem"
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), None)
        except (OSError, ValueError, TypeError) as error:
            raise StoreError(f"the signing key {path} cannot be read: {error}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise StoreError(
                f"{path} is no Ed25519 key", fix="Put it away; a new one is made at the next start."
            )
        return key


def key_id(key: Ed25519PublicKey) -> str:
    """sha256 of the public key in DER (SubjectPublicKeyInfo), in hex."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def statement_of(release: Release) -> dict[str, Any]:
    """The in-toto statement about a release."""
    return {
        "_type": STATEMENT,
        "subject": subjects(release),
        "predicateType": PREDICATE,
        "predicate": {"release": to_plain(release)},
    }


def subjects(release: Release) -> list[dict[str, Any]]:
    """The artifacts that a release is made of."""
    named = (("weights", release.weights), ("adapter", release.adapter), ("release", release.digest))
    return [
        {"name": name, "digest": {"sha256": digest.removeprefix("sha256:")}}
        for name, digest in named
        if digest
    ]


def _refused(release: Release, why: str, where: Path) -> CorruptWeightsError:
    return CorruptWeightsError(
        f"release {release.id} is not loaded: {why}",
        expected="a signature over its digests by a key in keys/trusted",
        fix="Find out who changed it. Run its line again, or import it again, for a release that is whole.",
        where=str(where),
    )


def _pre_authentication(payload: bytes) -> bytes:
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _public_pem(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _write_once(path: Path, data: bytes, mode: int) -> None:
    """Create a file whole, unless it is there: two that start at once keep one key."""
    if path.exists():
        return
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    try:
        os.link(fresh, path)
    except FileExistsError:
        pass
    finally:
        fresh.unlink(missing_ok=True)


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    fresh.write_bytes(data)
    fresh.replace(path)
