"""Routes customers' messages to agents with a small function-calling model."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from router.router import Route, Router

__all__ = ["Route", "Router"]


def __getattr__(name: str) -> Any:
    # On first use only: stages that need no model must not wait for torch.
    if name in __all__:
        from router import router

        return getattr(router, name)
    raise AttributeError(f"module 'router' has no attribute {name!r}")
