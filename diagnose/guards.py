"""The path of :class:`Limits` in earlier versions."""

from __future__ import annotations

from diagnose.limits import Limits

__all__ = ["Limits"]
