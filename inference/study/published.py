"""The papers' tables that can be trained here: whose row is which method with which settings, and what was printed.

Methods of others, and data that nobody can have (Mayo's of Chao et al.), are left out. Overlaps are in percent.
"""

from __future__ import annotations

from dataclasses import replace

from .paper import CAMUS, ECHONET, ED_AND_ES, EFFICIENCY, OVERALL, Paper, PublishedRow, PublishedTable


def _figures(names: str, *values: float) -> dict[str, float]:
    return dict(zip(names.split(), values, strict=True))


def _e3sam2(name: str, settings: str, *values: float, trainer: str = "E3SAM2SmallTrainer",
            names: str = "dice iou hd95 assd", sd: tuple[float, ...] = ()) -> PublishedRow:  # fmt: skip
    spread = dict(zip(names.split(), sd, strict=False))
    return PublishedRow(name, trainer, _figures(names, *values), tuple(settings.split()), sd=spread)


def _echoforge(name: str, settings: str, *values: float, names: str = "dice hd95 assd",
               phase: str = ED_AND_ES) -> PublishedRow:  # fmt: skip
    return PublishedRow(name, "EchoForgeTrainer", _figures(names, *values), tuple(settings.split()), phase=phase)


def _pkechonet(name: str, settings: str, *values: float, names: str = "dice hd95 assd",
               trainer: str = "PKEchoNetTrainer") -> PublishedRow:  # fmt: skip
    return PublishedRow(name, trainer, _figures(names, *values), tuple(settings.split()), phase=ED_AND_ES)


_NO_EDGES, _NO_ENTROPY = "edge_supervision=false", "entropy_regularisation=false"
_EF = "ef_r ef_bias ef_sd"
E3SAM2 = Paper(
    "Zheng et al., E3SAM2, AAAI 2026, doi:10.1609/aaai.v40i16.38346",
    (
        PublishedTable("1", "the methods", CAMUS, (
            _e3sam2("E3SAM2-Tiny", "", 93.40, 87.75, 3.71, 1.55, trainer="E3SAM2Trainer", sd=(2.95, 3.71, 1.53, 0.69)),
            _e3sam2("E3SAM2-Small", "", 93.42, 87.79, 3.70, 1.54, sd=(2.93, 3.70, 1.54, 0.65)),
        ), "its SDs of IoU are printed as the means of HD95, and Small's of HD95 as that of ASSD",
            empty_count=False),
        PublishedTable("1", "the methods", ECHONET, (
            _e3sam2("E3SAM2-Tiny", "", 92.36, 86.02, 6.20, 2.57, trainer="E3SAM2Trainer", sd=(3.73, 2.62, 1.13, 1.33)),
            _e3sam2("E3SAM2-Small", "", 92.41, 86.10, 6.13, 2.55, sd=(3.75, 2.55, 1.55, 1.11)),
        ), in_pixels=True, empty_count=False),
        PublishedTable("2", "ejection fraction", CAMUS, (
            _e3sam2("E3SAM2-Tiny", "", 79.55, 6.70, 10.88, names=_EF, trainer="E3SAM2Trainer"),
            _e3sam2("E3SAM2-Small", "", 81.16, 5.51, 11.48, names=_EF),
        ), ef_rule="camus"),
        PublishedTable("3", "parts", CAMUS, (
            _e3sam2("Baseline", f"attention=self {_NO_EDGES} {_NO_ENTROPY}", 93.24, 87.49, 3.84, 1.58),
            _e3sam2("Baseline + EGA", f"{_NO_EDGES} {_NO_ENTROPY}", 93.27, 87.53, 3.77, 1.57),
            _e3sam2("Baseline + EGA + EAS", _NO_ENTROPY, 93.34, 87.65, 3.71, 1.56),
            _e3sam2("Full model", "", 93.42, 87.79, 3.70, 1.54),
        ), "the baseline keeps the adapters, with plain attention: its figures are those of self-attention in table 4",
            empty_count=False),
        PublishedTable("4", "attention", CAMUS, (
            _e3sam2("Self-attention", f"attention=self {_NO_EDGES} {_NO_ENTROPY}", 93.24, 87.49, 3.84, 1.58),
            _e3sam2("Top-k", f"attention=topk {_NO_ENTROPY}", 93.33, 87.63, 3.72, 1.56),
            _e3sam2("Mask attention", f"attention=mask {_NO_ENTROPY}", 93.28, 87.56, 3.79, 1.57),
            _e3sam2("EGA", _NO_ENTROPY, 93.34, 87.66, 3.69, 1.55),
        ), "self-attention repeats table 3's baseline and EGA its row + EAS, so the other two are taken with EAS, too",
            empty_count=False),
        PublishedTable("5", "efficiency", CAMUS, (
            _e3sam2("E3SAM2-Tiny", "", 42, 19, 159, 78, names=" ".join(EFFICIENCY), trainer="E3SAM2Trainer"),
            _e3sam2("E3SAM2-Small", "", 49, 19, 190, 77, names=" ".join(EFFICIENCY)),
        )),
    ),
    (
        "In the authors' code every test clip begins with a point from its own ground truth in the first frame.",
        "There the memory is never reset: what was kept of earlier clips, and of the training, is read in the test.",
        "The epoch is chosen by validation Dice; the threshold is 0.6. Empty masks are left out of the distances.",
    ),
)  # fmt: skip

ECHOFORGE = Paper(
    "Fang et al., EchoForge (paper and README; no code is public)",
    (
        PublishedTable("1", "the method", CAMUS, (
            _echoforge("EchoForge", "", 94.89, 3.12, 1.18, 91.3, 0.23, names="dice hd95 assd ef_r ef_bias"),
            _echoforge("EchoForge (Full)", "", 94.36, 3.26, 1.22, phase=OVERALL),
        )),
        PublishedTable("1", "the method", ECHONET, (
            _echoforge("EchoForge", "", 93.63, 3.05, 1.02, 88.7, -0.51, names="dice hd95 assd ef_r ef_bias"),
        ), in_pixels=True),
        PublishedTable("2", "efficiency", CAMUS, (
            _echoforge("EchoForge", "", 67, 125, 46, names="parameters gmac frames_per_second"),
        )),
        PublishedTable("3", "parts", CAMUS, (
            _echoforge("I", "temporal_fusion=false anchor_recalibration=false reforging=false", 88.52, 6.32, 2.15),
            _echoforge("II, TSF", "anchor_recalibration=false reforging=false", 92.36, 4.02, 1.60),
            _echoforge("III, TSF, ARC", "reforging=false", 93.43, 3.38, 1.34),
            _echoforge("IV, TSF, ARC, CPR", "", 94.89, 3.12, 1.18),
        )),
        PublishedTable("4", "anchors", CAMUS, tuple(
            _echoforge(str(anchors), "" if anchors == 2 else f"anchors={anchors}", *values,
                       names="dice hd95 ef_r frames_per_second")
            for anchors, values in enumerate(((94.52, 3.20, 90.59, 92), (94.89, 3.12, 91.25, 46),
                                              (94.96, 3.10, 91.34, 35), (94.91, 3.11, 91.28, 23)), start=1)
        )),
        PublishedTable("5", "reforging", CAMUS, (
            _echoforge("Baseline, no CPR", "reforging=false", 93.43, 3.38, 87.15, 62,
                       names="dice hd95 ef_r frames_per_second"),
            _echoforge("with channel attention", "flame_rise=false", 94.54, 3.19, 90.63, 54,
                       names="dice hd95 ef_r frames_per_second"),
            _echoforge("with channel attention, FlameRise", "", 94.89, 3.12, 91.25, 46,
                       names="dice hd95 ef_r frames_per_second"),
        )),
    ),
    ("CAMUS-Semi is judged in end-diastole and end-systole alone, which is where labels are in training.",),
    (
        "The paper does not say by which rule EF is measured: Simpson's here.",
        "mHD is taken as HD95, for its row of PKEcho-Net has that paper's HD95.",
        "The paper's figure draws what its text does not say; for that add --set pseudo_labels=previous_epoch --set "
        "mask_head=product --set shared_self_attention=true --set fusion_layers=1 --set queries=8.",
    ),
)  # fmt: skip

_BACKBONES = (
    ("ResNet-18", "PKEchoNetR18Trainer"),
    ("ResNet-34", "PKEchoNetR34Trainer"),
    ("ResNet-50", "PKEchoNetTrainer"),
)
_BARE = "region_proxy=false stages=0"
PKECHONET = Paper(
    "Wu et al., PKEcho-Net, Super-efficient Echocardiography Video Segmentation, AAAI 2023",
    (
        PublishedTable("1", "the methods", CAMUS, tuple(
            _pkechonet(name, "", *values, names=f"dice hd95 assd {_EF}", trainer=trainer)
            for (name, trainer), values in zip(_BACKBONES, (
                (93.7, 3.6, 1.2, 87.5, -0.7, 7.4), (93.9, 3.5, 1.2, 86.0, -0.6, 8.0), (94.2, 3.4, 1.1, 89.9, -0.3, 6.7),
            ), strict=True)
        ), ef_rule="camus"),
        PublishedTable("1", "the methods", ECHONET, tuple(
            _pkechonet(name, "", *values, names=f"dice hd95 assd {_EF}", trainer=trainer)
            for (name, trainer), values in zip(_BACKBONES, (
                (92.7, 3.1, 1.1, 84.2, -1.8, 8.3), (92.8, 3.1, 1.1, 85.3, -0.8, 8.0), (93.1, 3.1, 1.1, 87.4, -1.6, 7.4),
            ), strict=True)
        ), in_pixels=True, ef_rule="folland"),
        PublishedTable("2", "efficiency", CAMUS, tuple(
            _pkechonet(name, "", *values, names="gmac parameters frames_per_second", trainer=trainer)
            for (name, trainer), values in zip(_BACKBONES, ((42, 11.7, 428), (80, 21.8, 312), (109, 25.7, 258)),
                                               strict=True)
        )),
        PublishedTable("3", "region proxy", CAMUS, (
            _pkechonet("ResNet-50", _BARE, 92.3, 4.5, 1.6),
            _pkechonet("ResNet-50 + VRP", "proxy_interval=4 stages=0", 92.7, 4.3, 1.4),
            _pkechonet("ResNet-50 + MRP, interval 3", "proxy_interval=3 stages=0", 93.1, 4.1, 1.2),
            _pkechonet("ResNet-50 + MRP, interval 2", "proxy_interval=2 stages=0", 93.3, 3.9, 1.3),
            _pkechonet("ResNet-50 + MRP, interval 1", "stages=0", 93.5, 3.7, 1.3),
        ), "the intervals are taken from the text: the fewer layers between, the better"),
        PublishedTable("4", "kernels", CAMUS, (
            _pkechonet("ResNet-50", _BARE, 92.3, 4.5, 1.6),
            _pkechonet("ResNet-50 + KSS, neither", "region_proxy=false kernel_update=gating temporal_attention=false",
                       92.8, 4.2, 1.4),
            _pkechonet("ResNet-50 + KSS, H.A.", "region_proxy=false temporal_attention=false", 93.2, 3.9, 1.3),
            _pkechonet("ResNet-50 + KSS, H.A., T.A.", "region_proxy=false", 93.6, 3.6, 1.2),
        ), "which of both attentions the third row has is taken from the order of the columns"),
        PublishedTable("5", "iterations", CAMUS, tuple(
            _pkechonet(str(stages), "" if stages == 3 else f"stages={stages}", *values) for stages, values in
            enumerate(((93.7, 3.6, 1.2), (94.0, 3.5, 1.2), (94.2, 3.4, 1.1), (93.9, 3.5, 1.2)), start=1)
        )),
    ),
    ("In the authors' module the kernels of a clip attend to the other clips of its batch, also in the test.",),
    (
        "The authors' module has what the paper does not say, or EchoPlan does another way; for that add --set "
        "cross_video=train --set grouping=sum --set position=kernels --set kernel_bias=true.",
    ),
)  # fmt: skip


_PLACES = {"EchoNet": (ECHONET, ""), "A2C": (CAMUS, "A2C"), "A4C": (CAMUS, "A4C")}
_RECT = "boxes=bounding_rect"
_SAM112 = PublishedRow("SAM112, fine-tuned", "SAMTrainer", {}, ("training_boxes=truth", _RECT), boxes=True)
_SAM1024 = PublishedRow("SAM1024, fine-tuned", "SAM1024Trainer", {}, (_RECT,), boxes=True)
_MEDSAM = PublishedRow("MedSAM, fine-tuned", "MedSAM1024Trainer", {}, (_RECT,), boxes=True)
_METHODS = (
    _SAM112,
    PublishedRow("SAM, zero-shot", "SAMTrainer", {}, (_RECT,), untrained=True, boxes=True),
    PublishedRow("MedSAM, zero-shot", "MedSAMTrainer", {}, (_RECT,), untrained=True, boxes=True),
    PublishedRow("EchoNet", "EchoNetTrainer", {}),
    PublishedRow("U-Net", "ResUNetTrainer", {}),
)


def _by_place(figures: str, methods: tuple[PublishedRow, ...], text: str) -> tuple[PublishedRow, ...]:
    """The rows of a table of two lines each, "place phase figures-of-the-first-method ..." and the SDs of all figures;
    a row a place, phase and method.
    """
    names, rows = figures.split(), []
    lines = [line.split() for line in text.strip().splitlines()]
    for (place, phase, *means), spreads in zip(lines[::2], lines[1::2], strict=True):
        dataset, view = _PLACES[place]
        for method, first in zip(methods, range(0, len(means), len(names)), strict=True):
            published, sd = (_in_percent(names, numbers[first:]) for numbers in (means, spreads))
            about = replace(method, name=f"{place} {phase}: {method.name}", published=published, sd=sd)
            rows.append(replace(about, tested_on=dataset, view=view, phase=phase))
    return tuple(rows)


def _in_percent(names: list[str], numbers: list[str]) -> dict[str, float]:
    """Figures by name, overlaps in percent, without those that are "-"."""
    values = {name: float(value) for name, value in zip(names, numbers, strict=False) if value != "-"}
    return {name: round(100 * value, 4) if name in ("dice", "iou") else value for name, value in values.items()}


SAM_ECHO = Paper(
    "Chao et al., Foundation versus domain-specific models for left ventricular segmentation on cardiac ultrasound, "
    "npj Digital Medicine 2025",
    (
        PublishedTable("1", "Dice and IoU", ECHONET, _by_place("dice iou", _METHODS, """
            EchoNet ed_es        .911 .840  .863 .763  .872 .777  .915 .847  .640 .488
                                 .045 .071  .053 .077  .056 .083  .047 .072  .151 .157
            EchoNet end_diastole .929 .868  .878 .784  .893 .809  .903 .826  .675 .524
                                 .030 .050  .040 .062  .040 .062  .052 .078  .134 .148
            EchoNet end_systole  .894 .812  .849 .742  .850 .744  .928 .868  .606 .453
                                 .050 .077  .060 .084  .061 .088  .038 .059  .160 .159
            A2C     ed_es        .891 .805  .852 .745  .857 .754  .752 .633  .460 .311
                                 .040 .062  .048 .069  .057 .081  .196 .196  .154 .130
            A2C     end_diastole .897 .815  .860 .756  .877 .783  .754 .635  .458 .307
                                 .037 .059  .042 .062  .040 .060  .196 .197  .135 .116
            A2C     end_systole  .885 .795  .845 .734  .838 .725  .751 .632  .461 .315
                                 .041 .064  .052 .073  .065 .088  .196 .196  .172 .144
            A4C     ed_es        .897 .815  .866 .766  .877 .784  .850 .749  .418 .277
                                 .036 .058  .039 .059  .044 .066  .097 .117  .159 .128
            A4C     end_diastole .904 .827  .873 .776  .890 .804  .850 .749  .428 .282
                                 .033 .054  .037 .056  .035 .055  .098 .119  .139 .114
            A4C     end_systole  .889 .803  .860 .756  .864 .763  .850 .749  .409 .272
                                 .038 .060  .041 .061  .048 .070  .096 .115  .176 .140
        """), in_pixels=True),
        PublishedTable("2", "distances", ECHONET, _by_place("hd assd", _METHODS, """
            EchoNet ed_es        4.408 .156  7.780 .350  6.381 .286  9.196 .753  13.596 1.785
                                 1.999 .133  3.155 .211  2.143 .181  2.929 .371  6.131 1.429
            EchoNet end_diastole 4.425 .123  8.320 .338  6.490 .240  9.715 .860  14.060 1.668
                                 2.066 .098  3.274 .202  2.272 .150  2.966 .395  6.637 1.340
            EchoNet end_systole  4.390 .188  7.239 .361  6.271 .331  8.678 .646  13.132 1.903
                                 1.931 .154  2.935 .219  2.000 .198  2.799 .309  5.543 1.505
            A2C     ed_es        5.624 .237  5.842 .257  5.169 .220  6.962 .469  18.709 3.277
                                 2.121 .147  2.081 .154  2.354 .214  3.951 .482  7.665 2.000
            A2C     end_diastole 6.120 .236  6.302 .252  5.294 .193  6.653 .384  20.610 3.412
                                 2.198 .155  2.071 .131  2.365 .155  3.676 .294  8.075 1.907
            A2C     end_systole  5.129 .237  5.382 .262  5.043 .248  7.270 .555  16.808 3.142
                                 1.920 .139  1.990 .173  2.339 .257  4.190 .603  6.720 2.081
            A4C     ed_es        5.001 .205  5.601 .230  4.826 .176  5.763 .370  19.748 3.717
                                 1.728 .117  1.926 .124  2.515 .173  2.519 .267  7.868 1.938
            A4C     end_diastole 5.367 -  6.085 -  5.223 -  5.838 -  21.822 -
                                 1.850 -  1.919 -  2.895 -  2.523 -  8.322 -
            A4C     end_systole  4.635 -  5.118 -  4.428 -  5.687 -  17.674 -
                                 1.512 -  1.809 -  1.990 -  2.515 -  6.787 -
        """), "the ASD of A4C at end-diastole and end-systole is printed as its neighbours' HD, and left out",
            in_pixels=True),
        PublishedTable("4", "SAM and MedSAM, fine-tuned alike", ECHONET, _by_place(
            "dice iou assd hd", (_SAM1024, _MEDSAM), """
            EchoNet ed_es        .935 .879 .089 3.041  .936 .881 .087 3.016
                                 .031 .051 .071 1.158  .030 .050 .061 1.105
            EchoNet end_diastole .946 .898 .074 3.084  .947 .900 .071 3.046
                                 .021 .036 .044 1.105  .020 .035 .042 1.095
            EchoNet end_systole  .924 .861 .104 2.998  .924 .861 .103 2.986
                                 .035 .057 .088 1.206  .034 .055 .072 1.115
            A2C     ed_es        .845 .736 .392 6.727  .872 .777 .288 5.758
                                 .063 .088 .320 2.983  .062 .085 .309 2.927
            A2C     end_diastole .861 .760 .364 7.008  .886 .798 .259 6.032
                                 .050 .075 .284 3.036  .043 .066 .228 3.035
            A2C     end_systole  .828 .712 .420 6.446  .857 .756 .316 5.484
                                 .070 .094 .351 2.905  .073 .096 .371 2.791
            A4C     ed_es        .861 .759 .323 6.075  .880 .790 .255 5.419
                                 .051 .075 .261 2.812  .047 .072 .239 2.807
            A4C     end_diastole .869 .772 .336 6.709  .888 .801 .260 5.862
                                 .049 .073 .300 3.184  .045 .069 .271 3.196
            A4C     end_systole  .853 .747 .311 5.440  .873 .778 .250 4.975
                                 .051 .075 .215 2.211  .049 .073 .202 2.272
        """), in_pixels=True),
    ),
    (
        "SAM and MedSAM are given the box of the ground truth in every frame that they are judged in, so their figures "
        "are not those of an automatic method; EchoNet and U-Net find the ventricle themselves.",
        "MedSAM was trained on CAMUS.",
    ),
    ("The datasets of Mayo Clinic (TTE and POCUS) are not public.",),
)  # fmt: skip

_OWN = ("generic", "auto", "tiny")  # what the trainer does anyway
SAM2_ULTRASOUND = Paper(
    "Yao et al., Towards Better Ultrasound Video Segmentation Foundation Model, arXiv 2511.05731 (its abstract)",
    tuple(
        PublishedTable(number, title, dataset, tuple(
            PublishedRow(f"{name} {value}", "SAM2Trainer", {}, () if value in _OWN else (f"{key}={value}",))
            for value in values
        ), "what the abstract says was varied")
        for dataset in (CAMUS, ECHONET)
        for number, title, name, key, values in (
            ("augmentation", "generic and ultrasound augmentation", "augmentation", "augmentation",
             ("none", "generic", "ultrasound")),
            ("prompts", "how a clip begins", "prompt", "prompt", ("auto", "point", "box", "mask", "none")),
            ("variants", "sizes of SAM2", "variant", "variant", ("tiny", "small", "base_plus", "large")),
        )
    ),
    (),
    ("Its training sizes and clip lengths are `echoplan_study -tr SAM2Trainer --train_sizes 10 50 100% --clip_lengths "
     "2 5 10`, its joint training -d A+B.",),
)  # fmt: skip

PAPERS = {
    "e3sam2": E3SAM2,
    "echoforge": ECHOFORGE,
    "pkechonet": PKECHONET,
    "sam_echo": SAM_ECHO,
    "sam2_ultrasound": SAM2_ULTRASOUND,
}
