"""The typed form of a configuration in a plans file, checked once where the file is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

_NUMBERS_PER_AXIS = ("patch_size", "spacing", "median_image_size_in_voxels")


@dataclass(frozen=True, kw_only=True)
class ConfigurationPlan:
    """One configuration of a plan, such as ``3d_fullres``, with inheritance resolved. None: not given."""

    patch_size: tuple[int, ...] | None = None  # voxels per axis after transposing; two entries for 2d
    spacing: tuple[float, ...] | None = None  # target voxel size in mm, same axis order
    median_image_size_in_voxels: tuple[float, ...] | None = None  # at that spacing
    batch_size: int | None = None  # samples per step over all GPUs
    extra: Mapping[str, Any] = field(default_factory=dict)  # all other keys, written back unchanged

    def __post_init__(self) -> None:
        problems = self._problems()
        if problems:
            raise ValueError("; ".join(problems))

    def _problems(self) -> list[str]:
        """What contradicts the format."""
        problems = []
        given = {name: getattr(self, name) for name in _NUMBERS_PER_AXIS if getattr(self, name) is not None}
        lengths = {len(values) for values in given.values()}
        if len(lengths) > 1 or lengths - {2, 3}:
            found = ", ".join(f"{name} {list(values)}" for name, values in given.items())
            problems.append(f"{found}: expected two entries each (2d) or three each (3d)")
        for name, values in given.items():
            if any(isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0 for value in values):
                problems.append(f"{name} is {list(values)}, expected positive numbers")
        if self.patch_size is not None and any(not float(size).is_integer() for size in self.patch_size if isinstance(size, float)):
            problems.append(f"patch_size is {list(self.patch_size)}, expected whole numbers of voxels")
        if self.batch_size is not None and (
            isinstance(self.batch_size, bool) or not isinstance(self.batch_size, int) or self.batch_size < 1
        ):
            problems.append(f"batch_size is {self.batch_size!r}, expected a whole number, 1 or more")
        channels = {
            key: len(self.extra[key])
            for key in ("normalization_schemes", "use_mask_for_norm")
            if isinstance(self.extra.get(key), (list, tuple))
        }
        if len(set(channels.values())) > 1:
            problems.append(f"{' and '.join(f'{key} has {n}' for key, n in channels.items())} entries, expected one for each channel")
        return problems

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ConfigurationPlan:
        """A configuration as it stands in the file.

        Raises:
            ValueError: With everything that is wrong.
        """
        known = {entry.name for entry in fields(cls)} - {"extra"}
        values = {key: value for key, value in content.items() if key in known}
        wrong = [
            f"{key} is {values[key]!r}, expected a list of numbers" for key in _NUMBERS_PER_AXIS if not _is_list_or_none(values.get(key))
        ]
        if wrong:
            raise ValueError("; ".join(wrong))
        for key in _NUMBERS_PER_AXIS:
            if values.get(key) is not None:
                values[key] = tuple(_plain(value) for value in values[key])
        if "batch_size" in values:
            values["batch_size"] = _plain(values["batch_size"])
        return cls(**values, extra={key: value for key, value in content.items() if key not in known})

    def to_dict(self) -> dict[str, Any]:
        """The content that ``from_dict`` reads."""
        known = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "extra"}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in known.items() if value is not None} | dict(
            self.extra
        )


def _is_list_or_none(value: Any) -> bool:
    """Whether a value is absent or a list, a tuple or an array."""
    return value is None or isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) == 1


def _plain(value: Any) -> Any:
    """Numpy numbers as Python numbers; plans made in memory may hold them."""
    return value.item() if hasattr(value, "item") else value
