"""The one error that a user is meant to read, and the door that prints it."""

import functools
import os
import sys
from typing import Callable


class UserError(Exception):
    """Bad input: one line that names the file or key, the reason and the cure."""


def door(main: Callable[[], int | None]) -> Callable[[], None]:
    """Wraps a command's `main`: a `UserError` is printed as one line and ends with exit code 2.

    Under `torchrun` every rank meets the same bad input, so only rank 0 prints it.
    """

    @functools.wraps(main)
    def run() -> None:
        try:
            code = main()
        except UserError as error:
            if os.environ.get("RANK", "0") == "0":
                print(f"error: {error}", file=sys.stderr, flush=True)
            code = 2
        sys.exit(code or 0)

    return run
