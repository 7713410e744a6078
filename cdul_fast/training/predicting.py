"""`predict_photos`: a trained classifier over photos, by the machinery and into the files of label."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from cdul_fast.data.run_dir import CLASSIFIER
from cdul_fast.data.shard_work import Layout
from cdul_fast.encoders.base import check_shape, fingerprint, inner_batch
from cdul_fast.encoders.openvino_clip import has_bf16
from cdul_fast.encoders.openvino_passes import Passes, as_array
from cdul_fast.errors import CdulError, ConfigError
from cdul_fast.execution.local_engine import available_cores
from cdul_fast.execution.session import RunResult, Session
from cdul_fast.execution.work import AS_GIVEN, ScoreSpec, ViewSpec
from cdul_fast.predict_config import PredictConfig
from cdul_fast.training.arithmetic import features_precision
from cdul_fast.training.features import converted_for_cpu
from cdul_fast.training.model_dir import Classifier, ModelInfo, load_classifier, read_info

if TYPE_CHECKING:
    from cdul_fast.data.manifest import Manifest
    from cdul_fast.prompts import ClassList

# bf16 keeps 8 bits of a number; through a network probabilities move by some hundredths.
_TOLERANCES = {"fp32": 1e-3, "bf16": 0.1}


@dataclasses.dataclass(frozen=True, repr=False)
class PredictResult(RunResult):
    """What `predict_photos` did; the attributes are those of `RunResult`."""

    done: ClassVar[str] = "scored"


def predict_photos(config: PredictConfig) -> PredictResult:
    """Score photos with a trained classifier.

    The same call on the same folder goes on with unfinished predictions, or returns finished ones.

    Args:
        config: All settings; ``config.model`` names the model, ``config.out`` the folder for the results.

    Raises:
        ConfigError: A setting is wrong, or differs from those the results in ``config.out`` began with.
        CdulError: No model, no photos, a full disk, another run on the same folder.
        KeyboardInterrupt: After what was finished was brought to disk; the message says how to go on.
    """
    result = _PredictSession(config).run()
    assert isinstance(result, PredictResult)
    return result


class ClassifierEncoder:
    """A trained classifier in the engine's place for an encoder: its "embeddings" are probabilities [n, C].

    Args:
        classifier: In evaluation mode.
        info: Of its model directory.
        weights: What `weights_digest` says of it.
        precision: ``fp32``, ``bf16``, or ``auto`` for bf16 where the CPU has it.
        threads: CPU threads.

    Raises:
        CdulError: The converted model differs from the original.
        ConfigError: The CPU has no bfloat16.
    """

    backend = "openvino"
    pretrained = ""
    logit_scale = 1.0
    parallel_calls = 2

    def __init__(
        self, classifier: Classifier, info: ModelInfo, weights: str, precision: str, *, threads: int
    ) -> None:
        if precision == "bf16" and not has_bf16():
            raise ConfigError("this processor has no bfloat16 instructions: use --precision fp32")
        self.name, self.image_size = info.backbone, info.image_size
        self.precision = features_precision(precision)
        backbone: Any = classifier.network.backbone
        self.mean, self.std = backbone.info.mean, backbone.info.std
        self.dim = len(info.classes)
        self.batch = inner_batch(self.image_size) * threads
        narrow = self.precision == "bf16"
        self.input_dtype = "bfloat16" if narrow else "float32"
        self.report = {"kind": CLASSIFIER, "method": info.method, "weights": weights}
        parts = {"weights": weights, "fit": info.fit, "size": info.image_size, "precision": self.precision}
        self.fingerprint = fingerprint(parts)
        model = converted_for_cpu(classifier, self.image_size)
        self._passes = Passes(model, self.image_size, self.dim, threads=threads, narrow=narrow)
        self._check(classifier)

    def embed_images(self, pixels: Any) -> np.ndarray:
        """Probabilities float32 [n, C] of normalised photos [n, 3, S, S]."""
        array = as_array(pixels, self.input_dtype)
        check_shape(array.shape, self.image_size)
        return self._passes.run(array)

    def close(self) -> None:
        """Free the compiled model."""
        self._passes.close()

    def _check(self, classifier: Classifier) -> None:
        """Compare the compiled model with the original on random photos, before anything is written."""
        import torch

        size = self.image_size
        images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            wanted = classifier(images).numpy()
        difference = float(np.abs(self.embed_images(images) - wanted).max())
        if not difference <= _TOLERANCES[self.precision]:
            raise CdulError(
                f"OpenVINO's version of the model differs from the original by {difference:.2g}; "
                "try --precision fp32"
            )


class _PredictSession(Session[PredictConfig]):
    """One call of `predict_photos`."""

    result_class = PredictResult
    doing = "scoring"

    def find_classes(self) -> ClassList:
        from cdul_fast.prompts import ClassList

        assert self.config.model is not None
        self.model = Path(self.config.model)
        self.info = read_info(self.model)
        return ClassList(self.info.classes)

    @functools.cached_property
    def loaded(self) -> tuple[Classifier, str]:
        """The classifier, and the digest of its weights."""
        classifier, _ = load_classifier(self.model, self.config.which)
        return classifier, weights_digest(classifier)

    def check_before(self, before: Manifest) -> None:
        if before.model.get("weights") != self.loaded[1]:
            raise before.refusal("model", "other weights", "these weights", self.folder)

    def load_encoder(self, precision: str) -> ClassifierEncoder:
        threads = self.config.threads or available_cores()
        return ClassifierEncoder(self.loaded[0], self.info, self.loaded[1], precision, threads=threads)

    def layout(self, manifest: Manifest) -> Layout:
        return Layout(0, tuple(self.info.classes), None, self.config.shard_size, self.part)

    def texts(self, encoder: Any) -> np.ndarray:
        return np.zeros((len(self.info.classes), 0), np.float32)

    def view_spec(self, encoder: Any) -> ViewSpec:
        return ViewSpec(
            grid=0,
            overlap=0.0,
            grid2=0,
            fits=(self.info.fit,),
            size=encoder.image_size,
            mean=tuple(encoder.mean),
            std=tuple(encoder.std),
            dtype=encoder.input_dtype,
            max_pixels=self.config.max_pixels,
            exif_rotate=self.config.exif_rotate,
            scaled_decode=self.config.decode == "scaled",
        )

    def score_spec(self, encoder: Any) -> ScoreSpec:
        return ScoreSpec(AS_GIVEN, 1.0, 0.0, 0.0)

    def label_rule(self) -> dict[str, Any]:
        config = self.config
        return {"threshold": config.threshold, "top_k": config.top_k, "expected_labels": None}


def weights_digest(classifier: Classifier) -> str:
    """SHA-256 over the names and values of all weights."""
    digest = hashlib.sha256()
    for name, tensor in classifier.state_dict().items():
        digest.update(name.encode() + np.ascontiguousarray(tensor.cpu().numpy()).tobytes())
    return digest.hexdigest()
