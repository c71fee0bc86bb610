"""Files of per-token values as a worker sends them: in parts, before the results that they belong to."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field

from longshort.errors import UserError
from longshort.results.tokens import TokenFile
from longshort.sweep.run.events import TokenPart, TokensSent


@dataclass
class ReceivedTokens:
    """What has come from one worker. Results of tasks that were evaluated together share a file, which is sent once."""

    parts: list[bytes] = field(default_factory=list)  # of the next file
    content: bytes = b""  # of the last file
    sent: TokensSent | None = None  # what the file of the next result should be

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
        """Return the file of the result that comes now, or why it is not as it was sent."""
        sent, self.sent = self.sent, None
        if sent is None:
            return None, None
        tokens = TokenFile(self.content, sent.rows)
        if tokens.sha256 != sent.sha256:
            message = "The per-token values were not received as they were sent; the results are saved. Run it again."
            return None, UserError(message, "data")
        return tokens, None
