"""The processes that share a run: how they find each other, and the messages between them."""

from springroll.cluster.crew import ClusterError, Crew, Ended, Store
from springroll.cluster.detect import Launch, launch_of
from springroll.cluster.spans import Span, spans_of, usual_block

__all__ = [
    "ClusterError",
    "Crew",
    "Ended",
    "Launch",
    "Span",
    "Store",
    "launch_of",
    "spans_of",
    "usual_block",
]
