"""Engines that fail in a rollout worker. A module of its own: the worker's process imports it."""

import os
import sys

from convrec_r1.policy.skeleton import load_weights
from convrec_r1.policy.weights import stream_weights
from convrec_r1.rollout.hf import HFEngine


class Dies(HFEngine):
    def generate(self, *arguments, **options):
        print("the end is near", file=sys.stderr, flush=True)
        os._exit(7)


class Raises(HFEngine):
    def generate(self, *arguments, **options):
        raise RuntimeError("CUDA out of memory, or so")


class Forgets(HFEngine):
    """Has other weights than it was given."""

    def load(self, weights) -> None:
        super().load(weights)
        name, _ = next(iter(stream_weights(self.policy)))
        load_weights(self.policy, [(n, w + (n == name)) for n, w in stream_weights(self.policy)])

    def generate(self, *arguments, **options):
        raise AssertionError("sampled from other weights")
