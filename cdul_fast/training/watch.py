"""What training shows while it runs and afterwards: TensorBoard, class activation maps, the report."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cdul_fast.data.paths import one_line
from cdul_fast.training.backbones import Backbone
from cdul_fast.training.config import TrainConfig
from cdul_fast.training.dataset import TrainingSet
from cdul_fast.training.features import load_photo, pools_by_mean
from cdul_fast.training.loop import Loop

logger = logging.getLogger("cdul_fast.train")

_CAM_EDGE = 160


class Watch:
    """Writes ``tensorboard/``, ``cams/`` and ``report.html`` of a model directory.

    Args:
        config: Settings.
        folder: The model directory.
        data: The training set; class activation maps show its most confident photos of different classes.
        backbone: Gives the maps; of a trained network its own is taken instead.
        enabled: False in processes that do not lead.
    """

    def __init__(
        self, config: TrainConfig, folder: Path, data: TrainingSet, backbone: Backbone, *, enabled: bool
    ) -> None:
        self.config, self.folder, self.data, self.backbone = config, folder, data, backbone
        self.enabled = enabled
        self._writer: Any = None
        self._cams: CamStrip | None = None
        if not enabled:
            return
        if config.tensorboard:
            if importlib.util.find_spec("tensorboard") is None:
                logger.warning("no TensorBoard logs: the package tensorboard is not installed")
            else:
                from torch.utils.tensorboard import SummaryWriter

                make: Any = SummaryWriter
                self._writer = make(str(folder / "tensorboard"))
        if config.cam_photos:
            self._cams = CamStrip.when_possible(config, folder, data, backbone)

    def epoch(self, loop: Loop, entry: dict[str, Any]) -> None:
        """Log a finished epoch."""
        if not self.enabled:
            return
        number = entry["epoch"]
        due = number == 1 or number % self.config.cam_every == 0 or number == loop.settings.epochs
        images = self._cams.draw(loop, number) if self._cams is not None and due else []
        if self._writer is None:
            return
        for name in ("loss", "lr", "map", "label_map", "label_positives", "label_changed"):
            if entry.get(name) is not None:
                self._writer.add_scalar(name, entry[name], number)
        self._writer.add_histogram("labels", loop.method.labels().cpu(), number)
        for place, image in enumerate(images):
            self._writer.add_image(f"cam/{place}", image, number, dataformats="HWC")
        self._writer.flush()

    def finish(self) -> None:
        """Close the logs and write the report."""
        if not self.enabled:
            return
        if self._writer is not None:
            self._writer.close()
        if self.config.report:
            try:
                from cdul_fast.reporting.training import write_training_report

                write_training_report(self.folder)
            except Exception as error:
                # The model is complete; a page about it must not take it away.
                logger.warning("no report: %s", one_line(str(error)), exc_info=True)


class CamNetwork(nn.Module):
    """The classifier with a layer that grad-cam can hold on to between maps and head."""

    def __init__(self, backbone: Backbone, loop: Loop) -> None:
        super().__init__()
        self.backbone = backbone
        self.network = loop.best_network
        self.tap = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] to logits."""
        maps = self.tap(self.backbone.maps(images))
        wants_maps = getattr(self.network.head, "wants_maps", False)
        features = maps if wants_maps else maps.mean((2, 3))
        logits: Tensor = self.network.head(self.network.scaling(features)).logits
        return logits


class CamStrip:
    """Class activation maps (Grad-CAM) of a few training photos, one JPEG per photo and epoch.

    Args:
        folder: The model directory; images go to ``cams/``.
        photos: (file, class number) of each photo.
        backbone: See ``Watch``.
        image_size: Side of the network's input.
        fit: How a photo becomes a square.
    """

    def __init__(
        self, folder: Path, photos: list[tuple[Path, int]], backbone: Backbone, image_size: int, fit: str
    ) -> None:
        self.folder = folder / "cams"
        self.photos, self.backbone, self.size, self.fit = photos, backbone, image_size, fit

    @classmethod
    def when_possible(
        cls, config: TrainConfig, folder: Path, data: TrainingSet, backbone: Backbone
    ) -> CamStrip | None:
        """The strip, or None with a line in the log where CAMs cannot be had."""
        if importlib.util.find_spec("pytorch_grad_cam") is None:
            logger.warning("no class activation maps: the package grad-cam is not installed")
            return None
        if not pools_by_mean(backbone):
            logger.warning("no class activation maps: %s does not pool by the mean", backbone.info.name)
            return None
        chosen: list[tuple[Path, int]] = []
        for number in np.argsort(-data.soft.max(axis=0), kind="stable")[: config.cam_photos]:
            chosen.append((data.photos[int(data.soft[:, number].argmax())], int(number)))
        return cls(folder, chosen, backbone, config.image_size, config.fit)

    def draw(self, loop: Loop, epoch: int) -> list[np.ndarray]:
        """Draw and store the maps of an epoch; returns uint8 [S, S, 3] images."""
        from PIL import Image
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.image import show_cam_on_image
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        device = loop.world.device
        backbone = loop.best_network.backbone or self.backbone.to(device)
        training = backbone.training
        network = CamNetwork(backbone, loop).eval()
        self.folder.mkdir(exist_ok=True)
        info, images = self.backbone.info, []
        for place, (path, number) in enumerate(self.photos):
            batch = np.empty((1, 3, self.size, self.size), np.float32)
            load_photo(path, self.size, self.fit, info.mean, info.std, batch)
            inputs = torch.from_numpy(batch).to(device).requires_grad_()
            with torch.enable_grad(), GradCAM(model=network, target_layers=[network.tap]) as cam:
                heat = cam(input_tensor=inputs, targets=[ClassifierOutputTarget(number)])[0]
            pixels = batch[0].transpose(1, 2, 0) * np.asarray(info.std, np.float32) + info.mean
            drawn = show_cam_on_image(pixels.clip(0, 1).astype(np.float32), heat, use_rgb=True)
            image = Image.fromarray(drawn).resize((_CAM_EDGE, _CAM_EDGE), Image.Resampling.BILINEAR)
            image.save(self.folder / f"{place:02d}-{epoch:05d}.jpg", quality=85)
            images.append(np.asarray(image))
        backbone.train(training)
        return images
