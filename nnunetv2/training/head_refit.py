"""New classification heads on a finished segmentation network, whose encoder and decoder stay as they are.

On *patches* the heads are those of the joint training, trained alone on patches that show the evidence. On *cases* every training case goes
through the path of the predictor, and a linear classifier is fitted to what prediction will compute: features averaged over the tiles,
and the morphometry of the predicted structures, on which decision trees are grown too (``case_head_fit.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
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
)
from nnunetv2.network_architecture.joint_network import JointNetwork
from nnunetv2.network_architecture.predicted_evidence import PredictedEvidence
from nnunetv2.training.case_head_fit import add_trees, fit_case_head, inner_folds
from nnunetv2.training.dataloading.case_sampling import balanced_sampling_probabilities
from nnunetv2.training.dataloading.random_state import restored_random_state, seed_sample
from nnunetv2.training.distributed import average_gradients, number_of_processes, of_all_processes, process_rank
from nnunetv2.training.loss.classification import ClassificationLoss
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.case_validation import predictor_of, segmentation_at_full_resolution, with_previous_stage
from nnunetv2.utilities.label_handling.classification_labels import load_case_groups

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainerMultitask import nnUNetTrainerMultitask

REFITS = ("cases", "patches", "none")
SEED_OFFSET = 2_000_003  # other random numbers than those of the training
EVIDENCE_CENTRED_SHARE = 2 / 3  # of the samples of a refit on patches


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
    groups = load_case_groups(trainer.preprocessed_dataset_folder_base, trainer.dataset_json)
    for name, head in heads.items() if process_rank() == 0 else ():  # the others get the fitted ones
        targets = [case_labels.target(identifier, name) for identifier in identifiers]
        known = [index for index, target in enumerate(targets) if target is not None]
        weights = balanced_sampling_probabilities([identifiers[i] for i in known], case_labels, name, draw_unknown=False) * len(known)
        loss = fit_case_head(head, vectors[name][known], [targets[i] for i in known], weights, penalty)
        vote = ""
        if head.description.measures and trees:
            folds = inner_folds([identifiers[i] for i in known], name, case_labels, groups)
            share = add_trees(
                head,
                vectors[name][known],
                [targets[i] for i in known],
                weights,
                penalty=penalty,
                number=trees,
                seed=trainer.seed,
                folds=folds,
            )
            vote = f", trees on the morphometry have {share:.0%} of the vote"
        trainer.print_to_log_file(f"Head refit, {name}: {len(known)} views of training cases, loss {loss:.4f}{vote}")
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


def case_vectors(trainer: nnUNetTrainerMultitask, predictor: Any, augmented_copies: int) -> tuple[list[str], dict[str, np.ndarray]]:
    """What the heads of whole cases see of the training cases that have any label; several processes share the cases.

    Returns:
        The identifier of every view, and by task the vectors ``(views, F)``.
    """
    dataset, _ = trainer.get_tr_and_val_datasets()
    case_labels = trainer.case_labels()
    chosen = [
        name for name in dataset.identifiers if any(case_labels.target(name, task) is not None for task in trainer.classification_tasks)
    ]
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
    from nnunetv2.training.data_augmentation.default_augmentation import intensity_transforms  # not for predictions, see nnUNetTrainer

    with restored_random_state(), torch.no_grad():
        seed_sample(*position)
        sample = {"image": image.clone()}
        for transform in intensity_transforms():
            sample = transform(**sample)
    return sample["image"]


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
