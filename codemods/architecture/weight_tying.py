"""Let the output matrix be the embedding."""

import libcst as cst
import libcst.matchers as m

from codemods.base import Codemod
from codemods.optimizer import optimizer_group
from codemods.statements import InsertAfter
from core.errors import SiteNotFound


class WeightTying(Codemod):
    """Make the weight of lm_head the parameter of the embedding.

    One parameter then has two names, of which PyTorch lists the first: initial values,
    dtype and optimizer group are the embedding's, and the group of lm_head, which would
    step it a second time, goes.
    """

    DESCRIPTION = "Let the output matrix be the embedding"

    EXAMPLES = (
        (
            """
            class GPT(nn.Module):
                def __init__(self):
                    self.embedding = Embedding(VOCAB_SIZE, MODEL_DIM)
                    self.lm_head = Linear(MODEL_DIM, VOCAB_SIZE)

            groups = [
                dict(name="embedding", params=list(model.embedding.parameters())),
                dict(name="lm_head", params=list(model.lm_head.parameters())),
                dict(name="x0_scalars", params=[model.x0_scalars]),
            ]
            """,
            """
            class GPT(nn.Module):
                def __init__(self):
                    self.embedding = Embedding(VOCAB_SIZE, MODEL_DIM)
                    self.lm_head = Linear(MODEL_DIM, VOCAB_SIZE)
                    self.lm_head.weight = self.embedding.weight

            groups = [
                dict(name="embedding", params=list(model.embedding.parameters())),
                dict(name="x0_scalars", params=[model.x0_scalars]),
            ]
            """,
        ),
    )

    def transform_module_impl(self, tree: cst.Module) -> cst.Module:
        """Tie the weights, then leave the group out."""
        group = optimizer_group(tree, "lm_head")
        listed = m.findall(
            tree, m.Element(value=m.MatchIfTrue(lambda node: node is group))
        )
        if not listed:
            raise SiteNotFound(
                "The optimizer group 'lm_head' is not an element of a list.",
                hint='list it with the other groups: [dict(name="lm_head", ...), ...].',
            )
        tie = InsertAfter(
            self.context,
            function="GPT.__init__",
            statement="self.lm_head = Linear(...)",
            source="self.lm_head.weight = self.embedding.weight",
        )
        return tie.transform_module_impl(tree.deep_remove(listed[0]))
