"""Conversations and catalogs: `schema` is the one form, `adapters` read published ones, `load` picks and checks."""

from convrec_r1.data.catalog import Catalog
from convrec_r1.data.schema import SPLITS, Conversation, Dataset, Message, Split

__all__ = ["SPLITS", "Catalog", "Conversation", "Dataset", "Message", "Split"]
