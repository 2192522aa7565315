"""The scikit-learn pipeline in skops' format, and what of it we are ready to build again.

skops is a ZIP file of arrays and one JSON tree that names the types to build. What stands between a hostile file and
this process, beside the hash that pins it:

- only types that skops trusts (scikit-learn's estimators, NumPy's dtypes and ufuncs), that `TRUSTED_TYPES` lists, or
  that the caller hands in from the project's file; never those that the file or the artifact names for itself,
- the ZIP file as `pack` writes it: plain names, nothing compressed, arrays of the size that they declare,
- trees whose nodes point at nodes and features that there are: scikit-learn follows them unchecked.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mlops_ray.errors import ArtifactRefused

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

TRUSTED_TYPES = (
    # What skops does not trust by itself and we do, once the file's hash is right.
    "collections.OrderedDict",
    "lightgbm.basic.Booster",
    "lightgbm.sklearn.LGBMClassifier",
    "lightgbm.sklearn.LGBMRegressor",
    "numpy.clip",
    "numpy.dtype",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.tree._tree.Tree",
    "xgboost.core.Booster",
    "xgboost.sklearn.XGBClassifier",
    "xgboost.sklearn.XGBRegressor",
)
_MEMBER = re.compile(r"schema\.json|[0-9a-f-]{1,40}\.(?:npy|bin)")
_MAX_MEMBERS = 500_000
_MAX_SCHEMA = 512 << 20


def pack(pipeline: Pipeline, artifact: str, trusted: Sequence[str]) -> tuple[bytes, list[str]]:
    """The packed pipeline, and the types in it that skops leaves to us to trust.

    Raises: ArtifactRefused for types that `unpack` would refuse, or that skops cannot write."""
    import skops.io

    try:
        packed: bytes = skops.io.dumps(pipeline)
    except Exception as exc:
        # Whatever a foreign object's own `__getstate__` raises.
        raise ArtifactRefused(artifact, f"skops cannot write it: {type(exc).__name__}: {exc}") from exc
    return packed, _refuse_foreign(packed, artifact, trusted)


def unpack(packed: bytes, artifact: str, trusted: Sequence[str]) -> Pipeline:
    """The pipeline that `pack` packed. Raises: ArtifactRefused for anything else."""
    import skops.io
    from sklearn.pipeline import Pipeline

    _check_zip(packed, artifact)
    types = _refuse_foreign(packed, artifact, trusted)
    try:
        pipeline = skops.io.loads(packed, trusted=types)
        if type(pipeline) is not Pipeline or len(pipeline.steps) < 2:
            raise ArtifactRefused(artifact, f"model.skops holds no pipeline but {type(pipeline).__name__}")
        _check_trees(pipeline, artifact)
    except ArtifactRefused:
        raise
    except (ImportError, AttributeError) as exc:
        raise ArtifactRefused(artifact, f"holds a type that cannot be imported here: {exc}; install it") from exc
    except Exception as exc:
        # The tree may be anything, and so may the error of whoever is given it as a state: any is a refusal.
        raise ArtifactRefused(artifact, f"model.skops cannot be read: {type(exc).__name__}: {exc}") from exc
    return pipeline


def types_in(packed: bytes, trusted: Sequence[str]) -> tuple[list[str], list[str]]:
    """The types in what skops packed that it leaves to us to trust, sorted, and those of them that nobody trusts:
    neither our list nor the project's, `trusted` (`features.trusted_types`)."""
    import skops.io

    types = set(skops.io.get_untrusted_types(data=packed))
    return sorted(types), sorted(types - set(TRUSTED_TYPES) - set(trusted))


def _refuse_foreign(packed: bytes, artifact: str, trusted: Sequence[str]) -> list[str]:
    try:
        types, foreign = types_in(packed, trusted)
    except Exception as exc:
        # skops walks a tree that may be anything; see `unpack`.
        raise ArtifactRefused(artifact, f"model.skops cannot be read: {type(exc).__name__}: {exc}") from exc
    if foreign:
        way = "use scikit-learn's own classes, or name it in features.trusted_types of the project's file"
        raise ArtifactRefused(artifact, f"holds {foreign[0]}, not a type that we load; {way}")
    return types


def _check_zip(packed: bytes, artifact: str) -> None:
    """Refuse a ZIP file that `pack` did not write: skops reads members whole, and NumPy believes an array's header."""
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            odd = [name for name in names if not _MEMBER.fullmatch(name)]
            if odd or len(set(names)) < len(names) or len(names) > _MAX_MEMBERS:
                raise ArtifactRefused(artifact, f"model.skops has odd members: {(odd or names)[0][:80]!r}")
            squeezed = [m for m in members if m.compress_type != zipfile.ZIP_STORED or m.file_size != m.compress_size]
            if squeezed or sum(m.file_size for m in members) > len(packed):
                raise ArtifactRefused(artifact, "model.skops is compressed, or its members overlap: we write neither")
            if archive.getinfo("schema.json").file_size > _MAX_SCHEMA:
                raise ArtifactRefused(artifact, f"schema.json of model.skops has more than {_MAX_SCHEMA} bytes")
            for name in names:
                if name.endswith(".npy"):
                    _check_array(archive.read(name), name, artifact)
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, EOFError, NotImplementedError, RuntimeError) as exc:
        raise ArtifactRefused(artifact, f"model.skops is no file of skops: {exc}") from exc


def _check_array(content: bytes, name: str, artifact: str) -> None:
    """The array has the bytes that its header declares, and no objects."""
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    declared = dtype.itemsize
    for size in shape:
        declared *= size
    if dtype.hasobject or declared != len(content) - stream.tell():
        raise ArtifactRefused(artifact, f"{name} of model.skops declares {shape} of {dtype}, which it does not hold")


def _check_trees(root: Any, artifact: str) -> None:
    """Refuse trees that point beyond their nodes, back at them, or beyond the features they are given: scikit-learn
    follows them unchecked, out of its memory or for ever (scikit-learn#34558)."""
    seen: set[int] = set()
    waiting: list[tuple[Any, float]] = [(root, np.inf)]
    while waiting:
        each, width = waiting.pop()
        if id(each) in seen or isinstance(each, str | bytes | int | float | None):
            continue
        seen.add(id(each))
        kind = type(each).__name__
        if isinstance(each, dict):
            waiting += [(value, width) for value in each.values()]
        elif isinstance(each, list | tuple) or (isinstance(each, np.ndarray) and each.dtype == object):
            waiting += [(value, width) for value in (each.ravel() if isinstance(each, np.ndarray) else each)]
        elif kind == "Tree" and hasattr(each, "children_left"):
            leaf = each.children_left == -1
            width = min(width, each.n_features)
            _check_nodes(each.children_left, each.children_right, each.feature, leaf, width, artifact)
        elif kind == "TreePredictor":
            nodes = each.nodes
            leaf = nodes["is_leaf"].astype(bool)
            _check_nodes(nodes["left"], nodes["right"], nodes["feature_idx"], leaf, width, artifact)
            if nodes["is_categorical"].any() and len(each.raw_left_cat_bitsets) <= nodes["bitset_idx"].max():
                raise ArtifactRefused(artifact, "model.skops has a tree whose categories point beyond their table")
        elif hasattr(each, "__dict__"):
            # A step's own width holds for the trees in it, not for those of a pipeline's later steps.
            fresh = kind in ("Pipeline", "ColumnTransformer", "FeatureUnion")
            own = vars(each).get("n_features_in_", np.inf)
            width = np.inf if fresh else min(width, own)
            waiting += [(value, width) for value in vars(each).values()]


def _check_nodes(left: Any, right: Any, feature: Any, leaf: Any, width: float, artifact: str) -> None:
    place, n = np.arange(len(left)), len(left)
    children = [np.asarray(side, dtype=np.int64)[~leaf] for side in (left, right)]
    inside = all(((side > place[~leaf]) & (side < n)).all() for side in children)
    features = np.asarray(feature, dtype=np.int64)[~leaf]
    if n == 0 or not inside or not ((features >= 0) & (features < width)).all():
        raise ArtifactRefused(artifact, "model.skops has a tree that points beyond its nodes or features")
