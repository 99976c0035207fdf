"""A module that holds one known model: a backbone with a head of the user's, or in a class of the user's."""

from dataclasses import replace

from torch import nn

from lowrank_vit.architectures.base import FAMILIES, Branch, Family, Refusals, Sites, family_of
from lowrank_vit.architectures.origin import image_tower
from lowrank_vit.architectures.parts import UnknownWholeError
from lowrank_vit.architectures.step_inputs import Foreign
from lowrank_vit.records.sites import TableSite

DEPTH = 2  # dots in the name of a backbone at most


@FAMILIES.register("holder")
class Holder(Foreign):
    """Describe what the backbone's own family says of it, under the names that its parts have in the whole.

    ``name``: the backbone's, and ``family``: its own, both found by ``takes``.
    """

    about = "a backbone of these families inside another module"
    general = True
    name: str
    family: Family

    def takes(self, model: nn.Module) -> bool:
        """Tell whether the model holds one model of a known family, and no second one."""
        known = [FAMILIES.get(name)() for name in FAMILIES.names()]
        known, found = [family for family in known if not family.general], list[tuple[str, Family]]()
        for name, module in model.named_modules():
            if name and name.count(".") <= DEPTH and not any(name.startswith(f"{outer}.") for outer, _ in found):
                found += [(name, family) for family in known if family.takes(module)][:1]
        if len(found) == 1:
            self.name, self.family = found[0]
        return len(found) == 1

    def _backbone(self, model: nn.Module) -> nn.Module:
        return model.get_submodule(self.name)

    def steps(self, model: nn.Module) -> dict[str, nn.Module]:
        return {f"{self.name}.{name}": step for name, step in self.family.steps(self._backbone(model)).items()}

    def branches(self, step: nn.Module) -> tuple[Branch, ...]:
        return self.family.branches(step)

    def survey(self, model: nn.Module) -> tuple[Sites, Refusals]:
        return self.family.survey(model)

    def positions(self, model: nn.Module) -> TableSite | None:
        site = self.family.positions(self._backbone(model))
        if site is None:
            return None
        return replace(
            site, name=f"{self.name}.{site.name}", after=replace(site.after, name=f"{self.name}.{site.after.name}")
        )

    def token_blocks(self, model: nn.Module) -> list[str]:
        return [f"{self.name}.{name}" for name in self.family.token_blocks(self._backbone(model))]


def held(model: nn.Module) -> str:
    """Return the name of the backbone that is compressed inside a model; nothing for a model that is known itself."""
    if tower := image_tower(model):
        return tower
    try:
        family = family_of(model)
    except UnknownWholeError:
        return ""
    return family.name if isinstance(family, Holder) else ""
