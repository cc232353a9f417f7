"""Keys that sign images, made for a test."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ec

from sandboxd.backends.image_keys import PemSigningKey, PemTrustedKeys
from sandboxd.images.registry import Registry
from sandboxd.images.signing import ImageSignatures


def new_signatures(registry: Registry) -> ImageSignatures:
    """What signs with a new key and trusts it alone."""
    key = PemSigningKey(ec.generate_private_key(ec.SECP256R1()))
    return ImageSignatures(registry=registry, trusted=PemTrustedKeys([key.public]), key=key)
