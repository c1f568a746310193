"""The acceptance law (DESIGN section 4): walk down while a child carries the target's own token; the first token without a
child is the bonus.

The target's tokens do not depend on the tree, so neither does the output: any drafter, any selection, no selection at all
give the same text.
"""

from dataclasses import dataclass

from dspark.tree import ANCHOR, CandidateTree


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What a walk found."""

    nodes: tuple[int, ...]
    """Accepted nodes, root first."""
    token_ids: tuple[int, ...]
    """Their tokens and the bonus: one more than `nodes`."""


def walk(tree: CandidateTree, target_tokens: list[int]) -> Acceptance:
    """`target_tokens` [N + 1]: the target's token after the anchor, then after each node of the tree, in node order."""
    children = {
        (parent, token): node
        for node, (parent, token) in enumerate(zip(tree.parents.tolist(), tree.token_ids.tolist(), strict=True))
    }
    nodes: list[int] = []
    tokens: list[int] = []
    place = ANCHOR
    while True:
        token = target_tokens[place + 1]
        tokens.append(token)
        child = children.get((place, token))
        if child is None:
            return Acceptance(tuple(nodes), tuple(tokens))
        nodes.append(child)
        place = child
