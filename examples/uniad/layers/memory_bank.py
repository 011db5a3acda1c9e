"""The memory bank, key memory_bank: each track attends to its own embeddings of earlier frames, then stores one more.

UniAD's uniad/dense_heads/track_head_plugin/modules.py (MemoryBank) at inference. Rows are independent of each other,
so padded rows need no mask. M = memory_bank_len slots per track, the newest last.
"""

import numpy as np

from config import UniADConfig
from layers.basic import LayerNorm, Linear, MultiheadAttention
from trtllm import Module, Tensor
from trtllm import functional as F
from trtllm import vision as V


class MemoryBank(Module):
    """See the file's head."""

    def __init__(self, config: UniADConfig):
        super().__init__()
        d = config.embed_dims
        self.save_proj = Linear(d, d)
        self.temporal_attn = MultiheadAttention(d, config.num_heads)
        self.temporal_fc1, self.temporal_fc2 = Linear(d, d), Linear(d, d)
        self.temporal_norm1, self.temporal_norm2 = LayerNorm(d), LayerNorm(d)
        self.length = config.memory_bank_len
        self.score_thresh, self.period = config.memory_bank_score_thresh, config.memory_bank_save_period

    def forward(
        self, embedding: Tensor, scores: Tensor, mem_bank: Tensor, padding_mask: Tensor, save_period: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One frame for T tracks.

        Args:
            embedding: (T,D), the decoder's output.
            scores: float32 (T).
            mem_bank: (T,M,D).
            padding_mask: bool (T,M), slots that hold nothing.
            save_period: int32 (T), frames until a track is stored again.

        Returns:
            The four of them but the scores, updated: embedding, mem_bank, padding_mask, save_period.
        """
        embedding = self._attend(embedding, mem_bank, padding_mask)
        due = F.op_and(F.eq(save_period, 0), scores > self.score_thresh)
        save_period = F.where(due, self.period, F.where(save_period > 0, save_period - 1, save_period))
        saved = F.unsqueeze(self.save_proj(embedding), 1)  # (T,1,D)
        shifted = F.concat([F.narrow(mem_bank, 1, 1, self.length - 1), saved], 1)  # (T,M,D)
        mem_bank = F.where(F.view(due, (-1, 1, 1)), shifted, mem_bank)
        filled = F.constant(np.zeros((padding_mask.shape[0], 1), np.int32))
        mask = F.cast(padding_mask, "int32")  # concat and where of bool are not in every executor
        shifted_mask = F.concat([F.narrow(mask, 1, 1, self.length - 1), filled], 1)  # (T,M)
        padding_mask = F.cast(F.where(F.unsqueeze(due, 1), shifted_mask, mask), "bool")
        return embedding, mem_bank, padding_mask, save_period

    def _attend(self, embedding: Tensor, mem_bank: Tensor, padding_mask: Tensor) -> Tensor:
        """(T,D): tracks whose newest slot is filled look at their slots; the others stay as they are."""
        x = self.temporal_norm1(embedding + self._recall(embedding, mem_bank, padding_mask))
        x = self.temporal_norm2(x + self.temporal_fc2(F.relu(self.temporal_fc1(x))))
        nothing = F.narrow(padding_mask, 1, self.length - 1, 1)  # (T,1)
        return F.where(nothing, embedding, x)

    def _recall(self, embedding: Tensor, mem_bank: Tensor, padding_mask: Tensor) -> Tensor:
        """(T,D): temporal_attn with one query and M keys for each track, element by element.

        As matrix products of one row each, TensorRT 8.6 compiles it into a region that gives wrong weights.
        """
        attn = self.temporal_attn
        query = F.unsqueeze(attn.project(embedding, 0), 1)  # (T,1,heads,D/heads)
        key, value = attn.project(mem_bank, 1), attn.project(mem_bank, 2)  # (T,M,heads,D/heads)
        logits = F.sum(query * query.shape[-1] ** -0.5 * key, -1)  # (T,M,heads)
        weights = F.softmax(F.where(F.unsqueeze(padding_mask, 2), V.BLOCKED, logits), 1)  # (T,M,heads)
        seen = F.sum(F.unsqueeze(weights, 3) * value, 1)  # (T,heads,D/heads)
        return attn.out_proj(F.view(seen, embedding.shape))  # (T,D)
