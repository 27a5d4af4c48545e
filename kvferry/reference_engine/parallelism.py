"""How a worker's ranks share the model: layers over pipeline stages, heads over the ranks of a stage."""

from dataclasses import dataclass

from kvferry.core.errors import InvalidArgument
from kvferry.reference_engine.config import ModelConfig, require_int


@dataclass(frozen=True, slots=True)
class Parallelism:
    """Degrees. Rank r is rank r % `tensor` of stage r // `tensor`."""

    tensor: int = 1
    pipeline: int = 1

    @property
    def rank_count(self) -> int:
        """Ranks of the worker."""
        return self.tensor * self.pipeline

    def check(self, config: ModelConfig) -> None:
        """Refuse (InvalidArgument) degrees that do not fit the model.

        Query heads and MLP columns are split evenly. KV heads are split evenly too, or each is held by equally
        many ranks. Every stage has a layer.
        """
        require_int("tensor_parallel", self.tensor, at_least=1)
        require_int("pipeline_parallel", self.pipeline, at_least=1)
        for field in ("num_heads", "mlp_size"):
            if getattr(config, field) % self.tensor:
                why = f"does not divide {field}={getattr(config, field)}"
                raise InvalidArgument.of_field("tensor_parallel", self.tensor, why)
        if config.num_kv_heads % self.tensor and self.tensor % config.num_kv_heads:
            why = f"neither divides num_kv_heads={config.num_kv_heads} nor is a multiple of it"
            raise InvalidArgument.of_field("tensor_parallel", self.tensor, why)
        if self.pipeline > config.num_layers:
            why = f"more stages than num_layers={config.num_layers}"
            raise InvalidArgument.of_field("pipeline_parallel", self.pipeline, why)


@dataclass(frozen=True, slots=True)
class RankShare:
    """What one rank computes and holds."""

    rank: int
    tensor_rank: int
    """Index within its stage."""
    tensor_degree: int
    layers: range
    kv_heads: range

    def layer_groups(self, config: ModelConfig) -> dict[str, tuple[int, ...]]:
        """The rank's layers by group; a group of which it holds none is left out."""
        held = {
            name: tuple(layer for layer in layers if layer in self.layers)
            for name, layers in config.layer_groups.items()
        }
        return {name: layers for name, layers in held.items() if layers}


def rank_shares(config: ModelConfig, parallelism: Parallelism) -> tuple[RankShare, ...]:
    """Every rank's share, in rank order. Raises InvalidArgument: the degrees do not fit the model."""
    parallelism.check(config)
    return tuple(
        RankShare(
            rank=rank,
            tensor_rank=rank % parallelism.tensor,
            tensor_degree=parallelism.tensor,
            layers=stage_layers(config.num_layers, rank // parallelism.tensor, parallelism.pipeline),
            kv_heads=kv_head_range(config.num_kv_heads, rank % parallelism.tensor, parallelism.tensor),
        )
        for rank in range(parallelism.rank_count)
    )


def stage_layers(num_layers: int, stage: int, stages: int) -> range:
    """Consecutive layers of a stage; where they do not divide, earlier stages have one more."""
    each, more = divmod(num_layers, stages)
    first = stage * each + min(stage, more)
    return range(first, first + each + (stage < more))


def kv_head_range(num_kv_heads: int, tensor_rank: int, tensor_degree: int) -> range:
    """KV heads of a rank; of more ranks than heads, neighbours hold the same one."""
    count = max(num_kv_heads // tensor_degree, 1)
    first = tensor_rank * num_kv_heads // tensor_degree
    return range(first, first + count)
