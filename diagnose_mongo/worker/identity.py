"""The identity of a process within the fleet: its id and its labels.

The id names the process's entry in every spec's ``applied``, so it is a valid part of a
field path in MongoDB (no dots, no dollars), and no other process has it: host, pid and the
time of the start tell apart even the first processes of containers that replace each other.
"""

from __future__ import annotations

import os
import re
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LABEL_VARIABLES", "Identity", "labels_around", "new_process_id", "sanitize"]

LABEL_VARIABLES = {
    "service": ("DIAGNOSE_SERVICE", "OTEL_SERVICE_NAME", "DD_SERVICE"),
    "env": ("DIAGNOSE_ENV", "DD_ENV"),
    "version": ("DIAGNOSE_VERSION", "DD_VERSION"),
    "host": ("NODE_NAME",),
    "pod": ("POD_NAME",),
    "namespace": ("POD_NAMESPACE",),
}
"""The environment variables that labels are taken from where the program gives none: the first
one that is set. After them come those of ``OTEL_RESOURCE_ATTRIBUTES``, and what Kubernetes
(the pod's name) and systemd (the unit's) say about where the process runs."""

_ATTRIBUTES = {
    "service": ("service.name",),
    "env": ("deployment.environment.name", "deployment.environment"),
    "version": ("service.version",),
    "pod": ("k8s.pod.name",),
    "namespace": ("k8s.namespace.name",),
}
# A pod of a Deployment is called <name>-<hash of the template>-<five characters>, one of a
# StatefulSet <name>-<number>, one of a DaemonSet or Job <name>-<five characters>; the characters
# are those of the package rand of Kubernetes, which has no vowels.
_POD = re.compile(r"(.+?)(-[bcdf-hj-np-tv-xz2456789]{6,10})?-([bcdf-hj-np-tv-xz2456789]{5}|\d+)")
_UNIT = re.compile(r"/([^/]+?)(?:@[^/]*)?\.service(?:/|$)", re.MULTILINE)
_CGROUP_FILE = Path("/proc/self/cgroup")

_LONGEST_PART = 100
_starts: dict[int, object] = {}
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def sanitize(text: object) -> str:
    """``text`` with ``_`` for each character that is not of ``[A-Za-z0-9_-]``; maybe empty."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", str(text))[:_LONGEST_PART]


def new_process_id(base: str | None = None) -> str:
    """An id for the process that asks: ``host-pid-start``, or ``base-pid-start``."""
    start = _now_in_ms()
    # Two of one process may be asked for in the same moment; `setdefault` is one atomic call.
    while _starts.setdefault(start, me := object()) is not me:
        start += 1
    return f"{sanitize(base or socket.gethostname())}-{os.getpid()}-{_base36(start)}"


@dataclass(frozen=True, slots=True)
class Identity:
    """A process id and labels, as they stand in one process.

    Attributes:
        process_id: of characters ``[A-Za-z0-9_-]`` only.
        labels: what specs select processes by; label names to texts.
        given: the id that the program chose, or None if it was made up here.
    """

    process_id: str
    labels: Mapping[str, str] = field(default_factory=dict)
    given: str | None = None

    @classmethod
    def make(
        cls, process_id: object | None = None, labels: Mapping[str, object] | None = None
    ) -> Self:
        """This process's identity.

        Args:
            process_id: what the program wants to be called; characters that a field name
                can't have become ``_``. Without it, one is made up.
            labels: by name; None as a value takes what the environment says (see
                :data:`LABEL_VARIABLES`; ``host``: this machine's name) as if it were not
                given at all.
        """
        found: dict[str, object] = {"host": socket.gethostname(), **labels_around()}
        found |= {name: value for name, value in (labels or {}).items() if value is not None}
        given = None if process_id is None else sanitize(process_id)
        return cls(
            given or new_process_id(),
            {name: str(value) for name, value in found.items()},
            given or None,
        )

    def for_child(self) -> Identity:
        """The identity of a process that was just forked, to be called in it."""
        return Identity(new_process_id(self.given), self.labels, self.given)


def labels_around() -> dict[str, str]:
    """The labels that the environment gives this process."""
    attributes = dict(
        item.strip().partition("=")[::2]
        for item in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(",")
    )
    found = {}
    for name, variables in LABEL_VARIABLES.items():
        given = [os.environ.get(variable, "") for variable in variables]
        given += [attributes.get(attribute, "").strip() for attribute in _ATTRIBUTES.get(name, ())]
        if value := next(filter(None, given), None):
            found[name] = value
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        found.setdefault("pod", os.environ.get("HOSTNAME") or socket.gethostname())
        if pod := _POD.fullmatch(found["pod"]):
            found.setdefault("service", pod[1])
    elif "service" not in found and (unit := _systemd_unit()):
        found["service"] = unit
    return found


def _systemd_unit() -> str | None:
    """The name of the systemd service that this process is of, without ``.service``."""
    if "INVOCATION_ID" not in os.environ:
        return None
    try:
        units = _UNIT.findall(_CGROUP_FILE.read_text())
    except (OSError, ValueError):
        return None
    # What runs in a user's session is below the service that manages that.
    return units[-1] if units and not units[-1].startswith("user") else None


def _now_in_ms() -> int:
    return time.time_ns() // 1_000_000


def _base36(number: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = _DIGITS[digit] + digits
    return digits or "0"
