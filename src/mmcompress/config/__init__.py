"""Everything a recipe can say: one frozen model a table, one docstring a key.

A recipe is TOML with `[data]`, `[teacher]`, `[student]` and ordered `[[stage]]` tables. The three shared tables are the
defaults of the stages that have a field of that name, so a stage's config holds all that its result depends on; what it
holds beside that is marked, and the hash of the rest serves as the cache key. Nothing here imports torch.

A key is spelled here and nowhere else: the commands make their options of these classes, with a key's name, docstring
and default (`cli/options.py`), so every key has a docstring.
"""

from mmcompress.config.compressing import (
    Count,
    FitConfig,
    PruneConfig,
    QatConfig,
    QatOptimizerConfig,
    QuantizeConfig,
    QuantizeGraphsConfig,
    Share,
)
from mmcompress.config.delivering import (
    LARGEST_IMAGE,
    BankConfig,
    BaselineConfig,
    BuildConfig,
    ExportConfig,
    StaticConfig,
    TraceConfig,
)
from mmcompress.config.keys import validated, what_counts
from mmcompress.config.measuring import (
    BenchConfig,
    BisectConfig,
    BlockCostsConfig,
    CardConfig,
    DriftConfig,
    PageConfig,
    ReportConfig,
    SizeConfig,
    VerdictConfig,
)
from mmcompress.config.tables import (
    EIGHT_BITS,
    Augmentation,
    Backend,
    BudgetConfig,
    DataConfig,
    Device,
    OptimizerConfig,
    Precision,
    StageConfig,
    StudentConfig,
    TeacherConfig,
    TowersConfig,
    WatchConfig,
    WatchedConfig,
)
from mmcompress.config.training import (
    ConvertConfig,
    DistillConfig,
    EmbedConfig,
    EnsembleConfig,
    FinetuneConfig,
    FinetuneOptimizerConfig,
    FinetuneWatchConfig,
    ImportEmbeddingsConfig,
    PairConfig,
    TrainConfig,
)

__all__ = [
    "EIGHT_BITS",
    "LARGEST_IMAGE",
    "Augmentation",
    "Backend",
    "BankConfig",
    "BaselineConfig",
    "BenchConfig",
    "BisectConfig",
    "BlockCostsConfig",
    "BudgetConfig",
    "BuildConfig",
    "CardConfig",
    "ConvertConfig",
    "Count",
    "DataConfig",
    "Device",
    "DistillConfig",
    "DriftConfig",
    "EmbedConfig",
    "EnsembleConfig",
    "ExportConfig",
    "FinetuneConfig",
    "FinetuneOptimizerConfig",
    "FinetuneWatchConfig",
    "FitConfig",
    "ImportEmbeddingsConfig",
    "OptimizerConfig",
    "PageConfig",
    "PairConfig",
    "Precision",
    "PruneConfig",
    "QatConfig",
    "QatOptimizerConfig",
    "QuantizeConfig",
    "QuantizeGraphsConfig",
    "ReportConfig",
    "Share",
    "SizeConfig",
    "StageConfig",
    "StaticConfig",
    "StudentConfig",
    "TeacherConfig",
    "TowersConfig",
    "TraceConfig",
    "TrainConfig",
    "VerdictConfig",
    "WatchConfig",
    "WatchedConfig",
    "validated",
    "what_counts",
]
