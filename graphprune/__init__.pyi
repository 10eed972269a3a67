"""The public names of graphprune, and the module each lives in."""

from . import (
    adapters as adapters,
)
from . import (
    comparison as comparison,
)
from . import (
    conformance as conformance,
)
from . import (
    evaluation as evaluation,
)
from . import (
    export as export,
)
from . import (
    methods as methods,
)
from . import (
    precision as precision,
)
from . import (
    spectral as spectral,
)
from . import (
    statistics as statistics,
)
from . import (
    study as study,
)
from . import (
    tasks as tasks,
)
from .batch import (
    Batch as Batch,
)
from .batch import (
    Examples as Examples,
)
from .circuit import (
    Circuit as Circuit,
)
from .comparison import (
    CircuitComparison as CircuitComparison,
)
from .comparison import (
    CircuitProfile as CircuitProfile,
)
from .comparison import (
    OverlapCurve as OverlapCurve,
)
from .comparison import (
    ProfileComparison as ProfileComparison,
)
from .comparison import (
    circuit_profile as circuit_profile,
)
from .comparison import (
    compare_circuits as compare_circuits,
)
from .comparison import (
    compare_profiles as compare_profiles,
)
from .comparison import (
    matched_overlap as matched_overlap,
)
from .comparison import (
    weighted_jaccard as weighted_jaccard,
)
from .ensembling import (
    combine_scores as combine_scores,
)
from .errors import (
    FetchError as FetchError,
)
from .errors import (
    FormatError as FormatError,
)
from .errors import (
    GraphMismatchError as GraphMismatchError,
)
from .errors import (
    GraphPruneError as GraphPruneError,
)
from .errors import (
    InputError as InputError,
)
from .errors import (
    MissingExtraError as MissingExtraError,
)
from .errors import (
    NumericalError as NumericalError,
)
from .errors import (
    UnsupportedModelError as UnsupportedModelError,
)
from .evaluation import (
    EvaluationReport as EvaluationReport,
)
from .evaluation import (
    FaithfulnessCurve as FaithfulnessCurve,
)
from .evaluation import (
    auroc as auroc,
)
from .evaluation import (
    equivalent as equivalent,
)
from .evaluation import (
    evaluate as evaluate,
)
from .evaluation import (
    evaluate_all as evaluate_all,
)
from .evaluation import (
    faithfulness_curve as faithfulness_curve,
)
from .evaluation import (
    fidelity as fidelity,
)
from .evaluation import (
    is_minimal as is_minimal,
)
from .evaluation import (
    mean_jaccard as mean_jaccard,
)
from .evaluation import (
    mib_auroc as mib_auroc,
)
from .evaluation import (
    mib_curve as mib_curve,
)
from .evaluation import (
    minimal_circuit as minimal_circuit,
)
from .evaluation import (
    recovery as recovery,
)
from .evaluation import (
    removable_edges as removable_edges,
)
from .evaluation import (
    same_outputs as same_outputs,
)
from .graph import (
    ComputationalGraph as ComputationalGraph,
)
from .graph import (
    Node as Node,
)
from .mask import (
    EdgeMask as EdgeMask,
)
from .methods import (
    ACDC as ACDC,
)
from .methods import (
    EAP as EAP,
)
from .methods import (
    EAPIG as EAPIG,
)
from .methods import (
    NAP as NAP,
)
from .methods import (
    NAPIG as NAPIG,
)
from .methods import (
    PAHQ as PAHQ,
)
from .methods import (
    RTNQ as RTNQ,
)
from .methods import (
    UGS as UGS,
)
from .methods import (
    CalibratedRanking as CalibratedRanking,
)
from .methods import (
    CleanCorrupted as CleanCorrupted,
)
from .methods import (
    EdgePruning as EdgePruning,
)
from .methods import (
    ExactPatching as ExactPatching,
)
from .methods import (
    HybridEnsemble as HybridEnsemble,
)
from .methods import (
    InformationFlow as InformationFlow,
)
from .methods import (
    IntegratedMaskGradient as IntegratedMaskGradient,
)
from .methods import (
    MatryoshkaPruning as MatryoshkaPruning,
)
from .methods import (
    ParallelEnsemble as ParallelEnsemble,
)
from .methods import (
    Pruner as Pruner,
)
from .methods import (
    Random as Random,
)
from .methods import (
    RelP as RelP,
)
from .methods import (
    Scorer as Scorer,
)
from .methods import (
    SequentialEnsemble as SequentialEnsemble,
)
from .methods import (
    SubnetworkProbing as SubnetworkProbing,
)
from .metrics import (
    METRICS as METRICS,
)
from .metrics import (
    Metric as Metric,
)
from .model import (
    Ablation as Ablation,
)
from .model import (
    Gradients as Gradients,
)
from .model import (
    MaskedModel as MaskedModel,
)
from .model import (
    Messages as Messages,
)
from .model import (
    Reference as Reference,
)
from .overlap import (
    ExampleFingerprint as ExampleFingerprint,
)
from .planning import (
    Plan as Plan,
)
from .planning import (
    Throughput as Throughput,
)
from .planning import (
    plan as plan,
)
from .precision import (
    Lowered as Lowered,
)
from .precision import (
    PrecisionPolicy as PrecisionPolicy,
)
from .progress import (
    quiet as quiet,
)
from .pruned import (
    ExportedModel as ExportedModel,
)
from .pruned import (
    Pruned as Pruned,
)
from .registry import (
    make_method as make_method,
)
from .registry import (
    method_names as method_names,
)
from .registry import (
    supported as supported,
)
from .registry import (
    wrap as wrap,
)
from .result import (
    Result as Result,
)
from .scores import (
    EdgeScores as EdgeScores,
)
from .scores import (
    NodeScores as NodeScores,
)
from .scores import (
    PositionalEdgeScores as PositionalEdgeScores,
)
from .selection_bootstrap import (
    BootstrapScores as BootstrapScores,
)
from .selection_bootstrap import (
    bootstrap_scores as bootstrap_scores,
)
from .selection_polish import (
    polish as polish,
)
from .sizes import (
    MIB_SIZES as MIB_SIZES,
)
from .spectral import (
    SpectralPruning as SpectralPruning,
)
from .spectral import (
    SpectralScores as SpectralScores,
)
from .study import (
    Study as Study,
)
from .task import (
    Task as Task,
)

__version__: str
