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
from .core.batch import (
    Batch as Batch,
)
from .core.batch import (
    Examples as Examples,
)
from .core.circuit import (
    Circuit as Circuit,
)
from .core.graph import (
    ComputationalGraph as ComputationalGraph,
)
from .core.graph import (
    Node as Node,
)
from .core.mask import (
    EdgeMask as EdgeMask,
)
from .core.metrics import (
    METRICS as METRICS,
)
from .core.metrics import (
    Metric as Metric,
)
from .core.model import (
    Ablation as Ablation,
)
from .core.model import (
    Gradients as Gradients,
)
from .core.model import (
    MaskedModel as MaskedModel,
)
from .core.model import (
    Messages as Messages,
)
from .core.model import (
    Reference as Reference,
)
from .core.overlap import (
    ExampleFingerprint as ExampleFingerprint,
)
from .core.pruned import (
    ExportedModel as ExportedModel,
)
from .core.pruned import (
    Pruned as Pruned,
)
from .core.registry import (
    make_method as make_method,
)
from .core.registry import (
    method_names as method_names,
)
from .core.registry import (
    supported as supported,
)
from .core.registry import (
    wrap as wrap,
)
from .core.result import (
    Result as Result,
)
from .core.scores import (
    EdgeScores as EdgeScores,
)
from .core.scores import (
    NodeScores as NodeScores,
)
from .core.scores import (
    PositionalEdgeScores as PositionalEdgeScores,
)
from .core.sizes import (
    MIB_SIZES as MIB_SIZES,
)
from .core.task import (
    Task as Task,
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
from .methods.planning import (
    Plan as Plan,
)
from .methods.planning import (
    Throughput as Throughput,
)
from .methods.planning import (
    plan as plan,
)
from .precision import (
    Lowered as Lowered,
)
from .precision import (
    PrecisionPolicy as PrecisionPolicy,
)
from .search.polish import (
    polish as polish,
)
from .selection.bootstrap import (
    BootstrapScores as BootstrapScores,
)
from .selection.bootstrap import (
    bootstrap_scores as bootstrap_scores,
)
from .selection.combine import (
    combine_scores as combine_scores,
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
from .util.progress import (
    quiet as quiet,
)

__version__: str
