"""What a benchmark reports."""

from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Comparison:
    """Ours beside a peer's; what was measured in the same turn has the same position."""

    what: str
    peer: str
    ours: list[float]
    theirs: list[float]
    better: str  # "lower" or "higher"
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        """Ours by theirs, one a turn."""
        return [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    def cells(self) -> list[str]:
        """A row of the table."""
        ratios = self.ratios
        spread = f"{min(ratios):.2f} - {max(ratios):.2f}" if len(ratios) > 1 else ""
        note = f"theirs: {self.peer}\n{self.note}".strip()
        medians = f"{median(self.ours):.3g}", f"{median(self.theirs):.3g}", f"{median(ratios):.2f}"
        return [self.what, *medians, spread, self.better, note]
