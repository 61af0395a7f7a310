"""The exceptions that a user may see without a traceback."""


class UserError(Exception):
    """Bad input: the message is one line that names the key or file and the remedy. Entry points print it and exit with status 2."""


class EngineError(UserError):
    """The rollout engine failed or is out of step with the trainer: the run saves what it has and stops; it can be resumed."""
