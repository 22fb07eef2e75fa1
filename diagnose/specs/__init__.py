"""What a spec document says, checked: which instrument goes on which function, for how long.

A spec comes as a plain mapping, from a MongoDB collection or from a dict in the program.
:func:`parse` turns it into a :class:`Spec`, or says what is wrong with it and what to do;
it touches no function, imports nothing and never changes the document. What has no effect
is named in :attr:`Spec.warnings`: nothing in a document is ignored in silence.
"""

from __future__ import annotations

from diagnose.specs.content import content_of
from diagnose.specs.model import (
    DEFAULT_LIFESPAN,
    FAILED_STATES,
    PERCENT_MODULUS,
    Canary,
    Select,
    Spec,
    Stage,
    percent_factors,
    process_share,
)
from diagnose.specs.parsing import parse
from diagnose.status import State

__all__ = [
    "DEFAULT_LIFESPAN",
    "FAILED_STATES",
    "PERCENT_MODULUS",
    "Canary",
    "Select",
    "Spec",
    "Stage",
    "State",
    "content_of",
    "parse",
    "percent_factors",
    "process_share",
]
