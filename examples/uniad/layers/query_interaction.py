"""Query interaction, key query_interact: turns the kept tracks' queries of this frame into those of the next.

UniAD's uniad/dense_heads/track_head_plugin/modules.py (QueryInteractionModule) at inference, after MOTR
(Zeng et al. 2022).
"""

from config import UniADConfig
from layers.basic import LayerNorm, Linear, MultiheadAttention
from trtllm import Module, Tensor
from trtllm import functional as F


class QueryInteractionModule(Module):
    """See the file's head."""

    def __init__(self, config: UniADConfig):
        super().__init__()
        d = config.embed_dims
        self.self_attn = MultiheadAttention(d, config.num_heads)
        self.linear1, self.linear2 = Linear(d, d), Linear(d, d)
        self.linear_pos1, self.linear_pos2 = Linear(d, d), Linear(d, d)
        self.linear_feat1, self.linear_feat2 = Linear(d, d), Linear(d, d)
        self.norm_pos, self.norm_feat = LayerNorm(d), LayerNorm(d)
        self.norm1, self.norm2 = LayerNorm(d), LayerNorm(d)

    def forward(self, query: Tensor, embedding: Tensor, empty: Tensor) -> Tensor:
        """The next frame's queries.

        Args:
            query: (T,2D), this frame's: position half first, then content.
            embedding: (T,D), the tracks after the memory bank.
            empty: bool (T), padded rows; nothing attends to them.

        Returns:
            (T,2D); padded rows hold finite numbers without meaning.
        """
        query_pos, content = F.chunk(query, 2, 1)
        positioned = query_pos + embedding
        x = self.norm1(embedding + self.self_attn(positioned, positioned, embedding, empty))
        x = self.norm2(x + self.linear2(F.relu(self.linear1(x))))
        query_pos = self.norm_pos(query_pos + self.linear_pos2(F.relu(self.linear_pos1(x))))
        content = self.norm_feat(content + self.linear_feat2(F.relu(self.linear_feat1(x))))
        return F.concat([query_pos, content], 1)
