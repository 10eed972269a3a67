"""Graph neural networks: the reference asynchronous recurrent one, and PyG's message passing."""

from .argnn import ARGNN
from .delta_rule import DeltaRule
from .message_model import MessageModel
from .recurrent_model import RecurrentModel
from .schedule import Schedule
from .training import train_bptt

__all__ = ["ARGNN", "DeltaRule", "MessageModel", "RecurrentModel", "Schedule", "train_bptt"]
