"""What a session is doing, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["idle", "training", "paused", "predicting", "failed"]


@dataclass(frozen=True, slots=True)
class Status:
    """A snapshot of a session's state; a new one replaces it with every change."""

    state: State = "idle"
    step: int = 0
    loss: float | None = None
    """Balanced loss of the last fine step, or None before the first."""
    device: str = ""
    """Where torch computes: cpu, cuda:0, mps; empty before torch was needed."""
    model_version: int = 0
    """+1 with every model the session shows; 0 means there is none."""
    live_annotation_version: int = 0
    """Newest version of the active slide's annotations that the model behind the live view was fitted on."""
    seconds: float = 0.0
    """Of the present training run, pauses left out."""
    budget_seconds: float | None = None
    message: str = ""
    """One line for the user: what is happening, or what failed and what to do."""
    details: str = ""
    """The traceback of a failure, to copy into a report."""
    progress: float | None = None
    """0..1 of a whole-slide prediction."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Held-out scores of the present model (see `learning.validation`)."""
