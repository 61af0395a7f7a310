"""Output of work that takes long. A reader that goes away, a closed terminal or a full disk cost lines, and never the work."""

import errno
import io
import os
import sys
from typing import Any


class _Lasting(io.FileIO):
    """A stream of this process that takes every write, whether it arrives or not."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.EIO):  # nobody will ever read here again
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self.fileno())
                os.close(null)
            return memoryview(data).nbytes


def prepare_output() -> None:
    """Make stdout and stderr of this process such streams. Leaves alone what is no stream of the system, as in a test.

    Where stderr is no terminal, the progress bars of libraries stay away. Call it before tqdm is imported.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper) or isinstance(getattr(stream.buffer, "raw", stream.buffer), _Lasting):
            continue
        try:
            if stream.fileno() != descriptor:
                continue
            stream.flush()
        except (OSError, ValueError):
            continue
        buffered = io.BufferedWriter(_Lasting(descriptor, "w", closefd=False))
        lasting = io.TextIOWrapper(
            buffered, encoding=stream.encoding, errors=stream.errors, line_buffering=True, write_through=stream.write_through
        )
        setattr(sys, name, lasting)
