"""Contexts of Python's `ssl` that take a new certificate with the next handshake: for HTTP servers."""

from __future__ import annotations

import ssl

from sandboxd.tls.files import Reloaded, TlsFiles, TlsFilesError, read_material


def make_server_context(files: TlsFiles, *, reloaded: Reloaded[ssl.SSLContext] | None = None) -> ssl.SSLContext:
    """Make a context for a listener that outlives its certificate.

    A context cannot be given another certificate safely: loading a new pair into it can fail half way. So each
    handshake is handed to the newest context whose pair was loaded whole.

    Args:
        files: Certificate and key.
        reloaded: Where contexts come from; for tests.

    Raises:
        TlsFilesError: The files cannot be used.
    """
    contexts = reloaded or Reloaded(files, load_context)
    front = contexts.get()

    def at_hello(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = contexts.get()

    # Called with each handshake, also where the peer names no server.
    front.sni_callback = at_hello
    return front


def load_context(files: TlsFiles) -> ssl.SSLContext:
    """Load the files into a context of their own.

    Raises:
        TlsFilesError: They cannot be used.
    """
    read_material(files)  # for the words of a refusal; what counts is loaded below
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(files.certificate, files.key)
    except (OSError, ssl.SSLError) as error:
        raise TlsFilesError(f"{files.certificate} and {files.key} cannot be loaded") from error
    return context
