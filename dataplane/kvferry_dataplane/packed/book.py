"""What the two ways to each source cost."""

from collections import OrderedDict

from kvferry_dataplane.packed.costs import PairCosts, WayCost

PAIRS_MAX = 1024


class CostBook:
    """The costs by source; those of the least recently read are forgotten."""

    def __init__(self, nixl: WayCost, packed: WayCost) -> None:
        """The costs before a source's first read."""
        self.nixl = nixl
        self.packed = packed
        self._pairs: OrderedDict[str, PairCosts] = OrderedDict()

    def of(self, peer: str) -> PairCosts:
        """The costs of a source."""
        costs = self._pairs.setdefault(peer, PairCosts(self.nixl, self.packed))
        self._pairs.move_to_end(peer)
        if len(self._pairs) > PAIRS_MAX:
            self._pairs.popitem(last=False)
        return costs
