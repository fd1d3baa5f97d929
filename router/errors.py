"""The one error that a user's mistake raises, and how a script ends on it."""

import os
import sys
from collections.abc import Callable


class InputError(ValueError):
    """A user's mistake, told in one line that names the file, line or key and says what to do."""


def run(main: Callable[[], None]) -> None:
    """Call `main`; end with one clear line and exit code 1, without a traceback, on a user's mistake."""
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:
        # Whoever reads the output has enough, as `head` does. Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit("interrupted")
