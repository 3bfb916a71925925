"""New classification heads on a finished segmentation network, whose encoder and decoder stay as they are.

On *patches* the heads are those of the joint training, trained alone on patches that show the evidence. On *cases* every training case goes
through the path of the predictor, and a linear classifier is fitted to what prediction will compute: features averaged over the tiles,
and the morphometry of the predicted structures, on which decision trees are grown too. Nothing is chosen on the training cases: an encoder that saw their labels makes any inner
score worthless.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunetv2.inference.morphometry import morphometry_names
from nnunetv2.network_architecture.classification_heads import (
    CaseHead,
    HeadDescription,
    build_heads,
    default_stages,
    encoder_channels,
    seed_dropout,
    tree_targets,
)
from nnunetv2.network_architecture.joint_network import JointNetwork
from nnunetv2.network_architecture.predicted_evidence import PredictedEvidence
from nnunetv2.network_architecture.tree_ensemble import TreeEnsemble
from nnunetv2.training.data_augmentation.default_augmentation import intensity_transforms
from nnunetv2.training.dataloading.case_sampling import balanced_sampling_probabilities
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.random_state import restored_random_state, seed_sample
from nnunetv2.training.distributed import average_gradients, number_of_processes, of_all_processes, process_rank
from nnunetv2.training.loss.classification import ClassificationLoss
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.case_validation import predictor_of, segmentation_at_full_resolution, with_previous_stage

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainerMultitask import nnUNetTrainerMultitask
    from nnunetv2.utilities.label_handling.classification_labels import ClassificationTask, Target

REFITS = ("cases", "patches", "none")
SEED_OFFSET = 2_000_003  # other random numbers than those of the training
EVIDENCE_CENTRED_SHARE = 2 / 3  # of the samples of a refit on patches
# Structures are predicted better in cases that the network was trained on than in new ones; their measures differ by a third to a half of the
# deviation between cases (documentation/classification-evidence.md). Trees that see every case several times, so much changed, do not rely on less.
NOISE_OF_MEASURES = 0.3
NOISY_COPIES = 8
COPIES_OF_A_LEAF = 8
SMALLEST_DEVIATION = 1e-6  # a feature that varies less than this among the training cases says nothing


# --- on cases


def way_of_refit(heads: Mapping[str, nn.Module]) -> str:
    """On what refitted heads were fitted, one of ``REFITS``."""
    return "cases" if next(iter(heads.values())).description.level == "case" else "patches"


def refit_on_cases(
    trainer: nnUNetTrainerMultitask, *, augmented_copies: int, penalty: float, with_morphometry: bool, trees: int
) -> dict[str, nn.Module]:
    """Heads fitted to the training cases as the predictor sees them.

    Args:
        trainer: With a trained segmentation network, and a labelled training case for every task.
        augmented_copies: How often every case is seen with other intensities, besides once as it is.
        penalty: Of the squared weights of the linear layer.
        with_morphometry: Whether the heads look at the sizes and shapes of the predicted structures.
        trees: Decision trees on the morphometry; 0 for none.
    """
    network = trainer.segmentation_network()
    heads = unfitted_case_heads(trainer, with_morphometry)
    predictor = predictor_of(trainer, JointNetwork(network, heads).to(trainer.device))
    predictor.classification_tasks = dict(trainer.classification_tasks)
    identifiers, vectors = case_vectors(trainer, predictor, augmented_copies)
    case_labels = trainer.case_labels()
    for name, head in heads.items() if process_rank() == 0 else ():  # the others get the fitted ones
        targets = [case_labels.target(identifier, name) for identifier in identifiers]
        known = [index for index, target in enumerate(targets) if target is not None]
        weights = balanced_sampling_probabilities([identifiers[i] for i in known], case_labels, name, draw_unknown=False) * len(known)
        known_vectors, known_targets = vectors[name][known], [targets[i] for i in known]
        loss = fit_case_head(head, known_vectors, known_targets, weights, penalty)
        if head.description.measures and trees:
            grow_trees(head, known_vectors, known_targets, weights, trees, trainer.seed)
        trainer.print_to_log_file(f"Head refit, {name}: {len(known)} views of training cases, loss {loss:.4f}")
    return dict(heads)


def unfitted_case_heads(trainer: nnUNetTrainerMultitask, with_morphometry: bool) -> dict[str, CaseHead]:
    """One head per task, looking at the stages of the refit and at every structure of the dataset."""
    channels = encoder_channels(trainer.segmentation_network())
    labels = trainer.dataset_json["labels"]
    structures = foreground_structures(labels) if with_morphometry else {}
    measures = tuple(morphometry_names(list(structures), trainer.num_input_channels)) if structures else ()
    heads = {
        name: CaseHead(
            HeadDescription(
                task=task,
                pooling=trainer.refit_pooling,
                stages=default_stages(len(channels)) if trainer.refit_stages is None else tuple(trainer.refit_stages),
                level="case",
                evidence=PredictedEvidence.from_labels(task.evidence, labels),
                structures=structures,
                measures=measures,
            ),
            channels,
        )
        for name, task in trainer.classification_tasks.items()
    }
    for name, head in heads.items():
        _take_over_pooling(trainer, name, head)
    return heads


def _take_over_pooling(trainer: nnUNetTrainerMultitask, name: str, head: CaseHead) -> None:
    """Give a pooling that learns (attention) what the joint head has learned; a linear fit on cases does not train it.

    Raises:
        ValueError: If there is no trained joint head with the same pooling and stages.
    """
    if not any(True for _ in head.pooling.parameters()):
        return
    joint, wanted = trainer.heads[name].description, head.description
    if not trainer.joint_heads_trained or (joint.pooling, joint.stages) != (wanted.pooling, wanted.stages):
        raise ValueError(
            f"Task {name}: a refit on cases takes the pooling {wanted.pooling!r} over from the head of the joint training, which needs the same "
            f"pooling and stages {wanted.stages}; found {joint.pooling!r}, {joint.stages}"
            f"{'' if trainer.joint_heads_trained else ' and never trained'}. Set head_pooling and head_stages alike before the training, or "
            "refit_pooling to 'mean_max'."
        )
    head.pooling.load_state_dict(trainer.heads[name].pooling.state_dict())


def foreground_structures(labels: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Label values of every structure of ``dataset.json``'s ``labels`` but background and ignore, by name."""
    values = {name: tuple(value) if isinstance(value, (list, tuple)) else (int(value),) for name, value in labels.items()}
    return {name: tuple(int(v) for v in value) for name, value in values.items() if name != "ignore" and set(value) != {0}}


def case_vectors(
    trainer: nnUNetTrainerMultitask, predictor: Any, augmented_copies: int
) -> tuple[list[str], dict[str, np.ndarray]]:
    """What the heads of whole cases see of the training cases that have any label; several processes share the cases.

    Returns:
        The identifier of every view, and by task the vectors ``(views, F)``.
    """
    dataset, _ = trainer.get_tr_and_val_datasets()
    case_labels = trainer.case_labels()
    chosen = [name for name in dataset.identifiers if any(case_labels.target(name, task) is not None for task in trainer.classification_tasks)]
    views: list[tuple[int, int, dict[str, np.ndarray]]] = []  # number of the case, of the copy, vectors by task
    with segmentation_at_full_resolution(trainer):
        for number in range(process_rank(), len(chosen), number_of_processes()):
            identifier = chosen[number]
            data, _, previous_stage, properties = dataset.load_case(identifier)
            image = torch.from_numpy(np.asarray(data[:]))
            for copy in range(1 + augmented_copies):
                view = image if copy == 0 else other_intensities(image, trainer.seed + SEED_OFFSET, number, copy)
                view = with_previous_stage(trainer, view.numpy(), previous_stage)
                views.append((number, copy, predictor.case_features_from_preprocessed_data(torch.from_numpy(view), properties)))
    views = sorted((view for of_process in of_all_processes(views) for view in of_process), key=lambda view: view[:2])
    vectors = {task: np.stack([features[task] for _, _, features in views]) for task in trainer.classification_tasks}
    return [str(chosen[number]) for number, _, _ in views], vectors


def other_intensities(image: Tensor, *position: int) -> Tensor:
    """An image ``(C, X, Y, Z)`` with the intensity part of the training's augmentation; a function of the position alone.

    Each transform is drawn with its probability, so that about one view in four stays as it is.
    """
    with restored_random_state(), torch.no_grad():
        seed_sample(*position)
        sample = {"image": image.clone()}
        for transform in intensity_transforms():
            sample = transform(**sample)
    return sample["image"]


def fit_case_head(head: CaseHead, vectors: np.ndarray, targets: Sequence[Target], weights: np.ndarray, penalty: float) -> float:
    """Fit standardization and linear layer of a head; a convex problem, solved to the end and the same every time.

    Every block of features (means, maxima, measures) gets the same total variance, so that hundreds of channels do not drown a dozen
    measures.

    Args:
        head: Changed in place.
        vectors: ``(n, F)``; NaN where a measure does not exist.
        targets: What is true of each; all known.
        weights: ``(n,)``, mean 1.
        penalty: Factor of half the squared weights of the layer, beside the mean loss.

    Returns:
        The final mean loss without the penalty.
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    known = np.isfinite(vectors)
    counts = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, vectors, 0).sum(axis=0) / counts
    deviation = np.sqrt(np.where(known, (vectors - mean) ** 2, 0).sum(axis=0) / counts)
    block_size = np.concatenate([np.full(size, size) for size in head.blocks])
    scale = np.where(deviation > SMALLEST_DEVIATION, 1 / np.maximum(deviation, SMALLEST_DEVIATION) / np.sqrt(block_size), 0.0)
    device = head.feature_mean.device
    head.to("cpu").double()  # in two steps, both ways: not every device knows float64
    head.feature_mean.copy_(torch.from_numpy(mean))
    head.feature_scale.copy_(torch.from_numpy(scale))
    inputs = head.standardize(torch.from_numpy(vectors))
    target, sample_weights = _target_tensor(head.description.task, targets), torch.from_numpy(np.asarray(weights, dtype=np.float64))
    loss_of = ClassificationLoss({"task": head.description.task}, label_smoothing=0.0)

    def mean_loss() -> Tensor:
        # by sample, since the loss as a whole works in float32
        losses, _ = loss_of.sample_losses("task", head.output(inputs), target)
        return (losses * sample_weights).mean()

    layer = head.output.score if head.description.task.is_ordinal else head.output
    with torch.no_grad():
        # Thresholds of ordinal classes keep their start, equal shares. Everything else starts at 0, not at what was drawn: a constant that
        # all biases share would stay in them.
        for parameter in layer.parameters():
            parameter.zero_()
    optimizer = torch.optim.LBFGS(
        head.output.parameters(), lr=1, max_iter=1000, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = mean_loss() + penalty / 2 * (layer.weight**2).sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimizer.step(closure)
    with torch.no_grad():
        loss = float(mean_loss())
    head.float().to(device)
    head.requires_grad_(False)
    return loss


def grow_trees(head: CaseHead, vectors: np.ndarray, targets: Sequence[Target], weights: np.ndarray, number: int, seed: int) -> None:
    """Give a fitted head decision trees on the measures: randomized ones, whose mean is what a small number of cases can carry.

    They are grown on noisy copies of the measures, see :func:`noisy_copies`.

    Args:
        head: Changed in place; its feature means are set.
        vectors: ``(n, F)``; NaN where a measure does not exist.
        targets: What is true of each; all known.
        weights: ``(n,)``.
        number: Of trees.
        seed: Of the random splits.
    """
    from sklearn.ensemble import ExtraTreesRegressor

    measures = head.measures_of(torch.from_numpy(np.asarray(vectors, dtype=np.float64))).cpu().numpy()
    truth = tree_targets(head.description.task, _target_tensor(head.description.task, targets)).numpy()
    # Squared error on indicators of the classes is the Gini impurity, and serves every type of task.
    forest = ExtraTreesRegressor(number, min_samples_leaf=COPIES_OF_A_LEAF, random_state=seed)
    forest.fit(noisy_copies(measures, seed), np.tile(truth, (NOISY_COPIES, 1)), sample_weight=np.tile(weights, NOISY_COPIES))
    head.set_trees(TreeEnsemble.from_scikit_learn(forest).to(head.feature_mean.device))


def noisy_copies(measures: np.ndarray, seed: int) -> np.ndarray:
    """``(NOISY_COPIES * n, F)``: all cases, again and again, with Gaussian noise in proportion to the deviation of each measure."""
    noise = np.random.default_rng(seed).standard_normal((NOISY_COPIES, *measures.shape))
    return (measures + NOISE_OF_MEASURES * measures.std(axis=0) * noise).reshape(-1, measures.shape[1])


def _target_tensor(task: ClassificationTask, targets: Sequence[Target]) -> Tensor:
    if task.is_multilabel:
        return torch.from_numpy(np.stack([np.asarray(target, dtype=np.float32) for target in targets]))
    return torch.tensor([int(target) for target in targets])


# --- on patches


def refit_on_patches(trainer: nnUNetTrainerMultitask, *, epochs: int) -> dict[str, nn.Module]:
    """Fresh heads trained on patches, cases drawn balanced by class, two of three samples centred on the evidence.

    Args:
        trainer: With a trained segmentation network.
        epochs: Of as many steps as in the training.
    """
    network = trainer.segmentation_network()
    tasks = trainer.classification_tasks
    heads = new_patch_heads(trainer)
    if process_rank() > 0:  # equal weights, but dropout of their own
        seed_dropout(heads, trainer.seed + SEED_OFFSET + process_rank())
    modules = nn.ModuleList(heads.values()).to(trainer.device).train()
    parameters = list(modules.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=trainer.head_lr, weight_decay=trainer.head_weight_decay)
    schedule = PolyLRScheduler(optimizer, trainer.head_lr, epochs)
    loss_of = ClassificationLoss(tasks)
    needs_segmentation = any(head.needs_segmentation for head in heads.values())
    stream = trainer.refit_stream()
    try:
        with segmentation_at_full_resolution(trainer):
            for epoch in range(epochs):
                schedule.step(epoch)
                total = 0.0
                for _ in range(trainer.num_iterations_per_epoch):
                    batch = trainer.batch_on_device(next(stream))
                    with torch.no_grad(), trainer.autocast():
                        features = network.encoder(batch["data"])
                        segmentation = network.decoder(features) if needs_segmentation else None
                    losses = loss_of({name: head(features, segmentation) for name, head in heads.items()}, batch["class"])
                    loss = sum(tasks[name].weight * value for name, value in losses.items())
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    average_gradients(parameters)
                    torch.nn.utils.clip_grad_norm_(parameters, trainer.head_gradient_norm)
                    optimizer.step()
                    total += loss.detach()
                mean = np.mean(of_all_processes(float(total))) / trainer.num_iterations_per_epoch
                trainer.print_to_log_file(f"Head refit, epoch {epoch}: loss {mean:.4f}")
    finally:
        stream.close()
    modules.eval().requires_grad_(False)
    return heads


def new_patch_heads(trainer: nnUNetTrainerMultitask) -> dict[str, nn.Module]:
    """One untrained head per task, with the pooling and the stages of the refit."""
    return build_heads(
        trainer.classification_tasks,
        encoder_channels(trainer.segmentation_network()),
        pooling=trainer.refit_pooling,
        stages=trainer.refit_stages,
        labels=trainer.dataset_json["labels"],
        seed=trainer.seed + SEED_OFFSET,
    )


class EvidenceCentredLoader(nnUNetDataLoader):
    """A loader whose patches that must show foreground show the evidence of a task, where a case has any."""

    evidence_values: tuple[int, ...] = ()

    def _locations_to_show(self, force_fg, class_locations, overwrite_class, verbose) -> np.ndarray | None:
        if force_fg and overwrite_class is None:
            # A key is a label, or the labels of a region.
            shown = [
                key
                for key, locations in class_locations.items()
                if key != self.annotated_classes_key
                and len(locations) > 0
                and set(np.atleast_1d(key).tolist()) <= set(self.evidence_values)
            ]
            if shown:
                overwrite_class = shown[np.random.choice(len(shown))]
        return super()._locations_to_show(force_fg, class_locations, overwrite_class, verbose)
