"""The two faults: the user's (`UserError`: what, where, why, what to try) and the compiler's (`InternalError`).

Every UserError has a stable code; docs/errors.md has a worked example for each and a test raises each.
"""
from __future__ import annotations


class TilewrightError(Exception):
    """Base of everything that Tilewright raises on purpose."""


class UserError(TilewrightError):
    """Something the user can mend.

    `code` is stable and short ("onnx-unsupported-op"); `message` says what and why; `where` names the place in the
    user's model or program (node name, file, input); `hint` says what to try.
    """

    def __init__(self, code: str, message: str, *, where: str = "", hint: str = "") -> None:
        self.code, self.message, self.where, self.hint = code, message, where, hint
        text = f"[{code}] {message}"
        if where:
            text += f"\n  where: {where}"
        if hint:
            text += f"\n  try: {hint}"
        super().__init__(text)


class InternalError(TilewrightError):
    """A broken invariant of the compiler. The driver adds the path of a bundle that reproduces it."""
