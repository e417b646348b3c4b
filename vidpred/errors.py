"""The one error that a user is meant to read, and the door that prints it."""

import functools
import os
import sys
import time
import traceback
from typing import Callable


SECONDS_BEFORE_OTHER_RANKS_SPEAK = 3.0  # torchrun looks at its processes ten times a second


class UserError(Exception):
    """Bad input: one line that names the file or key, the reason and the cure."""


def require(holds: bool, line: str) -> None:
    """Raises `UserError(line)` unless `holds`."""
    if not holds:
        raise UserError(line)


def door(main: Callable[[], int | None]) -> Callable[[], None]:
    """Wraps a command's `main`: a `UserError` is printed as one line and ends with exit code 2.

    So does anything else that was raised, after its traceback: Python's own exit code for it is 1, which is what a
    command that examines a model says when it has found something.

    Under `torchrun` mostly all ranks meet the same bad input. The others wait a moment before they speak: if
    rank 0 met it too, torchrun has ended them by then, and the line stands there once.
    """

    @functools.wraps(main)
    def run() -> None:
        try:
            code = main()
        except UserError as error:
            rank = int(os.environ.get("RANK", "0"))
            time.sleep(SECONDS_BEFORE_OTHER_RANKS_SPEAK if rank else 0)
            who = f" [rank {rank}]" if rank else ""
            print(f"error{who}: {error}", file=sys.stderr, flush=True)
            code = 2
        except Exception:  # the outermost frame: nothing goes on after it
            traceback.print_exc()
            code = 2
        sys.exit(code or 0)

    return run
