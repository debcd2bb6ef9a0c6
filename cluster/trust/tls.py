"""Mutual TLS between the processes of a deployment."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

logger = logging.getLogger(__name__)


class TlsError(Exception):
    """The certificates cannot be used; the message names the file and what is wrong."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """What a process shows to others, and whom it believes; all PEM."""

    cert_file: Path
    key_file: Path
    ca_file: Path
    server_name: str
    """What every certificate must be made out to: addresses of pods and replicas come and go."""

    def server_credentials(self) -> Any:
        """For servers: clients need a certificate of the CA, too. New files count for new connections.

        Raises:
            TlsError: a file cannot be read.
        """
        last = [self._read()]

        def fetch() -> Any:
            # Called by gRPC at every handshake; an error would end the connection.
            try:
                last[0] = self._read()
            except TlsError as error:
                logger.error("the last good certificates go on: %s", error)
            key, certificate, ca = last[0]
            return grpc.ssl_server_certificate_configuration([(key, certificate)], ca)

        key, certificate, ca = last[0]
        initial = grpc.ssl_server_certificate_configuration([(key, certificate)], ca)
        return grpc.dynamic_ssl_server_credentials(initial, fetch, require_client_authentication=True)

    def channel_credentials(self) -> Any:
        """For a client, as the files are now.

        Raises:
            TlsError: a file cannot be read.
        """
        key, certificate, ca = self._read()
        return grpc.ssl_channel_credentials(ca, key, certificate)

    def _read(self) -> tuple[bytes, bytes, bytes]:
        contents = []
        for path in (self.key_file, self.cert_file, self.ca_file):
            try:
                contents.append(path.read_bytes())
            except OSError as error:
                raise TlsError(f"{path}: cannot be read: {error.strerror}") from None
        key, certificate, ca = contents
        return key, certificate, ca
