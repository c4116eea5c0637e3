"""Errors that are the user's to mend: one clear line, exit status 2, never a traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in a config, a flag or a file.

    The message is one line that names the file, the field or the flag, what was found and what was expected.
    `launch.py` prints it and exits with status 2.
    """


def nearest(word: str, options: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the option nearest to `word`, or the list of options when none is near."""
    options = sorted(options)
    near = difflib.get_close_matches(word, options, n=1, cutoff=0.5)
    return f" (did you mean '{near[0]}'?)" if near else f" (one of: {', '.join(options)})"
