"""Name the recipes, each with a line about it, for what lists or refuses a name: PyTorch is not needed to know these.

What each is made of is in ``recipes.py``, ``rivals.py`` and ``full_forms.py``.
"""

from __future__ import annotations

RECIPES = {
    "svd": "plain SVD of the weight, the same share of every layer",
    "fwsvd": "SVD with rows weighted by the diagonal Fisher (Hsu et al.)",
    "asvd": "SVD of the weight scaled by input magnitudes (Yuan et al.)",
    "svd_llm": "whitened SVD, the same share of every layer (Wang et al.)",
    "afm_energy": "PCA of the output, ranks by its energy, where Yu and Wu take a measured sensitivity (aafm)",
    "paper": "the paper as written: SVD on the mean image, Algorithm 1, low-rank Z by minibatches (Azizi et al.)",
    "paper_charitable": "the paper read charitably: all tokens of all images in place of the mean image, "
    "Algorithm 1, low-rank Z",
    "exact": "the exact minimiser of the mean squared error of outputs: whitened, centred, ranks by an exact knapsack",
    "exact_normalised": "exact, with the error of each image divided by its energy, as the paper's (3) has it",
    "loss_aware": "weighted by the loss's Fisher on the output side, ranks by predicted loss over the whole model",
    "best": "attention by head, MLP by interpolation, scans left out, others two-sided, one budget of predicted loss",
    # of others, in the form that needs calibration images alone
    "aafm": "PCA of the output, ranks by a measured sensitivity (Yu and Wu); that it is the KL is our reading",
    "flar": "whitened SVD, ranks of equal measured feature error, without the latency model (FLAR-SVD, Thoma et al.)",
    "fwsvd_search": "fwsvd with ranks by one threshold on the measured sensitivity of each layer, as ASVD searches them",
    "comcat0": "plain SVD of head products and of the MLPs' layers, ranks by measured KL: where COMCAT begins (Xiao et al.)",
    "comcat_search": "plain SVD of head products and of the MLPs' layers, ranks learnt by gates: before COMCAT's training",
    "comcat": "plain SVD of head products and of MLPs' layers, ranks learnt by gates, to be trained further (Xiao et al.)",
    "ssp": "one-shot salience pruning of heads and hidden units, S2ViTE's baseline (Chen et al.)",
    "vtp-taylor": "values' dimensions and hidden units by first-order scores of VTP's gates, untrained (Zhu et al.)",
    "vbp": "hidden units of least variance removed, their mean into the bias: VBP before its distillation",
    "corp": "the most active dimensions of queries, keys and hidden units, the rest predicted by ridge regression (CORP)",
    "wd-depth": "the last blocks left out, the classifier refitted to the dense one: WDPruning's depth in closed form",
    "losparse0": "plain SVD at one small rank, and rows beside it by one threshold on their slopes: LoSparse, untrained",
    "vtp-gates": "VTP's gates on modules' inputs, values' dimensions and hidden units, trained alone (Zhu et al.)",
    "wdp-gates": "WDPruning's scores and thresholds of heads, hidden units and outputs, trained alone (Yu et al.)",
    "spvit-he-gates": "SPViT's gates of hidden units, drawn and pulled towards multiply-accumulates, "
    "trained alone (He et al.)",
}
FULL_FORMS = {  # gates and weights trained on labelled images
    "vtp": "VTP's gates a1 to a4, trained with the weights on labelled images (Zhu et al.)",
    "wdpruning": "WDPruning's width, trained with the weights on labelled images (Yu et al.)",
    "spvit-he": "hidden units, and attention or a convolution, by gates trained with the weights "
    "on labelled images (He et al.)",
    "s2vite": "heads and hidden units that drop and grow while the model is trained on labelled images (S2ViTE, Chen et al.)",
    "losparse": "a low-rank part and rows beside it, both trained on labelled images while rows go (LoSparse, Li et al.)",
}
ABOUT = RECIPES | FULL_FORMS
