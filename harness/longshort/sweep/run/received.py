"""Token files as a worker sends them: in parts, before the results that they belong to."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field

from longshort.errors import UserError
from longshort.results.tokens import TokenFile
from longshort.sweep.run.events import TokenPart, TokensSent


@dataclass
class ReceivedTokens:
    """Token files from one worker. Results of tasks that were evaluated together share a file, which is sent once."""

    parts: list[bytes] = field(default_factory=list)  # of the next file
    content: bytes = b""  # of the last file
    sent: TokensSent | None = None  # size and hash of the next result's file

    def add(self, event: TokenPart | TokensSent) -> None:
        """Receive a part, or the end of the parts."""
        if isinstance(event, TokenPart):
            self.parts.append(base64.b64decode(event.data))
            return
        if self.parts:
            self.content = b"".join(self.parts)
            self.parts.clear()
        self.sent = event

    def take(self) -> tuple[TokenFile | None, UserError | None]:
        """Return the file of the current result, if it has one, and an error if its hash is not the one sent."""
        sent, self.sent = self.sent, None
        if sent is None:
            return None, None
        tokens = TokenFile(self.content, sent.rows)
        if tokens.sha256 != sent.sha256:
            message = (
                "The token file was damaged on its way from the worker; the results are saved without it. Run it again."
            )
            return None, UserError(message, "data")
        return tokens, None
