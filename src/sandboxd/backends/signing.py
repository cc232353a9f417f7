"""The service's key for proofs of erasure. Its public half stands beside it and in every proof."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from typing_extensions import override

from sandboxd.manager.erasure_ports import ProofSigner
from sandboxd.model.erasure import Signature


class Ed25519Signer(ProofSigner):
    """Signs with one key."""

    def __init__(self, key: Ed25519PrivateKey, *, key_id: str) -> None:
        self._key = key
        self._key_id = key_id
        pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        self._public_key = pem.decode()

    @override
    def sign(self, document: bytes) -> Signature:
        return Signature(key_id=self._key_id, signature=self._key.sign(document), public_key=self._public_key)
