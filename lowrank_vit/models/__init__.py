"""Models by name: timm's, and the small stand-ins that are trained on the digits at first use."""

from lowrank_vit.models.load import check_name, load_model, model_arguments, pretrained_classes
from lowrank_vit.models.standins import STANDINS, is_standin
from lowrank_vit.models.vmamba import VMAMBAS

__all__ = ["STANDINS", "VMAMBAS", "check_name", "is_standin", "load_model", "model_arguments", "pretrained_classes"]
