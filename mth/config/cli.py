"""What all commands share: help, Hydra's main, and errors in one line."""

import errno
import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

from mth.config.overrides import as_overrides, flags_first, rewrite_numbers
from mth.foundations.errors import UserError
from mth.foundations.output import prepare_output
from mth.foundations.signals import nothing_to_save

INTERRUPTED = 128 + signal.SIGINT  # exit status, as shells have it
FILE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.ENOENT)


def asks_for_help(arguments: list[str]) -> bool:
    """Whether `-h` or `--help` is among the arguments."""
    return bool({"-h", "--help"} & set(arguments))


def hydra_main(main: Callable[[Any], None], config_name: str = "config") -> None:
    """Run `main(cfg)` under Hydra with the arguments of this process; a grid goes to the sweeper and launcher instead.

    What it does goes on if nobody reads its output any more, as behind `| head`.
    """

    @one_line_errors
    def run() -> None:
        prepare_output()
        import hydra
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        from mth.config.compose import explain, register_offered, register_schemas
        from mth.foundations.paths import conf_dir

        register_schemas()
        sys.argv = [sys.argv[0], *flags_first(rewrite_numbers(as_overrides(sys.argv[1:], config_name), config_name))]
        register_offered(sys.argv[1:])
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises, and `explain` makes one line of it

        @one_line_errors  # inside of Hydra too, which would add a line of its own to an error
        def explained(*args: Any) -> None:
            try:
                main(*args)
            except OmegaConfBaseException as error:
                raise UserError(explain(error)) from error

        try:
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(explained)()
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(explain(error)) from error

    run()


def one_line_errors(main: Callable[..., Any]) -> Callable[..., Any]:
    """A UserError, a full disk or a refused file becomes one line on stderr and exit status 2; Ctrl-C one line and 130.

    Anything else keeps its traceback.
    """

    @wraps(main)
    def wrapped(*args: Any) -> Any:
        try:
            return main(*args)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from error
        except KeyboardInterrupt:
            nothing_to_save()
            print("\ninterrupted", file=sys.stderr)
            raise SystemExit(INTERRUPTED) from None
        except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter then flushes into nothing
            raise SystemExit(1) from None
        except OSError as error:
            if error.errno not in FILE_ERRORS:
                raise
            print(f"error: {error.filename or 'output'}: {error.strerror}", file=sys.stderr)
            raise SystemExit(2) from error

    return wrapped
