"""Which context should each token layer read? Every distinct context mode at two context and two token layers."""

import sys

from search.driver import main
from search.options import StudySettings
from search.spaces import Space, Study, grid


def study(settings: StudySettings) -> Study:
    """Each distinct model at each D."""
    dims, modes = settings.context_dims, settings.context_modes
    box = Space(context_layers=(2, 2), token_layers=(2, 2), context_dims=dims, context_modes=modes)
    return grid("context_modes", settings.base, box)


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", study, sampled=False))
