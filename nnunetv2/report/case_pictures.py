"""Pictures of single cases: one slice with the outlines of reference and prediction, and the saliency beside it.

Slices are turned as radiologists look at them where the file says how the patient lay: the patient's right is on the left, front or head
is up. One case is in memory at a time.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nnunetv2.evaluation.segmentation_metrics import LabelOrRegion, region_or_label_to_mask
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.report.content import CaseFiles

SALIENCY_ENDING = ".nii.gz"
DOTS = 380  # width of a picture
TALLEST = 1.4  # height of a picture by its width
ANISOTROPIC = 1.5  # from this ratio of spacings on, slices are those with the finer spacings
SHOWN_INTENSITIES = (0.5, 99.5)  # percentiles of the slice, black to white
BRIGHTEST_SALIENCY = 99.9  # percentile of the map
MARGIN = 0.6  # around the structures, as a share of their extent
LETTER_SIZE = 13  # points; pictures are shown smaller than they are drawn
SMALLEST_CROP = 0.4  # of the slice
COLOURS_ON_GREY = ("#56b4e9", "#e69f00", "#f0e442", "#cc79a7", "#00c896", "#ff6a4d", "#ffffff")  # bright relatives of Okabe and Ito's
RGB_CHANNELS = 3
OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}
PLANES = {"S": "axial", "I": "axial", "A": "coronal", "P": "coronal", "R": "sagittal", "L": "sagittal"}


@dataclass(frozen=True, kw_only=True)
class CasePicture:
    """What the page shows of one case for one purpose."""

    overlay: str | None = None  # data:image/png;base64,...
    saliency: str | None = None
    where: str = ""  # which slice
    text: str = ""  # for those who cannot see it
    notes: tuple[str, ...] = ()  # why something is missing


@dataclass(frozen=True, kw_only=True)
class LoadedCase:
    """Arrays of one case on one voxel grid."""

    image: np.ndarray  # (C, Z, Y, X)
    spacing: tuple[float, float, float]
    directions: tuple[str, str, str] | None  # where the axes Z, Y, X point to, as letters such as "P"; None: unknown
    reference: np.ndarray | None = None  # (Z, Y, X)
    prediction: np.ndarray | None = None
    is_colour: bool = False
    notes: tuple[str, ...] = field(default=())


def structure_colours(structures: Mapping[str, LabelOrRegion]) -> dict[str, str]:
    """Colour of the outline of each structure, seen on grey and told apart by colour-blind readers."""
    return {name: COLOURS_ON_GREY[index % len(COLOURS_ON_GREY)] for index, name in enumerate(structures)}


def load_case(files: CaseFiles, reader: Any, is_colour: bool = False) -> LoadedCase:
    """Read image and segmentations of a case.

    Args:
        files: Where they are.
        reader: Reads them.
        is_colour: Whether the channels are red, green and blue.

    Raises:
        RuntimeError, ValueError, OSError: If the image cannot be read; a segmentation that cannot is a note.
    """
    image, properties = reader.read_images(list(files.images))
    notes, segmentations = [], {}
    for name, file in (("reference", files.reference), ("prediction", files.prediction)):
        if file is None:
            notes.append(f"There is no {name} segmentation.")
            continue
        try:
            segmentation = np.rint(reader.read_seg(file)[0][0]).astype(np.int32)
        except (RuntimeError, ValueError, OSError) as error:
            notes.append(f"The {name} segmentation cannot be read: {error}")
            continue
        if segmentation.shape != image.shape[1:]:
            notes.append(f"The {name} segmentation lies on another voxel grid ({segmentation.shape}) than the image ({image.shape[1:]}).")
            continue
        segmentations[name] = segmentation
    return LoadedCase(
        image=image,
        spacing=tuple(float(s) for s in properties["spacing"]),
        directions=axis_directions(properties),
        is_colour=is_colour and len(image) == RGB_CHANNELS,
        notes=tuple(notes),
        **segmentations,
    )


def read_saliency(case: str, task: str, files: CaseFiles, reader: Any, shape: Sequence[int]) -> tuple[np.ndarray | None, str]:
    """The saliency map ``(Z, Y, X)`` of a case and task, or None and why there is none (empty: there is no file).

    Args:
        case: Identifier.
        task: Name.
        files: Folders to look into.
        reader: Of the images, which may turn axes; the map is turned likewise where this reader knows NIfTI at all.
        shape: Of the image that was read, ``(Z, Y, X)``.
    """
    file = next((f for folder in files.saliency_folders if (f := Path(folder) / f"{case}_{task}{SALIENCY_ENDING}").is_file()), None)
    if file is None:
        return None, ""
    try:
        map_reader = reader if SALIENCY_ENDING in reader.supported_file_endings else SimpleITKIO()
        saliency = map_reader.read_images([str(file)])[0][0]
    except (RuntimeError, ValueError, OSError) as error:
        return None, f"The saliency map cannot be read: {error}"
    if saliency.shape != tuple(shape):
        return None, f"The saliency map lies on another voxel grid ({saliency.shape}) than the image ({tuple(shape)})."
    return np.nan_to_num(saliency), ""


def axis_directions(properties: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """Where the axes Z, Y, X of a read image point to in the patient: R, L, A, P, S or I, the nearest of them.

    From the direction (SimpleITK, axes to left, posterior, superior) or the affine (nibabel, to right, anterior, superior); None for other
    readers and for 2D files.
    """
    geometry = properties.get("sitk_stuff")
    if geometry is not None:
        dimensions = len(geometry["spacing"])
        if dimensions < 3:
            return None
        columns = np.reshape(geometry["direction"], (dimensions, dimensions))[:3, :3]
        letters = ("RL", "AP", "IS")
    elif "nibabel_stuff" in properties:
        affines = properties["nibabel_stuff"]
        columns = np.asarray(affines.get("reoriented_affine", affines.get("original_affine")))[:3, :3]
        columns = columns / np.maximum(np.linalg.norm(columns, axis=0), 1e-12)
        letters = ("LR", "PA", "IS")
    else:
        return None
    # Column j is where file axis j points to; the array has the file's axes in reverse. Oblique axes must not share a letter.
    found: dict[int, str] = {}
    sizes = np.abs(columns).copy()
    for _ in range(3):
        row, column = np.unravel_index(int(sizes.argmax()), sizes.shape)
        found[int(column)] = letters[row][int(columns[row, column] > 0)]
        sizes[row, :] = sizes[:, column] = -1
    return found[2], found[1], found[0]


@dataclass(frozen=True, kw_only=True)
class View:
    """How slices are cut and turned."""

    axis: int  # across the slices
    transposed: bool  # whether rows and columns change places
    flips: tuple[bool, bool]  # of rows and of columns, after that
    letters: tuple[str, str] | None  # at the left and the upper edge
    plane: str  # axial, coronal, sagittal or empty
    aspect: float  # height of a voxel by its width

    def slice(self, volume: np.ndarray, index: int) -> np.ndarray:
        """Slice ``(rows, columns)`` of a volume ``(Z, Y, X)``."""
        plane = np.take(volume, index, axis=self.axis)
        plane = plane.T if self.transposed else plane
        return plane[tuple(slice(None, None, -1) if flip else slice(None) for flip in self.flips)]


def view_of(case: LoadedCase) -> View:
    """Slices along the axis with the coarsest spacing, else axial ones, turned as radiologists look at them."""
    spacing = np.asarray(case.spacing)
    axis = 0
    if spacing.max() > ANISOTROPIC * np.median(spacing):
        axis = int(spacing.argmax())
    elif case.directions is not None:
        axis = next(i for i, letter in enumerate(case.directions) if letter in "SI")
    rows, columns = (i for i in range(3) if i != axis)
    aspect = float(spacing[rows] / spacing[columns])
    if case.directions is None:
        return View(axis=axis, transposed=False, flips=(False, False), letters=None, plane="", aspect=aspect)
    # Down the rows: to the feet, or to the back where the slice has no head and foot. Along the columns: to the left, or to the back.
    order = {"S": 0, "I": 0, "A": 1, "P": 1, "R": 2, "L": 2}
    transposed = order[case.directions[rows]] > order[case.directions[columns]]
    if transposed:
        rows, columns, aspect = columns, rows, 1 / aspect
    flips = (case.directions[rows] not in "IP", case.directions[columns] not in "LP")
    ways = (case.directions[rows], case.directions[columns])
    down, right = (OPPOSITE[letter] if flip else letter for letter, flip in zip(ways, flips, strict=True))
    return View(
        axis=axis,
        transposed=transposed,
        flips=flips,
        letters=(OPPOSITE[right], OPPOSITE[down]),
        plane=PLANES[case.directions[axis]],
        aspect=aspect,
    )


def slice_to_show(case: LoadedCase, view: View, labels: Sequence[LabelOrRegion], *, of_disagreement: bool) -> int:
    """The slice in which reference and prediction differ most, or that holds most of the structures; the middle one without any.

    Args:
        case: Its segmentations.
        view: How slices are cut.
        labels: The structures that matter.
        of_disagreement: Which of the two is wanted.
    """
    across = tuple(i for i in range(3) if i != view.axis)
    masks = [
        [region_or_label_to_mask(segmentation, label) for label in labels]
        for segmentation in (case.reference, case.prediction)
        if segmentation is not None
    ]
    if of_disagreement and len(masks) == 2:
        differing = sum((a ^ b).sum(axis=across) for a, b in zip(*masks, strict=True))
        if np.any(differing):
            return int(np.argmax(differing))
    for structures in masks:  # the reference first
        area = sum(mask.sum(axis=across) for mask in structures)
        if np.any(area):
            return int(np.argmax(area))
    return case.image.shape[1 + view.axis] // 2


def draw_case(
    case: LoadedCase,
    structures: Mapping[str, LabelOrRegion],
    *,
    important: Sequence[LabelOrRegion] = (),
    of_disagreement: bool = False,
    saliency: np.ndarray | None = None,
) -> CasePicture:
    """The picture of a case.

    Args:
        case: Image and segmentations.
        structures: To outline, by name.
        important: Those that choose the slice; empty: all.
        of_disagreement: Show the slice in which reference and prediction differ most.
        saliency: ``(Z, Y, X)``, drawn beside the image.
    """
    view = view_of(case)
    index = slice_to_show(case, view, list(important) or list(structures.values()), of_disagreement=of_disagreement)
    pixels = _shown_pixels(case, view, index)
    outlines = {
        (name, source): region_or_label_to_mask(view.slice(segmentation, index), label)
        for source, segmentation in (("reference", case.reference), ("prediction", case.prediction))
        if segmentation is not None
        for name, label in structures.items()
    }
    window = _window(pixels.shape[:2], [mask for mask in outlines.values() if mask.any()])
    number = case.image.shape[1 + view.axis]
    where = f"{view.plane + ' ' if view.plane else ''}slice {index + 1} of {number}" if number > 1 else ""
    heat = (
        None if saliency is None else view.slice(saliency, index)[window] / max(float(np.percentile(saliency, BRIGHTEST_SALIENCY)), 1e-12)
    )
    cut = {key: mask[window] for key, mask in outlines.items() if mask.any()}
    return CasePicture(
        overlay=_render(pixels[window], view, cut, structure_colours(structures)),
        saliency=None if heat is None else _render(pixels[window], view, {}, {}, np.clip(heat, 0, 1)),
        where=where,
        text=_text(cut, where),
        notes=case.notes,
    )


def _text(outlines: Mapping[tuple[str, str], np.ndarray], where: str) -> str:
    """What there is to see."""
    named = {source: [name for name, of in outlines if of == source] for source in ("reference", "prediction")}
    parts = [f"{source} outlines: {', '.join(names) if names else 'none'}" for source, names in named.items()]
    return f"{'Image, ' + where if where else 'Image'}. {'; '.join(parts)}."


def _shown_pixels(case: LoadedCase, view: View, index: int) -> np.ndarray:
    """Grey values ``(rows, columns)`` from 0 to 1, or colours ``(rows, columns, 3)``."""
    channels = [view.slice(channel, index) for channel in (case.image[:RGB_CHANNELS] if case.is_colour else case.image[:1])]
    pixels = np.stack(channels, axis=-1) if case.is_colour else channels[0]
    finite = pixels[np.isfinite(pixels)]
    low, high = np.percentile(finite, SHOWN_INTENSITIES) if finite.size else (0, 1)
    return np.clip((np.nan_to_num(pixels) - low) / max(high - low, 1e-12), 0, 1)


def _window(shape: Sequence[int], masks: Sequence[np.ndarray]) -> tuple[slice, slice]:
    """The part of the slice around the structures; all of it where there are none."""
    if not masks:
        return slice(0, shape[0]), slice(0, shape[1])
    union = np.any(masks, axis=0)
    parts = []
    for size, inside in zip(shape, (union.any(axis=1), union.any(axis=0)), strict=True):
        first, last = np.flatnonzero(inside)[[0, -1]]
        extent = last + 1 - first
        half = max(extent / 2 + MARGIN * extent, SMALLEST_CROP * size / 2)
        centre = (first + last + 1) / 2
        parts.append(slice(max(0, int(np.floor(centre - half))), min(size, int(np.ceil(centre + half)))))
    return tuple(parts)


def _render(
    pixels: np.ndarray,
    view: View,
    outlines: Mapping[tuple[str, str], np.ndarray],
    colours: Mapping[str, str],
    heat: np.ndarray | None = None,
) -> str:
    """One picture as PNG in a data address: reference outlines solid, predicted ones dashed, heat over the image."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

    rows, columns = pixels.shape[:2]
    height_by_width = rows * view.aspect / columns
    width, height = (DOTS, DOTS * height_by_width) if height_by_width <= TALLEST else (DOTS * TALLEST / height_by_width, DOTS * TALLEST)
    figure = Figure(figsize=(max(width, 40) / 100, max(height, 40) / 100), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, aspect="auto", interpolation="bilinear")
    if heat is not None:
        axes.imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=0.75 * np.sqrt(heat), aspect="auto", interpolation="bilinear")
    for (name, source), mask in outlines.items():
        if min(mask.shape) < 2:
            continue
        style = (
            {"linewidths": 1.9, "linestyles": "solid"} if source == "reference" else {"linewidths": 1.9, "linestyles": [(0, (2.2, 1.6))]}
        )
        # A border of background, so that outlines close at the edge of the picture.
        closed = np.pad(mask.astype(float), 1)
        grid = np.arange(-1, columns + 1), np.arange(-1, rows + 1)
        before = len(axes.collections)
        axes.contour(*grid, closed, levels=[0.5], colors=[colours[name]], **style)
        for lines in axes.collections[before:]:  # before matplotlib 3.8 the contours themselves are no artist
            lines.set(path_effects=[withStroke(linewidth=3.4, foreground="#000000b0")])
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    if view.letters is not None:
        stroke = [withStroke(linewidth=2, foreground="black")]
        axes.text(
            0.01, 0.5, view.letters[0], transform=axes.transAxes, color="white", fontsize=LETTER_SIZE, va="center", path_effects=stroke
        )
        axes.text(
            0.5,
            0.99,
            view.letters[1],
            transform=axes.transAxes,
            color="white",
            fontsize=LETTER_SIZE,
            va="top",
            ha="center",
            path_effects=stroke,
        )
    return _png(figure)


def _png(figure: Any) -> str:
    """PNG with 256 colours, a third of the bytes; ``data:image/png;base64,...``."""
    from PIL import Image

    figure.canvas.draw()
    picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3]).quantize(256, dither=Image.Dither.NONE)
    stream = io.BytesIO()
    picture.save(stream, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
