"""Graph neural networks: the reference asynchronous recurrent one, and PyG's message passing."""

from .argnn import ARGNN
from .delta_rule import DeltaRule
from .fixed_point import settle
from .masked_argnn import MaskedARGNN
from .message_model import MessageModel
from .schedule import Schedule
from .training import train_bptt

__all__ = ["ARGNN", "DeltaRule", "MaskedARGNN", "MessageModel", "Schedule", "settle", "train_bptt"]
