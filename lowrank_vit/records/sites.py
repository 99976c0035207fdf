"""Linear layers and whole modules that are to be made smaller: names and shapes, no weights."""

from dataclasses import dataclass

from lowrank_vit.records.costs import Cost, UnitCosts

QUERY_KEY, VALUE, HIDDEN = "query_key", "value", "hidden"  # units of an attention module and of an MLP
INPUT = "input"  # a unit of either: channels of the stream that it does not read
ROW = "row"  # a unit of a linear layer: a row of what its low-rank part leaves
HEAD = "head"  # a unit of an attention module that goes as a whole
MIXER = "mixer"  # a unit of an attention module: what takes its place, in four sizes
PART = "part"  # a unit of either: heads or hidden units, and outputs, under one order
OUTPUT = "output"  # a unit of either: outputs that are not made, so that the stream keeps what it has there
WORDS = {
    QUERY_KEY: "query-key",
    VALUE: "value",
    HIDDEN: "hidden",
    HEAD: "heads",
    PART: "parts",
    INPUT: "inputs",
    "depth": "blocks",
}


@dataclass(frozen=True)
class Site:
    """Describe a linear layer where statistics are collected: ``y = x W + b``, ``W: (in_features, out_features)``."""

    name: str
    in_features: int
    out_features: int
    bias: bool
    heads: int = 0  # of a layer that makes queries, keys and values: how many heads they are for
    parts: int = 3  # of such a layer: queries, keys and values; or keys and values alone

    @property
    def parameters(self) -> int:
        """Count the weight's parameters; the bias is not compressed."""
        return self.in_features * self.out_features

    @property
    def full_rank(self) -> int:
        return min(self.in_features, self.out_features)

    @property
    def side(self) -> str:
        """Return the side whose second moment is smaller: ``"input"`` (n, n) or ``"output"`` (d, d)."""
        return "input" if self.in_features <= self.out_features else "output"


@dataclass(frozen=True)
class TableSite:
    """Describe a table of a vector for each position, (1, tokens, width), that is added to the stream before the blocks."""

    name: str
    tokens: int
    width: int
    after: Site  # the layer that gets the sum, and passes it on


@dataclass(frozen=True)
class AttentionSite:
    """Describe a whole attention module: queries, keys and values by one linear layer, its output by another.

    ``dense_logits`` says what queries and keys are ("normalised"), so that they stay and only values lose directions; it is
    empty where both do. ``qkv`` may then be the layer of the values alone, beside others.
    """

    name: str
    qkv: Site
    proj: Site
    head_width: int
    window_size: tuple[int, int] | None = None  # (height, width) in tokens, of attention within windows
    query_bias: bool | None = None  # None: as the qkv layer has one; so for keys and values
    key_bias: bool | None = None
    value_bias: bool | None = None
    class_token: bool = False  # before the tokens of the window, with biases of its own
    dense_logits: str = ""
    beside: tuple[str, ...] = ()  # the layers of queries and keys, where each has its own
    within: tuple[str, ...] = ()  # the layers that see logits

    @property
    def linears(self) -> tuple[Site, ...]:
        """Return the layers where statistics are collected; the last one makes the output."""
        return (self.proj,) if self.dense_logits else (self.qkv, self.proj)

    @property
    def layers(self) -> tuple[str, ...]:
        return (*self.readers, *self.within, self.proj.name)

    @property
    def readers(self) -> tuple[str, ...]:
        return (*self.beside, self.qkv.name)

    @property
    def in_features(self) -> int:
        return self.qkv.in_features

    def costs(self, tokens: int = 0) -> dict[str, UnitCosts]:
        """Return what each unit costs; ``tokens``: of an image, for the multiply-accumulates.

        Queries with keys: a row of either and the query's bias for each direction; keys need no bias, since the softmax
        ignores it. Values with the output: a row and a column for each direction, and the output's bias.
        """
        if self.dense_logits:
            return {VALUE: self._values_alone(tokens)}
        n, d, width = self.qkv.in_features, self.proj.out_features, self.proj.in_features
        query_bias, key_bias, value_bias = (
            self.qkv.bias if bias is None else bias for bias in (self.query_bias, self.key_bias, self.value_bias)
        )
        keys = tokens if self.window_size is None else self.window_size[0] * self.window_size[1] + self.class_token
        pair_macs, value_macs = tokens * (2 * n + keys), tokens * (n + d + keys)
        return {
            QUERY_KEY: UnitCosts(
                width,
                unit=Cost(2 * n + 1, pair_macs),
                dense=Cost(width * (2 * n + query_bias + key_bias), width * pair_macs),
                head_width=self.head_width,
            ),
            VALUE: UnitCosts(
                width,
                unit=Cost(n + d, value_macs),
                fixed=Cost(d),
                dense=Cost(width * (n + value_bias + d) + d * self.proj.bias, width * value_macs),
                head_width=self.head_width,
            ),
        }

    def head_costs(self, tokens: int = 0) -> UnitCosts:
        """Return the costs of whole heads, where logits are reduced, too: queries, keys, values and position biases."""
        parts, width, biases = self.costs(tokens), self.head_width, 0
        if self.window_size is not None:
            height, breadth = self.window_size
            biases = (2 * height - 1) * (2 * breadth - 1) + 3 * self.class_token
        unit = (parts[QUERY_KEY].unit + parts[VALUE].unit) * width + Cost(biases)
        dense = parts[QUERY_KEY].dense + parts[VALUE].dense + Cost(self.qkv.heads * biases)
        return UnitCosts(self.qkv.heads, unit=unit, fixed=parts[VALUE].fixed, dense=dense)

    def _values_alone(self, tokens: int) -> UnitCosts:
        """Return the values' costs where zeros replace lost ones: the product with the tokens stays as it was."""
        n, d, width = self.qkv.in_features, self.proj.out_features, self.proj.in_features
        unit = Cost(n + self.qkv.bias + d, tokens * (n + d))
        dense = Cost(width * unit.parameters + d * self.proj.bias, width * unit.macs)
        return UnitCosts(width, unit=unit, fixed=Cost(d), dense=dense)


@dataclass(frozen=True)
class PoolSite(AttentionSite):
    """Describe attention pooling: queries that are the same for all images, compared with the tokens' keys.

    ``qkv`` makes keys and values; ``latents`` of ``latent_width`` numbers are what the queries are made of.
    """

    latents: int = 1
    latent_width: int = 0

    @property
    def logit_width(self) -> int:
        """Return the number of directions in which a head can compare: at most its number of queries."""
        return min(self.latents, self.head_width)

    def costs(self, tokens: int = 0) -> dict[str, UnitCosts]:
        """Return what each unit costs; ``tokens``: of an image.

        A direction of the logits is a row of the keys, and one number for each query, which needs no layer any more. The
        product with the tokens stays as wide as it was.
        """
        if self.dense_logits:
            return super().costs(tokens)
        n, d, width, rows = self.qkv.in_features, self.proj.out_features, self.proj.in_features, self.latents
        bias, made = self.qkv.bias, self.latent_width
        key, value = Cost(n + rows, tokens * n), Cost(n + d, tokens * n + rows * d)
        dense = Cost(width * (n + made + 2 * bias), width * (tokens * n + rows * made))
        heads = width // self.head_width
        return {
            QUERY_KEY: UnitCosts(heads * self.logit_width, unit=key, dense=dense),
            VALUE: UnitCosts(
                width,
                unit=value,
                fixed=Cost(d),
                dense=Cost(width * (value.parameters + bias) + d * self.proj.bias, width * value.macs),
            ),
        }


@dataclass(frozen=True)
class MlpSite:
    """Describe a whole MLP: hidden units made by one linear layer or more, and a layer that makes the output from them.

    Without gates a hidden unit is ``act(u)``, with gates ``act(g) u``: u and g are rows of one layer, or of one layer each.
    """

    name: str
    inputs: tuple[Site, ...]  # the layers that make the hidden units
    fc2: Site

    @property
    def linears(self) -> tuple[Site, ...]:
        """Return the layers where statistics are collected; the last one makes the output."""
        return (self.fc2,)

    @property
    def layers(self) -> tuple[str, ...]:
        return (*self.readers, self.fc2.name)

    @property
    def readers(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.inputs)

    @property
    def in_features(self) -> int:
        return self.inputs[0].in_features

    @property
    def rows(self) -> int:
        """Count the rows that make a hidden unit: one, or two with gates."""
        return sum(layer.out_features for layer in self.inputs) // self.fc2.in_features

    def costs(self, tokens: int = 0) -> dict[str, UnitCosts]:
        """Return what the hidden units cost: their rows, a bias for each row, a column, and once the output's bias."""
        n, h, d, rows = self.in_features, self.fc2.in_features, self.fc2.out_features, self.rows
        unit = Cost(rows * (n + self.inputs[0].bias) + d, tokens * (rows * n + d))
        dense = Cost(h * unit.parameters + d * self.fc2.bias, h * unit.macs)
        return {HIDDEN: UnitCosts(h, unit=unit, fixed=Cost(d), dense=dense)}
