"""The cut: from one node on, the graph computes on the kept tokens only.

Behind the cut the model's own code runs as it stands, with K tokens in place of N. Everything that is computed from
what was cut (the *after* side) is run again on fake tensors of concrete size, once, in order; a tensor that is now
shorter than it was when the graph was captured has followed the cut. What an after node reads from before the cut is
renewed (:mod:`segmo.passes.cut.renew`): a size that is computed from N is computed again from K, what stands beside the
tokens (rotary cos and sin, masks, cached keys) is gathered, and what only counts them is made again. Which dimension
counts tokens is known from the symbol of N or from where a tensor comes from, never from comparing numbers.

What cannot be followed is a typed miss with a reason and a node, never a guess.

Legend: B batch, N prompt tokens, K kept tokens.
"""

from segmo.passes.cut.apart import ApartCut
from segmo.passes.cut.token_cut import TokenCut
from segmo.passes.cut.whole import WholeCut

__all__ = ["ApartCut", "TokenCut", "WholeCut"]
