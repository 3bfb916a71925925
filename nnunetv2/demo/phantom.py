"""A phantom dataset: an organ with a lesion of one of three subtypes, in a noisy volume with thick slices.

The subtype shows in the shape and texture of the lesion alone. Its volume and mean intensity are drawn from the same
distributions for every subtype, so that a classifier has to look at the picture.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from nnunetv2.utilities.file_io import atomic_path, save_json

SUBTYPES = ("solid", "granular", "rim")
LABELS = {"background": 0, "organ": 1, "lesion": 2}
FILE_ENDING = ".nii.gz"
SHAPE = (12, 48, 48)  # voxels per axis, (z, y, x)
SPACINGS_MM = ((4.0, 1.5, 1.5), (4.0, 1.4, 1.4))  # two scanners, (z, y, x)
NOISE_SD = 18.0  # grey values
BODY_MEAN, ORGAN_MEAN, LESION_MEAN = 90.0, 200.0, 130.0  # grey values
LESION_RADIUS_MM = (7.5, 10.5)  # radius of a ball of the lesion's volume


@dataclass(frozen=True, kw_only=True)
class PhantomCase:
    """One simulated examination."""

    image: np.ndarray  # float32 (Z, Y, X), grey values
    segmentation: np.ndarray  # uint8 (Z, Y, X), values of LABELS
    spacing: tuple[float, float, float]  # mm, (z, y, x)
    subtype: str


def simulate_case(
    subtype: str, rng: np.random.Generator, shape: tuple[int, int, int] = SHAPE, organ_range_mm: tuple[float, float, float] = (3, 3, 3)
) -> PhantomCase:
    """Simulate one case of a subtype.

    Args:
        subtype: One of ``SUBTYPES``.
        rng: Source of all randomness; the same state gives the same case.
        shape: Voxels per axis, (z, y, x).
        organ_range_mm: How far the organ lies from the middle at most, by axis.

    Raises:
        ValueError: If the subtype is unknown.
    """
    if subtype not in SUBTYPES:
        raise ValueError(f"Unknown subtype {subtype!r}, expected one of {SUBTYPES}.")
    spacing = SPACINGS_MM[rng.integers(len(SPACINGS_MM))]
    position_mm = _voxel_centres_mm(shape, spacing)
    extent_mm = np.multiply(shape, spacing)

    body = _ellipsoid_radius(position_mm, extent_mm / 2, extent_mm * (0.6, 0.47, 0.47)) < 1
    organ_axes_mm = rng.uniform((17, 20, 22), (20, 24, 28))
    organ_centre_mm = extent_mm / 2 + rng.uniform(-1, 1, 3) * organ_range_mm
    organ = _ellipsoid_radius(position_mm, organ_centre_mm, organ_axes_mm) < 1

    lesion_centre_mm = organ_centre_mm + _random_direction(rng) * organ_axes_mm * rng.uniform(0.1, 0.4)
    radius_mm = rng.uniform(*LESION_RADIUS_MM)
    depth = _lesion_depth(subtype, position_mm, lesion_centre_mm, radius_mm, rng)
    depth[~organ] = np.inf
    lesion_voxels = round(4 / 3 * np.pi * radius_mm**3 / np.prod(spacing))
    threshold = np.partition(depth.ravel(), lesion_voxels)[lesion_voxels]
    lesion = depth < threshold

    image = np.full(shape, 10.0)
    image[body] = BODY_MEAN
    image[organ] = ORGAN_MEAN + rng.normal(0, 8)
    image += 12 * _unit_variance(gaussian_filter(rng.standard_normal(shape), (1, 4, 4)))  # slowly varying tissue
    texture = _lesion_texture(subtype, depth[lesion] / threshold, rng)
    image[lesion] = LESION_MEAN + rng.normal(0, 8) + texture - texture.mean()
    image += rng.normal(0, NOISE_SD, shape)

    segmentation = np.zeros(shape, np.uint8)
    segmentation[organ] = LABELS["organ"]
    segmentation[lesion] = LABELS["lesion"]
    return PhantomCase(image=image.astype(np.float32), segmentation=segmentation, spacing=spacing, subtype=subtype)


def write_phantom_dataset(
    dataset_folder: Path,
    *,
    num_training: int,
    num_test: int,
    seed: int,
    unlabelled_fraction: float = 0.1,
    training_subtypes: Sequence[str] = SUBTYPES,
    simulate: Callable[[str, np.random.Generator], PhantomCase] = simulate_case,
) -> dict[str, str]:
    """Write a raw dataset (``imagesTr``, ``labelsTr``, ``dataset.json``, ``labels.csv``) and a held-out set beside it.

    The held-out cases lie in ``imagesTs`` and ``labelsTs``, their classes in ``labels_test.csv``.

    Args:
        dataset_folder: A ``DatasetNNN_Name`` folder; created.
        num_training: Number of training cases.
        num_test: Number of held-out cases, subtypes in turn.
        seed: Determines every voxel.
        unlabelled_fraction: Share of the training cases whose class cell is left empty.
        training_subtypes: Subtypes of the training cases, in turn; one that stands here more often is more frequent.
        simulate: Makes a case of a subtype.

    Returns:
        The true subtype of every held-out case, by identifier.
    """
    rng = np.random.default_rng(seed)
    training = {f"train_{index:03d}": training_subtypes[index % len(training_subtypes)] for index in range(num_training)}
    held_out = {f"test_{index:03d}": SUBTYPES[index % len(SUBTYPES)] for index in range(num_test)}
    for suffix, cases in (("Tr", training), ("Ts", held_out)):
        for name in ("images", "labels"):
            (dataset_folder / f"{name}{suffix}").mkdir(parents=True, exist_ok=True)
        for identifier, subtype in cases.items():
            case = simulate(subtype, rng)
            _write_volume(case.image, case.spacing, dataset_folder / f"images{suffix}" / f"{identifier}_0000{FILE_ENDING}")
            _write_volume(case.segmentation, case.spacing, dataset_folder / f"labels{suffix}" / f"{identifier}{FILE_ENDING}")
    unlabelled = set(rng.choice(sorted(training), round(unlabelled_fraction * num_training), replace=False))
    _write_label_table(dataset_folder / "labels.csv", {k: "" if k in unlabelled else v for k, v in training.items()})
    _write_label_table(dataset_folder / "labels_test.csv", held_out)
    dataset_json = {
        "channel_names": {"0": "MRI"},
        "labels": LABELS,
        "numTraining": num_training,
        "file_ending": FILE_ENDING,
        "classification": {"subtype": {"classes": list(SUBTYPES), "evidence": ["lesion"], "context": ["organ"]}},
        "case_labels": "labels.csv",
        "description": "Simulated phantom: organ and lesion, three lesion subtypes. Not medical data.",
    }
    save_json(dataset_json, dataset_folder / "dataset.json")
    return held_out


def _write_volume(volume: np.ndarray, spacing: Sequence[float], path: Path) -> None:
    """Write a ``(Z, Y, X)`` array with its voxel size in mm."""
    import SimpleITK as sitk

    from nnunetv2.imageio.simpleitk_reader_writer import write_image

    image = sitk.GetImageFromArray(volume)
    image.SetSpacing([float(s) for s in reversed(spacing)])
    write_image(image, path)


def _write_label_table(path: Path, subtypes: dict[str, str]) -> None:
    """Write ``identifier,subtype``; an empty cell is an unknown class."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["identifier", "subtype"])
        writer.writerows(subtypes.items())


def _voxel_centres_mm(shape: Sequence[int], spacing: Sequence[float]) -> np.ndarray:
    """Positions ``(Z, Y, X, 3)`` of voxel centres in mm."""
    axes = [(np.arange(n) + 0.5) * s for n, s in zip(shape, spacing, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def _ellipsoid_radius(position_mm: np.ndarray, centre_mm: np.ndarray, axes_mm: np.ndarray) -> np.ndarray:
    """Distance from the centre in units of the ellipsoid: 1 on its surface."""
    return np.sqrt((((position_mm - centre_mm) / axes_mm) ** 2).sum(-1))


def _lesion_depth(subtype: str, position_mm: np.ndarray, centre_mm: np.ndarray, radius_mm: float, rng: np.random.Generator) -> np.ndarray:
    """A field that grows outwards; the lesion is where it is small. Granular lesions are lobulated, the others round."""
    if subtype != "granular":
        return _ellipsoid_radius(position_mm, centre_mm, radius_mm * rng.uniform(0.85, 1.15, 3))
    lobes = [centre_mm + _random_direction(rng) * radius_mm * rng.uniform(0.5, 0.8) for _ in range(4)]
    return np.min([_ellipsoid_radius(position_mm, lobe, np.full(3, 0.6 * radius_mm)) for lobe in lobes], axis=0)


def _lesion_texture(subtype: str, relative_depth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Grey values of the lesion's voxels around their mean; ``relative_depth`` is 0 in the centre and 1 at the border."""
    if subtype == "solid":
        return np.zeros(relative_depth.shape)
    if subtype == "granular":
        return 60.0 * rng.choice((-1.0, 1.0), relative_depth.shape)
    return np.where(relative_depth > 0.72, 45.0, -55.0)


def _random_direction(rng: np.random.Generator) -> np.ndarray:
    """A vector of length one in a uniformly random direction."""
    vector = rng.standard_normal(3)
    return vector / np.linalg.norm(vector)


def _unit_variance(field: np.ndarray) -> np.ndarray:
    """The field with mean 0 and standard deviation 1."""
    return (field - field.mean()) / field.std()
