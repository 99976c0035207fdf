"""Hold what the papers of table_rivals have printed."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.tables.architectures import DEIT_B, DEIT_T, Architecture
from experiments.tables.rows import Reported


@dataclass(frozen=True)
class Printed:
    """Hold a printed number: method, parameters, top-1, its paper, protocol, epochs and teacher, and a remark."""

    method: str
    params: str
    top1: float
    paper: str
    protocol: str
    epochs: str
    teacher: str = "none"
    note: str = ""

    def row(self, model: Architecture) -> Reported:
        """Return the row of the table."""
        name = "-".join([*self.method.lower().split(), self.params.split()[0].lower()])
        notes = "; ".join(filter(None, (f"epochs: {self.epochs}; teacher: {self.teacher}", self.note)))
        return Reported(
            f"{model.id}/printed-{name}",
            model.label,
            self.method,
            self.params,
            self.top1,
            self.paper,
            self.protocol,
            notes,
        )


FLAR = "the table of FLAR-SVD's repository (Thoma et al. 2025)"
FREE = ("training-free", "0")
AAFM = ("Yu and Wu 2023", "calibration-distilled", "not found", "the dense model's features, some 2000 images")
AZIZI = "Yu and Wu 2023, as quoted in Azizi et al. 2024, Table 2"
S2VITE = ("Chen et al. 2021", "full-ft", "600, from scratch")
CORP = "CORP's repository (2602.05243)"
SSP = ("Chen et al. 2021, as quoted in SAViT", "full-ft", "not found")
DOUBTED = "its row prints the same 58.2M for MLPs alone and for both: at least one is wrong (both would be 51.2M)"
KEPT = "attention outputs and biases uncounted as pruned: {} if what is pruned is physically removed"
PRINTED = {
    DEIT_B.id: (
        Printed("SVD", "44.1M (-49%)", 61.0, FLAR, *FREE),
        Printed("SVD-LLM", "44.1M (-49%)", 70.4, FLAR, *FREE),
        Printed("ASVD", "43.9M (-49%)", 71.8, FLAR, *FREE),
        Printed("FWSVD + search", "44.0M (-49%)", 73.6, FLAR, *FREE),
        Printed("FLAR-SVD", "43.7M (-50%)", 78.4, FLAR, *FREE),
        Printed("CORP", "58.2M (-33%)", 72.0, CORP, *FREE, note=DOUBTED),
        Printed("AAFM + GFM", "58.0M (-33%)", 81.57, *AAFM),
        Printed("AAFM + GFM", "51.9M (-40%)", 81.28, AZIZI, *AAFM[1:]),
        Printed("COMCAT", "33.8M (-61%)", 82.28, "Xiao et al. 2023, released models", "full-ft+kd", "330", "the dense model"),
        Printed("S2ViTE", "56.8M (-34%)", 82.22, *S2VITE, note=KEPT.format("54.5M")),
        Printed("SSP", "56.8M (-34%)", 80.80, *SSP, note="training follows the pruning"),
        Printed("VTP", "67.3M (-22%)", 81.3, "Zhu et al. 2021", "full-ft", "100 with gates, then 100"),
        Printed("VTP", "48.0M (-45%)", 80.7, "Zhu et al. 2021", "full-ft", "100 with gates, then 100"),
    ),
    DEIT_T.id: (
        Printed("CORP", "3.9M (-32%)", 55.4, CORP, *FREE, note="MLPs alone, of 72.0 dense"),
        Printed("CORP", "3.5M (-39%)", 41.4, CORP, *FREE, note="of 72.0 dense"),
        Printed("S2ViTE", "4.2M (-27%)", 70.12, *S2VITE),
        Printed("SSP", "4.2M (-27%)", 68.59, *SSP, note="training follows the pruning"),
    ),
}  # fmt: skip
