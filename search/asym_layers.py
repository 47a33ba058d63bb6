"""How deep should each block be? Four cells first, then a sampler over layers, context dim and context mode."""

import sys

from search.driver import main
from search.options import StudySettings
from search.spaces import Study, asym_layers


def study(settings: StudySettings) -> Study:
    """The study of a checked command line."""
    return asym_layers(settings.base, settings.context_dims, settings.sampler, settings.trials, settings.scheduler)


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", study, sampled=True))
