"""Stage 2: group-relative RL. One step, top to bottom: sample, judge, credit, learn, report."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from convrec_r1.base.processes import gather
from convrec_r1.data import Conversation
from convrec_r1.evaluate.metrics.list_quality import list_quality
from convrec_r1.modules.config import RLSettings
from convrec_r1.modules.faults import Checks, Evidence, evidence_of
from convrec_r1.modules.groups import Group, joined, replace_flat, rows_of, varies
from convrec_r1.modules.meters import Clock, Meter, group_statistics
from convrec_r1.modules.minibatches import minibatches
from convrec_r1.modules.step import Slots, StepLoader, StepModule
from convrec_r1.policy import Policy, PromptEncoder
from convrec_r1.policy.policy import Reference
from convrec_r1.reward.judge import Feedback, Judge
from convrec_r1.rl import (
    LossInputs,
    LossOutputs,
    Objective,
    batch_normalizer,
    group_advantages,
    importance_weights,
    overlong_penalty,
    per_token,
    shape_lengths,
)
from convrec_r1.rl.config import Advantage
from convrec_r1.rollout.base import RolloutEngine, Sampling, prompt_seed
from convrec_r1.rollout.batch import RolloutBatch, make_batch
from convrec_r1.rollout.constraint import Constraint
from convrec_r1.rollout.pipeline import Order, Pipeline
from convrec_r1.run.tracker import Tracker


class RLModule(StepModule):
    """One policy update from a batch of prompts. `settings.algo` and `objective` alone say which algorithm it is."""

    def __init__(
        self,
        policy: Policy,
        engine: RolloutEngine,
        encoder: PromptEncoder,
        judge: Judge,
        objective: Objective,
        settings: RLSettings,
        tracker: Tracker,
        loader: StepLoader,
        *,
        constraint: Constraint | None = None,
    ) -> None:
        """
        Args:
            engine: samples completions; its weights follow the policy's after every step.
            judge: texts -> relevance and returns.
            objective: tensors of a micro-batch -> loss and metrics.
            loader: of the training, for the prompts of coming steps (rollout.overlap) and in place of groups that teach
                nothing (algo.dynamic_sampling).
            constraint: that lists are held to, in sampling and in all log-probs (rollout.constraint). The engine has it, too.
                None: nothing.
        """
        algo, rollout = settings.algo, settings.rollout
        updates = settings.rl.steps * algo.mu * algo.minibatches
        super().__init__(policy, settings.rl, updates=updates, seed=settings.seed, guard=settings.guard)
        self.engine, self.encoder, self.judge, self.tracker = engine, encoder, judge, tracker
        self.objective, self.settings = objective, settings
        self.reference: Reference | None = None
        if algo.beta:
            dtype = getattr(torch, settings.reference_dtype) if settings.reference_dtype else None
            self.reference = policy.reference(dtype=dtype, folder=settings.reference_folder)
        self.sampling = Sampling(
            n=algo.group_size,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            top_k=rollout.top_k,
            max_tokens=settings.max_tokens,
            max_lines=settings.n if rollout.stop_at_n else None,
        )
        self.correction: dict[str, Any] = {
            "n": settings.n,
            "kind": rollout.correction_in_effect.value,
            "low": rollout.correction_low,
            "high": rollout.correction_high,
            "unit": (rollout.correction_unit or algo.ratio).value,
        }
        """Keyword arguments of `importance_weights`."""
        self.loader, self.constraint = loader, constraint
        self.pipeline = Pipeline(engine, self.sampling, rollout.overlap)

    def on_train_start(self) -> None:
        super().on_train_start()
        self.engine.sync(self.policy)
        self.sample_ahead()

    def training_step(self, slots: Slots[Conversation], _: int) -> None:
        clock, meter = Clock(self.device), Meter()
        self.clock = clock
        queue = self.queue()
        slots, rollouts, feedback = self.sample(slots, meter)
        advantages = self.credit(rollouts, feedback)
        clock.lap("reward")
        skipped = self.skipped
        meter.merge(self.learn(slots, rollouts, advantages))
        clock.lap("train")
        self.engine.sync(self.policy)
        self.steps_done += 1
        self.sample_ahead()
        clock.lap("sync")
        self.report(slots, rollouts, feedback, meter, clock, queue | {"skipped_updates": self.skipped - skipped})

    def sample_ahead(self) -> None:
        """Submit the prompts of coming steps that are to be sampled from the current weights (rollout.overlap)."""
        if overlap := self.pipeline.overlap:
            for step, slots in self.loader.upcoming(overlap + 1):
                if not self.pipeline.has(step):
                    self.pipeline.submit(self.order(slots, step), self.step)

    def queue(self) -> dict[str, float]:
        """Return metrics of sampling as the step finds it: steps whose rollouts are there, and the workers."""
        values: dict[str, float] = getattr(self.engine, "metrics", dict)()
        if self.pipeline.overlap:
            values["rollout/ready"] = float(self.pipeline.ready())
        return values

    def sample(self, slots: Slots[Conversation], meter: Meter) -> tuple[Slots[Conversation], RolloutBatch, Feedback]:
        """Return the prompts of the step with G completions each and their feedback.

        They are sampled from the current weights or those of earlier steps (rollout.overlap). Prompts whose groups teach
        nothing are replaced (algo.dynamic_sampling), by groups from the current weights.
        """
        algo = self.settings.algo
        groups = self.groups(slots)
        if algo.dynamic_sampling:
            groups = replace_flat(groups, self.loader.more, self.groups, algo.dynamic_sampling, meter)
        for group in groups:
            meter.mean("sampling/staleness", group.staleness)
        rollouts = make_batch(
            [group.prompt for group in groups],
            [group.completions for group in groups],
            self.policy,
            mask_truncated=algo.mask_truncated,
            count_blank_lines=algo.count_blank_lines,
            constraint=self.constraint,
            openings=[group.opening for group in groups if group.opening is not None],
        )
        taken = Slots([(group.slot, group.conversation) for group in groups])
        return taken, rollouts, joined([group.feedback for group in groups])

    def groups(self, slots: Slots[Conversation], replacement: int = 0) -> list[Group]:
        """Sample and judge a group for each slot. replacement: times that the slots' groups were replaced before."""
        sampled = self.pipeline.take(self.order(slots, self.step, replacement), self.step)
        self.clock.lap("rollout")
        if not len(slots):  # another process had groups to replace
            return []
        size = self.sampling.n
        texts = [self.policy.text(c.ids.tolist()) for group in sampled.groups for c in group]
        feedback = self.judge(texts, [conversation for _, conversation in slots for _ in range(size)], self.device)
        lengths = torch.tensor([len(c.ids) for group in sampled.groups for c in group], device=self.device)
        credited = self.credited(feedback, lengths)
        groups = []
        order = sampled.order
        openings = order.openings or [None] * len(slots)
        for i, ((slot, conversation), completions) in enumerate(zip(slots, sampled.groups, strict=True)):
            rows = slice(i * size, (i + 1) * size)
            own, teaches = rows_of(feedback, rows), varies(credited[rows])
            given = order.prompts[i], completions, own, teaches, sampled.staleness, openings[i]
            groups.append(Group(slot, conversation, *given))
        self.clock.lap("reward")
        return groups

    def order(self, slots: Slots[Conversation], step: int, replacement: int = 0) -> Order:
        prompts = [self.encoder.prompt(conversation) for _, conversation in slots]
        apart = replacement * self.loader.per_step
        seeds = [prompt_seed(self.settings.seed, step, apart + slot) for slot, _ in slots]
        openings = None
        if self.constraint is not None:
            openings = [self.constraint.opening(self.settings.n, c.seen) for _, c in slots]
        return Order(step, prompts, seeds, openings)

    def credited(self, feedback: Feedback, lengths: Tensor) -> Tensor:
        """Return the values that advantages are computed from: [B, N] of ranks or [B, 1] of lists, overlong lists punished.

        lengths: [B], tokens of each completion.
        """
        algo = self.settings.algo
        values = feedback.returns if algo.advantage is Advantage.rank else feedback.reward[:, None]
        return values + overlong_penalty(lengths, self.sampling.max_tokens, algo.overlong)[:, None]

    def credit(self, rollouts: RolloutBatch, feedback: Feedback) -> Tensor:
        """Return token advantages [B, T]: of each token's rank or list within the group, with length shaping."""
        algo, n = self.settings.algo, self.settings.n
        rewards = self.credited(feedback, rollouts.mask.sum(-1))
        rewards = rewards if algo.advantage is Advantage.rank else rewards[:, 0]
        advantages = group_advantages(rewards, algo.group_size, scale=algo.scale.value)
        tokens = per_token(advantages, rollouts.ranks, n)
        return shape_lengths(tokens, rollouts.ranks, rollouts.is_eos, rollouts.lengths, n, algo.shaping)

    def learn(self, slots: Slots[Conversation], rollouts: RolloutBatch, advantages: Tensor) -> Meter:
        """Make mu passes of `minibatches` optimizer steps over the rollouts. Return the metrics of the applied updates."""
        algo = self.settings.algo
        meter = Meter()
        # With a single update the old log-probs are those of the policy itself.
        old = self.logps(rollouts) if algo.mu * algo.minibatches > 1 else None
        for index in range(algo.mu):
            for rows in self.minibatches(slots, index):
                counted = rollouts.trained[rows], algo.aggregation.value
                normalizer = self.sum_over_devices(
                    batch_normalizer(*counted, n=self.settings.n, max_length=self.sampling.max_tokens)
                )
                parts = self.passes(rollouts.tokens, rows, self.settings.pass_limit)
                seen = Meter()
                given = rollouts, advantages, old, normalizer
                # All before the first backward pass: the reference and the gradients are never in memory together.
                references = (
                    self.reference.each([rollouts.tokens.rows(part) for part in parts]) if self.reference else None
                )
                losses = [
                    partial(self.loss, part, references[i] if references else None, *given, seen)
                    for i, part in enumerate(parts)
                ]
                lr = self.learning_rate()
                norm = self.update(losses, partial(self.evidence, parts, slots, *given))
                if norm is not None:
                    meter.merge(seen)
                    meter.mean("lr", lr)
                    meter.mean("grad_norm", norm)
        return meter

    def loss(
        self, rows: Tensor, ref_logps: Tensor | None, rollouts: RolloutBatch, advantages: Tensor, old: Tensor | None,
        normalizer: Tensor, meter: Meter,
    ) -> Tensor:  # fmt: skip
        """Return what `rows` contribute to the loss of the optimizer batch. ref_logps: of the reference, [len(rows), T]."""
        tokens = rollouts.tokens.rows(rows)
        width = tokens.mask.shape[1]
        see = self.checks.see
        sampled_logps = see("the sampler's log-probs", rollouts.sampled_logps[rows, :width])
        credit = see("the advantages", advantages[rows, :width])
        ref_logps = None if ref_logps is None else see("the reference's log-probs", ref_logps)
        logps, entropy = self.policy.score(tokens)
        old_logps = logps.detach() if old is None else see("the old log-probs", old[rows, :width])
        see("the log-probs", logps)
        ranks = rollouts.ranks[rows, :width]
        weights, mismatch = importance_weights(old_logps, sampled_logps, tokens.mask, ranks, **self.correction)
        trained = rollouts.trained[rows, :width]
        inputs = LossInputs(
            logps, old_logps, credit, trained, ranks, n=self.settings.n, aggregation=self.settings.algo.aggregation.value,
            normalizer=normalizer, max_length=self.sampling.max_tokens, ref_logps=ref_logps, weights=weights,
        )  # fmt: skip
        loss, metrics = LossOutputs(*self.objective(inputs))
        n_tokens = tokens.mask.sum()
        drift = torch.where(tokens.mask.bool(), (old_logps - sampled_logps).abs(), 0.0)
        meter.sum("loss", loss)
        meter.max("sampling/sampling_logp_difference/max", drift.max())
        meter.mean("sampling/sampling_logp_difference/mean", drift.sum() / n_tokens.clamp(min=1), n_tokens)
        meter.mean("entropy", entropy.sum() / n_tokens.clamp(min=1), n_tokens)
        meter.update(metrics, trained.sum())
        meter.update(mismatch, n_tokens)
        return loss

    def evidence(
        self, parts: Sequence[Tensor], slots: Slots[Conversation], rollouts: RolloutBatch, advantages: Tensor,
        old: Tensor | None, normalizer: Tensor, checks: Checks,
    ) -> Evidence:  # fmt: skip
        """Return the batch of an update."""
        beside = {"ranks": rollouts.ranks, "advantages": advantages, "sampled_logps": rollouts.sampled_logps}
        if old is not None:
            beside["old_logps"] = old
        owners = [(slot, c.id) for slot, c in slots for _ in range(self.sampling.n)]
        return evidence_of(rollouts.tokens, beside, parts, checks, float(normalizer), owners)

    def minibatches(self, slots: Slots[Conversation], index: int) -> list[Tensor]:
        """Return the rows of each optimizer step of pass `index`."""

        def order(slot: int) -> Tensor:
            seed = prompt_seed(self.settings.seed, self.step, 1_000_000 * (index + 1) + slot)
            return torch.randperm(self.sampling.n, generator=torch.Generator().manual_seed(seed))

        parts = minibatches([slot for slot, _ in slots], self.sampling.n, self.settings.algo.minibatches, order)
        return [part.to(self.device) for part in parts]

    def logps(self, rollouts: RolloutBatch) -> Tensor:
        """Return log-probs under the current weights, [B, T], without gradients."""
        result = torch.zeros_like(rollouts.sampled_logps)
        with self.policy.inference():
            every = torch.arange(len(result), device=self.device)
            for rows in self.passes(rollouts.tokens, every, self.settings.pass_limit):
                part, _ = self.policy.score(rollouts.tokens.rows(rows))
                result[rows, : part.shape[1]] = part
        return result

    def report(
        self, slots: Slots[Conversation], rollouts: RolloutBatch, feedback: Feedback, meter: Meter, clock: Clock,
        more: dict[str, float],
    ) -> None:  # fmt: skip
        """Log the metrics of a step: those in `meter`, those of its lists, and `more`."""
        owners = [conversation for _, conversation in slots for _ in range(self.sampling.n)]
        n_tokens = rollouts.mask.sum(-1)
        group_statistics(meter, feedback.reward, self.credited(feedback, n_tokens), self.sampling.n)
        if self.settings.algo.overlong.cache:
            penalty = overlong_penalty(n_tokens, self.sampling.max_tokens, self.settings.algo.overlong)
            meter.mean("overlong_penalty", penalty.mean())
        for k, value in enumerate(feedback.returns.mean(0), 1):
            meter.mean(f"rank/{k}/reward", value)
        for text, owner in zip(feedback.texts, owners, strict=True):
            quality = list_quality(text, owner.seen, self.judge.catalog, self.settings.n, self.judge.match)
            for name, value in quality.items():
                meter.mean(name, value)
        meter.mean("completions/mean_length", n_tokens.float().mean())
        meter.min("completions/min_length", n_tokens.min())
        meter.max("completions/max_length", n_tokens.max())
        meter.mean("completions/clipped_ratio", rollouts.truncated.float().mean())
        values = meter.reduce(self) | clock.seconds() | more
        values["tokens_per_second"] = float(self.sum_over_devices(n_tokens.sum())) / clock.total()
        self.latest = values
        self.tracker.log(self.step, "train", values)
        self.progress = f"reward {values['reward']:.3f}"
        if self.step % self.settings.rl.table_every == 0 or self.step == 1:
            self.tracker.table("rollouts", self.step, self.table(owners, feedback, rollouts))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the rollouts sampled ahead on each process: a resumed run trains on the same lists."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["sampled_ahead"] = gather(self.pipeline.state_dict(self.step))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        parts = checkpoint.get("sampled_ahead", [])
        if self.trainer.global_rank < len(parts):
            self.pipeline.load_state_dict(parts[self.trainer.global_rank])

    def table(self, owners: Sequence[Conversation], feedback: Feedback, rollouts: RolloutBatch) -> list[dict]:
        """Return some lists of the step, for the table of rollouts."""
        rows = range(min(self.settings.rl.table_rows, len(owners)))
        return [
            {
                "step": self.step,
                "conversation": owners[i].id,
                "prompt": "\n".join(f"{m.role}: {m.content}" for m in owners[i].messages),
                "ground_truth": "\n".join(map(str, owners[i].ground_truth)),
                "list": feedback.texts[i],
                "relevance": [int(r) for r in feedback.relevance[i].tolist()],
                "reward": round(float(feedback.reward[i]), 4),
                "tokens": int(rollouts.mask[i].sum()),
                "truncated": bool(rollouts.truncated[i]),
            }
            for i in rows
        ]
