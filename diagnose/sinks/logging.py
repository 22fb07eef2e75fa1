"""Metrics as log records."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from diagnose.sinks.stream import counter_line, histogram_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["LoggingSink"]


class LoggingSink:
    """Logs one record for each batch; also a stream for the lines of a `LogInstrument`.

    ``LogInstrument.out = LoggingSink(...)`` sends each line into ``logging``.

    Args:
        logger: where to; None: the logger ``diagnose.metrics``.
        level: the records' level. Nothing is computed while the logger is not enabled
            for it.
    """

    def __init__(self, logger: logging.Logger | None = None, level: int = logging.INFO) -> None:
        self.logger = logger if logger is not None else logging.getLogger("diagnose.metrics")
        self.level = level

    def histogram(self, name: str, values: Sequence[float], tags: Mapping[str, object]) -> None:
        """Log count, least, mean and greatest value."""
        if self.logger.isEnabledFor(self.level):
            self.logger.log(self.level, "%s", histogram_line(name, values, tags))

    def counter(self, name: str, total: float, tags: Mapping[str, object]) -> None:
        """Log what the counter has grown by."""
        if self.logger.isEnabledFor(self.level):
            self.logger.log(self.level, "%s", counter_line(name, total, tags))

    def write(self, text: str) -> int:
        """Log one record, without the text's line end; for nothing but a line end, none."""
        line = text.removesuffix("\n")
        if line:
            self.logger.log(self.level, "%s", line)
        return len(text)

    def flush(self) -> None:
        """Do nothing; some writers of streams call it."""

    def close(self) -> None:
        """Do nothing: the logger is its owner's."""
