"""Graph neural networks: the reference asynchronous recurrent one, and PyG's message passing."""

from .argnn import ARGNN
from .delta_rule import DeltaRule
from .explainers import AttentionExplainer, CaptumExplainer, GNNExplainer, PGExplainer
from .fixed_point import settle
from .masked_argnn import MaskedARGNN
from .message_model import MessageModel
from .retraining import retrained
from .schedule import Schedule
from .trained_masks import DropEdge, LotteryTickets
from .training import train_bptt

__all__ = [
    "ARGNN",
    "AttentionExplainer",
    "CaptumExplainer",
    "DeltaRule",
    "DropEdge",
    "GNNExplainer",
    "LotteryTickets",
    "MaskedARGNN",
    "MessageModel",
    "PGExplainer",
    "Schedule",
    "retrained",
    "settle",
    "train_bptt",
]
