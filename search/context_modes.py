"""Which context should each token layer read? Every distinct context mode at two context and two token layers."""

import sys

from search.driver import main
from search.options import StudySettings
from search.spaces import Study, context_modes


def study(settings: StudySettings) -> Study:
    """The study of a checked command line."""
    return context_modes(settings.base, settings.context_dims)


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", study, sampled=False))
