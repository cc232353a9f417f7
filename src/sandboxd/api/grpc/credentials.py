"""The gRPC server's certificate: the newest good one, with each handshake."""

from __future__ import annotations

import grpc

from sandboxd.tls.files import Material, Reloaded, TlsFiles, read_material


def make_server_credentials(files: TlsFiles, *, reloaded: Reloaded[Material] | None = None) -> grpc.ServerCredentials:
    """Make credentials that follow their files.

    gRPC for Python either demands client certificates or does not ask for any (cygrpc maps both to the two ends of
    what the core can do): a listener that has an authority demands them.

    Args:
        files: Certificate, key, and the authority of client certificates.
        reloaded: Where they come from; for tests.

    Raises:
        TlsFilesError: The files cannot be used.
    """
    newest = reloaded or Reloaded(files, read_material)
    used = newest.get()
    first = _configuration(used)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC's own threads before each handshake; None changes nothing."""
        nonlocal used
        found = newest.get()
        if found is used:
            return None
        used = found
        return _configuration(found)

    return grpc.dynamic_ssl_server_credentials(
        first,
        fetch,  # type: ignore[arg-type]  # the stubs do not know of None, the library's own words do
        require_client_authentication=files.client_authority is not None,
    )


def _configuration(material: Material) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(material.key, material.certificate)], root_certificates=material.client_authority
    )
