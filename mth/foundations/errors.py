"""Errors that users see without a traceback, and the first line of any error."""


class UserError(Exception):
    """Bad input. The message is one line that names the key or file, and the remedy. Commands print it and exit with status 2."""


class EngineError(UserError):
    """The rollout engine failed, or its weights differ from the trainer's. The run saves a checkpoint and stops; it can be resumed."""


def require(condition: bool, message: str) -> None:
    """Raise UserError(message) unless `condition` holds."""
    if not condition:
        raise UserError(message)


def first_line(error: BaseException, limit: int | None = None) -> str:
    """The first line of the message, cut to `limit` characters, or the name of the error's type if the message is empty."""
    text = str(error).strip()
    return text.splitlines()[0][:limit] if text else type(error).__name__
