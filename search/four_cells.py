"""Is one layer each enough? The four cells C1T1, C2T1, C1T2 and C2T2, layerwise and prev_and_current."""

import sys

from search.driver import main
from search.options import StudySettings
from search.spaces import Study, four_cells


def study(settings: StudySettings) -> Study:
    """The study of a checked command line."""
    return four_cells(settings.base, settings.context_dims)


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", study, sampled=False))
