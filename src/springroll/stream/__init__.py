"""Models bigger than the device: weights live in host memory and pass through it by layers."""

from springroll.stream.bundles import experts_apart, whole_layers
from springroll.stream.clipping import Clip
from springroll.stream.device_update import DeviceUpdate
from springroll.stream.disk import Disk
from springroll.stream.fill_store import bundled_leaves, stacked_leaves
from springroll.stream.host_adamw import AdamW
from springroll.stream.host_update import HostUpdate
from springroll.stream.link import Link
from springroll.stream.store import MappedStore, mapped_model
from springroll.stream.streamed import Streamed
from springroll.stream.streamed_low_rank import StreamedLowRank
from springroll.stream.streamed_population import StreamedPopulation, stream_population
from springroll.stream.update import PlacedUpdate

__all__ = [
    "AdamW",
    "Clip",
    "DeviceUpdate",
    "Disk",
    "HostUpdate",
    "Link",
    "MappedStore",
    "PlacedUpdate",
    "Streamed",
    "StreamedLowRank",
    "StreamedPopulation",
    "bundled_leaves",
    "experts_apart",
    "mapped_model",
    "stacked_leaves",
    "stream_population",
    "whole_layers",
]
