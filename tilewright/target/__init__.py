"""What a device is, as data."""
from tilewright.target.presets import get_target, target_names
from tilewright.target.target import Target

__all__ = ["Target", "get_target", "target_names"]
