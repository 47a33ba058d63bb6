"""Is one layer each enough? The four cells C1T1, C2T1, C1T2 and C2T2, layerwise and prev_and_current."""

import sys

from search.driver import main
from search.options import StudySettings
from search.spaces import Space, Study, grid

MODES = ("layerwise", "prev_and_current")  # the reports' two


def study(settings: StudySettings) -> Study:
    """Six distinct models for each D."""
    box = Space(context_layers=(1, 2), token_layers=(1, 2), context_dims=settings.context_dims, context_modes=MODES)
    return grid("four_cells", settings.base, box)


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", study, sampled=False))
