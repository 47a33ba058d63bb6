"""Where models that were registered before say that they are served from; see `model.text.served`."""

from model.text.served import _load_pyfunc

__all__ = ["_load_pyfunc"]
