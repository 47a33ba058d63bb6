"""Processes of tests that may write where their files' permissions let them, as root too."""

import ctypes
import sys


def obey_permissions() -> None:
    """Linux' root may write anywhere: give that up; others have nothing to give up."""
    if sys.platform == "linux":
        drop_from_bounding_set, dac_override = 24, 1
        ctypes.CDLL(None).prctl(drop_from_bounding_set, dac_override)
