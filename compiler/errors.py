"""The one family of errors that Secateur raises for users.

Every error carries a stable code, what happened, where, and what to do; the command line prints
exactly that, without a traceback, and exits with `exit_code`.
"""

from __future__ import annotations


class SecateurError(Exception):
    """An error in what the user gave: a model, an option, a path.

    code: stable identifier such as `E_UNKNOWN_OP`. message: what happened, one sentence.
    where: file, node or option concerned. hint: what the user can do about it.
    """

    exit_code = 2

    def __init__(self, code: str, message: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        text = f"[{self.code}] {self.message}"
        if self.where:
            text += f"\n  where: {self.where}"
        if self.hint:
            text += f"\n  fix:   {self.hint}"
        return text

    def to_dict(self) -> dict[str, str]:
        """The error as the command line prints it under --json."""
        return {"code": self.code, "message": self.message, "where": self.where, "hint": self.hint}


class SecateurWarning(UserWarning):
    """Something that the user should know, and that stops nothing."""


class CheckFailed(SecateurError):
    """The input was fine, but a check of the result failed: verification, certificate, accuracy."""

    exit_code = 1
