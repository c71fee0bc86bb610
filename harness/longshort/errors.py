"""The one exception a user's mistake raises, and how it is shown."""

import sys
from types import TracebackType


class UserError(Exception):
    """Something the user can mend. The message is one line: the cause, then the remedy."""


class UsageError(UserError):
    """A choice that there is not, or that cannot be understood: wrong usage, exit code 2."""


class OutOfMemory(UserError):
    """Memory does not suffice; less may do."""


def one_line_for_user_errors() -> None:
    """Let the interpreter end with exit code 1 and the message alone where a UserError reaches it."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if isinstance(error, UserError):
            print(f"longshort: {error}", file=sys.stderr)
        else:
            before(kind, error, traceback)

    sys.excepthook = hook
