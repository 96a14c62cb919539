"""Forks: what has locks or connections is told of them, by those of its methods that are named for the moment."""

import os
import weakref
from collections.abc import Callable

_MOMENTS = {"before": "before_fork", "after_in_parent": "after_fork_in_parent", "after_in_child": "after_fork_in_child"}


def survive_forks(survivor: object) -> None:
    """From now on, as long as it lives: `os` would keep it alive for ever."""
    reference = weakref.ref(survivor)

    def tell(method: str) -> Callable[[], None]:
        def forking() -> None:
            if (alive := reference()) is not None:
                getattr(alive, method)()

        return forking

    os.register_at_fork(**{moment: tell(method) for moment, method in _MOMENTS.items() if hasattr(survivor, method)})
